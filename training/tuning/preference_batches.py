"""Contexts with all their answers in one sequence each. Knows no model and no rule.

The prompt is computed once for all answers and pairs of a context.
"""

from typing import NamedTuple

import numpy as np
import torch

from genrecall.training.prompting import packing
from genrecall.training.prompting.samples import row_blocks


class PreferenceBatch(NamedTuple):
    """Contexts as the objective takes them: R answers, P pairs.

    sft: packing.Batch of the contexts, as fine-tuning would learn them, with the answers as further
    branches. at, code int64 [L, R]: flat position in B * T of the token that predicts level l of an
    answer, and the code. reference float32 [R]: the answer's log-probability under the reference
    model. chosen, rejected int64 [P], numbers of answers; label, weight float32 [P].
    """

    sft: packing.Batch
    at: torch.Tensor
    code: torch.Tensor
    reference: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor


class PreferenceSamples:
    """All contexts of a run, tokenized.

    Args:
      maker: samples.SampleMaker, of one response.
      preferences: preferences.Preferences.
      weight: float [P], of each pair in the loss.
      reference: float32 [R], log-probability of each answer under the reference model; zeros until
        it is known.
    """

    def __init__(self, maker, preferences, weight, reference=None):
        self.preferences = preferences
        self.weight = np.asarray(weight, np.float32)
        answers = len(preferences.item)
        self.reference = np.zeros(answers, np.float32) if reference is None else reference
        self.code = np.asarray(maker.index.lookup(preferences.item)[0]).astype(np.int64)
        self.samples, begin, anchor = self._with_answers(maker)
        # Where each level of each answer is asked for, in its context's sequence: int64 [R, L].
        self.at = packing.places(anchor, begin, self.code)
        self.pair_begin = np.searchsorted(
            preferences.context_of_pair, np.arange(len(preferences) + 1)
        )

    def _with_answers(self, maker):
        """(packing.Samples, int64 [R] where each answer begins, int64 [R] what it sees).

        A context's first answer is the event that followed: fine-tuning's response, which goes on
        with the prompt and is there already.
        """
        p = self.preferences
        length = prompt_lengths(maker, p.user, p.end)
        context = np.repeat(np.arange(len(p)), np.diff(p.begin))
        anchor = length[context]
        others = np.ones(len(p.item), bool)
        others[p.begin[:-1]] = False
        levels = np.arange(self.code.shape[1] - 1)  # nobody asks what comes after the last
        tail = maker.token_table[levels, self.code[:, :-1]]
        samples, begin = packing.with_branches(
            maker.make(p.user, p.end), context[others], anchor[others], tail[others]
        )
        start = anchor.copy()
        start[others] = begin
        return samples, start, anchor

    def __len__(self):
        return len(self.preferences)

    @property
    def lengths(self):
        """Tokens of each context, int64 [C]."""
        return self.samples.lengths

    def batch(self, contexts):
        """The PreferenceBatch of some contexts (their numbers)."""
        p = self.preferences
        sft = self.samples.batch(contexts)
        answers, row = packing.of_chosen(p.begin, contexts)
        pairs, pair_row = packing.of_chosen(self.pair_begin, contexts)
        # Answers are numbered anew in the batch.
        shift = (packing.offsets(np.diff(p.begin)[contexts])[:-1] - p.begin[contexts])[pair_row]
        arrays = (
            (self.at[answers] + row[:, None] * sft.tokens.shape[1]).T,
            self.code[answers].T,
            self.reference[answers],
            p.chosen[pairs] + shift,
            p.rejected[pairs] + shift,
            p.label[pairs],
            self.weight[pairs],
        )
        return PreferenceBatch(sft, *(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))


def prompt_lengths(maker, users, ends):
    """Tokens of each prompt, int64 [C]."""
    parts = [maker.prompts(users[b], ends[b])[1] for b in row_blocks(ends)]
    return np.concatenate(parts).astype(np.int64)


def pair_weights(preferences, kind_weights):
    """float32 [P]: such that summed over all pairs and divided by the number of contexts, each kind
    counts by its weight, however many pairs it has.

    Args:
      preferences: preferences.Preferences.
      kind_weights: float [len(KINDS)].
    """
    count = np.bincount(preferences.kind, minlength=len(kind_weights))
    each = np.asarray(kind_weights) * len(preferences) / np.maximum(count, 1)
    return each[preferences.kind].astype(np.float32)
