"""What all runners share: arguments, timing, the answer's format. Needs NumPy alone.

A runner is `python RUNNER.py WORKLOAD --widths 5 32 ... [--dtype D] [--threads N] [--repeats N]
[--limit_s S]`; its last line on stdout is {"ms": {width: [ms, ...] | null}, "about": {...}}; null:
no answer within the limit.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np


def parse(dtypes):
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", type=Path)
    parser.add_argument("--widths", type=int, nargs="+", required=True)
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit_s", type=float, default=60, help="of one width, all its runs")
    args = parser.parse_args()
    with np.load(args.workload / "arrays.npz") as arrays:
        args.prompt = arrays["prompts"][0]
        args.sids, args.token_ids = arrays["sids"], arrays["token_ids"]
    return args


def timed(call, repeats, limit_s):
    """Milliseconds of `repeats` runs after one that warms up; fewer if they pass the limit.

    A first run that takes over half of the limit stands for all; TimeoutError from it gives None.
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
                return [elapsed]
            if time.monotonic() - began > limit_s:
                break
    except TimeoutError:
        return times or None
    return times


def over_widths(call, args):
    """{width: [ms] | None}. Once a width has not finished no wider one is tried."""
    results, finished = {}, True
    for width in sorted(args.widths):
        results[width] = (
            timed(lambda w=width: call(w), args.repeats, args.limit_s) if finished else None
        )
        finished = results[width] is not None
    return results


def answer(ms, **about):
    print(json.dumps({"ms": ms, "about": about}), flush=True)
