"""What any model has to beat: popularity, and the last item's most frequent successor. Knows no
model.
"""

import numpy as np

from genrecall.training.dataset import splits
from genrecall.training.evaluation import metrics


def baseline_ranks(lines, items, users, split):
    """Ranks of the targets of `users` by protocol A: all items are candidates, history masked, ties
    against.

    Args:
      lines: splits.Lines.
      items: data_folder.Items.
      users: int64 [n], numbers of evaluated users.
      split: "valid" or "test".

    Returns:
      {"popularity": int64 [n], "markov-1": int64 [n]}. Markov-1 scores an item by how often it
      followed the user's last item in the training part; items that never did come after those, by
      popularity.
    """
    count = splits.popularity(lines, items).astype(np.float64)
    follows = successors(splits.training_sequences(lines), items.row_of)
    seen = lines.visible(split)
    ranks = {
        "popularity": np.zeros(len(users), np.int64),
        "markov-1": np.zeros(len(users), np.int64),
    }
    for i, u in enumerate(users):
        rows = [items.row_of[int(x)] for x in lines.items_of(u)[: seen[u] + 1]]
        history, target = rows[:-1], rows[-1]
        score = count / (count.max() + 1.0)  # < 1, so that one transition outweighs any popularity
        ranks["popularity"][i] = _rank(score, history, target)
        for row, times in follows.get(history[-1], {}).items():
            score[row] += times
        ranks["markov-1"][i] = _rank(score, history, target)
    return ranks


def successors(sequences, row_of):
    """{row: {row that followed it: how often}} over adjacent pairs of the sequences (item id
    arrays).
    """
    follows = {}
    for sequence in sequences:
        rows = [row_of[int(i)] for i in sequence]
        for a, b in zip(rows[:-1], rows[1:], strict=True):
            nexts = follows.setdefault(a, {})
            nexts[b] = nexts.get(b, 0) + 1
    return follows


def _rank(score, history, target):
    score = score.copy()
    own = score[target]
    score[[*history, target]] = -np.inf
    return metrics.rank_of(own, score)
