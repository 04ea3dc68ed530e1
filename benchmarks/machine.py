"""What a machine is and what it can do at most, measured in the run that divides by it."""

import json
import os
import platform
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Figures of the 2-core AMX machine that the project's targets were set on. A run there that
# measures less than 0.9 of them had a disturbed machine: its ratios prove nothing.
REFERENCE = {"tile_bf16_ops": 6.4e12, "tile_int8_ops": 12.8e12, "bytes_per_s": 30e9}


@dataclass(frozen=True)
class Machine:
    """Peaks of `threads` threads together, a multiply-add counting as two operations.

    bf16_ops is 0 without AVX512_BF16, avx2_int8_ops without AVX2, int8_ops without AVX-512 VNNI,
    tile_* are 0 without AMX.
    """

    threads: int
    float_ops: float
    bf16_ops: float
    avx2_int8_ops: float
    int8_ops: float
    tile_bf16_ops: float
    tile_int8_ops: float
    bytes_per_s: float

    def peak_ops(self, isa, dtype):
        """The peak of the units that the engine uses for `dtype` under `isa`, the machine's own.

        dtype: float32, bfloat16, int8 (by int8) or w8 (weights alone). Under an ISA that was forced
        on a machine with wider vectors, float peaks are those of the wider ones.
        """
        peaks = {
            ("int8", "amx"): self.tile_int8_ops,
            ("int8", "avx512_bf16"): self.int8_ops or self.avx2_int8_ops,
            ("int8", "avx512"): self.int8_ops or self.avx2_int8_ops,
            ("int8", "avx2"): self.avx2_int8_ops,
            ("bfloat16", "amx"): self.tile_bf16_ops,
            ("w8", "amx"): self.tile_bf16_ops,
            ("bfloat16", "avx512_bf16"): self.bf16_ops,
        }
        return peaks.get((dtype, isa)) or self.float_ops

    def doubts(self):
        """Why the figures of this run do not count for the targets: list of sentences."""
        if not self.tile_bf16_ops:
            return ["no AMX here: the targets were set on an AMX machine and are not judged"]
        return [
            f"{name} = {getattr(self, name):.3g}: under 0.9 of the reference {value:.3g}, void"
            for name, value in REFERENCE.items()
            if getattr(self, name) < 0.9 * value
        ]


def measure(threads):
    """Compiles and runs machine_peak.cc: a few seconds. Needs the C++ compiler in CXX, else g++."""
    source = Path(__file__).resolve().parent / "machine_peak.cc"
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "machine_peak")
        flags = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-pthread"]
        subprocess.run([*compiler, *flags, str(source), "-o", program], check=True)
        out = subprocess.run([program, str(threads)], capture_output=True, text=True, check=True)
    return Machine(**json.loads(out.stdout))


def describe():
    """What the figures were taken on: dict."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
    }
