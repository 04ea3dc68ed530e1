"""The systems that are compared, each in a process of its own. Knows no machine and no table."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# CTranslate2 and OpenVINO want other versions of Transformers than the project: `make bench` gives
# them a virtual environment of their own.
BASELINES_PYTHON = os.environ.get("GENRECALL_BASELINES_PYTHON", "")


@dataclass(frozen=True)
class System:
    """name as tables show it; runner: file in runners/; dtype; own: the engine of this project;
    foreign: needs BASELINES_PYTHON."""

    name: str
    runner: str
    dtype: str
    own: bool = False
    foreign: bool = False


SYSTEMS = (
    System("genrecall bf16", "genrecall_engine", "bfloat16", own=True),
    System("genrecall int8", "genrecall_engine", "int8", own=True),
    System("generate bf16", "hugging_face", "bfloat16"),
    System("generate f32", "hugging_face", "float32"),
    System("torch loop bf16", "torch_loop", "bfloat16"),
    System("torch loop f32", "torch_loop", "float32"),
    System("CTranslate2 int8", "ctranslate2_beams", "int8", foreign=True),
    System("CTranslate2 f32", "ctranslate2_beams", "float32", foreign=True),
    System("OpenVINO bf16", "openvino_beams", "bfloat16", foreign=True),
    System("OpenVINO int8", "openvino_beams", "int8", foreign=True),
)


def run(system, workload_folder, widths, options, log):
    """Runs one system over the widths.

    Args:
      system: System.
      workload_folder: see workload.py.
      widths: beam widths.
      options: threads, repeats, limit_s.
      log: file that takes the runner's stderr.

    Returns:
      {"ms": {width: [ms] | None}, "about": {...}}, or {"error": one line}.
    """
    python = BASELINES_PYTHON if system.foreign else sys.executable
    if not python:
        return {"error": "GENRECALL_BASELINES_PYTHON is not set (`make bench` sets it)"}
    command = [python, str(ROOT / "runners" / f"{system.runner}.py"), str(workload_folder)]
    command += ["--widths", *map(str, widths), "--dtype", system.dtype]
    command += ["--threads", str(options.threads), "--repeats", str(options.repeats)]
    command += ["--limit_s", str(options.limit_s)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(options.threads))
    environment.pop("OMP_WAIT_POLICY", None)  # each system as it comes
    # A runner checks its own limit between tokens; one that cannot is ended here.
    limit = 120 + len(widths) * (options.limit_s * 2)
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=log, text=True, timeout=limit, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {limit:g} s"}
    if done.returncode != 0:
        return {"error": f"exit status {done.returncode}; see {log.name}"}
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    answer["ms"] = {int(width): times for width, times in answer["ms"].items()}
    return answer
