"""Builds the C++ core, its Python bindings and the TensorFlow op library; the metadata is in
pyproject.toml.

Three objects come out: kernels/_kernels (bindings of the core), trtllm_bridge/_engine (bindings of
the engine) and tf_ops/_genrecall_ops.so (the op library, linked against the TensorFlow of the
Python that runs pip). All are compiled from the same object files, by suffix rules
(build_defs.bzl):

  *_test.cc         not built here
  bindings*.cc      Python extension modules
  *_op.cc, *_ops.cc TensorFlow op sources
  *_avx2.cc ...     with that instruction set's flags
"""

import glob
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = os.path.dirname(os.path.abspath(__file__))
REQUIRED_TF = "2.21"


def build_defs():
    """The names defined by build_defs.bzl."""
    scope = {}
    with open(os.path.join(ROOT, "build_defs.bzl"), encoding="utf-8") as f:
        exec(compile(f.read(), "build_defs.bzl", "exec"), scope)
    return scope


def fail(message):
    sys.exit("genrecall: " + message)


def compiler():
    """The C++ compiler's command, as a list."""
    command = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(command[0]) is None:
        fail(
            f"C++ compiler '{command[0]}' not found: install g++ >= 11 "
            "(Debian: apt-get install g++) or name another in CXX"
        )
    return command


def tensorflow_flags():
    """Compile and link flags of the TensorFlow installed for this Python.

    pip's build isolation hides the installed packages by PYTHONPATH, so a fresh interpreter is
    asked.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    env["TF_CPP_MIN_LOG_LEVEL"] = "3"
    script = (
        "import json, tensorflow as tf; print('TFFLAGS' + json.dumps([tf.__version__, "
        "tf.sysconfig.get_compile_flags(), tf.sysconfig.get_link_flags()]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=env,
        cwd="/",
        check=False,
    )
    lines = [x for x in run.stdout.splitlines() if x.startswith("TFFLAGS")]
    if run.returncode != 0 or not lines:
        detail = (run.stderr.strip().splitlines() or ["no output"])[-1]
        fail(
            "TensorFlow is needed to compile the op library, and "
            f"{sys.executable} cannot import it ({detail}). "
            f"Install it first: pip install 'tensorflow=={REQUIRED_TF}.*'"
        )
    version, compile_flags, link_flags = json.loads(lines[-1][len("TFFLAGS") :])
    if not version.startswith(REQUIRED_TF + "."):
        fail(f"TensorFlow {version} is installed: expected {REQUIRED_TF}.*")
    return compile_flags, link_flags


def sources(folder, kind):
    """The .cc files of a room: kind is 'core', 'bindings' or 'ops'."""
    found = []
    for path in sorted(glob.glob(os.path.join(ROOT, folder, "*.cc"))):
        name = os.path.basename(path)
        if name.endswith("_test.cc"):
            continue
        # kernels/ knows no TensorFlow: its row_ops.cc and transformer_ops.cc are numeric kernels.
        is_ops = folder != "kernels" and name.endswith(("_op.cc", "_ops.cc"))
        is_bindings = name.startswith("bindings")
        actual = "ops" if is_ops else "bindings" if is_bindings else "core"
        if actual == kind:
            found.append(os.path.relpath(path, ROOT))
    return found


class CcBuild(build_ext):
    """Compiles each source once, in parallel, only when it or a header it read has changed."""

    def run(self):
        defs = build_defs()
        self.cxx = compiler()
        self.copts = defs["GENRECALL_COPTS"] + ["-iquote", "."]
        self.isa_copts = defs["isa_copts"]
        wanted = os.environ.get("GENRECALL_BUILD_ONLY")  # e.g. "_kernels,_engine" while developing
        if wanted:
            self.extensions = [
                e for e in self.extensions if e.name.rsplit(".", 1)[1] in wanted.split(",")
            ]
        super().run()

    def build_extensions(self):
        core = sources("kernels", "core")
        engine = sources("trtllm_bridge", "core")
        ops = sources("tf_ops", "ops") + sources("trtllm_bridge", "ops") + sources("tf_ops", "core")
        plan = {
            "genrecall.kernels._kernels": (core, sources("kernels", "bindings"), []),
            "genrecall.trtllm_bridge._engine": (
                core + engine,
                sources("trtllm_bridge", "bindings"),
                [],
            ),
            "genrecall.tf_ops._genrecall_ops": (core + engine, [], ops),
        }
        py_flags = None
        tf_compile = tf_link = None
        for ext in self.extensions:
            plain, bindings, op_sources = plan[ext.name]
            if bindings and py_flags is None:
                import pybind11

                py_flags = [
                    "-isystem",
                    sysconfig.get_path("include"),
                    "-isystem",
                    pybind11.get_include(),
                ]
            if op_sources and tf_compile is None:
                tf_compile, tf_link = tensorflow_flags()
                tf_compile = [
                    f"-isystem{x[2:]}" if x.startswith("-I") else x
                    for x in tf_compile
                    if not x.startswith("-std=")
                ]
            jobs = [(s, "core", []) for s in plain]
            jobs += [(s, "bindings", py_flags) for s in bindings]
            jobs += [(s, "ops", tf_compile) for s in op_sources]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(lambda job: self.compile(*job), jobs))
            self.link(ext, objects, tf_link if op_sources else [])

    def compile(self, source, kind, flags):
        """Compiles one file to build/obj/<kind>/..., and returns the object's path."""
        obj = os.path.join(ROOT, "build", "obj", kind, source + ".o")
        os.makedirs(os.path.dirname(obj), exist_ok=True)
        command = self.cxx + self.copts + self.isa_copts(source) + list(flags)
        command += ["-MMD", "-MF", obj + ".d", "-c", source, "-o", obj]
        stamp = " ".join(command)
        if not up_to_date(obj, stamp):
            print("compile", source, flush=True)
            run = subprocess.run(command, cwd=ROOT, check=False)
            if run.returncode != 0:
                fail(f"compiling {source} failed (command: {stamp})")
            with open(obj + ".cmd", "w", encoding="utf-8") as f:
                f.write(stamp)
        return obj

    def link(self, ext, objects, flags):
        """Links beside and renames: a running process may have the old file open."""
        out = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(out), exist_ok=True)
        command = (
            self.cxx
            + ["-shared", "-o", out + ".new"]
            + objects
            + list(flags)
            + ["-pthread", "-Wl,-O1"]
        )
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            fail(f"linking {ext.name} failed (command: {' '.join(command)})")
        os.replace(out + ".new", out)

    def get_ext_filename(self, fullname):
        # Not a Python module: a library that TF_LoadLibrary opens.
        if fullname.endswith("_genrecall_ops"):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)


def up_to_date(obj, stamp):
    """Whether an object exists, was made by this very command, and is newer than all it was made
    from.
    """
    try:
        with open(obj + ".cmd", encoding="utf-8") as f:
            if f.read() != stamp:
                return False
        with open(obj + ".d", encoding="utf-8") as f:
            parts = f.read().replace("\\\n", " ").split()
        made = os.path.getmtime(obj)
        return all(os.path.getmtime(os.path.join(ROOT, p)) <= made for p in parts[1:])
    except OSError:
        return False


setup(
    ext_modules=[
        Extension("genrecall.kernels._kernels", []),
        Extension("genrecall.trtllm_bridge._engine", []),
        Extension("genrecall.tf_ops._genrecall_ops", []),
    ],
    cmdclass={"build_ext": CcBuild},
)
