"""`genrecall ablate`: its variants, its arithmetic, and that finished variants are kept."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from tiny_run import tokenized

from genrecall import cli
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.evaluation.protocol import MISS
from genrecall.training.prompting.prompts import PromptOptions
from genrecall.training.tuning import ablate
from genrecall.training.tuning.sft_options import SftOptions


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """(shop folder, run folder with semantic IDs)."""
    return tokenized(tmp_path_factory, users=40, items=30, levels=2, codes=8)


def trial(ranks, tokens=10.0):
    return {
        "ranks": np.array(ranks, np.int64),
        "prompt_tokens": np.array(tokens),
        "minutes": np.array(0.5),
    }


def test_gains_by_hand():
    results = {
        "full": [trial([1, 2, MISS, 11]), trial([1, 10, 3, 1])],
        "interest": [trial([1, MISS, MISS, 11], 7.0), trial([2, MISS, MISS, 11], 7.0)],
    }
    full, own = ablate.gains(results)
    assert full["without"] is None and full["gain"] is None
    assert full["hr@10"] == 0.75 and full["spread"] == 0.5
    assert own["without"] == "interest" and own["hr@10"] == 0.25 and own["spread"] == 0
    assert own["prompt_tokens"] == 7 and own["minutes"] == 0.5
    gain = own["gain"]["hr@10"]
    # By user, seeds averaged: 0, 1, 0.5, 0.5.
    assert gain["mean"] == pytest.approx(0.5)
    assert 0 <= gain["low"] < 0.5 < gain["high"] <= 1
    discounted = own["gain"]["ndcg@10"]["mean"]
    mean_full = (1 + 1 / np.log2(3) + 1 + 1 / np.log2(11) + 1 / np.log2(4) + 1) / 8
    mean_own = (1 + 1 / np.log2(3)) / 8
    assert discounted == pytest.approx(mean_full - mean_own)


def test_variants_leave_out_one_thing_each(shop):
    data = read_data(shop[0])
    base = SftOptions(
        prompt=PromptOptions(leave_out=("actions",)),
        tasks={"text_to_sid": 0.5, "sid_to_text": 0.0, "title_completion": 1.0},
        responses=3,
    )
    got = ablate.variants(data, ablate.AblateOptions(sft=base))
    parts, tasks = ["profile", "interest", "long_term", "ad", "content"], list(base.tasks)[::2]
    assert list(got) == ["full", *parts, *tasks, "responses"]
    assert got["full"] == base
    for part in parts:
        assert got[part] == replace(base, prompt=PromptOptions(leave_out=("actions", part)))
    rest = {"sid_to_text": 0.0, "title_completion": 1.0}
    assert got["text_to_sid"] == replace(base, tasks=rest)
    assert got["responses"] == replace(base, responses=1)
    some = ablate.variants(data, ablate.AblateOptions(without=("profile",)))
    assert list(some) == ["full", "profile"]
    with pytest.raises(ValueError, match="without: 'text_to_sid': expected some of profile, int"):
        ablate.variants(data, ablate.AblateOptions(without=("text_to_sid",)))


def test_options_that_ablate_sets_itself_are_refused():
    with pytest.raises(ValueError, match="prompt_spec = 'x.json': ablate leaves out parts of"):
        ablate.AblateOptions(sft=SftOptions(prompt_spec="x.json"))
    with pytest.raises(ValueError, match=r"seeds = \(\): expected at least one"):
        ablate.AblateOptions(seeds=())


def test_the_command_keeps_what_is_finished(shop, capsys):
    path, run = shop
    command = ["ablate", "--data", path, "--run", run, "--without", "profile", "--preset", "tiny"]
    command += "--epochs 1 --validations 1 --valid_users 5 --threads 1 --seeds 0 1".split()
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "without profile, seed 1: " in out and "Between seeds" in out and "finished" not in out
    first = json.load(open(f"{run}/ablation.json"))
    assert [row["without"] for row in first["variants"]] == [None, "profile"]
    full, own = first["variants"]
    assert own["prompt_tokens"] < full["prompt_tokens"] and first["seeds"] == [0, 1]
    ahead = full["hr@10"] - own["hr@10"]
    assert own["gain"]["hr@10"]["mean"] == pytest.approx(ahead)
    # What is there is not trained again; what is damaged or of other options is.
    os.remove(f"{run}/ablation/profile.seed_1/ranks.npz")
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert out.count(": finished before") == 3 and "without profile, seed 1: /" in out
    again = json.load(open(f"{run}/ablation.json"))
    for a, b in zip(first["variants"], again["variants"], strict=True):
        assert (a["hr@10"], a["gain"]) == (b["hr@10"], b["gain"])
    assert cli.main([*command, "--seeds", "0", "--dropout", "0.5", "--without", "ad"]) == 0
    out = capsys.readouterr().out
    assert "finished" not in out and "One seed" in out
    kept = json.load(open(f"{run}/ablation/full.seed_0/sft.config.json"))["options"]
    assert kept["dropout"] == 0.5
