"""What an engine adds to a process' memory: as docs/engine.md says, and never twice the weights."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from random_decoder import make_checkpoint

from genrecall import kernels
from genrecall.trtllm_bridge import checkpoint

pytest.importorskip("transformers")

LEVEL_SIZES = (64, 64, 64)
SHAPE = dict(
    vocab=24_000,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
)
HEAD_DIM, MAX_STEP_ROWS, MAX_PROMPT = 64, 512, 1024

# A process of its own, with nothing but NumPy and the engine: what Python's heap does is no noise.
PROBE = """
import json, sys
import numpy as np
from genrecall import kernels
from genrecall.trtllm_bridge import Engine

def status(key):
    with open("/proc/self/status", encoding="ascii") as f:
        return next(int(x.split()[1]) * 1024 for x in f if x.startswith(key))

path, tiny, index_path = sys.argv[1:4]
requests, options = int(sys.argv[4]), json.loads(sys.argv[5])
warm = Engine(tiny)
small = kernels.RecallIndex.build(list(warm.level_sizes), np.arange(5), np.zeros((5, 3), np.int32))
warm.decode(np.zeros((1, 100), np.int32), [100], small, beam_width=4)
before = status("VmRSS")
engine = Engine(path, **options)
loaded, peak = status("VmRSS") - before, status("VmHWM") - before
index = kernels.RecallIndex.load(index_path)
rng = np.random.default_rng(0)
for _ in range(requests):
    prompt = rng.integers(0, 20_000, 1000).astype(np.int32)
    engine.submit(prompt, index, beam_width=500, stable_prefix=1000).result()
print(json.dumps(dict(
    loaded=loaded, peak_loading=peak, grown=status("VmRSS") - before,
    peak=status("VmHWM") - before, index=index.memory_bytes, stats=engine.stats())))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(weights of 80 MB, the same in another order, tiny weights, index of 200,000 items)."""
    folder = tmp_path_factory.mktemp("memory")
    make_checkpoint(folder / "hf", level_sizes=LEVEL_SIZES, stored="bfloat16", seed=3, **SHAPE)
    checkpoint.convert(folder / "hf", folder / "model.gguf", "bfloat16")
    make_checkpoint(folder / "tiny_hf", level_sizes=LEVEL_SIZES, vocab=300, seed=4)
    checkpoint.convert(folder / "tiny_hf", folder / "tiny.gguf", "bfloat16")
    file = kernels.read_gguf(folder / "model.gguf")
    tensors = dict(sorted(file["tensors"].items()))  # q, k, v are no neighbours by name
    types = {name: kind for name, kind in file["types"].items() if kind == "BF16"}
    kernels.write_gguf(folder / "foreign.gguf", file["metadata"], tensors, types)
    rng = np.random.default_rng(5)
    sids = rng.integers(0, 64, (200_000, 3)).astype(np.int32)
    kernels.RecallIndex.build(LEVEL_SIZES, np.arange(len(sids)), sids).save(folder / "index.gguf")
    return [folder / name for name in ("model.gguf", "foreign.gguf", "tiny.gguf", "index.gguf")]


def probe(weights, files, requests, **options):
    arguments = [weights, files[2], files[3], requests, json.dumps(options)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def formula():
    """weight_bytes, step_bytes and the bytes of a page as docs/engine.md has them."""
    d, f, q = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["hidden_size"]
    kv, layers = SHAPE["num_key_value_heads"] * HEAD_DIM, SHAPE["num_hidden_layers"]
    matrices = layers * (d * (2 * q + 2 * kv) + 3 * d * f) + (SHAPE["vocab"] + sum(LEVEL_SIZES)) * d
    positions = MAX_PROMPT + len(LEVEL_SIZES)
    rows = 8 * d + 4 * q + 8 * kv + 4 * f + 2 * (2 * d + q + f)
    return 2 * matrices, MAX_STEP_ROWS * rows + 4 * positions * HEAD_DIM, 2 * layers * kv * 2 * 64


@pytest.mark.parametrize("requests", [3, 8])
def test_resident_memory_is_what_the_formula_says(files, requests):
    found = probe(
        files[0], files, requests, num_threads=1, max_prompt_tokens=MAX_PROMPT, kv_bytes=60 << 20
    )
    stats = found["stats"]
    weights, step, page = formula()
    assert stats["weight_bytes"] == pytest.approx(weights, rel=0.01)
    assert stats["step_bytes"] == pytest.approx(step, rel=0.05)
    kept = min(requests * 15, (60 << 20) // page)
    assert stats["kv_cached_bytes"] == pytest.approx(kept * page, rel=0.15)
    assert stats["kv_resident_bytes"] <= 60 << 20
    stated = weights + step + stats["kv_resident_bytes"] + found["index"]
    assert found["grown"] == pytest.approx(stated, rel=0.10)
    assert found["peak"] < 1.10 * stated


@pytest.mark.parametrize("which", [0, 1])
def test_loading_never_holds_the_weights_twice(files, which):
    """In our order they are read in place; in another they are copied tensor by tensor."""
    found = probe(files[which], files, 0, num_threads=1, max_step_rows=1)
    weights, _, _ = formula()
    largest = 2 * SHAPE["vocab"] * SHAPE["hidden_size"]  # the embedding, while it is copied
    assert found["peak_loading"] < 1.05 * weights + (largest if which else 0)
    assert found["loaded"] < 1.10 * weights


def test_the_probe_imports_nothing_heavy():
    """Else its figures would be of something else."""
    here = pathlib.Path(__file__).resolve().parent.parent
    code = "import sys\nfrom genrecall import kernels\nfrom genrecall.trtllm_bridge import Engine\n"
    code += "print([m for m in ('torch', 'tensorflow', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]", here
