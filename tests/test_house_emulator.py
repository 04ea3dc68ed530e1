"""The emulator's parts that need no emulator: boot images, initramfs, how an end is read.

`make emulate` itself boots machines for minutes.
"""

import io
import json
import struct
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("boot", "bochs", "emulated_tests", "guest_files", "guest_init", "machine", "packages")


@pytest.fixture(scope="module")
def modules():
    """The emulator's modules, which are scripts beside one another and no package."""
    import importlib

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "emulator"))
        yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:  # they are too plain to stay
        del sys.modules[name]


def entries(archive):
    """{path: (mode, bytes)} of a cpio archive in the `newc` format."""
    found, offset = {}, 0
    while True:
        head = archive[offset : offset + 110]
        assert head[:6] == b"070701"
        mode, size, name_bytes = (int(head[i : i + 8], 16) for i in (14, 54, 94))
        name = archive[offset + 110 :][: name_bytes - 1].decode()
        offset += (110 + name_bytes + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        assert name not in found
        found[name] = mode, archive[offset : offset + size]
        offset += (size + 3) // 4 * 4


def test_an_initramfs_has_folders_before_files(modules, tmp_path):
    source = tmp_path / "module.py"
    source.write_text("x = 1\n")
    output = io.BytesIO()
    image = modules["guest_files"].Initramfs(output)
    image.file(source)
    image.file(source)
    image.entry("/dev/console", 0o020600, device=(5, 1))
    image.close()
    found = entries(output.getvalue())
    paths = list(found)
    assert found[str(source)[1:]] == (0o100644, b"x = 1\n")
    assert all(paths.index(str(Path(p).parent)) < i for i, p in enumerate(paths) if "/" in p)
    (code,) = (data for path, (_, data) in found.items() if path.endswith(".pyc"))
    assert struct.unpack_from("<I", code, 4) == (1,)  # by hash, and not to be checked


def test_the_job_says_what_to_run(modules, tmp_path):
    job = modules["emulated_tests"].Job("tests/test_cpu_isa.py", ["-k", "forced"], tmp_path / "0")
    modules["guest_files"].write_job(tmp_path / "job", job.description(["/lib"]))
    mode, data = entries((tmp_path / "job").read_bytes())["emulator.json"]
    check, tests = json.loads(data)["commands"]
    assert mode == 0o100644 and "amx_int8" in check[2]
    assert tests[:3] == [sys.executable, "-m", "pytest"]
    assert tests[-3:] == ["tests/test_cpu_isa.py", "-k", "forced"]


def test_the_rom_jumps_to_the_kernel(modules):
    boot = modules["boot"]
    rom = boot.rom()
    assert len(rom) == boot.ROM_BYTES
    assert rom[boot.RESET_OFFSET] == 0xE9  # a near jump, relative to what follows it
    (distance,) = struct.unpack_from("<H", rom, boot.RESET_OFFSET + 1)
    assert (boot.RESET_OFFSET + 3 + distance) & 0xFFFF == 0
    limit, address = struct.unpack_from("<HI", rom, boot.DESCRIPTORS_OFFSET - 6)
    assert (limit, address) == (31, boot.ROM_AT + boot.DESCRIPTORS_OFFSET)
    far_jump = rom.index(b"\x66\xea")
    assert struct.unpack_from("<IH", rom, far_jump + 2) == (boot.ROM_AT + far_jump + 8, boot.CODE)


def test_the_kernels_parameters(modules):
    boot = modules["boot"]
    vmlinuz = bytearray(4096)
    vmlinuz[0x1F1], vmlinuz[0x201], vmlinuz[0x202:0x208] = 2, 0x60, b"HdrS\x0f\x02"
    vmlinuz[3 * 512 :] = b"\x90" * (4096 - 3 * 512)
    assert set(boot.kernel_image(bytes(vmlinuz))) == {0x90}
    page = boot.parameters(bytes(vmlinuz), "quiet", 1000, 512)
    assert page[4096:] == b"quiet\0"
    assert struct.unpack_from("<II", page, 0x218) == (boot.INITRAMFS_AT, 1000)
    assert struct.unpack_from("<QQI", page, 0x2D0 + 20) == (boot.MIB, 511 * boot.MIB, 1)
    with pytest.raises(ValueError, match="not a bzImage"):
        boot.parameters(bytes(4096), "quiet", 0, 512)


def test_a_console_is_read_as_it_grows(modules, tmp_path):
    lines = []
    console = modules["machine"].Console(tmp_path / "console", lines.append)
    assert console.read() is None
    for text, status in [("a\r\nb", None), ("c\n", None), ("emulator: ex", None), ("it 3\n", 3)]:
        with open(console.path, "a") as f:
            f.write(text)
        assert console.read() == status
    assert lines == ["a", "bc"]


def test_a_panic_is_an_error(modules, tmp_path):
    console = modules["machine"].Console(tmp_path / "console", print)
    console.path.write_text("[    1.0] Kernel panic - not syncing: no init\n")
    with pytest.raises(modules["machine"].GuestError, match="stopped: .*Kernel panic"):
        console.read()


GOOD = ["guest: isa amx", "....", "4 passed in 1.00s"]


@pytest.mark.parametrize(
    ("lines", "status", "failure"),
    [
        (GOOD, 0, None),
        (["guest: isa amx", "", "3 deselected in 0.10s"], 5, None),
        (GOOD, 1, "pytest ended with status 1"),
        (GOOD[1:], 0, "the guest has no AMX"),
        ([*GOOD, "SKIPPED [2] tests/x.py:2: this machine has no amx"], 0, "a test was skipped"),
        ([*GOOD, "SKIPPED [1] tests/x.py:2: needs binutils"], 0, None),
    ],
)
def test_what_makes_a_run_good(modules, tmp_path, lines, status, failure):
    job = modules["emulated_tests"].Job("tests/test_cpu_isa.py", [], tmp_path / "0")
    job.lines = lines
    judged = job.judge(status)
    assert judged == failure or judged.startswith(failure)
    assert job.summary() == next(x for x in lines if " in " in x)


def test_files_and_options_are_told_apart(modules):
    emulate = modules["emulated_tests"]
    args = emulate.parse(["--guests", "3", "tests/test_cpu_isa.py", "-k", "forced", "-x"])
    assert (args.guests, args.files) == (3, ["tests/test_cpu_isa.py"])
    assert args.options == ["-k", "forced", "-x"]
    assert emulate.parse(["-k", "forced"]).files == list(emulate.DEFAULT_FILES)
    assert all((ROOT / file).exists() for file in emulate.DEFAULT_FILES)


def test_a_missing_tool_is_named(modules, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(modules["packages"].PackageError, match="apt-get not found"):
        modules["packages"].Apt(tmp_path / "apt")
    with pytest.raises(modules["packages"].PackageError, match=r"g\+\+ not found"):
        modules["bochs"].build(tmp_path / "x.tar.xz", tmp_path / "bochs", tmp_path / "build")


def test_the_archive_is_the_systems_own(modules, monkeypatch, tmp_path):
    lists = "Debian-Security http://mirror/debian-security/\nDebian http://mirror/debian/\n"
    apt_get = tmp_path / "apt-get"
    monkeypatch.setenv("PATH", str(tmp_path))
    for text, archive in [(lists, "http://mirror/debian"), ("", None)]:
        apt_get.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\n")
        apt_get.chmod(0o755)
        if archive is not None:
            assert modules["packages"].debian_archive() == archive
            continue
        with pytest.raises(modules["packages"].PackageError, match="no lists of Debian's archive"):
            modules["packages"].debian_archive()
