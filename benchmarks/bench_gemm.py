"""Speed of the gemm on the shapes of Qwen2-0.5B, beside torch and NumPy, as a share of the peak.

    w8    int8 weights widened to meet bf16 activations; beside the own bf16 gemm
    w8a8  int8 by int8, activations quantised in the gemm; beside the own bf16 gemm

    python benchmarks/bench_gemm.py [--isa avx512] [--threads 2] [--rows 1 5 32 150 512]

For each shape (k -> outs), dtype and number of rows: GFLOP/s and GB/s of weights read. With few
rows a gemm can go no faster than memory gives weights, so they rotate through copies that no cache
holds. Each figure is the best of many calls, the contenders taking turns, so that another program's
load falls on all. On a shared machine, `--threads 1 --cpu-time` counts this thread's time.
"""

import argparse
import time

import numpy as np
import torch
from machine import measure
from threadpoolctl import threadpool_limits

from genrecall.kernels import _kernels

n = _kernels._numeric
SHAPES = [(896, 1152), (896, 896), (896, 9728), (4864, 896)]  # qkv, attention out, gate+up, down
BYTES = {"float32": 4, "bfloat16": 2, "w8": 1, "w8a8": 1}
UNITS = {"w8a8": "int8"}  # whose peak it is measured by
COLD_BYTES = 192 << 20  # of weights that calls rotate through
OTHERS = ("torch", "numpy")


def contenders(isa, dtype, rows, k, outs, pool):
    """name -> function(copy number) that runs one gemm; and the number of copies."""
    if dtype.startswith("w8"):
        return int8_contenders(isa, dtype, rows, k, outs, pool)
    rng = np.random.default_rng(1)
    copies = max(1, COLD_BYTES // (k * outs * BYTES[dtype])) if rows <= 32 else 1
    x = rng.standard_normal((rows, k), dtype=np.float32)
    w = rng.standard_normal((outs, k), dtype=np.float32)
    torch_x = torch.from_numpy(x).to(getattr(torch, dtype))
    torch_w = [torch.from_numpy(w).to(torch_x.dtype).clone() for _ in range(copies)]
    own_x, own_w = n.Tensor(x, dtype), [n.Tensor(w, dtype) for _ in range(copies)]
    y = np.empty((rows, outs), np.float32)
    runs = {
        "genrecall": lambda i: n.gemm(isa, own_x, own_w[i], y=y, pool=pool),
        "torch": lambda i: torch.nn.functional.linear(torch_x, torch_w[i]),
    }
    if dtype == "float32":
        runs["numpy"] = lambda i: x @ torch_w[i].numpy().T
    return runs, copies


def int8_contenders(isa, mode, rows, k, outs, pool):
    """The int8 gemm and the bf16 gemm of the same shape."""
    rng = np.random.default_rng(1)
    copies = max(1, COLD_BYTES // (k * outs)) if rows <= 32 else 1
    x = n.Tensor(rng.standard_normal((rows, k), dtype=np.float32), "bfloat16")
    w = rng.integers(-127, 128, (outs, k)).astype(np.int8)
    scale = np.full(outs, 1e-3, np.float32)
    int8 = [n.Int8Weights(w, scale, mode == "w8a8") for _ in range(copies)]
    bf16 = [n.Tensor(w.astype(np.float32), "bfloat16") for _ in range(copies)]
    y = np.empty((rows, outs), np.float32)
    return {
        "genrecall": lambda i: n.gemm(isa, x, int8[i], y=y, pool=pool),
        "bf16": lambda i: n.gemm(isa, x, bf16[i], y=y, pool=pool),
    }, copies


def best_seconds(runs, copies, clock, budget_s):
    """name -> the fastest call's seconds."""
    best = dict.fromkeys(runs, float("inf"))
    calls, end = 0, time.perf_counter() + budget_s
    while calls < 3 or time.perf_counter() < end:
        for name, run in runs.items():
            start = clock()
            run(calls % copies)
            best[name] = min(best[name], clock() - start)
        calls += 1
    return best


def table_line(dtype, k, outs, rows, best, flops_peak, bytes_peak):
    flops, size, own = 2 * rows * k * outs, k * outs * BYTES[dtype], best["genrecall"]
    cells = [
        f"{dtype:9}{k:6}{outs:6}{rows:5}",
        f"{flops / own / 1e9:9.1f}{flops / own / flops_peak:8.0%}" if flops_peak else f"{'':17}",
        f"{size / own / 1e9:7.1f}{size / own / bytes_peak:7.0%}",
        *(f"{flops / best[x] / 1e9:8.1f}" for x in OTHERS if x in best),
        f"{best['bf16'] / own:7.2f} x bf16" if "bf16" in best else "",
    ]
    return "".join(cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", default=n.active_isa())
    parser.add_argument("--threads", type=int, default=n.default_num_threads())
    parser.add_argument("--dtypes", nargs="+", choices=BYTES, default=list(BYTES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 5, 32, 150, 512])
    parser.add_argument("--seconds", type=float, default=1.0, help="per line of the table")
    parser.add_argument("--cpu-time", action="store_true", help="count this thread's CPU time")
    args = parser.parse_args()
    if args.cpu_time and args.threads != 1:
        parser.error("--cpu-time counts one thread: expected --threads 1")
    clock = time.thread_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)  # NumPy's
    pool = n.ThreadPool(args.threads)
    machine = measure(args.threads)
    print(
        f"{args.threads} thread(s), {args.isa}; measured peaks: "
        f"float32 {machine.peak_ops(args.isa, 'float32') / 1e9:.0f}, "
        f"bf16 {machine.peak_ops(args.isa, 'bfloat16') / 1e9:.0f}, "
        f"int8 {machine.peak_ops(args.isa, 'int8') / 1e9:.0f} GOP/s, "
        f"memory {machine.bytes_per_s / 1e9:.1f} GB/s"
    )
    print("dtype         k  outs rows  GFLOP/s of peak   GB/s of mem   torch   numpy (GFLOP/s)")
    for dtype in args.dtypes:
        for k, outs in SHAPES:
            for rows in args.rows:
                runs, copies = contenders(args.isa, dtype, rows, k, outs, pool)
                best = best_seconds(runs, copies, clock, args.seconds)
                peak = machine.peak_ops(args.isa, UNITS.get(dtype, dtype))
                line = table_line(dtype, k, outs, rows, best, peak, machine.bytes_per_s)
                print(line, flush=True)


if __name__ == "__main__":
    main()
