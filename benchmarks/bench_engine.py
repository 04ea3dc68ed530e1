"""Latency of one request at several beam widths: the CPU engine beside Hugging Face `generate`.

A Qwen2-shaped decoder with random weights, a prompt of 150 tokens, 4 levels x 256 codes, a trie
of 100,000 items. `generate` runs as its users would: num_beams, prefix_allowed_tokens_fn; no answer
within the limit counts as not finished.

    python -m genrecall.benchmarks.bench_engine            # or: python benchmarks/bench_engine.py
    python benchmarks/bench_engine.py --shape tiny --widths 5 32 --repeats 3

Prints a table, then one JSON line with the machine's description. It is a benchmark, not a test.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from genrecall import kernels
from genrecall.kernels.prompt_spec import SidSpace
from genrecall.trtllm_bridge import Engine, checkpoint

SHAPES = {
    "0.5b": dict(
        vocab_size=152960,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    ),
    "tiny": dict(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    ),
}
LEVEL_SIZES = (256, 256, 256, 256)


def make_checkpoint(folder, shape, seed):
    """Writes a random checkpoint folder; returns (transformers model, token ids [L][C])."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPES[shape])).eval()
    model = model.to(torch.bfloat16)  # so that both dtypes run the same numbers
    model.save_pretrained(folder)
    vocab, codes = SHAPES[shape]["vocab_size"], sum(LEVEL_SIZES)
    token_ids = np.split(np.arange(vocab - codes, vocab), np.cumsum(LEVEL_SIZES)[:-1])
    space = SidSpace.build(LEVEL_SIZES, [ids.tolist() for ids in token_ids], "random")
    space.save(Path(folder) / "sid_space.json")
    return model, token_ids


def make_catalogue(items, seed):
    """(recall index, distinct SIDs int32 [S, L]) of random SIDs."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (items, len(LEVEL_SIZES))).astype(np.int32)
    index = kernels.RecallIndex.build(list(LEVEL_SIZES), np.arange(items, dtype=np.int64), codes)
    return index, np.unique(codes, axis=0)


def timed(call, repeats, limit_s):
    """Milliseconds of each run after one to warm up; None if a run raises TimeoutError.

    Stops early when the runs together have taken the limit.
    """
    times, began = [], time.monotonic()
    try:
        for run in range(repeats + 1):
            start = time.perf_counter()
            call()
            elapsed = (time.perf_counter() - start) * 1e3
            if run > 0:
                times.append(elapsed)
            elif elapsed > limit_s * 1e3 / 2:
                return [elapsed]  # no time to measure a warm one
            if run > 0 and time.monotonic() - began > limit_s:
                break
    except TimeoutError:
        return None
    return times


def bench_engine(path, index, prompt, args):
    """{width: [ms]}, and the engine's own description."""
    engine = Engine(path, num_threads=args.threads)
    tokens, length = prompt[None], [len(prompt)]
    results = {}
    for width in args.widths:
        results[width] = timed(
            lambda w=width: engine.decode(tokens, length, index, beam_width=w),
            args.repeats,
            args.limit_s,
        )
    return results, {"isa": engine.isa, "threads": engine.num_threads, "dtype": engine.dtype}


def bench_hugging_face(model, sids, token_ids, prompt, args):
    """{width: [ms] or None} of generate with prefix_allowed_tokens_fn on the same trie."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    rows = np.stack([token_ids[i][sids[:, i]] for i in range(sids.shape[1])], axis=1).tolist()
    trie = {}
    for row in rows:
        for depth in range(len(row)):
            trie.setdefault(tuple(row[:depth]), set()).add(row[depth])
    trie = {prefix: sorted(tokens) for prefix, tokens in trie.items()}
    state = {"deadline": 0.0}

    def allowed(_, tokens):
        if time.monotonic() > state["deadline"]:
            raise TimeoutError
        # Beams that generate pads with are not in the trie: any token will do.
        return trie.get(tuple(tokens[len(prompt) :].tolist()), [0])

    inputs = torch.from_numpy(prompt.astype(np.int64))[None]

    def generate(width):
        state["deadline"] = time.monotonic() + args.limit_s
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            num_beams=width,
            num_return_sequences=width,
            prefix_allowed_tokens_fn=allowed,
            length_penalty=0.0,
            max_new_tokens=len(LEVEL_SIZES),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )

    results = {}
    with torch.inference_mode():
        for width in args.widths:
            slower = [w for w, ms in results.items() if ms is None]
            results[width] = (
                None if slower else timed(lambda w=width: generate(w), args.repeats, args.limit_s)
            )
    return results


def machine():
    """What the figures were taken on."""
    model = ""
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def cell(times, limit_s):
    if times is None:
        return f"not finished in {limit_s:g} s"
    return f"{statistics.median(times):.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--hf_dtype", nargs="*", default=["bfloat16", "float32"])
    parser.add_argument("--widths", type=int, nargs="+", default=[5, 32, 128, 512])
    parser.add_argument("--prompt_tokens", type=int, default=150)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit_s", type=float, default=60, help="of one width of one system")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are CPUs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    import torch

    index, sids = make_catalogue(args.items, args.seed)
    prompt = np.random.default_rng(args.seed).integers(
        0, SHAPES[args.shape]["vocab_size"] - sum(LEVEL_SIZES), args.prompt_tokens
    )
    columns = {}
    with tempfile.TemporaryDirectory() as folder:
        model, token_ids = make_checkpoint(folder, args.shape, args.seed)
        path = Path(folder) / "model.gguf"
        checkpoint.convert(folder, path, args.dtype)
        name = f"genrecall {args.dtype}"
        columns[name], engine = bench_engine(path, index, prompt.astype(np.int32), args)
        for dtype in args.hf_dtype:
            model = model.to(getattr(torch, dtype))
            columns[f"generate {dtype}"] = bench_hugging_face(model, sids, token_ids, prompt, args)

    print(
        f"{args.shape}, one request, prompt {args.prompt_tokens}, 4 x 256 codes, {args.items} items"
    )
    print("median ms    " + "".join(f"{c:>26}" for c in columns))
    for width in args.widths:
        row = "".join(f"{cell(times[width], args.limit_s):>26}" for times in columns.values())
        print(f"beam {width:<8}{row}")
    record = {"benchmark": "engine", **vars(args), "machine": machine(), "engine": engine}
    record["ms"] = {name: {str(w): t for w, t in times.items()} for name, times in columns.items()}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
