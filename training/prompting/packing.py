"""Token sequences with targets, many packed into flat arrays. Knows no prompts, no items and no
model.

A sample is a prompt and any number of *branches*. A branch continues the prompt from some position
on, its anchor: its tokens see the first `anchor` tokens of the prompt and their own branch, nothing
else, and have the positions that they would have right behind those. So several responses of one
user cost one prompt, and each is scored exactly as if it had been a sample of its own.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


class Batch(NamedTuple):
    """Samples as a model takes them, padded with 0 on the right.

    tokens int64 [B, T]; at int64 [L, n], position flat in B * T of the token that predicts level l
    of target n; code int64 [L, n]; own and anchor int64 [B, T], see `layout`, or None where every
    sample is one line; text_at int64 [m], position flat in B * T of the token that predicts token
    text_token[m] of the vocabulary, or None where no text is predicted.
    """

    tokens: torch.Tensor
    at: torch.Tensor
    code: torch.Tensor
    own: torch.Tensor | None = None
    anchor: torch.Tensor | None = None
    text_at: torch.Tensor | None = None
    text_token: torch.Tensor | None = None


NO_TEXTS = (np.zeros(0, np.int64),) * 3  # what `pack` takes where no text is predicted


def layout(own, anchor):
    """What each token is to the others.

    Args:
      own: int64 [B, T], where in the sample the token's branch begins; 0 in the prompt.
      anchor: int64 [B, T], how much of the prompt the token's branch sees; 0 in the prompt.

    Returns:
      position int64 [B, T]; visible bool [B, 1, T, T], [b, 0, q, k]: token q sees token k.
    """
    place = torch.arange(own.shape[1], device=own.device)
    position = anchor + place - own
    earlier = place[:, None] >= place  # [q, k]
    in_reach = (place >= own[:, :, None]) | (place < anchor[:, :, None])  # [b, q, k]
    return position, (earlier & in_reach)[:, None]


@dataclass(frozen=True)
class Samples:
    """Sample s has tokens begin[s]:begin[s + 1], SID targets target_begin[s]:target_begin[s + 1]
    and text targets text_begin[s]:text_begin[s + 1].

    tokens int32 [sum]; own, anchor int32 [sum], see `layout`; at int32 [targets, L], position in
    the sample of the token that predicts level l, code int32 [targets, L]; text_at int32 [texts],
    text_token int32 [texts], vocabulary entries; begin, target_begin, text_begin int64 [S + 1].
    """

    tokens: np.ndarray
    own: np.ndarray
    anchor: np.ndarray
    begin: np.ndarray
    at: np.ndarray
    code: np.ndarray
    target_begin: np.ndarray
    text_at: np.ndarray
    text_token: np.ndarray
    text_begin: np.ndarray

    def __len__(self):
        return len(self.begin) - 1

    @property
    def lengths(self):
        return np.diff(self.begin)

    def batch(self, chosen):
        """Batch of the samples with numbers `chosen`, int64 [B], B >= 1."""
        length = self.lengths[chosen]
        width = int(length.max())
        inside = np.arange(width) < length[:, None]
        where = ranges(self.begin[chosen], length)
        rows = np.arange(len(chosen)) * width

        def padded(values):
            out = np.zeros((len(chosen), width), np.int64)
            out[inside] = values[where]
            return torch.from_numpy(out)

        targets, target_row = of_chosen(self.target_begin, chosen)
        texts, text_row = of_chosen(self.text_begin, chosen)
        at = (self.at[targets] + rows[target_row][:, None]).T
        own = padded(self.own)
        return Batch(
            padded(self.tokens),
            torch.from_numpy(np.ascontiguousarray(at)),
            torch.from_numpy(np.ascontiguousarray(self.code[targets].T, np.int64)),
            own if own.any() else None,
            padded(self.anchor) if own.any() else None,
            torch.from_numpy(self.text_at[texts] + rows[text_row]) if len(texts) else None,
            torch.from_numpy(self.text_token[texts].astype(np.int64)) if len(texts) else None,
        )


def pack(prompt, length, branches, targets, texts):
    """Samples of S prompts.

    Args:
      prompt: int32 [S, P], padded; length: int [S].
      branches: (sample int [n], ascending; anchor int [n], in 1..length of its sample; tokens int32
        [n, W]): what continues the prompts. A sample's first branch with its anchor at the end of
        the prompt simply goes on with it.
      targets: (sample [m], ascending; at [m, L], code [m, L]); `at` counts tokens of the sample,
        whose branches follow its prompt in their order.
      texts: (sample [t], ascending; at [t], token [t]).
    """
    samples = len(prompt)
    sample, anchor, tail = branches
    width = tail.shape[1]
    length = np.asarray(length, np.int64)
    begin = offsets(length + np.bincount(sample, minlength=samples) * width)
    start = _branch_starts(length, sample, width)
    tokens = np.zeros(begin[-1], np.int32)
    own, anchors = np.zeros_like(tokens), np.zeros_like(tokens)
    tokens[ranges(begin[:-1], length)] = prompt[np.arange(prompt.shape[1]) < length[:, None]]
    place = (begin[sample] + start)[:, None] + np.arange(width)
    tokens[place] = tail
    apart = start != anchor
    own[place[apart]], anchors[place[apart]] = start[apart, None], anchor[apart, None]
    target_sample, at, code = targets
    text_sample, text_at, text_token = texts
    return Samples(
        tokens,
        own,
        anchors,
        begin,
        at.astype(np.int32),
        code.astype(np.int32),
        offsets(np.bincount(target_sample, minlength=samples)),
        text_at.astype(np.int32),
        text_token.astype(np.int32),
        offsets(np.bincount(text_sample, minlength=samples)),
    )


def branch_targets(length, sample, anchor, code):
    """The targets that the branches of `pack` are: each branch has the tokens of all codes but the
    last, which predicts nothing.

    Args:
      length: int64 [S], tokens of each prompt; sample, anchor: int [n], as in `pack`; code: [n, L].

    Returns:
      (sample, at int64 [n, L], code), as `pack` takes targets.
    """
    return sample, places(anchor, _branch_starts(length, sample, code.shape[1] - 1), code), code


def places(asked, begin, code):
    """Where the codes [n, L] of SIDs are predicted whose level 0 is asked for by token asked - 1
    and whose tokens begin at `begin`: int64 [n, L].
    """
    return np.column_stack([asked - 1, begin[:, None] + np.arange(code.shape[1] - 1)]).astype(
        np.int64
    )


def with_branches(samples, sample, anchor, tail):
    """Samples with more branches behind what they have, and no target in these.

    Args:
      samples: Samples.
      sample, anchor, tail: branches, as for `pack`.

    Returns:
      (Samples, int64 [n]: where in its sample each new branch begins).
    """
    number, width = np.bincount(sample, minlength=len(samples)), tail.shape[1]
    begin = offsets(samples.lengths + number * width)
    nth = np.arange(len(sample)) - offsets(number)[sample]
    start = samples.lengths[sample] + nth * width
    old = ranges(begin[:-1], samples.lengths)
    place = (begin[sample] + start)[:, None] + np.arange(width)
    values = {"tokens": tail, "own": start[:, None], "anchor": np.asarray(anchor)[:, None]}
    flat = {}
    for name, value in values.items():
        flat[name] = np.zeros(begin[-1], np.int32)
        flat[name][old], flat[name][place] = getattr(samples, name), value
    return dataclasses.replace(samples, begin=begin, **flat), start


def concatenate(parts):
    """Samples one after the other: Samples. `parts`: at least one Samples of as many levels."""
    flat = ("tokens", "own", "anchor", "at", "code", "text_at", "text_token")
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in flat}
    for name in ("begin", "target_begin", "text_begin"):
        joined[name] = offsets(np.concatenate([np.diff(getattr(p, name)) for p in parts]))
    return Samples(**joined)


def offsets(counts):
    """[0, counts[0], counts[0] + counts[1], ...]: int64 [n + 1]."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _branch_starts(length, sample, width):
    """Where in its sample each branch begins: behind the prompt and the branches before it."""
    first = offsets(np.bincount(sample, minlength=len(length)))
    return length[sample] + (np.arange(len(sample)) - first[sample]) * width


def ranges(first, count):
    """first[0], first[0] + 1, ... (count[0] numbers), then those of first[1]: int64 [sum]."""
    return np.arange(count.sum()) + np.repeat(first - offsets(count)[:-1], count)


def of_chosen(begin, chosen):
    """What belongs to chosen samples, of flat arrays with begin int64 [S + 1]: (its numbers, the
    place in `chosen` of the sample each belongs to).
    """
    count = begin[chosen + 1] - begin[chosen]
    return ranges(begin[chosen], count), np.repeat(np.arange(len(chosen)), count)
