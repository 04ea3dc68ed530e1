"""SASRec: its loss against PyTorch's, what it can learn, and the cache of what was trained."""

import json

import numpy as np
import pytest
import torch

from genrecall.training.dataset import splits, synth
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.evaluation import full_softmax, protocol, sasrec, sasrec_cache
from genrecall.training.evaluation.protocol import Cases

TINY = {
    "dim": 16,
    "heads": 2,
    "layers": 1,
    "dropout": 0.0,
    "learning_rate": 1e-2,
    "batch_events": 64,
    "epochs": 30,
}


@pytest.mark.parametrize("block", [1, 3, 64])
def test_full_softmax_is_cross_entropy(block):
    generator = torch.Generator().manual_seed(0)
    hidden = 3 * torch.randn(10, 8, generator=generator)
    table = 3 * torch.randn(21, 8, generator=generator)
    target = torch.randint(0, 21, (10,), generator=generator)
    got = [hidden.clone().requires_grad_(), table.clone().requires_grad_()]
    expected = [hidden.clone().requires_grad_(), table.clone().requires_grad_()]
    loss = full_softmax.FullSoftmax.apply(*got, target, block)
    reference = torch.nn.functional.cross_entropy(expected[0] @ expected[1].T, target)
    (2 * loss).backward()
    (2 * reference).backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert float(full_softmax.FullSoftmax.apply(hidden, table, target, block)) == loss.item()


def test_windows_make_every_item_but_the_first_a_target_once():
    for n in (1, 2, 5, 6, 7, 23):
        line = np.arange(n)
        pieces = sasrec.windows([line], 5)
        assert sorted(i for p in pieces for i in p[1:]) == list(range(1, n))
        assert all(2 <= len(p) <= 6 for p in pieces)


def test_batches_partition_the_pieces():
    lengths = np.random.default_rng(0).integers(2, 50, 101)
    batches = sasrec.event_batches(lengths, 120, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(101))
    assert max(lengths[b].sum() for b in batches) <= 120 + 50


def walks(n, num_items, rng):
    """Lines in which item i is followed by i + 1."""
    starts = rng.integers(0, num_items, n)
    return [(s + np.arange(rng.integers(3, 12))) % num_items for s in starts]


def cases_from(sequences):
    lengths = np.array([len(s) - 1 for s in sequences])
    return Cases(
        np.arange(len(sequences)),
        np.array([s[-1] for s in sequences]),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([s[:-1] for s in sequences]),
    )


def test_it_learns_what_follows_what_and_keeps_its_best_epoch():
    rng = np.random.default_rng(0)
    train, held_out = walks(60, 30, rng), walks(40, 30, rng)
    cases, seen = cases_from(held_out), []
    options = sasrec.SasrecOptions(**TINY, patience=3, max_events=6)
    model, history = sasrec.fit(train, 30, cases, options, seen.append)
    assert seen == history and history[-1]["loss"] < 0.5 * history[0]["loss"]
    ranks = protocol.rank_by_scores(sasrec.Scorer(model), cases, np.arange(30), 5).ranks
    assert (ranks == 1).mean() > 0.9
    best = max(e["ndcg@10"] for e in history)
    assert (1 / np.log2(ranks + 1) * (ranks <= 10)).mean() == pytest.approx(best)
    stopped = len(history) - 1 - [e["ndcg@10"] for e in history].index(best)
    assert stopped <= 3
    with pytest.raises(ValueError, match="no user has two events in the training part"):
        sasrec.fit([np.array([1])], 30, cases, options)


def test_the_learning_rate_rises_and_falls_to_nothing():
    options = sasrec.SasrecOptions(learning_rate=1.0, warmup_epochs=2, epochs=10)
    rates = [sasrec.learning_rate(e, options) for e in (0.5, 1, 2, 6, 10)]
    assert rates == pytest.approx([0.25, 0.5, 1, 0.5, 0])
    at_once = sasrec.SasrecOptions(learning_rate=1.0, warmup_epochs=0, epochs=1)
    assert sasrec.learning_rate(0.5, at_once) == pytest.approx(0.5)


