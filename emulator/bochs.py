"""Bochs, compiled for speed and for one purpose: no screen, no debugger, AVX-512 and AMX.

Debian's own binary has a debugger in its main loop and needs a desktop's libraries.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from packages import PackageError

PATCH = Path(__file__).resolve().parent / "bochs.patch"
CXXFLAGS = "-O2 -fomit-frame-pointer"
OPTIONS = (
    "--with-nogui",
    "--enable-cpu-level=6",
    "--enable-x86-64",
    "--enable-avx",
    "--enable-evex",
    "--enable-amx",
    "--enable-all-optimizations",
    "--disable-plugins",
    "--disable-docbook",
    "--disable-show-ips",
    "--disable-stats",
)


def key():
    """Names what a binary was made of."""
    made_of = [PATCH.read_bytes(), CXXFLAGS.encode(), *(o.encode() for o in OPTIONS)]
    return hashlib.sha256(b"\0".join(made_of)).hexdigest()[:12]


def build(archive, output, folder):
    """Compiles the source of `archive` in `folder`, and moves the binary to `output`.

    Raises:
        PackageError: a tool is missing, or a step failed; the log is left in `folder`.
    """
    for tool in ("g++", "make", "patch"):
        if shutil.which(tool) is None:
            raise PackageError(f"{tool} not found: Bochs is compiled here (apt-get install {tool})")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.unpack_archive(archive, folder)
    (tree,) = (p for p in folder.iterdir() if p.is_dir())
    step(folder, tree, ["patch", "-p1", "-i", str(PATCH)])
    step(folder, tree, ["./configure", *OPTIONS])
    step(folder, tree, ["make", f"-j{len(os.sched_getaffinity(0))}"])
    (tree / "bochs").replace(output)
    shutil.rmtree(folder)


def step(folder, tree, command):
    log = folder / "log"
    environment = {**os.environ, "CXXFLAGS": CXXFLAGS, "CFLAGS": CXXFLAGS}
    with open(log, "ab") as output:
        done = subprocess.run(
            command, cwd=tree, env=environment, stdout=output, stderr=output, check=False
        )
    if done.returncode != 0:
        raise PackageError(f"compiling Bochs: {command[0]} failed, see {log}")
