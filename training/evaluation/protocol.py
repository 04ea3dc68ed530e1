"""What protocol A asks of one split: each user's history and target, and every item a candidate.
Knows no method that answers.
"""

from dataclasses import dataclass

import numpy as np

MISS = np.iinfo(np.int64).max  # the rank of a target that was not ranked at all


@dataclass(frozen=True)
class Cases:
    """One case a user: predict the target from the history.

    user int64 [n], numbers of users; target int64 [n], rows of items.jsonl; case c has the history
    history[begin[c]:begin[c + 1]], oldest first, never empty: history int64 [sum], rows; begin
    int64 [n + 1].
    """

    user: np.ndarray
    target: np.ndarray
    begin: np.ndarray
    history: np.ndarray

    def __len__(self):
        return len(self.user)

    @property
    def lengths(self):
        return np.diff(self.begin)

    @property
    def last(self):
        """The latest item of each history, int64 [n]."""
        return self.history[self.begin[1:] - 1]

    @property
    def owner(self):
        """The case of each event of the histories, int64 [sum]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def age(self):
        """How many events of its history came after each event: 0 is the latest. int64 [sum]."""
        return self.begin[1:][self.owner] - 1 - np.arange(len(self.history))

    def block(self, first, end):
        """Cases first:end."""
        begin = self.begin[first : end + 1]
        history = self.history[begin[0] : begin[-1]]
        return Cases(self.user[first:end], self.target[first:end], begin - begin[0], history)

    def take(self, chosen):
        """The cases `chosen`, int64 [m]."""
        lengths = self.lengths[chosen]
        begin = np.concatenate([[0], np.cumsum(lengths)])
        offset = np.arange(begin[-1]) - np.repeat(begin[:-1], lengths)
        history = self.history[np.repeat(self.begin[chosen], lengths) + offset]
        return Cases(self.user[chosen], self.target[chosen], begin, history)

    def blocks(self, rows):
        """Cases in blocks of `rows` and a rest."""
        for first in range(0, len(self), rows):
            yield self.block(first, min(first + rows, len(self)))


def cases_of(lines, items, split, users):
    """The cases of `users` (int64 [n], of lines.evaluated(split)) in `split`, "valid" or "test"."""
    seen = lines.visible(split)[users]
    begin = np.concatenate([[0], np.cumsum(seen)])
    offset = np.arange(begin[-1]) - np.repeat(begin[:-1], seen)
    history = lines.item[np.repeat(lines.begin[users], seen) + offset]
    target = lines.item[lines.begin[users] + seen]
    return Cases(users, items.rows(target), begin, items.rows(history))


@dataclass(frozen=True)
class Ranking:
    """What a method answers to n cases: ranks int64 [n] of the targets, 1 the best, MISS where it
    did not rank the target; top int64 [n, K], the item ids shown, best first, -1 pads.
    """

    ranks: np.ndarray
    top: np.ndarray


def rank_by_scores(score, cases, item_ids, k, cells=1 << 21):
    """Ranks all items by a scorer's scores: history masked, ties count against the target.

    Args:
      score: Cases -> float [b, N], a score for every item; higher is better, -inf: not ranked.
      cases: Cases.
      item_ids: int64 [N], by row.
      k: length of the lists shown.
      cells: at most about this many scores are held at a time.

    Returns:
      Ranking. Equal scores are shown in no particular order.
    """
    rows = max(1, cells // max(1, len(item_ids)))
    parts = [
        _rank_block(score(block), block, min(k, len(item_ids))) for block in cases.blocks(rows)
    ]
    ranks, top = (np.concatenate(p) for p in zip(*parts, strict=True))
    shown = np.full((len(cases), k), -1, np.int64)
    shown[:, : top.shape[1]] = np.where(top >= 0, item_ids[top], -1)
    return Ranking(ranks, shown)


def _rank_block(scores, cases, k):
    """(ranks int64 [b], rows of the k best int64 [b, k], -1 pads) of scores [b, N], which are
    overwritten.
    """
    at = np.arange(len(cases))
    own = scores[at, cases.target].copy()
    scores[cases.owner, cases.history] = -np.inf
    ranks = np.count_nonzero(scores >= own[:, None], axis=1)  # the target is one of them
    ranks[own == -np.inf] = MISS
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    value = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-value, axis=1, kind="stable")
    best, value = (np.take_along_axis(a, order, axis=1) for a in (best, value))
    return ranks, np.where(value > -np.inf, best, -1)
