"""Compiles and loads tests/fault_ops.cc: ops that fail, block, hang or answer NaN on demand."""

import functools
import hashlib
import os
import pathlib
import shlex
import subprocess
import tempfile

import tensorflow as tf

NONE, ERROR, BLOCK, NAN, HANG = range(5)
SOURCE = pathlib.Path(__file__).with_name("fault_ops.cc")


@functools.cache
def path() -> str:
    """The compiled library; compiled once for each version of its source."""
    flags = tf.sysconfig.get_compile_flags() + tf.sysconfig.get_link_flags()
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(flags).encode()).hexdigest()[:16]
    out = pathlib.Path(tempfile.gettempdir(), f"genrecall-fault-ops-{os.getuid()}-{digest}.so")
    if not out.exists():
        new = out.with_suffix(f".{os.getpid()}")
        command = [
            *shlex.split(os.environ.get("CXX", "g++")),
            "-shared",
            "-fPIC",
            "-O1",
            str(SOURCE),
        ]
        subprocess.run([*command, "-o", str(new), *flags], check=True)
        os.replace(new, out)
    return str(out)


@functools.cache
def ops():
    """The loaded module; `ops().genrecall_test_fault(x, kind, block_ms=10000)`."""
    return tf.load_op_library(path())
