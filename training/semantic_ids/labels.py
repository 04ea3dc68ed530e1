"""What kind of thing an item is, as labels that neighbours and prefixes are measured by. Knows no
vectors and no codes.
"""

import numpy as np

from genrecall.training.semantic_ids.text import is_known


def item_labels(items):
    """The labels a catalogue has: name -> int64 [N], -1 where an item has none.

    `category` where any item has one; `first attribute` and `last attribute` of the list (a brand
    and the narrowest category, where a catalogue writes them so). Labels that all items share, or
    that no two items share, say nothing and are left out.
    """
    values = {
        "category": items.categories,
        "first attribute": [a[0] if a else "" for a in items.attributes],
        "last attribute": [a[-1] if a else "" for a in items.attributes],
    }
    labels = {name: _numbers(column) for name, column in values.items()}
    return {name: numbers for name, numbers in labels.items() if _telling(numbers)}


def same_label(labels, neighbours):
    """Of every item with a label, the share of its neighbours that have the same; the mean.

    Args:
      labels: int64 [N], -1 for none.
      neighbours: int64 [N, k], rows.

    Returns:
      float, NaN where no item has a label or k is 0.
    """
    rows = np.flatnonzero(labels >= 0)
    if not len(rows) or not neighbours.shape[1]:
        return float("nan")
    return float((labels[neighbours[rows]] == labels[rows, None]).mean())


def chance(labels):
    """same_label of neighbours drawn at random."""
    known = labels >= 0
    return group_purity(labels, np.zeros(len(labels), np.int64)) * float(
        (known.sum() - 1) / max(len(labels) - 1, 1)
    )


def group_purity(labels, groups):
    """Of every labelled item with a labelled mate in its group, the share of these mates that have
    the same label; the mean.

    Args:
      labels: int64 [N], -1 for none.
      groups: int64 [N] >= 0.

    Returns:
      float, NaN where no group has two labelled items.
    """
    known = labels >= 0
    pairs, size = np.unique(np.stack([groups[known], labels[known]]), axis=1, return_counts=True)
    total = np.bincount(pairs[0], weights=size)[pairs[0]]
    shared = total > 1
    if not shared.any():
        return float("nan")
    size, total = size[shared], total[shared]
    return float((size * (size - 1) / (total - 1)).sum() / size.sum())


def _numbers(values):
    known = [v if is_known(v) else "" for v in values]
    names, numbers = np.unique(np.array(known, dtype=object).astype(str), return_inverse=True)
    return np.where(names[numbers] == "", -1, numbers).astype(np.int64)


def _telling(numbers):
    known = numbers[numbers >= 0]
    distinct = len(np.unique(known))
    return 1 < distinct < len(known)
