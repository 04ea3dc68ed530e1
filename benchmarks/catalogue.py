"""Cost over the catalogue size: the index, and the constraint with its top-k. Knows no model."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench_index
import numpy as np

from genrecall import kernels

CODES = 256


def constraint_ms(index, width, repeats=30, seed=0):
    """Median ms of one ConstrainedTopk per level of a beam search of `width`, on random logits."""
    rng = np.random.default_rng(seed)
    node, score, out = np.zeros(1, np.uint32), np.zeros(1, np.float32), []
    for level in range(len(index.level_sizes)):
        logits = rng.standard_normal((len(node), CODES), dtype=np.float32)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            found = kernels.constrained_topk(index, level, node, score, logits, width)
            times.append((time.perf_counter() - start) * 1e3)
        out.append(statistics.median(times))
        node, score = found["node"], found["score"]
    return out


def cost(items, width):
    """All figures of a catalogue of `items` random items, as one flat dict.

    Run in a process of its own (see `over_sizes`): memory that one size frees hides the next one's.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "recall_index.gguf")
        figures = bench_index.build_and_save(items, path, seed=1)
        figures |= bench_index.load_and_query(path, seed=1)
        index = kernels.RecallIndex.load(path)
    steps = constraint_ms(index, width)
    # 8 bytes an item are the caller's own ids; what is left is the index's.
    own = (figures["file_bytes"] - 8 * items) / items
    return figures | {"width": width, "step_ms": steps, "bytes_beside_ids": own}


def over_sizes(sizes, width):
    """`cost` of each size, smallest first."""
    for items in sizes:
        command = [sys.executable, __file__, str(items), str(width)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        yield json.loads(out)


if __name__ == "__main__":
    print(json.dumps(cost(int(sys.argv[1]), int(sys.argv[2]))))
