"""Compiles a prompt spec to the GGUF file that prompt.cc loads. A tokenizer is any callable.

Every text of the spec is tokenized once, here, so that serving needs no tokenizer. The types of the
spec are in prompt_template.py and sid_space.py; this module is the door to all of it.
"""

import json
import operator
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from genrecall.kernels import _kernels
from genrecall.kernels.prompt_template import (
    ACTIONS,
    DOMAINS,
    FEATURE_KINDS,
    SEGMENT_KINDS,
    Behaviors,
    Facet,
    Feature,
    PromptSpec,
    Segment,
)
from genrecall.kernels.sid_space import SidSpace

__all__ = [
    "Behaviors",
    "Facet",
    "Feature",
    "PromptSpec",
    "Segment",
    "SidSpace",
    "compile_prompt",
    "share_retokenized",
]

FORMAT_VERSION = 2  # of the compiled file, see prompt_file.cc
_NO_TEXT = -1

Tokenize = Callable[[str], Sequence[int]]


class _TextPool:
    """The tokenized texts of a spec, numbered in the order they were added."""

    def __init__(self, tokenize: Tokenize):
        self._tokenize = tokenize
        self.tokens: list[int] = []
        self.begin = [0]

    def add(self, text: str) -> int:
        # The empty text has no tokens whatever the tokenizer adds to it.
        tokens = [operator.index(t) for t in self._tokenize(text)] if text else []
        for token in tokens:
            if not 0 <= token < 2**31:
                raise ValueError(
                    f"tokenize({text!r}) gave {token}: expected token ids in 0..2^31-1"
                )
        self.tokens += tokens
        self.begin.append(len(self.tokens))
        return len(self.begin) - 2

    def add_all(self, texts: Iterable[str]) -> tuple[int, int]:
        """Number of the first and how many; the others follow the first."""
        first, numbers = len(self.begin) - 1, [self.add(text) for text in texts]
        return first, len(numbers)

    def size(self, number: int) -> int:
        return self.begin[number + 1] - self.begin[number]


def compile_prompt(
    spec: PromptSpec, tokenize: Tokenize, sid_space: SidSpace, path: str | os.PathLike
) -> "_kernels.Prompt":
    """Tokenizes every text of a spec and writes what `kernels.Prompt.load` reads.

    Args:
      spec: the template.
      tokenize: text -> token ids, without special tokens at either end
        (Hugging Face: `lambda text: tokenizer.encode(text, add_special_tokens=False)`).
      sid_space: the tokens that semantic IDs are written with.
      path: the file to write; replaced in one step once it has been read back.

    Returns:
      The compiled prompt, loaded.

    Raises:
      ValueError: a spec by which a prompt could be empty or longer than 2^20 tokens, or that merges
        by more levels than there are; a token id out of range.
    """
    levels = len(sid_space.level_sizes)
    if spec.behaviors.merge_levels > levels:
        raise ValueError(
            f"behaviors.merge_levels = {spec.behaviors.merge_levels}: expected 0..L = {levels}"
        )
    pool = _TextPool(tokenize)
    metadata = {
        "general.type": "prompt",
        "general.name": "genrecall compiled prompt",
        "genrecall.sid_space_digest": sid_space.digest,
        "genrecall.level_sizes": list(sid_space.level_sizes),
    }
    metadata |= _keys(format_version=FORMAT_VERSION, spec=json.dumps(spec.to_json()))
    tensors = {
        "sid_token_ids": np.concatenate([np.array(t, np.int32) for t in sid_space.token_ids])
    }
    features = _compile_features(spec.features, pool, metadata, tensors)
    _compile_facets(spec.facets, pool, metadata)
    _compile_behaviors(spec.behaviors, pool, metadata)
    tensors["segments"], never_empty = _compile_segments(spec, pool, features)
    if not never_empty:
        raise ValueError(
            "segments: the prompt of a user without behaviours could be empty: "
            "expected a text segment of at least one token"
        )
    tensors["text_tokens"] = np.array(pool.tokens, np.int32)
    tensors["text_begin"] = np.array(pool.begin, np.int32)
    return _write_checked(os.fspath(path), metadata, tensors)


def share_retokenized(
    prompts: Iterable[Sequence[int]],
    tokenize: Tokenize,
    detokenize: Callable[[Sequence[int]], str],
) -> float:
    """Share of prompts whose text as one string gives other tokens than its segments gave.

    Args:
      prompts: token ids of each prompt.
      tokenize, detokenize: the tokenizer's two directions, no special tokens added or skipped.

    Returns:
      A number in 0..1; 0 for no prompts.
    """
    differs = [list(tokenize(detokenize(tokens))) != list(tokens) for tokens in prompts]
    return sum(differs) / len(differs) if differs else 0.0


