"""Choosing the instruction set: detection, GENRECALL_CPU_ISA, GENRECALL_CPU_THREADS.

The environment is read in C++, so every case is a process of its own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_checks import ISAS

from genrecall.kernels import _kernels

DETECTED = _kernels._numeric.detected_isa()


def run(expression, **environment):
    """(stdout, last line of stderr) of a fresh process that prints an expression of `n`."""
    script = f"from genrecall.kernels import _kernels; n = _kernels._numeric; print({expression})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


def test_detected_isa_matches_what_the_kernel_reports():
    """/proc/cpuinfo lists what CPU and operating system both have."""
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        flags = next(line for line in f if line.startswith("flags")).split()
    needs = {
        "avx2": {"avx2", "fma", "f16c"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avx512_bf16": {"avx512_bf16"},
        "amx": {"amx_tile", "amx_bf16", "amx_int8"},
    }
    expected = "scalar"
    for isa, flag_names in needs.items():
        if not flag_names <= set(flags):
            break
        expected = isa
    assert DETECTED == expected


def test_unset_uses_what_was_detected():
    environment = {k: v for k, v in os.environ.items() if k != "GENRECALL_CPU_ISA"}
    script = "from genrecall.kernels import _kernels; print(_kernels._numeric.active_isa())"
    out = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == DETECTED


@pytest.mark.parametrize("isa", ISAS)
def test_forced(isa):
    out, error = run("n.active_isa()", GENRECALL_CPU_ISA=isa)
    if ISAS.index(isa) <= ISAS.index(DETECTED):
        assert out == isa
    else:
        assert out == ""
        assert (
            f"ValueError: GENRECALL_CPU_ISA='{isa}': this machine has {DETECTED} at most" in error
        )


@pytest.mark.parametrize("word", ["avx3", "", "AVX2", "avx512 "])
def test_unknown_word_is_refused(word):
    out, error = run("n.active_isa()", GENRECALL_CPU_ISA=word)
    assert out == ""
    assert f"GENRECALL_CPU_ISA='{word}': expected scalar|avx2|avx512|avx512_bf16|amx" in error


def test_threads_default_to_the_cpus_of_the_process():
    cpus = sorted(os.sched_getaffinity(0))
    expression = "(__import__('os').sched_setaffinity(0, {%d}), n.default_num_threads())[1]"
    environment = {"GENRECALL_CPU_THREADS": "3"}
    assert run("n.default_num_threads()", **environment)[0] == "3"
    os.environ.pop("GENRECALL_CPU_THREADS", None)
    quota = _kernels._numeric.cpu_quota("/sys/fs/cgroup") or len(cpus)
    assert run("n.default_num_threads()")[0] == str(min(len(cpus), quota))
    assert run(expression % cpus[0])[0] == "1"


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "2.5", "99999999999999999999"])
def test_bad_thread_count_is_refused(text):
    _, error = run("n.default_num_threads()", GENRECALL_CPU_THREADS=text)
    assert f"GENRECALL_CPU_THREADS='{text}': expected an integer in 1..4096" in error


def test_isa_objects_share_no_functions():
    """An inline function compiled for a newer ISA must not be the copy that older CPUs run.

    So an ISA's object defines its tables and nothing weak, whichever copy the linker would choose.
    """
    folder = Path(__file__).resolve().parent.parent / "build/obj/core/kernels"
    sources = sorted(
        p
        for s in ("avx2", "avxvnni", "avx512", "vnni", "avx512bf16", "amx")
        for p in folder.parents[3].glob(f"kernels/*_{s}.cc")
    )
    objects = [folder / f"{p.name}.o" for p in sources]
    if not objects or not all(p.exists() for p in objects) or shutil.which("nm") is None:
        pytest.skip("needs binutils and the objects of a build in the source tree")
    for path in objects:
        out = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True)
        defined = [line.split(maxsplit=2)[1:] for line in out.stdout.splitlines() if line[0] != " "]
        shared = [name for kind, name in defined if kind not in "tTrRdDbB"]
        assert shared == [], path.name
        public = [name for kind, name in defined if kind.isupper()]
        assert public and all(x.startswith("genrecall::k") for x in public), (path.name, public)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 0),
        ({"cpu.max": "max 100000"}, 0),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.max": "nonsense"}, 0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "400000"}, 0),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, cpus):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
    assert _kernels._numeric.cpu_quota(str(tmp_path)) == cpus
