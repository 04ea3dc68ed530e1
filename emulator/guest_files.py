"""The guest's files: this very Python, NumPy, pytest, the bindings and the tests, as an initramfs.

Every file keeps its path: the virtual environment and the editable install work as they do here.
Knows no kernel and no emulator.
"""

import hashlib
import importlib.metadata
import importlib.util
import marshal
import os
import re
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES = ("numpy", "pytest", "hypothesis", "genrecall")
# What the engine's tests compare with: a gigabyte more, and minutes of imports in the guest.
HUGGING_FACE = ("torch", "transformers")
NOT_FOLLOWED = {"genrecall"}  # its requirements are what servers and training need
UNUSED_STDLIB = {"test", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data"}
UNUSED_STDLIB |= {"site-packages", "dist-packages"}
UNUSED_FOLDERS = {"test", "tests", "bin", "include", "f2py", "distutils"}  # of packages
UNUSED_SUFFIXES = {".pyi", ".pyc", ".a", ".h", ".c", ".pxd", ".pyx", ".pxi"}
NEEDED_ALL_THE_SAME = {"torch_shm_manager"}  # torch looks whether it is there
PROJECT = ("*.py", "pyproject.toml", "kernels/*.py", "trtllm_bridge/*.py", "tests/*.py")
BINDINGS = ("kernels/_kernels*.so", "trtllm_bridge/_engine*.so")


def stdlib_files():
    for folder in {Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib")}:
        for top, folders, names in os.walk(folder):
            folders[:] = [
                f
                for f in folders
                if f not in UNUSED_STDLIB and f != "__pycache__" and not f.startswith("config-")
            ]
            yield from (Path(top) / name for name in names)


def with_requirements(names):
    """The installed packages of `names` and of all that they require without extras.

    Raises: ImportError, one of `names` is not installed.
    """
    found, waiting = {}, list(names)
    while waiting:
        name = re.sub("[-_.]+", "-", waiting.pop()).lower()
        try:
            package = found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            if name in names:
                raise ImportError(f"the emulated tests need {name}: run `make test`") from error
            continue  # a requirement of another Python or system
        if name not in NOT_FOLLOWED:
            lines = (x for x in package.requires or [] if "extra ==" not in x)
            waiting += {re.match(r"[\w.-]+", x)[0] for x in lines} - set(found)
    return found


def package_files(names):
    """The files of installed packages that a program may need."""
    for package in with_requirements(names).values():
        for file in package.files or []:
            unused = UNUSED_FOLDERS & set(file.parts[1:-1]) and file.name not in NEEDED_ALL_THE_SAME
            if not unused and file.parts[0] != "..":
                yield Path(file.locate())


def project_files(root):
    """Raises: FileNotFoundError, the bindings are not built."""
    for pattern in (*PROJECT, *BINDINGS):
        found = sorted(root.glob(pattern))
        if not found:
            raise FileNotFoundError(f"no {pattern} in {root}: build the project first")
        yield from found


def shared_libraries(files):
    """The libraries that binary files load, by the paths this machine's loader finds them at."""
    binaries = [str(f) for f in files if is_elf(f)]
    done = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False)
    found = re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.M)
    return {Path(os.path.normpath(p)) for p in found} - set(files)


def is_elf(path):
    with open(path, "rb") as f:
        return f.read(4) == b"\x7fELF"


def byte_code(path):
    """A .pyc that Python takes without a look at its source's time.

    None: not Python, or not of this version.
    """
    unchecked_hash = importlib.util.MAGIC_NUMBER + struct.pack("<IQ", 1, 0)
    status = path.stat()
    fresh = importlib.util.MAGIC_NUMBER + struct.pack(
        "<III", 0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF
    )
    cached = Path(importlib.util.cache_from_source(str(path)))
    if cached.exists() and (data := cached.read_bytes()).startswith(fresh):
        return unchecked_hash + data[len(fresh) :]
    try:
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    return unchecked_hash + marshal.dumps(code)


class Initramfs:
    """A cpio archive (newc) that grows file by file; folders appear when they are needed."""

    def __init__(self, output):
        self.output = output
        self.seen = {"/"}

    def entry(self, path, mode, data=b"", device=(0, 0)):
        """Adds one file or folder; a second one of the same path is left out."""
        if path in self.seen:
            return
        self.folder(os.path.dirname(path))
        self.seen.add(path)
        self._write(path.lstrip("/"), mode, data, device)

    def folder(self, path):
        self.entry(path, 0o040755)

    def file(self, path):
        """Adds a file of this machine, of Python also its byte code."""
        mode = 0o100755 if os.access(path, os.X_OK) else 0o100644
        self.entry(str(path), mode, path.read_bytes())
        if path.suffix == ".py" and (code := byte_code(path)):
            self.entry(importlib.util.cache_from_source(str(path)), 0o100644, code)

    def close(self):
        self._write("TRAILER!!!", 0, b"", (0, 0))

    def _write(self, name, mode, data, device):
        name = name.encode() + b"\0"
        fields = (len(self.seen), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % f for f in fields) + name
        self.output.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))


def wanted(files):
    return sorted(f for f in set(files) if f.suffix not in UNUSED_SUFFIXES and f.is_file())


def write_base(path, root):
    """Writes everything but the job: Python, packages, bindings, tests and /init.

    Returns:
        Folders of shared libraries, for the guest's LD_LIBRARY_PATH.
    """
    own = [Path(sys.executable), Path(sys.prefix) / "pyvenv.cfg", *project_files(root)]
    files = wanted([*stdlib_files(), *package_files(PACKAGES), *own])
    libraries = shared_libraries(files)
    init = (Path(__file__).resolve().parent / "guest_init.py").read_text(encoding="utf-8")
    with open(path, "wb") as output:
        image = Initramfs(output)
        for folder in ("/dev", "/proc", "/sys", "/tmp", "/root", "/var/tmp"):
            image.folder(folder)
        image.entry("/dev/console", 0o020600, device=(5, 1))
        for file in (*files, *sorted(libraries)):
            image.file(file)
        image.entry("/init", 0o100755, f"#!{sys.executable} -I\n{init}".encode())
        image.close()
    return sorted({str(p.parent) for p in libraries})


def hugging_face_key():
    """Names what write_hugging_face would write."""
    packages = sorted((x.name, x.version) for x in with_requirements(HUGGING_FACE).values())
    made_of = repr(
        [packages, sys.prefix, sys.version, sorted(UNUSED_FOLDERS | NEEDED_ALL_THE_SAME)]
    )
    return hashlib.sha256(made_of.encode()).hexdigest()[:12]


def write_hugging_face(path):
    """Writes what HUGGING_FACE adds to the base."""
    files = wanted(package_files(HUGGING_FACE))
    with open(path, "wb") as output:
        image = Initramfs(output)
        for file in (*files, *sorted(shared_libraries(files))):
            image.file(file)
        image.close()


def write_job(path, job):
    """Writes the archive that holds only the job: the kernel unpacks it after the others."""
    with open(path, "wb") as output:
        image = Initramfs(output)
        image.entry("/emulator.json", 0o100644, job)
        image.close()
