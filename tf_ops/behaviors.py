"""The request's gate and the cleaning of its behaviours."""

from typing import NamedTuple

import tensorflow as tf

from genrecall.tf_ops.library import ops

ACTIONS = ("exposure", "click", "conversion")  # by number: enum Action of kernels/behaviors.h
DOMAINS = ("ad", "content")  # by number: enum Domain


class CleanedBehaviors(NamedTuple):
    """N = max_events; rows are oldest first, padded with -1."""

    item: tf.Tensor  # int64 [B, N]
    action: tf.Tensor  # int32 [B, N]
    domain: tf.Tensor  # int32 [B, N]
    time: tf.Tensor  # int64 [B, N]
    length: tf.Tensor  # int32 [B]


def check_request(
    user_id,
    behavior_item,
    behavior_action,
    behavior_domain,
    behavior_time,
    behavior_length,
    request_time,
    exclude_item,
    exclude_length,
    beam_width,
    num_items,
    deadline_ms,
    priority,
    seed,
    *,
    max_beam_width,
    max_items,
    features=None,
):
    """Names what is malformed in a batch of requests.

    What the behaviours hold is not checked: `clean_behaviors` drops events that make no sense.

    Args:
      user_id: int64 [B], B >= 1.
      behavior_item, behavior_time: int64 [B, T]; behavior_action, behavior_domain: int32 [B, T].
      behavior_length: int32 [B], 0..T.
      request_time: int64 [B], >= 0.
      exclude_item: int64 [B, E]; exclude_length: int32 [B], 0..E.
      beam_width: int32 [B], 1..max_beam_width; num_items: int32 [B], 1..max_items.
      deadline_ms, seed: int32 [B], any; priority: int32 [B], -1000..1000.
      features: dict of name -> float32 [B], finite, or -inf for a missing value. Or None.

    Returns:
      request_status int32 [B]: 0, or 3 (INVALID_ARGUMENT) for a malformed row among others.

    Raises:
      InvalidArgumentError: a wrong shape, B = 0, or B = 1 and the row is malformed:
        "behavior_length[0] = 41: expected 0..T = 40".
    """
    features = features or {}
    return ops.genrecall_check_request(
        user_id,
        behavior_item,
        behavior_action,
        behavior_domain,
        behavior_time,
        behavior_length,
        request_time,
        exclude_item,
        exclude_length,
        beam_width,
        num_items,
        deadline_ms,
        priority,
        seed,
        list(features.values()),
        feature_names=list(features),
        max_beam_width=max_beam_width,
        max_items=max_items,
    )


def clean_behaviors(
    item,
    action,
    domain,
    time,
    length,
    request_time,
    row_status=None,
    *,
    max_events=64,
    attribution_window_s=7 * 24 * 3600,
    repeat_window_s=24 * 3600,
    block=1,
    actions=("click", "conversion"),
    domains=("ad", "content"),
):
    """Orders events by time, drops bad ones, folds attributed clicks and repeats, keeps the latest.

    Args:
      item, time: int64 [B, T]; action, domain: int32 [B, T]. Time in Unix seconds.
      length: int32 [B], 0..T events of the row.
      request_time: int64 [B].
      row_status: int32 [B]: rows that are not 0 give no events, and are not looked at. None: all 0.
      max_events: N: at most this many, the latest, are kept.
      attribution_window_s: a conversion absorbs the clicks on its item at most this much older.
      repeat_window_s: an event repeats the kept one of the same item and action this recent.
      block: the oldest beyond N are dropped in whole blocks of this many, 1..N.
      actions, domains: names or numbers of those kept, or a bit mask.

    Returns:
      CleanedBehaviors.

    Raises:
      InvalidArgumentError: shapes that do not fit; "length[3] = 41: expected 0..T = 40".
      ValueError: an unknown action or domain.
    """
    cleaned = ops.genrecall_clean_behaviors(
        item,
        action,
        domain,
        time,
        length,
        request_time,
        row_status_or_ok(row_status, length),
        max_events=max_events,
        attribution_window_s=attribution_window_s,
        repeat_window_s=repeat_window_s,
        block=block,
        actions=_bits("actions", actions, ACTIONS),
        domains=_bits("domains", domains, DOMAINS),
    )
    return CleanedBehaviors(*cleaned)


def row_status_or_ok(row_status, like):
    """`row_status`, or zeros of `like`'s shape for None."""
    return tf.zeros_like(like, dtype=tf.int32) if row_status is None else row_status


def _bits(what, chosen, names):
    """The bit mask of names or numbers."""
    if isinstance(chosen, int):
        return chosen
    mask = 0
    for one in chosen:
        number = names.index(one) if one in names else one
        if number not in range(len(names)):
            raise ValueError(f"{what}: {one!r}: expected one of {', '.join(names)}")
        mask |= 1 << number
    return mask
