"""Full ranking through the engine that serves: prompts to ranked items. Knows no training."""

import os
from dataclasses import dataclass

import numpy as np

from genrecall.training.evaluation import metrics


@dataclass(frozen=True)
class RankOptions:
    """beam_width bounds the ranks that can be known: a target outside the beams is a miss. batch:
    users decoded together.
    """

    beam_width: int = 50
    normalize: str = "level"
    batch: int = 64

    def __post_init__(self):
        if not 1 <= self.beam_width <= 4096:
            raise ValueError(f"beam_width = {self.beam_width}: expected 1..4096")
        if self.normalize not in ("level", "legal", "vocab"):
            raise ValueError(f"normalize = {self.normalize!r}: expected level|legal|vocab")


@dataclass(frozen=True)
class Ranking:
    """ranks int64 [n]: of each user's target, metrics.MISS outside the beams; top int64 [n, 10]:
    the items shown, -1 pads.
    """

    ranks: np.ndarray
    top: np.ndarray


def rank_users(engine, maker, split, users, options=RankOptions(), on_batch=None):
    """Ranks the catalogue for each user by protocol A: history masked, ties count against the
    target.

    Args:
      engine: trtllm_bridge.Engine.
      maker: samples.SampleMaker: the lines, the prompt and the index.
      split: "valid" or "test".
      users: int64 [n], numbers of users that have a target in `split`.
      options: RankOptions.
      on_batch: called with the number of users done.

    Returns:
      Ranking.
    """
    lines, index = maker.lines, maker.index
    seen = lines.visible(split)
    ranks, top = (
        np.full(len(users), metrics.MISS, np.int64),
        np.full((len(users), 10), -1, np.int64),
    )
    order = np.argsort(seen[users], kind="stable")  # like lengths together: little padding
    for first in range(0, len(order), options.batch):
        rows = order[first : first + options.batch]
        tokens, length = maker.prompts(users[rows], seen[users[rows]])
        out = engine.decode(
            tokens, length, index, beam_width=options.beam_width, normalize=options.normalize
        )
        for i, row in enumerate(rows):
            line, known = lines.items_of(users[row]), seen[users[row]]
            beams = int(out["beams"][i])
            item, score, _ = index.expand(
                np.ascontiguousarray(out["sids"][i, :beams]),
                np.ascontiguousarray(out["score"][i, :beams]),
                k=index.num_items if index.num_sids < index.num_items else beams,
                exclude=line[:known].tolist(),
            )
            ranks[row] = rank_in(item, score, line[known])
            top[row, : min(10, len(item))] = item[:10]
        if on_batch is not None:
            on_batch(first + len(rows))
    return Ranking(ranks, top)


def rank_in(item, score, target):
    """Rank of `target` among ranked items (item int64 [n], score float [n]); metrics.MISS when it
    is not there.
    """
    at = np.flatnonzero(item == target)
    if not len(at):
        return metrics.MISS
    return metrics.rank_of(score[at[0]], np.delete(score, at[0]))


def open_engine(checkpoint, work, dtype="float32"):
    """The CPU engine on a checkpoint folder, converted to `work`/model.gguf."""
    from genrecall import trtllm_bridge
    from genrecall.trtllm_bridge import checkpoint as converter

    os.makedirs(work, exist_ok=True)
    path = os.path.join(work, "model.gguf")
    converter.convert(checkpoint, path, dtype=dtype)
    return trtllm_bridge.Engine(path)
