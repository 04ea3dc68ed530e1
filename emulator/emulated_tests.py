"""`make emulate`: the tests of kernels and engine on an emulated Sapphire Rapids, AMX and all.

    python emulator/emulated_tests.py [--guests 2] [--minutes 60] [test files and options of pytest]

Boots one emulated machine for every test file, with this checkout's bindings and this virtual
environment in it, and runs pytest there. The first run fetches a kernel and Bochs' source from
Debian and compiles Bochs; later ones use the cache. Shows nothing about speed.
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import bochs
import guest_files
import machine
import packages

ROOT = Path(__file__).resolve().parent.parent
# Longest first, so that the last ones to run are short.
DEFAULT_FILES = (
    "tests/test_attention.py",
    "tests/test_numeric_kernels.py",
    "tests/test_int8_gemm.py",
    "tests/test_int8_kv.py",
    "tests/test_constrained_topk.py",
    "tests/test_beam_search.py",
    "tests/test_cpu_isa.py",
)
PYTEST = ("-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider")
# A file that says one of these gets Hugging Face's packages into its guest.
HUGGING_FACE = re.compile(r"random_decoder|torch|transformers")
NO_TESTS = 5  # pytest's status: the options leave none of the file's tests

# What the guest must be, before its tests mean anything.
CHECK = """
from genrecall.kernels import _kernels
isa = _kernels._numeric.detected_isa()
flags = next(x for x in open("/proc/cpuinfo") if x.startswith("flags")).split()
missing = {"avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"} - set(flags)
assert isa == "amx" and not missing, f"the guest is no Sapphire Rapids: {isa}, lacks {missing}"
print("guest: isa", isa)
"""
# A skip that says so has tested nothing here.
LACKS = re.compile(r"^SKIPPED.*(this machine|AVX-?512|AMX|VNNI)", re.M | re.I)


@contextmanager
def locked(cache):
    """One run at a time prepares the cache."""
    with open(cache / "lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def prepare(cache):
    """Fetches and builds what the cache lacks. Returns paths (bochs, kernel)."""
    binary, kernel = cache / f"bochs-{bochs.key()}", cache / "vmlinuz"
    if not (binary.exists() and kernel.exists()):
        apt = packages.Apt(cache / "apt")
        print("== fetching a kernel and the source of Bochs from Debian", flush=True)
        apt.update()
        if not kernel.exists():
            packages.fetch_kernel(apt, kernel)
        if not binary.exists():
            archive = packages.fetch_bochs(apt)
            print("== compiling Bochs (a few minutes, once)", flush=True)
            bochs.build(archive, binary, cache / "build")
    return binary, kernel


class Images:
    """The archives that guests start from; the largest one is kept in the cache."""

    def __init__(self, cache, folder, jobs):
        self.base = folder / "base"
        self.libraries = guest_files.write_base(self.base, ROOT)
        self.hugging_face = None
        if any(job.needs_hugging_face() for job in jobs):
            self.hugging_face = cache / f"hugging_face-{guest_files.hugging_face_key()}"
            if not self.hugging_face.exists():
                for old in cache.glob("hugging_face-*"):
                    old.unlink()
                guest_files.write_hugging_face(cache / "new")
                (cache / "new").replace(self.hugging_face)

    def of(self, job):
        return [self.base, self.hugging_face] if job.needs_hugging_face() else [self.base]


class Job:
    """One test file in one guest: what it said, how it ended, how long it took."""

    def __init__(self, file, options, folder):
        self.file, self.options, self.folder = file, options, folder
        self.source = (ROOT / file.split("::")[0]).read_text(encoding="utf-8")
        self.lines, self.failure, self.minutes = [], None, 0.0

    def needs_hugging_face(self):
        return HUGGING_FACE.search(self.source) is not None

    def run(self, binary, vmlinuz, images, limit_s):
        start = time.monotonic()
        try:
            self.folder.mkdir()
            guest_files.write_job(self.folder / "job", self.description(images.libraries))
            machine.write_files(self.folder, vmlinuz, [*images.of(self), self.folder / "job"])
            status = machine.run(binary, self.folder, limit_s, self.report)
            self.failure = self.judge(status)
        except (machine.GuestError, OSError) as error:
            self.failure = str(error)
        self.minutes = (time.monotonic() - start) / 60
        if self.failure is None:
            shutil.rmtree(self.folder)
        return self

    def description(self, libraries):
        python, options = sys.executable, list(PYTEST)
        if "hypothesis" not in self.source:
            options += ["-p", "no:hypothesispytest"]  # it imports for a minute of the guest's time
        job = {
            "folder": str(ROOT),
            "commands": [[python, "-c", CHECK], [python, *options, self.file, *self.options]],
            "environment": {
                "HOME": "/root",
                "USER": "root",
                "PATH": "/usr/bin:/bin",
                "LD_LIBRARY_PATH": ":".join(libraries),
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        }
        return json.dumps(job).encode()

    def report(self, line):
        self.lines.append(line)
        print(f"[{Path(self.file).stem}] {line}", flush=True)

    def judge(self, status):
        """Why the run is none to be content with; None: it is."""
        text = "\n".join(self.lines)
        if "guest: isa amx" not in text:
            return "the guest has no AMX"
        if (skip := LACKS.search(text)) is not None:
            return f"a test was skipped that should run here: {skip[0]}"
        return None if status in (0, NO_TESTS) else f"pytest ended with status {status}"

    def summary(self):
        last = [x for x in self.lines if re.search(r"\d+ \w+.* in [\d.]+s|no tests ran", x)]
        return last[-1].strip("= ") if last else "no summary"


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / ".emulator")
    parser.add_argument(
        "--guests",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="machines at a time, a core and up to 1 GB each (default: the cores this may use)",
    )
    parser.add_argument("--minutes", type=float, default=60, help="limit of one test file")
    args, rest = parser.parse_known_args(arguments)
    args.files = [word for word in rest if (ROOT / word.split("::")[0]).exists()]
    args.options = [word for word in rest if word not in args.files]
    args.files = args.files or list(DEFAULT_FILES)
    return args


def main(arguments):
    args = parse(arguments)
    runs = args.cache / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with locked(args.cache):
        binary, kernel = prepare(args.cache.resolve())
        folder = Path(tempfile.mkdtemp(dir=runs)).resolve()
        jobs = [Job(file, args.options, folder / str(i)) for i, file in enumerate(args.files)]
        images = Images(args.cache.resolve(), folder, jobs)
    vmlinuz = kernel.read_bytes()
    print(f"== {len(args.files)} test files, {args.guests} guests at a time", flush=True)
    with ThreadPoolExecutor(args.guests) as pool:
        running = [pool.submit(j.run, binary, vmlinuz, images, args.minutes * 60) for j in jobs]
        try:
            wait(running)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for job in (x.result() for x in running):
        print(f"{job.file:36} {job.minutes:5.1f} min  {job.failure or job.summary()}")
    failed = [job for job in jobs if job.failure]
    if failed:
        images.base.unlink()
        print(f"emulate: {len(failed)} of {len(jobs)} test files failed; left in {folder}")
    elif all("no tests ran" in job.summary() for job in jobs):
        failed = jobs
        print(f"emulate: no tests: {' '.join(args.options)}")
    else:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (packages.PackageError, FileNotFoundError, ImportError, ValueError) as error:
        sys.exit(f"emulate: {error}")
