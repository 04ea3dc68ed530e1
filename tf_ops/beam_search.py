"""The bridge to the engine."""

from typing import NamedTuple

import tensorflow as tf

from genrecall.tf_ops.behaviors import row_status_or_ok
from genrecall.tf_ops.library import ops


class DecodedBeams(NamedTuple):
    """W = the largest beam_width of the batch, D = hidden_size; best beam first."""

    sids: tf.Tensor  # int32 [B, W, L], -1 pads
    score: tf.Tensor  # float32 [B, W], sums of log-probabilities; -inf pads
    step_score: tf.Tensor  # float32 [B, W, L]; -inf pads
    user_state: tf.Tensor  # float32 [B, D], last hidden state of the prompt; 0 without beams
    status: tf.Tensor  # int32 [B]: row_status, or the code with which decoding ended


def constrained_beam_search(
    engine_handle,
    index,
    tokens,
    length,
    stable_prefix,
    beam_width,
    deadline_ms,
    priority,
    seed,
    row_status=None,
    exclude_item=None,
    exclude_length=None,
    *,
    levels,
    hidden_size,
    normalize="level",
    temperature=1.0,
    prefix_caps=(),
):
    """Decodes semantic IDs of the index: every row is a request of its own to the engine.

    The op does not occupy a thread while the engine works. Cancelling the step cancels its rows.

    Args:
      engine_handle: an EngineResource, or its resource_handle.
      index: variant [], of `acquire_index`.
      tokens: int32 [B, P]; length: int32 [B], 1..P tokens of the row.
      stable_prefix: int32 [B], 0..length: tokens that repeat over this user's requests.
      beam_width: int32 [B], 1..4096 beams wanted.
      deadline_ms: int32 [B], from the start of the op; <= 0: none.
      priority: int32 [B], higher goes first.
      seed: int32 [B]. 0: the best beams. Else the seed of a sample of beams without replacement
        (Gumbel top-k), in the order of the draw, from the distribution over legal semantic IDs.
      row_status: int32 [B]: rows that are not 0 are not decoded, nor looked at. None: all 0.
      exclude_item: int64 [B, E], exclude_length: int32 [B], 0..E: items the row must not get; a
        semantic ID that has no others gets no beam. None: no exclusions.
      levels: L of engine and index; hidden_size: D of the engine.
      normalize: what a step's log-probabilities are normalised over: the codes of the "level", the
        "legal" ones, or the whole "vocab".
      temperature: > 0; logits are divided by it.
      prefix_caps: ints, at most L - 1; at most prefix_caps[l] beams share their first l + 1 codes,
        0: no cap.

    Returns:
      DecodedBeams. A row that fails among others has its code in `status` and no beams: 3 a prompt
      or width that the engine refuses, 4 its deadline passed, 8 the engine's queue is full, ...

    Raises:
      InvalidArgumentError: shapes or numbers that do not fit.
      FailedPreconditionError: the engine has another L or D.
      CancelledError: the step was cancelled.
      tf.errors.OpError: B = 1 and the row failed, with that code.
    """
    if exclude_item is None:
        exclude_item = tf.fill([tf.shape(length)[0], 1], tf.constant(-1, tf.int64))
        exclude_length = tf.zeros_like(length)
    return DecodedBeams(
        *ops.genrecall_constrained_beam_search(
            getattr(engine_handle, "resource_handle", engine_handle),
            index,
            tokens,
            length,
            stable_prefix,
            beam_width,
            deadline_ms,
            priority,
            seed,
            exclude_item,
            exclude_length,
            row_status_or_ok(row_status, length),
            levels=levels,
            hidden_size=hidden_size,
            normalize=normalize,
            temperature=temperature,
            prefix_caps=list(prefix_caps),
        )
    )
