"""What the emulator is made of, fetched from Debian into the cache: Bochs' source and a kernel.

Uses apt with lists of its own, so the system's sources and packages stay as they are. Knows nothing
of what is done with the files.
"""

import re
import shutil
import subprocess
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
KERNEL_SUITE, KERNEL = "bookworm", "linux-image-cloud-amd64"
BOCHS_SUITE, BOCHS = "trixie", "bochs"  # bookworm's Bochs 2.7 knows no AMX
DOWNLOAD_HELPER = "/usr/lib/apt/apt-helper"


class PackageError(Exception):
    """A file that cannot be had: one line that says which, and why."""


def debian_archive():
    """The address of Debian's archive that this system's apt has lists of."""
    query = ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Origin: Debian"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    found = re.search(r"^Debian (\S+?)/?$", done.stdout, re.M)
    if found is None:
        raise PackageError("apt has no lists of Debian's archive: run apt-get update on Debian")
    return found[1]


class Apt:
    """apt on lists of its own, kept in `folder`, from the archive that the system uses."""

    def __init__(self, folder):
        for tool in ("apt-get", "dpkg"):
            if shutil.which(tool) is None:
                raise PackageError(f"{tool} not found: the emulator's parts are packages of Debian")
        if not KEYRING.exists():
            raise PackageError(f"no {KEYRING}: install debian-archive-keyring")
        archive = debian_archive()
        self.folder = folder.resolve()
        for name in ("lists/partial", "cache/archives/partial", "download"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "sources.list").write_text(
            f"deb [signed-by={KEYRING} arch=amd64] {archive} {KERNEL_SUITE} main\n"
            f"deb-src [signed-by={KEYRING}] {archive} {BOCHS_SUITE} main\n"
        )

    def run(self, tool, *arguments):
        """Standard output of an apt tool. Raises: PackageError with apt's own first error."""
        options = {
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::Lists": self.folder / "lists",
            "Dir::Cache": self.folder / "cache",
            "APT::Sandbox::User": "root",
            "APT::Get::List-Cleanup": "false",
        }
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        done = subprocess.run(
            [tool, *flags, *arguments],
            cwd=self.folder / "download",
            capture_output=True,
            text=True,
            check=False,
        )
        errors = re.findall(r"^[EW]: (.*)", done.stderr, re.M)
        # An update that found nothing is only a warning to apt.
        if done.returncode != 0 or (arguments[0] == "update" and errors):
            reason = errors[0] if errors else f"{tool} ended with status {done.returncode}"
            raise PackageError(f"apt {' '.join(arguments)}: {reason}")
        return done.stdout

    def update(self):
        self.run("apt-get", "update")


def fetch_kernel(apt, output):
    """Writes Debian's kernel for virtual machines to the file `output`."""
    depends = apt.run("apt-cache", "depends", KERNEL)
    package = re.search(r"Depends: (linux-image-\S+)", depends)
    if package is None:
        raise PackageError(f"{KERNEL} of Debian {KERNEL_SUITE} names no kernel")
    folder = apt.folder / "kernel"
    shutil.rmtree(folder, ignore_errors=True)
    apt.run("apt-get", "download", package[1])
    (archive,) = sorted((apt.folder / "download").glob(f"{package[1]}_*.deb"))[-1:]
    unpack = subprocess.run(["dpkg", "-x", str(archive), str(folder)], check=False)
    kernels = list(folder.glob("boot/vmlinuz-*"))
    if unpack.returncode != 0 or not kernels:
        raise PackageError(f"{archive.name} holds no kernel")
    kernels[0].replace(output)
    archive.unlink()
    shutil.rmtree(folder)


def fetch_bochs(apt):
    """The path of Bochs' source, an archive that apt has checked.

    Only the archive: Debian's own changes are about its packaging.
    """
    for old in (apt.folder / "download").glob(f"{BOCHS}_*"):
        old.unlink()  # apt lists only what is not there
    listed = apt.run("apt-get", "source", "--print-uris", "--only-source", BOCHS)
    found = re.search(r"^'(\S+)' (\S+\.orig\.tar\.\w+) \d+ (SHA256:\w+)", listed, re.M)
    if found is None:
        raise PackageError(f"Debian {BOCHS_SUITE} names no source of {BOCHS}")
    address, name, checksum = found.groups()
    path = apt.folder / "download" / name.replace("%2b", "+")
    apt.run(DOWNLOAD_HELPER, "download-file", address.replace("%2b", "+"), str(path), checksum)
    return path
