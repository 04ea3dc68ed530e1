"""What any model has to beat, counted rather than learned: popularity, Markov-1, item-to-item
cosine. Knows no model.

Each counts every event that may be seen when a split is evaluated, the validation items too on
test: they are refitted daily where they serve. A baseline is a scorer for protocol.rank_by_scores;
what popularity and Markov-1 counted equally often goes by which came first in the data.
"""

import numpy as np
from scipy import sparse

RECENT, DECAY = 20, 0.7  # of item-to-item: how many items of the history count, and how they fade


def fit_baselines(lines, items, split):
    """{name: scorer} of the three baselines for `split`, "valid" or "test".

    Args:
      lines: splits.Lines.
      items: data_folder.Items.
    """
    seen = lines.seen_events(split)
    owner, rows = lines.owner[seen], items.rows(lines.item[seen])
    popular = popularity_scores(rows, len(items))
    return {
        "popularity": lambda cases: np.tile(popular, (len(cases), 1)),
        "markov-1": Markov(owner, rows, popular),
        "item-to-item": ItemToItem(owner, rows, len(items)),
    }


def popularity_scores(rows, num_items):
    """Distinct scores in (0, 1) in the order of popularity, float64 [N].

    Args:
      rows: int64 [E], items that occurred, as often as they did.
      num_items: N.
    """
    first = np.full(num_items, len(rows), np.int64)
    np.minimum.at(first, rows, np.arange(len(rows)))
    order = np.lexsort((first, -np.bincount(rows, minlength=num_items)))
    score = np.empty(num_items)
    score[order] = np.arange(num_items, 0, -1) / (num_items + 1)
    return score


class Markov:
    """How often an item followed the history's last one; items that never did come after those, by
    popularity.

    Args:
      owner, rows: int64 [E], events in the order of the data: whose, of which item.
      popular: popularity_scores.
    """

    def __init__(self, owner, rows, popular):
        same_user = owner[1:] == owner[:-1]
        before, after = rows[:-1][same_user], rows[1:][same_user]
        pair = before * len(popular) + after
        distinct, first, times = np.unique(pair, return_index=True, return_counts=True)
        earlier = 1.0 - first / (len(pair) + 1)  # in (0, 1]: of equal counts the first seen
        shape = len(popular), len(popular)
        place = np.divmod(distinct, len(popular))
        self.follows = sparse.csr_array((times + earlier, place), shape)
        self.popular = popular / (len(pair) + 2)  # less than what one earlier pair is ahead

    def __call__(self, cases):
        """float64 [b, N]."""
        return self.follows[cases.last].toarray() + self.popular


class ItemToItem:
    """Cosine of items as sets of users, summed over the last RECENT items of the history, each
    fading by DECAY with every later one; items near none of them are not ranked.
    """

    def __init__(self, owner, rows, num_items):
        self.num_items = num_items
        shape = owner.max(initial=-1) + 1, num_items
        users = sparse.csr_array((np.ones(len(rows), np.float32), (owner, rows)), shape)
        users.data[:] = 1.0  # an item repeated in a line is in its user's set once
        together = sparse.coo_array(users.T @ users)
        a, b = together.coords
        size = np.sqrt(np.maximum(users.sum(axis=0), 1.0))
        cosine = np.where(a == b, 0.0, together.data / (size[a] * size[b]))
        self.cosine = sparse.csr_array((cosine, (a, b)), together.shape)

    def __call__(self, cases):
        """float64 [b, N]."""
        recent = cases.age < RECENT
        weight = DECAY ** cases.age[recent]
        place = cases.owner[recent], cases.history[recent]
        fading = sparse.csr_array((weight, place), (len(cases), self.num_items))
        scores = (fading @ self.cosine).toarray()
        scores[scores == 0] = -np.inf
        return scores
