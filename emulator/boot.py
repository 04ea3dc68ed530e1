"""What a PC starts Linux from without BIOS, disk or boot loader: images of its memory and ROM.

Bochs copies files into the guest's memory before the processor's first instruction. So the kernel
and its initramfs lie there as they are, and the ROM has nothing to load: it enters protected mode
and jumps, by the kernel's 32-bit boot protocol. Knows no file of the guest.
"""

import struct

MIB = 1 << 20
PARAMETERS_AT = 8 * MIB
KERNEL_AT = 16 * MIB
INITRAMFS_AT = 160 * MIB  # behind whatever the kernel unpacks itself to
LOW_MEMORY_BYTES = 0x9FC00

ROM_BYTES = 1 << 16
ROM_AT = (1 << 32) - ROM_BYTES
DESCRIPTORS_OFFSET = 0x100
RESET_OFFSET = 0xFFF0  # where the processor starts, in 16-bit mode
CODE, DATA = 0x10, 0x18  # the selectors that the protocol demands

COMMAND_LINE_OFFSET = 4096  # the command line lies behind the page of parameters


def rom():
    """The ROM that starts the kernel at KERNEL_AT with the parameters at PARAMETERS_AT."""
    flat_code, flat_data = 0x00CF9A000000FFFF, 0x00CF92000000FFFF
    descriptors = struct.pack("<4Q", 0, 0, flat_code, flat_data)
    table = struct.pack("<HI", len(descriptors) - 1, ROM_AT + DESCRIPTORS_OFFSET)
    real_mode = [
        b"\xfa",  # cli
        b"\xb0\x02\xe6\x92",  # mov al, 2; out 0x92, al: address line 20
        b"\x2e\x66\x0f\x01\x16" + struct.pack("<H", DESCRIPTORS_OFFSET - len(table)),  # lgdt
        b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0",  # mov eax, cr0; or al, 1; mov cr0, eax
    ]
    jump_bytes = 8
    protected_at = ROM_AT + len(b"".join(real_mode)) + jump_bytes
    jump = b"\x66\xea" + struct.pack("<IH", protected_at, CODE)  # jmp CODE:protected_at
    protected_mode = [
        b"\xb8" + struct.pack("<I", DATA) + b"\x8e\xd8\x8e\xc0\x8e\xd0",  # mov ds, es, ss
        b"\xbe" + struct.pack("<I", PARAMETERS_AT),  # mov esi, PARAMETERS_AT
        b"\x31\xed\x31\xff\x31\xdb",  # xor ebp, ebp; xor edi, edi; xor ebx, ebx
        b"\xb8" + struct.pack("<I", KERNEL_AT) + b"\xff\xe0",  # mov eax, KERNEL_AT; jmp eax
    ]
    image = bytearray(ROM_BYTES)

    def put(offset, data):
        image[offset : offset + len(data)] = data

    put(0, b"".join([*real_mode, jump, *protected_mode]))
    put(DESCRIPTORS_OFFSET - len(table), table + descriptors)
    put(RESET_OFFSET, b"\xe9" + struct.pack("<H", -(RESET_OFFSET + 3) & 0xFFFF))  # jmp 0
    return bytes(image)


def kernel_image(vmlinuz):
    """The part of a bzImage that runs in protected mode: what lies at KERNEL_AT."""
    setup_sectors = vmlinuz[0x1F1] or 4
    return vmlinuz[(setup_sectors + 1) * 512 :]


def parameters(vmlinuz, command_line, initramfs_bytes, memory_mib):
    """The kernel's boot_params and its command line: what lies at PARAMETERS_AT.

    Raises:
        ValueError: the file is no Linux kernel of boot protocol 2.06 or later.
    """
    if vmlinuz[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", vmlinuz, 0x206)[0] < 0x206:
        raise ValueError("the kernel's file is not a bzImage of boot protocol 2.06 or later")
    page = bytearray(COMMAND_LINE_OFFSET)
    header_end = 0x202 + vmlinuz[0x201]
    page[0x1F1:header_end] = vmlinuz[0x1F1:header_end]
    page[0x210] = 0xFF  # type_of_loader: none of the list
    page[0x211] |= 1  # loadflags: the kernel lies above 1 MiB
    struct.pack_into("<I", page, 0x214, KERNEL_AT)
    struct.pack_into("<II", page, 0x218, INITRAMFS_AT, initramfs_bytes)
    struct.pack_into("<I", page, 0x228, PARAMETERS_AT + COMMAND_LINE_OFFSET)
    usable = [(0, LOW_MEMORY_BYTES), (MIB, (memory_mib - 1) * MIB)]
    page[0x1E8] = len(usable)
    for i, (start, size) in enumerate(usable):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * i, start, size, 1)
    return bytes(page) + command_line.encode() + b"\0"
