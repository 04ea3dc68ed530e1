"""New items of a grown data folder get semantic IDs from a trained tokenizer; old ones keep theirs.
Knows no decoder and no vocabulary.

The level sizes and the codebooks stay as they are, so the codebook digest does too, and a
checkpoint that was trained on the old table serves an index of the new one.
"""

from dataclasses import dataclass, replace

import numpy as np

from genrecall.training.semantic_ids import collisions
from genrecall.training.semantic_ids.report import sid_text
from genrecall.training.semantic_ids.sid_table import SemanticIds


@dataclass(frozen=True)
class Extension:
    """What became of the new items: `nearest` got their base codes, which nobody had; `spare` a
    last code of their own; `shared` the SID of another item.
    """

    new_items: int
    nearest: int
    spare: int
    shared: int

    def __str__(self):
        return (
            f"{self.new_items} new items: {self.nearest} got the nearest semantic ID, "
            f"{self.spare} a spare code, {self.shared} share one with another item"
        )


def extend(data, tokenized, share):
    """Semantic IDs for the items of `data` that the table lacks.

    Args:
      data: the grown data folder. Items that left it keep their row: they may come back, and their
        SID is what the decoder knows them by.
      tokenized: Tokenized.
      share: whether an item for which no code is left shares its base SID with whoever has it.

    Returns:
      (Tokenized with the longer table, Extension).

    Raises:
      ValueError: no code is left for an item, and it may not share; or the encoder is another one.
    """
    sids, tokenizer = tokenized.sids, tokenized.tokenizer
    new = np.flatnonzero(~np.isin(data.items.ids, sids.item_id))
    if not len(new):
        return tokenized, Extension(0, 0, 0, 0)
    quantised = tokenizer.quantise(tokenized.vectorizer.vectors_of(data, new))
    base_size, last_size = tokenizer.base_sizes[-1], sids.level_sizes[-1]
    distance = np.linalg.norm(quantised.residual, axis=1)
    codes = collisions.place_new(sids.codes, quantised.codes, distance, base_size, last_size)
    left_out = codes[:, -1] < 0
    if left_out.any() and not share:
        first = int(np.flatnonzero(left_out)[0])
        raise ValueError(
            f"no code is left for {left_out.sum()} of {len(new)} new items, first item "
            f"{data.items.ids[new[first]]}: all {last_size} codes after "
            f"{sid_text(quantised.codes[first, :-1]) or 'the start'} that it may take are in use; "
            "expected --collisions allow, or a new tokenizer with more --spare_codes"
        )
    codes[left_out] = quantised.codes[left_out]
    table = SemanticIds(
        np.concatenate([sids.item_id, data.items.ids[new]]),
        np.concatenate([sids.codes, codes]),
        sids.level_sizes,
        sids.codebook_digest,
        np.concatenate([sids.base_codes, quantised.codes]),
    )
    spare = int((codes[:, -1] >= base_size).sum())
    shared = int(left_out.sum())
    done = Extension(len(new), len(new) - spare - shared, spare, shared)
    return replace(tokenized, sids=table), done
