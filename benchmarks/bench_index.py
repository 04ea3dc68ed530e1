"""The recall index at size: build time, file size, load time, resident memory, time of a look-up.

    python benchmarks/bench_index.py --items 10000000

Semantic IDs are uniform over 4 levels of 256 codes: the worst case, since real ones share prefixes.
Prints a table and, as the last line, the same figures as JSON. Wall time is what a user waits; CPU
time beside it tells how busy the machine was.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from genrecall import kernels

LEVEL_SIZES = [256] * 4
LOOKUPS = 100_000


def resident_bytes():
    """Resident set size of this process now."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS:"))


def timed(function):
    """(result, wall seconds, CPU seconds) of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def build_and_save(items, path, seed, first_item_id=10**12):
    """Builds an index of random rows and saves it; item ids go up from the first by sevens."""
    rng = np.random.default_rng(seed)
    item_id = rng.permutation(np.arange(items, dtype=np.int64) * 7 + first_item_id)
    codes = rng.integers(0, 256, (items, len(LEVEL_SIZES)), dtype=np.int32)
    weight = rng.random(items, dtype=np.float32)
    index, wall, cpu = timed(lambda: kernels.RecallIndex.build(LEVEL_SIZES, item_id, codes, weight))
    _, save_wall, save_cpu = timed(lambda: index.save(path))
    return {
        "items": items,
        "sids": index.num_sids,
        "build_s": wall,
        "build_cpu_s": cpu,
        "save_s": save_wall,
        "save_cpu_s": save_cpu,
        "file_bytes": os.path.getsize(path),
    }


def load_and_query(path, seed, repeats=3):
    """Loads the index (the best of `repeats`, from the page cache) and looks random items up."""
    before = resident_bytes()
    index, wall, cpu = timed(lambda: kernels.RecallIndex.load(path))
    resident = resident_bytes() - before
    item_id = np.random.default_rng(seed).choice(index.rows()[0], LOOKUPS)
    _, lookup_wall, _ = timed(lambda: index.lookup(item_id))
    for _ in range(repeats - 1):
        del index
        index, next_wall, next_cpu = timed(lambda: kernels.RecallIndex.load(path))
        wall, cpu = min(wall, next_wall), min(cpu, next_cpu)
    return {
        "load_s": wall,
        "load_cpu_s": cpu,
        "resident_bytes": resident,
        "memory_bytes": index.memory_bytes,
        "lookup_us": lookup_wall / LOOKUPS * 1e6,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="where the file goes; default: a temporary folder")
    parser.add_argument("--load-only", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load_only:
        print(json.dumps(load_and_query(args.load_only, args.seed)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = os.path.join(folder, "recall_index.gguf")
        figures = build_and_save(args.items, path, args.seed)
        # A fresh process, so that memory freed by the build does not hide what loading takes.
        command = [sys.executable, __file__, "--load-only", path, "--seed", str(args.seed)]
        figures |= json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
    n = args.items
    print(f"items            {n:>12,}   SIDs {figures['sids']:,}")
    for key in ("build", "save", "load"):
        print(f"{key:<16} {figures[key + '_s']:>12.2f} s wall, {figures[key + '_cpu_s']:.2f} s CPU")
    for key in ("file", "resident", "memory"):
        size = figures[key + "_bytes"]
        print(f"{key:<16} {size / 1e6:>12.1f} MB, {size / n:.2f} bytes an item")
    print(f"look-up of a SID {figures['lookup_us']:>12.2f} us, random items")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
