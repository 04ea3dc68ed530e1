"""TensorFlow doors to the core: Python wrappers of the custom ops."""

from genrecall.tf_ops.beam_search import DecodedBeams, constrained_beam_search
from genrecall.tf_ops.behaviors import CleanedBehaviors, check_request, clean_behaviors
from genrecall.tf_ops.index import (
    ExpandedItems,
    PopularItems,
    SemanticIds,
    acquire_index,
    expand_items,
    lookup_semantic_ids,
    popular_items,
)
from genrecall.tf_ops.merge import MergedItems, merge_branches
from genrecall.tf_ops.metrics import metrics_text
from genrecall.tf_ops.prompt import AssembledPrompt, assemble_prompt
from genrecall.tf_ops.request import broadcast_request
from genrecall.tf_ops.resources import EngineResource, PromptResource, RecallIndexResource
from genrecall.tf_ops.try_branch import try_branch

__all__ = [
    "AssembledPrompt",
    "CleanedBehaviors",
    "DecodedBeams",
    "EngineResource",
    "ExpandedItems",
    "MergedItems",
    "PopularItems",
    "PromptResource",
    "RecallIndexResource",
    "SemanticIds",
    "acquire_index",
    "assemble_prompt",
    "broadcast_request",
    "check_request",
    "clean_behaviors",
    "constrained_beam_search",
    "expand_items",
    "lookup_semantic_ids",
    "merge_branches",
    "metrics_text",
    "popular_items",
    "try_branch",
]
