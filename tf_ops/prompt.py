"""Prompt assembly."""

from typing import NamedTuple

import tensorflow as tf

from genrecall.tf_ops.library import ops


class AssembledPrompt(NamedTuple):
    tokens: tf.Tensor  # int32 [B, P], P the longest of the batch; 0 pads
    length: tf.Tensor  # int32 [B]
    stable_prefix: tf.Tensor  # int32 [B], tokens before the first that depends on recent behaviours


def assemble_prompt(
    prompt_handle,
    action,
    domain,
    sids,
    facets,
    length,
    string_features=(),
    int64_features=(),
    float_features=(),
):
    """Writes each row's prompt by the compiled prompt spec.

    Behaviours of unknown items (sids -1) are left out.

    Args:
      prompt_handle: a PromptResource, or its resource_handle.
      action, domain: int32 [B, T], cleaned behaviours, oldest first.
      sids: int32 [B, T, L], facets: int16 [B, T, F], of `lookup_semantic_ids`.
      length: int32 [B], 0..T.
      string_features: list of string [B], the spec's features of kind "string", in its order.
      int64_features: list of int64 [B], those of kind "int64".
      float_features: list of float32 [B], those of kind "bucket".

    Returns:
      AssembledPrompt.

    Raises:
      InvalidArgumentError: shapes that do not fit; another number of features than the spec has.
    """
    return AssembledPrompt(
        *ops.genrecall_assemble_prompt(
            getattr(prompt_handle, "resource_handle", prompt_handle),
            action,
            domain,
            sids,
            facets,
            length,
            list(string_features),
            list(int64_features),
            list(float_features),
        )
    )
