"""The generative branch: behaviours -> prompt -> semantic IDs by beam search -> items."""

import dataclasses

import tensorflow as tf

from genrecall import tf_ops
from genrecall.graphs.branch import BranchAnswer, Request
from genrecall.tf_ops.beam_search import constrained_beam_search


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """The numbers of the artefacts that shapes of the graph depend on."""

    levels: int  # L
    facets: int  # F
    hidden_size: int  # D


class GenerativeBranch(tf.Module):
    """A decoder writes semantic IDs; the index constrains it to items on air.

    Score: the beam's sum of log-probabilities.

    Args:
      engine: EngineResource. prompt: PromptResource.
      features: [(name, kind)] of the prompt, in its order.
      clean_options: dict of the prompt's cleaning options, as `kernels.Prompt.clean_options`.
      shape: ModelShape.
      normalize: "level", "legal" or "vocab". temperature: > 0.
      prefix_caps: at most prefix_caps[l] beams share their first l + 1 codes; 0: no cap.
      per_sid_cap: at most this many items of one semantic ID; 0: no cap.
    """

    def __init__(
        self,
        engine,
        prompt,
        features,
        clean_options,
        shape,
        *,
        normalize="level",
        temperature=1.0,
        prefix_caps=(),
        per_sid_cap=0,
    ):
        super().__init__(name="generative")
        self.engine = engine
        self.prompt = prompt
        self._features = tuple(features)
        self._clean_options = dict(clean_options)
        self._shape = shape
        self._search = {
            "normalize": normalize,
            "temperature": temperature,
            "prefix_caps": prefix_caps,
        }
        self._per_sid_cap = per_sid_cap

    def detail_specs(self):
        shape = self._shape
        return {
            "prompt_token": tf.TensorSpec([None, None], tf.int32),  # [B, P], 0 pads
            "prompt_length": tf.TensorSpec([None], tf.int32),
            "prompt_stable_prefix": tf.TensorSpec([None], tf.int32),
            "beam_semantic_id": tf.TensorSpec([None, None, shape.levels], tf.int32),  # -1 pads
            "beam_score": tf.TensorSpec([None, None], tf.float32),  # -inf pads
            "beam_step_score": tf.TensorSpec([None, None, shape.levels], tf.float32),
        }

    def recall(self, request: Request, k: int) -> BranchAnswer:
        prompt = self._assemble(request)
        found = constrained_beam_search(
            self.engine,
            request.index,
            prompt.tokens,
            prompt.length,
            prompt.stable_prefix,
            request.beam_width,
            request.deadline_ms,
            request.priority,
            request.seed,
            request.row_status,
            request.exclude_item,
            request.exclude_length,
            levels=self._shape.levels,
            hidden_size=self._shape.hidden_size,
            **self._search,
        )
        items = tf_ops.expand_items(
            request.index,
            found.sids,
            found.score,
            request.exclude_item,
            request.exclude_length,
            request.num_items,
            k=k,
            per_sid_cap=self._per_sid_cap,
        )
        details = {
            "prompt_token": prompt.tokens,
            "prompt_length": prompt.length,
            "prompt_stable_prefix": prompt.stable_prefix,
            "beam_semantic_id": found.sids,
            "beam_score": found.score,
            "beam_step_score": found.step_score,
        }
        return BranchAnswer(items.item_id, items.score, found.status, details)

    def _assemble(self, request):
        """The prompt: tokens int32 [B, P], length [B], stable_prefix [B]."""
        behaviors = tf_ops.clean_behaviors(
            request.behavior_item,
            request.behavior_action,
            request.behavior_domain,
            request.behavior_time,
            request.behavior_length,
            request.request_time,
            request.row_status,
            **self._clean_options,
        )
        known = tf_ops.lookup_semantic_ids(
            request.index, behaviors.item, levels=self._shape.levels, facets=self._shape.facets
        )
        by_kind = {
            kind: [request.features[name] for name, k in self._features if k == kind]
            for kind in ("string", "int64", "bucket")
        }
        return tf_ops.assemble_prompt(
            self.prompt,
            behaviors.action,
            behaviors.domain,
            known.sids,
            known.facets,
            behaviors.length,
            string_features=by_kind["string"],
            int64_features=by_kind["int64"],
            float_features=by_kind["bucket"],
        )
