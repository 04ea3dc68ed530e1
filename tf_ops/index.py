"""Ops that read the recall index. One request reads one snapshot, acquired once."""

from typing import NamedTuple

import tensorflow as tf

from genrecall.tf_ops.behaviors import row_status_or_ok
from genrecall.tf_ops.library import ops


class SemanticIds(NamedTuple):
    sids: tf.Tensor  # int32 [..., L], -1 for an unknown item
    facets: tf.Tensor  # int16 [..., F], value index or -1


class ExpandedItems(NamedTuple):
    item_id: tf.Tensor  # int64 [B, k], -1 pads
    score: tf.Tensor  # float32 [B, k], the beam's; -inf pads
    beam: tf.Tensor  # int32 [B, k], -1 pads


class PopularItems(NamedTuple):
    item_id: tf.Tensor  # int64 [B, k], -1 pads
    score: tf.Tensor  # float32 [B, k], the item's weight; -inf pads


def acquire_index(handle):
    """The index that serves now, for all ops of one request.

    Args:
      handle: a RecallIndexResource, or its resource_handle.

    Returns:
      variant []: keeps the index alive, whatever replaces it meanwhile.

    Raises:
      FailedPreconditionError: not initialized.
    """
    return ops.genrecall_acquire_index(getattr(handle, "resource_handle", handle))


def lookup_semantic_ids(index, item, *, levels, facets):
    """Semantic IDs and facets of items.

    Args:
      index: variant [], of `acquire_index`.
      item: int64 [...].
      levels: L of the index; facets: F of the index.

    Returns:
      SemanticIds; -1 throughout for an item that is not in the index.

    Raises:
      InvalidArgumentError: the index has another L or F.
    """
    return SemanticIds(
        *ops.genrecall_lookup_semantic_ids(index, item, levels=levels, facets=facets)
    )


def expand_items(index, sids, score, exclude_item, exclude_length, num_items, *, k, per_sid_cap=0):
    """Items of beams: round-robin over beams, best weight first within a semantic ID.

    The excluded are left out.

    A row whose beams are all padding gives no items, and its other inputs are not looked at.

    Args:
      index: variant [], of `acquire_index`.
      sids: int32 [B, W, L], best beam first; rows of -1 are padding.
      score: float32 [B, W].
      exclude_item: int64 [B, E]; exclude_length: int32 [B], 0..E.
      num_items: int32 [B], 1..k: items wanted.
      k: items returned per row.
      per_sid_cap: at most this many items of one semantic ID; 0: no cap.

    Returns:
      ExpandedItems.

    Raises:
      InvalidArgumentError: shapes that do not fit, a code outside [-1, C), a length or number out
        of range.
    """
    return ExpandedItems(
        *ops.genrecall_expand_items(
            index,
            sids,
            score,
            exclude_item,
            exclude_length,
            num_items,
            k=k,
            per_sid_cap=per_sid_cap,
        )
    )


def popular_items(index, exclude_item, exclude_length, num_items, row_status=None, *, k):
    """The heaviest items of the index, less the excluded.

    Args:
      index: variant [], of `acquire_index`.
      exclude_item: int64 [B, E]; exclude_length: int32 [B], 0..E.
      num_items: int32 [B], 1..k: items wanted.
      row_status: int32 [B]: rows that are not 0 give no items, and are not looked at. None: all 0.
      k: items returned per row.

    Returns:
      PopularItems.

    Raises:
      InvalidArgumentError: shapes that do not fit, a length or number out of range.
    """
    return PopularItems(
        *ops.genrecall_popular_items(
            index,
            exclude_item,
            exclude_length,
            num_items,
            row_status_or_ok(row_status, num_items),
            k=k,
        )
    )
