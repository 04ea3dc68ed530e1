"""What this machine can do at most, measured in the run that divides by it."""

import json
import os
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Peaks of `threads` threads together. tile_flops is 0 without AMX."""

    threads: int
    float_flops: float
    tile_flops: float
    bytes_per_s: float

    def peak_flops(self, isa, dtype):
        """The peak of the units that `isa` uses for `dtype`."""
        return self.tile_flops if isa == "amx" and dtype == "bfloat16" else self.float_flops


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
