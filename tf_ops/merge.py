"""Branches -> one answer."""

from typing import NamedTuple

import tensorflow as tf

from genrecall.tf_ops.behaviors import row_status_or_ok
from genrecall.tf_ops.library import ops


class MergedItems(NamedTuple):
    item_id: tf.Tensor  # int64 [B, k], -1 pads
    score: tf.Tensor  # float32 [B, k], given by the branch that placed the item; -inf pads
    branch_mask: tf.Tensor  # int32 [B, k], bit b: branch b proposed the item
    source: tf.Tensor  # int32 [B, k], the branch that placed it; -1 pads
    num_items: tf.Tensor  # int32 [B]


def merge_branches(items, scores, num_items, row_status=None, *, quotas, k):
    """Merges branches by quotas, each item once, with its provenance.

    Branch b first places up to quotas[b] items not yet placed, in branch order (negative: no
    limit); places left over are then filled from the branches in order.

    Args:
      items: list of int64 [B, k_b], best first; -1 entries are skipped.
      scores: list of float32 [B, k_b].
      num_items: int32 [B], 1..k: items wanted.
      row_status: int32 [B]: rows that are not 0 give no items. None: all 0.
      quotas: one number per branch.
      k: items returned per row.

    Returns:
      MergedItems.

    Raises:
      InvalidArgumentError: shapes or numbers that do not fit; more than 31 branches.
    """
    return MergedItems(
        *ops.genrecall_merge_branches(
            list(items),
            list(scores),
            num_items,
            row_status_or_ok(row_status, num_items),
            quotas=list(quotas),
            k=k,
        )
    )