def test_scores_do_not_depend_on_who_else_is_in_the_block():
    rng = np.random.default_rng(0)
    model = sasrec.Sasrec(30, sasrec.SasrecOptions(**TINY, max_events=4))
    cases = cases_from(walks(9, 30, rng))
    together = sasrec.Scorer(model)(cases)
    alone = np.concatenate([sasrec.Scorer(model)(block) for block in cases.blocks(1)])
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"dim": 10, "heads": 3}, "dim = 10: expected a multiple of heads = 3"),
        ({"dropout": 1.0}, "dropout = 1.0: expected"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0: expected"),
    ],
)
def test_wrong_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        sasrec.SasrecOptions(**wrong)


def test_a_trained_sasrec_is_read_back_for_the_same_data_and_options_only(tmp_path, capsys):
    options = sasrec.SasrecOptions(**{**TINY, "epochs": 1})
    synth.write_shop(str(tmp_path / "shop"), 30, 25, 0)
    data, run = read_data(str(tmp_path / "shop")), str(tmp_path / "run")
    lines = splits.clean_lines(data.events)
    assert sasrec_cache.scorers(data, lines, run, "auto", 1, options=options) == {}
    trained = sasrec_cache.scorers(data, lines, run, "train", 1, options=options)["sasrec"]
    assert "sasrec epoch 1: loss" in capsys.readouterr().err
    assert sasrec_cache.scorers(data, lines, run, "off", 1, options=options) == {}
    read = sasrec_cache.scorers(data, lines, run, "train", 1, options=options)["sasrec"]
    assert capsys.readouterr().err == ""
    cases = protocol.cases_of(lines, data.items, "valid", lines.evaluated("valid"))
    assert (read(cases) == trained(cases)).all()
    other = sasrec.SasrecOptions(**{**TINY, "epochs": 2})
    assert sasrec_cache.scorers(data, lines, run, "auto", 1, options=other) == {}
    assert sasrec_cache.scorers(data, lines, run, "auto", 1, "test", options=options) == {}
    ads = splits.clean_lines(data.events, domains=1)
    assert sasrec_cache.scorers(data, ads, run, "auto", 1, options=options) == {}
    (tmp_path / "run" / "sasrec" / "sasrec.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match=r"sasrec\.npz: not a readable \.npz file"):
        sasrec_cache.scorers(data, lines, run, "auto", 1, options=options)


def test_a_refit_makes_the_passes_that_validation_found_on_its_targets_too(tmp_path, monkeypatch):
    options = sasrec.SasrecOptions(**{**TINY, "epochs": 4})
    synth.write_shop(str(tmp_path / "shop"), 30, 25, 0)
    data, run = read_data(str(tmp_path / "shop")), str(tmp_path / "run")
    lines = splits.clean_lines(data.events)
    seen, fitted = [], sasrec.refit
    monkeypatch.setattr(sasrec, "refit", lambda *a: seen.append(a) or fitted(*a))
    sasrec_cache.scorers(data, lines, run, "train", 1, "test", options)
    written = json.loads((tmp_path / "run" / "sasrec" / "sasrec.json").read_text())
    ((sequences, _, epochs, _, _),) = seen
    assert epochs == len(written["refit_epochs"]) == sasrec.best_epoch(written["epochs"])
    assert [len(s) for s in sequences] == lines.visible("test").tolist()
    assert sasrec_cache.scorers(data, lines, run, "auto", 1, "valid", options) == {}


def test_a_refit_on_the_same_lines_is_the_fit_it_repeats():
    rng = np.random.default_rng(0)
    sequences, options = walks(40, 12, rng), sasrec.SasrecOptions(**{**TINY, "epochs": 3})
    fit, history = sasrec.fit(sequences, 12, cases_from(walks(9, 12, rng)), options)
    again, _ = sasrec.refit(sequences, 12, sasrec.best_epoch(history), options)
    for name, value in fit.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
