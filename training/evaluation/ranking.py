"""Full ranking through the engine that serves: prompts to ranked items. Knows no training."""

import os
from dataclasses import dataclass

import numpy as np

from genrecall.training.evaluation.metrics import CUTOFFS, rank_of
from genrecall.training.evaluation.protocol import MISS, Ranking


@dataclass(frozen=True)
class RankOptions:
    """beam_width bounds the ranks that can be known: a target outside the beams is a miss. batch:
    users decoded together. shown: length of the lists.
    """

    beam_width: int = 50
    normalize: str = "level"
    batch: int = 64
    shown: int = max(CUTOFFS)

    def __post_init__(self):
        if not 1 <= self.beam_width <= 4096:
            raise ValueError(f"beam_width = {self.beam_width}: expected 1..4096")
        if self.normalize not in ("level", "legal", "vocab"):
            raise ValueError(f"normalize = {self.normalize!r}: expected level|legal|vocab")


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
      protocol.Ranking with lists of options.shown items; a target outside the beams is a MISS.
    """
    lines = maker.lines
    seen = lines.visible(split)
    ranks = np.full(len(users), MISS, np.int64)
    top = np.full((len(users), options.shown), -1, np.int64)
    for row, item, score in decode_items(engine, maker, users, seen[users], options, on_batch):
        ranks[row] = rank_in(item, score, lines.items_of(users[row])[seen[users[row]]])
        top[row, : min(options.shown, len(item))] = item[: options.shown]
    return Ranking(ranks, top)


def decode_items(engine, maker, users, ends, options=RankOptions(), on_batch=None):
    """What the engine recommends after each prompt, items of its history left out.

    Args:
      engine, maker, options, on_batch: as for rank_users.
      users, ends: int64 [n]; prompt i is the first ends[i] events of user number users[i].

    Yields:
      (i, item int64 [m], score float32 [m]), best first, the i in no particular order.
    """
    order = np.argsort(ends, kind="stable")  # like lengths together: little padding
    for first in range(0, len(order), options.batch):
        rows = order[first : first + options.batch]
        tokens, length = maker.prompts(users[rows], ends[rows])
        out = engine.decode(
            tokens,
            length,
            maker.index,
            beam_width=options.beam_width,
            normalize=options.normalize,
        )
        for i, row in enumerate(rows):
            yield row, *items_of(maker, out, i, users[row], ends[row])
        if on_batch is not None:
            on_batch(first + len(rows))


def items_of(maker, out, i, user, end):
    """The items of row i of what Engine.decode gave, without those of the user's first `end`
    events: (item int64 [m], score float32 [m]), best first.
    """
    index, beams = maker.index, int(out["beams"][i])
    item, score, _ = index.expand(
        np.ascontiguousarray(out["sids"][i, :beams]),
        np.ascontiguousarray(out["score"][i, :beams]),
        k=index.num_items if index.num_sids < index.num_items else beams,
        exclude=maker.lines.items_of(user)[:end].tolist(),
    )
    return item, score


def rank_in(item, score, target):
    """Rank of `target` among ranked items (item int64 [n], score float [n]); MISS when it is not
    there.
    """
    at = np.flatnonzero(item == target)
    if not len(at):
        return MISS
    return rank_of(score[at[0]], np.delete(score, at[0]))


def open_engine(checkpoint, work, dtype="float32"):
    """The CPU engine on a checkpoint folder, converted to `work`/model.gguf."""
    from genrecall import trtllm_bridge
    from genrecall.trtllm_bridge import checkpoint as converter

    os.makedirs(work, exist_ok=True)
    path = os.path.join(work, "model.gguf")
    converter.convert(checkpoint, path, dtype=dtype)
    return trtllm_bridge.Engine(path)
