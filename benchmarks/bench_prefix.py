"""What a kept prompt prefix saves: first-token time of hits over that of misses; peak memory.

    python benchmarks/bench_prefix.py [--shape 0.5b] [--prompt_tokens 1000] [--prefix_tokens 900]

Misses and hits alternate, so that a disturbed machine disturbs both. A hit shares the prompt's
first tokens with a prompt seen before and computes the rest. First-token time: from Submit to the
end of the prompt's pass. Prints a table and one JSON line. A benchmark, not a test.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine as machines
import numpy as np
import workload

from genrecall import kernels
from genrecall.trtllm_bridge import Engine

CONVERT = """
import sys, workload
from genrecall.trtllm_bridge import checkpoint
folder, shape, items, tokens, seed = sys.argv[1:]
workload.write_workload(folder, shape, int(items), int(tokens), int(seed), prompts=1)
checkpoint.convert(folder + "/checkpoint", folder + "/model.gguf", "bfloat16")
"""


def status_bytes(key):
    with open("/proc/self/status", encoding="ascii") as f:
        return next(int(x.split()[1]) * 1024 for x in f if x.startswith(key))


def first_token_ms(engine, index, prompt, width, stable_prefix):
    """(milliseconds from Submit until the beams' first rows are planned, cached tokens)."""
    decoded = engine.stats()["decode_rows"]
    start = time.perf_counter()
    request = engine.submit(prompt, index, beam_width=width, stable_prefix=stable_prefix)
    while engine.stats()["decode_rows"] == decoded:
        time.sleep(0.001)
    took = (time.perf_counter() - start) * 1e3
    return took, request.result()["cached_tokens"]


def measure(engine, index, vocab, args):
    """{"miss": [ms], "hit": [ms]}, and the tokens that hits had not to compute."""
    rng = np.random.default_rng(args.seed)

    def tokens(n):
        return rng.integers(0, vocab, n).astype(np.int32)

    times, cached = {"miss": [], "hit": []}, 0
    rest = args.prompt_tokens - args.prefix_tokens
    for i in range(args.repeats + 1):
        prefix = tokens(args.prefix_tokens)
        for kind in times:
            prompt = np.concatenate([prefix, tokens(rest)])
            took, found = first_token_ms(engine, index, prompt, args.width, args.prefix_tokens)
            assert (found > 0) == (kind == "hit"), "what is to be a hit hits, and nothing else"
            if i > 0:  # the first pair warms up
                times[kind].append(took)
            cached = max(cached, found)
    return times, cached


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=workload.SHAPES, default="0.5b")
    parser.add_argument("--prompt_tokens", type=int, default=1000)
    parser.add_argument("--prefix_tokens", type=int, default=900)
    parser.add_argument("--width", type=int, default=5)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are CPUs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        numbers = [args.items, args.prompt_tokens, args.seed]
        command = [sys.executable, "-c", CONVERT, folder, args.shape, *map(str, numbers)]
        # In a process of its own, so that this one's memory is the engine's.
        subprocess.run(command, check=True, cwd=Path(__file__).resolve().parent)
        sids = np.load(f"{folder}/arrays.npz")["sids"]
        ids = np.arange(len(sids), dtype=np.int64)
        index = kernels.RecallIndex.build([workload.CODES] * workload.LEVELS, ids, sids)
        before = status_bytes("VmRSS")
        engine = Engine(f"{folder}/model.gguf", num_threads=args.threads)
        times, cached = measure(engine, index, engine.vocab_size, args)
    stats = engine.stats()
    ms = {kind: statistics.median(t) for kind, t in times.items()}
    peak = status_bytes("VmHWM") - before
    stated = stats["weight_bytes"] + stats["kv_resident_bytes"]
    print(f"{args.shape} bf16, prompt {args.prompt_tokens}, {cached} tokens kept, {engine.isa}")
    print(f"first token, median ms: miss {ms['miss']:.1f}, hit {ms['hit']:.1f}", end="")
    print(f": {ms['hit'] / ms['miss']:.3f}x")
    print(f"peak memory {peak / 1e6:.0f} MB: {peak / stated:.3f}x weights + keys and values")
    record = {"benchmark": "prefix", **vars(args), "machine": machines.describe(), "ms": times}
    record |= {"cached_tokens": cached, "hit_over_miss": ms["hit"] / ms["miss"]}
    record |= {"peak_bytes": peak, "peak_over_stated": peak / stated, "engine": stats}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
