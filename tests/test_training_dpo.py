"""The DPO objective: packed answers against one sequence an answer, the loss against its formula
and its gradient against automatic differentiation of the plain one.
"""

import os

import numpy as np
import pytest
import torch

from genrecall import kernels
from genrecall.kernels import prompt_spec
from genrecall.training.dataset import splits, synth
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.prompting import build_index, packing, prompts, samples
from genrecall.training.semantic_ids import tokenize
from genrecall.training.semantic_ids.vectorizer import VectorOptions
from genrecall.training.tuning import (
    checkpoint,
    dpo_objective,
    next_sid,
    preference_batches,
    preference_rules,
    vocabulary,
)
from genrecall.training.tuning.dpo_objective import DpoObjective, LossOptions
from genrecall.training.tuning.preferences import Pairs, Preferences
from genrecall.training.tuning.sft_options import DecoderOptions

TINY = DecoderOptions(hidden=32, layers=2, heads=2, feed_forward=48)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """(maker, token ids, preferences) of a small generated shop: contexts of different lengths,
    pairs of two kinds, some of them uncertain.
    """
    path = str(tmp_path_factory.mktemp("shop"))
    synth.write_shop(path, 30, 40, 0)
    data = read_data(path)
    options = tokenize.TokenizeOptions(levels=3, codes=8, vectors=VectorOptions(dim=16))
    made = tokenize.tokenize_items(data, options)
    spec = prompts.default_spec(data)
    tokenizer = vocabulary.train_tokenizer(prompts.spec_texts(spec), 300)
    model = checkpoint.new_decoder(TINY, len(tokenizer), 0)
    space = vocabulary.expand_vocabulary(model, tokenizer, made.sids, made.tokenizer.codebooks)
    parsed = prompt_spec.PromptSpec.from_json(spec)
    compiled = os.path.join(path, "prompt.gguf")
    prompt_spec.compile_prompt(parsed, checkpoint.tokenize_with(tokenizer), space, compiled)
    prompt = kernels.Prompt.load(compiled, space.digest)
    lines = splits.clean_lines(data.events)
    index = build_index.build_index(
        data.items, made.sids, parsed, space.digest, np.ones(len(data.items), np.float32)
    )
    maker = samples.SampleMaker(lines, "valid", prompt, index, data.profiles, parsed)
    return maker, space, preferences_of(maker)


def preferences_of(maker):
    generator = np.random.default_rng(1)
    user = np.flatnonzero(maker.visible >= 3)[:7]
    end = np.minimum(maker.visible[user] - 1, 1 + np.arange(len(user)))
    items = maker.index.rows()[0]
    pairs = {
        kind: Pairs(
            generator.integers(0, len(user), 20),
            generator.choice(items, 20),
            generator.choice(items, 20),
            generator.choice([1.0, 0.8], 20).astype(np.float32),
        )
        for kind in ("ecpm", "negatives")
    }
    following = maker.lines.item[maker.lines.begin[user] + end]
    return Preferences.build(user, end, following, pairs, lambda item: item)


def fresh_decoder(shop):
    maker, space, _ = shop
    vocab = max(max(ids) for ids in space.token_ids) + 1
    decoder = checkpoint.new_decoder(TINY, vocab, 3)
    vocabulary.reopen_vocabulary(decoder, space)
    return decoder


def plain_scores(decoder, shop, softmax):
    """Log-probability of each answer, one sequence an answer, nothing shared: float64 [R]."""
    maker, space, preferences = shop
    scores = []
    for c in range(len(preferences)):
        tokens, length = maker.prompts(preferences.user[c : c + 1], preferences.end[c : c + 1])
        prompt = tokens[0, : length[0]].tolist()
        for item in preferences.item[preferences.begin[c] : preferences.begin[c + 1]]:
            codes = np.asarray(maker.index.lookup(np.array([item]))[0])[0]
            path = [space.token_ids[i][code] for i, code in enumerate(codes)]
            logits = decoder(torch.tensor([prompt + path])).logits[0].double()
            score = torch.zeros((), dtype=torch.float64)
            for level, code in enumerate(codes):
                row = logits[len(prompt) - 1 + level]
                if softmax == "level":
                    ids = torch.tensor(space.token_ids[level])
                    score = score + torch.log_softmax(row[ids], 0)[code]
                else:
                    score = score + torch.log_softmax(row, 0)[path[level]]
            scores.append(score)
    return torch.stack(scores)


@pytest.mark.parametrize("softmax", ["level", "vocab"])
def test_packed_answers_score_as_if_alone(shop, softmax):
    maker, space, preferences = shop
    decoder = fresh_decoder(shop)
    model = next_sid.NextSid(decoder, space, softmax)
    packed = preference_batches.PreferenceSamples(
        maker, preferences, np.ones(len(preferences.chosen))
    )
    assert len(np.unique(packed.lengths)) > 1  # so that batches are padded
    everything = [np.array([2, 0, 5]), np.array([1]), np.array([6, 3, 4])]
    objective = DpoObjective(model, LossOptions())
    got = dpo_objective.score_answers(objective, packed, everything, "cpu")
    with torch.no_grad():
        expected = plain_scores(decoder, shop, softmax).numpy()
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_branches_are_added_behind_what_samples_have(shop):
    maker, _, preferences = shop
    made = maker.make(preferences.user, preferences.end)
    sample, anchor = np.array([0, 2, 2]), np.array([3, 4, 5])
    tail = np.array([[7, 8], [9, 10], [11, 12]], np.int32)
    more, start = packing.with_branches(made, sample, anchor, tail)
    assert start.tolist() == [made.lengths[0], made.lengths[2], made.lengths[2] + 2]
    for s in range(len(made)):
        for name in ("tokens", "own", "anchor"):
            old = getattr(made, name)[made.begin[s] : made.begin[s + 1]].tolist()
            new = getattr(more, name)[more.begin[s] : more.begin[s + 1]].tolist()
            added = {
                "tokens": tail[sample == s].reshape(-1),
                "own": np.repeat(start[sample == s], 2),
                "anchor": np.repeat(anchor[sample == s], 2),
            }[name]
            assert new == old + added.tolist()
    np.testing.assert_array_equal(more.at, made.at)


