"""Builds the C++ programs that drive the core without Python, plain or under a sanitizer."""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = {
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
# What a report ends the run with; little quarantine, so that memory that grows is seen to grow.
ENVIRONMENT = {
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
    "ASAN_OPTIONS": "detect_leaks=1:quarantine_size_mb=4",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def core_sources():
    """The .cc files of kernels/ and trtllm_bridge/ that are no doors."""
    for room in ("kernels", "trtllm_bridge"):
        for path in sorted((ROOT / room).glob("*.cc")):
            door = path.name.startswith("bindings") or path.name.endswith("_test.cc")
            if not door and not (
                room == "trtllm_bridge" and path.name.endswith(("_op.cc", "_ops.cc"))
            ):
                yield path.relative_to(ROOT).as_posix()


def build(program, out, sanitizer=None, jobs=2):
    """Links a program of tests/ with the core.

    Args:
      program: e.g. "soak_engine.cc".
      out: path of the executable.
      sanitizer: None: the core's objects as `pip install -e .` left them; else a key of SANITIZERS:
        everything is compiled anew where it has changed, in build/obj/<sanitizer>.
      jobs: compilers at a time.
    """
    scope = {}
    exec((ROOT / "build_defs.bzl").read_text(encoding="utf-8"), scope)
    flags = SANITIZERS[sanitizer] + ["-g", "-fno-omit-frame-pointer"] if sanitizer else []
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    folder = ROOT / "build" / "obj" / (sanitizer or "driver")

    def compile_one(source):
        made = folder / (source + ".o")
        if sanitizer is None and not source.startswith("tests/"):
            return str(ROOT / "build" / "obj" / "core" / (source + ".o"))
        if not _up_to_date(made):
            made.parent.mkdir(parents=True, exist_ok=True)
            command = [*compiler, *scope["GENRECALL_COPTS"], *scope["isa_copts"](source), *flags]
            command += ["-iquote", ".", "-MMD", "-MF", f"{made}.d", "-c", source, "-o", str(made)]
            subprocess.run(command, cwd=ROOT, check=True)
        return str(made)

    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compile_one, [f"tests/{program}", *core_sources()]))
    subprocess.run([*compiler, *flags, "-o", str(out), *objects, "-pthread"], check=True)


def _up_to_date(made):
    """Whether an object is newer than all it was made from."""
    try:
        parts = Path(f"{made}.d").read_text(encoding="utf-8").replace("\\\n", " ").split()[1:]
        return all((ROOT / p).stat().st_mtime <= made.stat().st_mtime for p in parts)
    except OSError:
        return False


def soak(seconds, sanitizer=None, threads=2, seed=1):
    """Runs soak_engine; returns its completed process."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "soak_engine"
        build("soak_engine.cc", program, sanitizer)
        command = [str(program), folder, str(seconds), str(threads), str(seed)]
        return subprocess.run(command, env={**os.environ, **ENVIRONMENT}, check=False)


def main():
    parser = argparse.ArgumentParser(description="Soaks the engine under a sanitizer.")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--sanitizer", choices=[*SANITIZERS, "none"], nargs="+", default=["thread"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for name in args.sanitizer:
        print(f"== {args.minutes:g} minutes, sanitizer {name}", flush=True)
        sanitizer = None if name == "none" else name
        run = soak(args.minutes * 60, sanitizer, args.threads, args.seed)
        if run.returncode != 0:
            sys.exit(f"soak under {name} ended with {run.returncode}")


if __name__ == "__main__":
    main()
