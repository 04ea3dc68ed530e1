"""Ranks to metrics. Knows no model and no data folder."""

import numpy as np

CUTOFFS = (5, 10, 50)
MISS = np.iinfo(np.int64).max  # the rank of a target that was not ranked at all


def rank_of(target_score, other_scores):
    """Rank of a target among its candidates, 1 the best; ties count against it."""
    return 1 + int(np.count_nonzero(np.asarray(other_scores) >= target_score))


def hit_rates(ranks, cutoffs=CUTOFFS):
    """HR@K and NDCG@K of one target per user.

    Args:
      ranks: int64 [U], 1 the best, MISS where the target was not ranked.

    Returns:
      {"hr@5": ..., "ndcg@5": ..., ...}: means over users; HR@K = share of ranks <= K, NDCG@K = mean
      of 1 / log2(rank + 1) of those, 0 for the rest. All 0 for no users.
    """
    ranks = np.asarray(ranks, np.int64)
    gain = 1.0 / np.log2(np.minimum(ranks, 2**40) + 1.0)
    out = {}
    for k in cutoffs:
        hit = ranks <= k
        out[f"hr@{k}"] = float(hit.mean()) if len(ranks) else 0.0
        out[f"ndcg@{k}"] = float((gain * hit).mean()) if len(ranks) else 0.0
    return out