def _keys(**values) -> dict:
    return {f"genrecall.prompt.{name}": value for name, value in values.items()}


def _compile_features(features: Sequence[Feature], pool: _TextPool, metadata: dict, tensors: dict):
    """Adds the features' tables; returns (first text, number of values, missing text) of each."""
    places = []
    for i, feature in enumerate(features):
        first, count = pool.add_all(feature.all_texts())
        places.append((first, count, pool.add(feature.missing)))
        if feature.kind == "bucket":
            tensors[f"feature.{i}.boundaries"] = np.array(feature.boundaries, np.float32)
        else:
            metadata[f"genrecall.prompt.feature.{i}.values"] = [
                value for value, _ in feature.values
            ]
    columns = list(zip(*places, strict=True)) or [(), (), ()]
    for name, column in zip(("first_text", "num_values", "missing_text"), columns, strict=True):
        metadata[f"genrecall.prompt.feature.{name}"] = list(column)
    metadata["genrecall.prompt.feature.names"] = [f.name for f in features]
    metadata["genrecall.prompt.feature.kinds"] = [FEATURE_KINDS.index(f.kind) for f in features]
    return places


def _compile_facets(facets: Sequence[Facet], pool: _TextPool, metadata: dict):
    places = [pool.add_all(facet.values) for facet in facets]
    metadata["genrecall.prompt.facet.names"] = [f.name for f in facets]
    metadata["genrecall.prompt.facet.first_text"] = [first for first, _ in places]
    metadata["genrecall.prompt.facet.num_values"] = [count for _, count in places]


def _compile_behaviors(behaviors: Behaviors, pool: _TextPool, metadata: dict):
    action_text = dict(behaviors.action_text)
    metadata |= _keys(
        action_text=[pool.add(action_text.get(action, "")) for action in ACTIONS],
        separator_text=pool.add(behaviors.separator),
        long_term_events=behaviors.long_term_events,
        recent_events=behaviors.recent_events,
        block=behaviors.block,
        max_events=behaviors.max_events,
        actions=_mask(behaviors.actions, ACTIONS),
        domains=_mask(behaviors.domains, DOMAINS),
        attribution_window_s=behaviors.attribution_window_s,
        repeat_window_s=behaviors.repeat_window_s,
        merge_levels=behaviors.merge_levels,
        merge_window=behaviors.merge_window,
    )


def _mask(names: Sequence[str], of: Sequence[str]) -> int:
    return sum(1 << of.index(name) for name in names)


def _compile_segments(spec: PromptSpec, pool: _TextPool, features):
    """Rows (kind, subject, top, prefix, separator, domains); whether one always writes a token."""
    feature_names = [f.name for f in spec.features]
    facet_names = [f.name for f in spec.facets]
    rows, never_empty = [], False
    for segment in spec.segments:
        subject, top, prefix, separator = 0, 0, _NO_TEXT, _NO_TEXT
        if segment.kind == "text":
            subject = pool.add(segment.text)
            never_empty |= pool.size(subject) > 0
        elif segment.kind == "feature":
            subject = feature_names.index(segment.name)
            first, count, missing = features[subject]
            never_empty |= all(
                pool.size(text) > 0 for text in [*range(first, first + count), missing]
            )
        elif segment.kind == "interest":
            subject, top = facet_names.index(segment.facet), segment.top
            prefix, separator = pool.add(segment.prefix), pool.add(segment.separator)
        else:
            prefix = pool.add(segment.prefix)
        domains = _mask(segment.domains, DOMAINS)
        rows.append((SEGMENT_KINDS.index(segment.kind), subject, top, prefix, separator, domains))
    return np.array(rows, np.int32), never_empty


def _write_checked(path: str, metadata: dict, tensors: dict) -> "_kernels.Prompt":
    """Writes beside `path`, loads what was written, and only then renames."""
    beside = f"{path}.new-{os.getpid()}"
    _kernels.write_gguf(beside, metadata, tensors)
    try:
        prompt = _kernels.Prompt.load(beside)
        os.replace(beside, path)
    except _kernels.DataLossError as error:
        raise ValueError(str(error).removeprefix(f"{beside}: ")) from error
    finally:
        if os.path.exists(beside):
            os.remove(beside)
    return prompt
