"""Rankings to metrics, by user and as means. Knows no model and no data folder.

Of a list of K items shown to a user whose target has rank r:
  hr@K        1 when r <= K. With one target a user, HR@K is Recall@K.
  ndcg@K      1 / log2(r + 1) when r <= K, else 0 (Jarvelin and Kekalainen, 2002; one target, so
              the ideal DCG is 1).
  ecpm@K      the mean eCPM of the items shown: what an impression of the list earns when each
              place is as likely to be seen. Items without an eCPM are left out; a user all of whose
              items are without one is left out of the mean.
  ecpm_hit@K  the target's eCPM when r <= K, else 0: the eCPM of the hits, every user counting, so
              that a list that earns but hits nothing scores 0. Users whose target has no eCPM are
              left out.
  hot@K       the share of hot items among those shown.
A metric's value is the mean over users. One is of all lists together:
  coverage@K  distinct items shown / items of the catalogue.
"""

from dataclasses import dataclass

import numpy as np

CUTOFFS = (5, 10, 50)
HOT_SHARE = 0.01  # of the items, the most popular ones, are called hot


@dataclass(frozen=True)
class Catalogue:
    """What metrics know about items: data_folder.Items, and hot bool [N] by row.

    hot_share: of all occurrences in the training part, those of hot items.
    """

    items: object
    hot: np.ndarray
    hot_share: float

    @staticmethod
    def of(items, popularity):
        """The HOT_SHARE most popular items, at least one, are hot: popularity int64 [N], ties in
        the order of the file.
        """
        count = max(1, round(HOT_SHARE * len(items)))
        hot = np.zeros(len(items), bool)
        hot[np.argsort(-popularity, kind="stable")[:count]] = True
        return Catalogue(items, hot, float(popularity[hot].sum() / max(1, popularity.sum())))

    @property
    def has_ecpm(self):
        return bool(np.isfinite(self.items.ecpm).any())


def rank_of(target_score, other_scores):
    """Rank of a target among its candidates, 1 the best; ties count against it."""
    return 1 + int(np.count_nonzero(np.asarray(other_scores) >= target_score))


def user_values(ranking, target, catalogue, cutoffs=CUTOFFS):
    """The metrics of every user.

    Args:
      ranking: protocol.Ranking of n users, lists at least as long as the largest cutoff.
      target: int64 [n], rows of the items.
      catalogue: Catalogue.

    Returns:
      name -> float64 [n], NaN where a user is left out. No ecpm@K and ecpm_hit@K for a catalogue
      without any eCPM.
    """
    shown = ranking.top >= 0
    rows = catalogue.items.rows(np.where(shown, ranking.top, catalogue.items.ids[0]))
    ecpm = catalogue.items.ecpm.astype(np.float64)
    out = {}
    for k in cutoffs:
        out |= by_user(ranking.ranks, k)
        if catalogue.has_ecpm:
            out[f"ecpm@{k}"] = _mean_of(ecpm[rows[:, :k]], shown[:, :k])
            out[f"ecpm_hit@{k}"] = (ranking.ranks <= k) * ecpm[target]
        out[f"hot@{k}"] = _mean_of(catalogue.hot[rows[:, :k]], shown[:, :k])
    return out


def means(values):
    """name -> mean over the users that are not left out; 0 when all are."""
    known = {name: v[~np.isnan(v)] for name, v in values.items()}
    return {name: float(v.mean()) if len(v) else 0.0 for name, v in known.items()}


def coverage(ranking, num_items, cutoffs=CUTOFFS):
    """{"coverage@5": ..., ...}: distinct items in all lists / num_items."""
    distinct = {k: np.setdiff1d(ranking.top[:, :k], [-1]) for k in cutoffs}
    return {f"coverage@{k}": len(items) / num_items for k, items in distinct.items()}


def hit_rates(ranks, cutoffs=CUTOFFS):
    """HR@K and NDCG@K of one target per user.

    Args:
      ranks: int64 [U], 1 the best, MISS where the target was not ranked.

    Returns:
      {"hr@5": ..., "ndcg@5": ..., ...}: means over users, all 0 for no users.
    """
    ranks = np.asarray(ranks, np.int64)
    return {name: value for k in cutoffs for name, value in means(by_user(ranks, k)).items()}


def by_user(ranks, k):
    """hr@k and ndcg@k of every user: name -> float64 [n]; ranks int64 [n]."""
    hit = (ranks <= k).astype(np.float64)
    gain = 1.0 / np.log2(np.minimum(ranks, 2**40) + 1.0)
    return {f"hr@{k}": hit, f"ndcg@{k}": hit * gain}


def _mean_of(value, shown):
    """Mean over each row's values that are shown and not NaN; NaN where there is none."""
    counted = shown & ~np.isnan(value)
    number = counted.sum(axis=1)
    total = np.where(counted, value, 0.0).sum(axis=1)
    return np.divide(total, number, out=np.full(len(value), np.nan), where=number > 0)
