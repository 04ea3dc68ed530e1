"""One emulated machine: its configuration, its process, its console.

Knows no test: it runs whatever the initramfs starts, and tells how that ended.
"""

import os
import re
import shutil
import subprocess
import time

import boot

MEMORY_MIB = 896  # beside the initramfs, which is there twice while it is unpacked
MAX_MEMORY_MIB = 3072  # above it a PC has a hole
INSTRUCTIONS_PER_S = 2_200_000_000  # of the guest's clock: as its CPUID says; not of this machine's
COMMAND_LINE = (
    "console=ttyS0 rdinit=/init rootfstype=ramfs quiet loglevel=2 panic=-1 "
    "acpi=off no5lvl nokaslr mitigations=off "
    "tsc=reliable lpj=4400000 audit=0 apparmor=0 random.trust_cpu=1"
)
# IA32_MISC_ENABLE with fast string operations on: without them Linux 6.1 copies past its buffers,
# because the emulated CPUID says FSRM all the same.
MSRS = "0x1a0 0 00000000 00000001 00000000 00000000 ffffffff ffffffff\n"
CONFIGURATION = """\
config_interface: textconfig
display_library: nogui
memory: guest={memory}, host={memory}
romimage: file=rom, address={rom_at:#x}
vgaromimage: file=no_vga_bios
cpu: model=sapphire_rapids, ips={ips}, reset_on_triple_fault=0, ignore_bad_msrs=1, msrs=msrs
clock: sync=none, time0=utc
optramimage1: file=parameters, address={parameters_at:#x}
optramimage2: file=kernel, address={kernel_at:#x}
optramimage3: file=initramfs, address={initramfs_at:#x}
com1: enabled=1, mode=file, dev=console
log: log
panic: action=fatal
error: action=ignore
info: action=ignore
"""
END = re.compile(r"^emulator: exit (-?\d+)\s*$", re.M)
DEATHS = ("Kernel panic", "Initramfs unpacking failed", "Oops:", "general protection fault:")
POLL_S = 0.5


LARGE_FILES = ("initramfs", "kernel")  # of no use once the machine has ended


class GuestError(Exception):
    """The guest did not reach its end: one line that says how it stopped."""


def write_files(folder, vmlinuz, initramfs):
    """Writes everything a Bochs process needs into `folder`, its working directory.

    Args:
        vmlinuz: bytes of a Linux kernel.
        initramfs: list of paths of archives, which the kernel unpacks one after the other.
    """
    with open(folder / "initramfs", "wb") as output:
        for part in initramfs:
            with open(part, "rb") as source:
                shutil.copyfileobj(source, output)
        size = output.tell()
    memory = MEMORY_MIB + 2 * (size // boot.MIB)
    if memory > MAX_MEMORY_MIB:
        raise GuestError(f"an initramfs of {size // boot.MIB} MiB does not fit into the guest")
    parameters = boot.parameters(vmlinuz, COMMAND_LINE, size, memory)
    (folder / "parameters").write_bytes(parameters)
    (folder / "kernel").write_bytes(boot.kernel_image(vmlinuz))
    (folder / "rom").write_bytes(boot.rom())
    (folder / "no_vga_bios").write_bytes(bytes(512))
    (folder / "msrs").write_text(MSRS)
    text = CONFIGURATION.format(
        memory=memory,
        ips=INSTRUCTIONS_PER_S,
        rom_at=boot.ROM_AT,
        parameters_at=boot.PARAMETERS_AT,
        kernel_at=boot.KERNEL_AT,
        initramfs_at=boot.INITRAMFS_AT,
    )
    (folder / "bochsrc").write_text(text)


def run(bochs, folder, limit_s, report):
    """Runs the machine of `folder` until its command ends.

    Args:
        report: called with every complete line of the guest's console.

    Returns:
        The exit status of the guest's command.

    Raises:
        GuestError: the guest panicked, stopped or ran past the limit, or Bochs gave up.
    """
    end = time.monotonic() + limit_s
    with open(folder / "output", "wb") as output:
        process = subprocess.Popen(
            [bochs, "-q", "-f", "bochsrc"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "BXSHARE": str(folder)},
        )
    console = Console(folder / "console", report)
    try:
        while True:
            running = process.poll() is None
            status = console.read()
            if status is not None:
                return status
            if not running:
                raise GuestError(f"Bochs ended with status {process.returncode}: {folder / 'log'}")
            if time.monotonic() > end:
                raise GuestError(f"the guest ran past its limit of {limit_s / 60:.0f} minutes")
            time.sleep(POLL_S)
    finally:
        process.kill()
        process.wait()
        for name in LARGE_FILES:
            (folder / name).unlink()


class Console:
    """The file that the guest's serial port is written to, read as it grows."""

    def __init__(self, path, report):
        self.path, self.report = path, report
        self.offset, self.rest = 0, ""

    def read(self):
        """Reports the lines written since the last call.

        Returns:
            The status in the guest's last line; None while there is none.

        Raises:
            GuestError: the kernel says that it died.
        """
        if not self.path.exists():
            return None
        with open(self.path, "rb") as f:
            f.seek(self.offset)
            data = f.read()
        self.offset += len(data)
        *lines, self.rest = (self.rest + data.decode(errors="replace")).split("\n")
        for line in (line.rstrip("\r") for line in lines):
            if (match := END.match(line)) is not None:
                return int(match[1])
            self.report(line)
            if any(word in line for word in DEATHS):
                raise GuestError(f"the guest's kernel stopped: {line.strip()}")
        return None
