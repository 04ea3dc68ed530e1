"""The CPU engine on the workload: one request at a time, trie and all."""

import numpy as np
import timing

from genrecall import kernels
from genrecall.trtllm_bridge import Engine


def open_workload(args):
    """(Engine on WORKLOAD/model-DTYPE.gguf, recall index of the workload's SIDs)."""
    engine = Engine(str(args.workload / f"model-{args.dtype}.gguf"), num_threads=args.threads)
    items = np.arange(len(args.sids), dtype=np.int64)
    levels = [args.token_ids.shape[1]] * args.token_ids.shape[0]
    return engine, kernels.RecallIndex.build(levels, items, args.sids)


def main():
    args = timing.parse(("bfloat16", "float32", "int8"))
    engine, index = open_workload(args)
    tokens = args.prompt[None].astype(np.int32)

    def decode(width):
        engine.decode(tokens, [len(args.prompt)], index, beam_width=width)

    ms = timing.over_widths(decode, args)
    timing.answer(ms, isa=engine.isa, threads=engine.num_threads, dtype=engine.dtype)


if __name__ == "__main__":
    main()
