"""Items whose codes are the same: how many, and how each gets a semantic ID of its own. Knows no
vectors and no files.

The last level is extended beyond its base codes. The first L - 1 codes of an item never change, and
the last one only for the items that lose their code, so what the tokenizer said (the base codes)
stays known: it is kept beside the resolved codes, and codes below the base size are base codes.
"""

import numpy as np


def collision_rate(codes):
    """1 - distinct SIDs / items. codes: int32 [N, L]."""
    return 1.0 - len(np.unique(codes, axis=0)) / len(codes)


def resolve_collisions(codes, distance, base_size):
    """Makes every SID distinct by extending the last level.

    Of the items that share a SID, the one nearest to what the SID says (smallest distance, ties:
    earlier row) keeps it. The others, in the same order, get the codes base_size, base_size + 1,
    ... under their prefix of L - 1 codes; prefixes count separately, so the level grows by the
    largest number of losers under one prefix, not by their total.

    Args:
      codes: int32 [N, L], the last code of each < base_size.
      distance: float [N], how far each item is from what its codes say.
      base_size: C of the last level.

    Returns:
      (int32 [N, L], the last level's new size >= base_size).
    """
    order = np.lexsort((np.arange(len(codes)), distance))
    taken = {}
    resolved = codes.copy()
    for row in order:
        resolved[row, -1] = _free_code(taken, codes[row], base_size)
    return resolved, max(base_size, int(resolved[:, -1].max()) + 1)


def place_new(known, codes, distance, base_size, last_size):
    """Semantic IDs for new items beside known ones, which keep theirs.

    A new item whose base codes nobody has gets them; else the smallest code >= base_size that is
    free under its prefix. New items nearest to their codes choose first (ties: earlier row).

    Args:
      known: int32 [N, L], the semantic IDs in use.
      codes: int32 [M, L], base codes of the new items.
      distance: float [M].
      base_size: base codes of the last level.
      last_size: codes of the last level, those of earlier collisions and the spare ones included.

    Returns:
      int32 [M, L]; the last code is -1 where none was left.
    """
    taken = {}
    for *prefix, last in known.tolist():
        taken.setdefault(tuple(prefix), _Prefix(base_size)).used.add(last)
    placed = codes.copy()
    for row in np.lexsort((np.arange(len(codes)), distance)):
        code = _free_code(taken, codes[row], base_size)
        placed[row, -1] = code if code < last_size else -1
    return placed


class _Prefix:
    """The last codes under one prefix: those used, and the least >= base_size that may be free."""

    def __init__(self, base_size):
        self.used, self.next = set(), base_size


def _free_code(taken, sid, base_size):
    """The last code for an item with base codes `sid`, entered in taken: prefix -> _Prefix. Its
    own, if free; else the smallest free one >= base_size.
    """
    *prefix, code = sid.tolist()
    under = taken.setdefault(tuple(prefix), _Prefix(base_size))
    if code in under.used:
        while under.next in under.used:
            under.next += 1
        code = under.next
    under.used.add(code)
    return code