def test_loss_and_gradient_by_the_formula():
    generator = np.random.default_rng(0)
    chosen, rejected = generator.normal(0, 3, (2, 50))
    label = generator.random(50)
    for beta in (0.05, 1.0):
        a, b = (torch.tensor(x, requires_grad=True) for x in (chosen, rejected))
        loss, margin = dpo_objective.dpo_loss(a, b, torch.tensor(label), beta)
        z = beta * (chosen - rejected)
        sigmoid = 1 / (1 + np.exp(-z))
        expected = -label * np.log(sigmoid) - (1 - label) * np.log(1 - sigmoid)
        np.testing.assert_allclose(loss.detach(), expected, rtol=1e-10)
        np.testing.assert_allclose(margin.detach(), z)
        loss.sum().backward()
        np.testing.assert_allclose(a.grad, -beta * (label - sigmoid), rtol=1e-9)
        np.testing.assert_allclose(b.grad, beta * (label - sigmoid), rtol=1e-9)


def test_loss_stays_finite_far_out():
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    zero, sure = torch.zeros(2), torch.ones(2)
    loss, _ = dpo_objective.dpo_loss(far, zero, sure, 1.0)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 1e4] and far.grad.tolist() == [0.0, -1.0]


def test_objective_equals_the_plain_computation_and_so_does_its_gradient(shop):
    maker, space, preferences = shop
    weight = preference_batches.pair_weights(preferences, (2.0, 1.0, 0.5))
    reference = np.linspace(-5, -4, len(preferences.item)).astype(np.float32)
    packed = preference_batches.PreferenceSamples(maker, preferences, weight, reference)
    options = LossOptions(beta=0.5, pair_smoothing=0.1, nll_weight=0.3)
    everything = np.arange(len(preferences))
    batch = packed.batch(everything)
    gradients, losses = [], []

    decoder = fresh_decoder(shop)
    objective = DpoObjective(next_sid.NextSid(decoder, space), options)
    sums, counts = objective(*batch)
    (sums / counts).sum().backward()
    losses.append(float((sums / counts).sum().detach()))
    gradients.append([p.grad.clone() for p in decoder.parameters()])

    decoder = fresh_decoder(shop)
    gain = plain_scores(decoder, shop, "level") - torch.tensor(reference)
    z = 0.5 * (gain[preferences.chosen] - gain[preferences.rejected])
    label = torch.tensor(preferences.label)
    label = 0.9 * label + 0.1 * (1 - label)
    pairs = -label * torch.log(torch.sigmoid(z)) - (1 - label) * torch.log(torch.sigmoid(-z))
    made = maker.make(preferences.user, preferences.end)
    sums, counts = next_sid.NextSid(decoder, space)(*made.batch(everything))
    nll = (sums / counts).sum()
    loss = (pairs * torch.tensor(weight)).sum() / len(preferences) + 0.3 * nll
    loss.backward()
    losses.append(float(loss.detach()))
    gradients.append([p.grad for p in decoder.parameters()])

    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-3)
    assert objective.parts == ("dpo", "nll_level_0", "nll_level_1", "nll_level_2", "nll_text")
    expected = {
        "margin": z.mean().item(),
        "accuracy": (z > 0).double().mean().item(),
        "chosen_gain": gain[preferences.chosen].mean().item(),
        "rejected_gain": gain[preferences.rejected].mean().item(),
    }
    assert objective.figures == pytest.approx(expected, abs=1e-4)


def test_before_training_every_kind_loses_log_2_times_its_weight(shop):
    maker, space, preferences = shop
    weights = (2.0, 1.0, 0.5)
    packed = preference_batches.PreferenceSamples(
        maker, preferences, preference_batches.pair_weights(preferences, weights)
    )
    objective = DpoObjective(next_sid.NextSid(fresh_decoder(shop), space), LossOptions())
    batches = [np.array([0, 1, 2, 3]), np.array([4, 5, 6])]
    packed.reference = dpo_objective.score_answers(objective, packed, batches, "cpu")
    objective.eval()
    sums = [objective(*packed.batch(b))[0][0].item() for b in batches]
    # No pair is of the kind "interest".
    assert sum(sums) / len(preferences) == pytest.approx(2.5 * np.log(2), rel=1e-4)


def test_weights_give_each_kind_its_share(shop):
    preferences = shop[2]
    weight = preference_batches.pair_weights(preferences, (2.0, 1.0, 0.5))
    for kind, share in ((0, 2.0), (2, 0.5)):
        total = weight[preferences.kind == kind].sum()
        assert total / len(preferences) == pytest.approx(share, rel=1e-5)


def test_rules_and_kinds_are_of_one_list():
    with pytest.raises(KeyError, match="popularity"):
        preference_rules.pairs_of("popularity", [None], None, None)
