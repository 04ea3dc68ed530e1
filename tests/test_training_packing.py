"""Packed samples are learned exactly as if every branch were a sample of its own; text targets
weigh as codes do.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from prompt_shop import tokenize
from sample_shop import SPACE, make_maker, semantic_ids

from genrecall.training.dataset import synth
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.prompting import packing, prompts
from genrecall.training.tuning import checkpoint, next_sid, sid_tables
from genrecall.training.tuning.alignment import Alignment
from genrecall.training.tuning.sft_options import DecoderOptions

END = 9_999
FIRST_SID = 10_000  # SPACE has the ids from here on, in some order


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("shop"))
    synth.write_shop(path, 40, 60, 0)
    return read_data(path)


@pytest.fixture(scope="module")
def objective():
    """NextSid of a tiny decoder. Which token id a code has matters to the head alone: the codes'
    rows stand in the order of the codes there, as they do in a trained one.
    """
    options = DecoderOptions(hidden=32, layers=2, heads=2, feed_forward=48)
    model = checkpoint.new_decoder(options, FIRST_SID, 0)
    rows = torch.randn(sum(SPACE.level_sizes), 32) * 0.3
    sid_tables.split(model, (rows,), FIRST_SID)
    return next_sid.NextSid(model, SPACE).eval()


def loss_and_gradients(module, batch):
    module.zero_grad()
    sums, counts = module(*batch)
    loss = (sums / counts.clamp(min=1)).sum()
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


def unpacked(made):
    """Samples with a sample of its own for every branch: what packing must equal."""
    parts = []
    for s in range(len(made)):
        span = slice(made.begin[s], made.begin[s + 1])
        tokens, own, anchor = made.tokens[span], made.own[span], made.anchor[span]
        targets = range(made.target_begin[s], made.target_begin[s + 1])
        for begin in np.unique(own):
            mine = own == begin
            line = np.concatenate([tokens[: anchor[mine][0]], tokens[mine]])
            shift = begin - anchor[mine][0]
            here = [t for t in targets if own[made.at[t, -1]] == begin]
            at = made.at[here].copy()
            at[:, 1:] -= shift
            none = np.zeros(0, np.int64)
            parts.append(
                packing.pack(
                    line[None],
                    np.array([len(line)]),
                    (none, none, np.zeros((0, 2), np.int32)),
                    (np.zeros(len(here), np.int64), at, made.code[here]),
                    packing.NO_TEXTS,
                )
            )
    return packing.concatenate(parts)


def alignment(data, tasks):
    codes = semantic_ids(data.items).codes
    return Alignment(data.items, codes, SPACE.token_ids, tokenize, END, tasks)


def users(data, folder, **changes):
    """Samples of users with the whole history as targets and three responses."""
    options = replace(
        prompts.PromptOptions(recent_events=2, long_term_events=4, block=2), **changes
    )
    spec = prompts.default_spec(data, options)
    maker = make_maker(data, spec, folder, responses=3)
    longest = np.argsort(-maker.visible)[:3]
    return maker.make(longest, np.array([12, 9, 9]))


SAMPLES = {
    "category_to_sids": lambda data, folder: alignment(data, {"category_to_sids": 1.0}).epoch(
        np.random.default_rng(0), 12
    ),
    "responses": users,
    "hidden events": lambda data, folder: users(data, folder, leave_out=("ad",)),
    "merged events": lambda data, folder: users(data, folder, merge_levels=1, merge_window=4),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_branch_is_learned_as_if_it_were_a_sample(data, tmp_path, objective, kind):
    """Loss and every gradient equal those of the unpacked samples."""
    made = SAMPLES[kind](data, tmp_path)
    apart = unpacked(made)
    assert made.own.any() and not apart.own.any() and len(apart) > len(made)
    assert apart.lengths.sum() > made.lengths.sum()
    module = objective
    want, want_gradients = loss_and_gradients(module, apart.batch(np.arange(len(apart))))
    got, got_gradients = loss_and_gradients(module, made.batch(np.arange(len(made))))
    assert got == pytest.approx(want, rel=1e-5)
    assert set(got_gradients) == set(want_gradients)
    for name, gradient in got_gradients.items():
        torch.testing.assert_close(gradient, want_gradients[name], rtol=1e-4, atol=1e-6)


def test_text_competes_with_the_vocabulary_and_weighs_as_codes_do(data, objective):
    module = objective
    shares = {"text_to_sid": 0.5, "sid_to_text": 0.5}
    made = alignment(data, shares).epoch(np.random.default_rng(0), 6)
    with torch.inference_mode():
        sums, counts = module(*made.batch(np.arange(6)))
        want_text = want_sids = 0.0
        for s in range(6):
            own = torch.from_numpy(made.tokens[made.begin[s] : made.begin[s + 1]].astype(np.int64))
            logits = module.decoder(own[None]).logits[0].double()
            vocabulary = torch.log_softmax(logits, -1)
            for t in range(made.text_begin[s], made.text_begin[s + 1]):
                want_text -= float(vocabulary[made.text_at[t], made.text_token[t]])
            for t in range(made.target_begin[s], made.target_begin[s + 1]):
                for level, size in enumerate(SPACE.level_sizes):
                    first = FIRST_SID + sum(SPACE.level_sizes[:level])
                    scores = logits[made.at[t, level], first : first + size]
                    want_sids -= float(torch.log_softmax(scores, -1)[made.code[t, level]])
    assert float(sums[:3].sum()) == pytest.approx(want_sids, rel=1e-5)
    assert float(sums[3]) == pytest.approx(want_text, rel=1e-5)
    assert counts.tolist() == pytest.approx([3 + len(made.text_at) / 3] * 4)
