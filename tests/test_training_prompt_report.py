"""`genrecall prompts`: its figures are those of the prompts, its examples are the prompts."""

import json

import numpy as np
import pytest
from tiny_run import fine_tuned

from genrecall import cli
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.prompting import prompts, report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(data folder, run folder)."""
    return fine_tuned(tmp_path_factory, users=30, epochs=1, valid_users=5)


def test_figures_are_those_of_the_prompts(run):
    shop, folder = run
    own = report.Run(read_data(shop), folder)
    maker = own.maker(own.spec)
    used = report.usage(maker)
    users = maker.lines.evaluated("valid")
    assert len(used.tokens) == len(users) > 20
    seen = maker.lines.visible("valid")
    for i, u in enumerate(users[:8]):
        _, length = maker.prompts(np.array([u]), seen[[u]])
        assert used.tokens[i] == length[0]
        segments = own.written(maker, u)
        text = "".join(t for kind, t in segments if kind in ("long_term", "recent"))
        assert used.written[i] == text.count("<a_") == seen[u]
    assert not used.left_out.any()
    figures = used.summary()
    assert figures["tokens_mean"] == pytest.approx(used.tokens.mean())
    assert figures["users"] == len(users) and 0 < figures["stable_share"] < 1


def test_options_are_compared_with_the_run(run):
    shop, folder = run
    own = report.Run(read_data(shop), folder)
    assert list(report.report(own, prompts.PromptOptions())) == ["run"]
    merged = report.report(own, prompts.PromptOptions(merge_levels=1, merge_window=50))
    assert list(merged) == ["run", "options"]
    ours, other = merged["run"], merged["options"]
    assert other["tokens_mean"] < ours["tokens_mean"] and other["events_left_out"] > 0
    shown = other["events_written"] + other["events_left_out"]
    assert shown == pytest.approx(ours["events_written"])


def test_the_command_shows_prompts_and_writes_figures(run, tmp_path, capsys):
    shop, folder = run
    output = str(tmp_path / "prompts.json")
    options = ["--leave_out", "profile", "--show", "2", "--output", output]
    assert cli.main(["prompts", "--data", shop, "--run", folder, *options]) == 0
    out = capsys.readouterr().out
    assert out.count("Next item.") == 2 and out.count("recent") == 2 and "<a_" in out
    with open(output, encoding="utf-8") as f:
        figures = json.load(f)
    assert figures["options"]["tokens_mean"] < figures["run"]["tokens_mean"]


def test_errors(run, tmp_path, capsys):
    shop, folder = run
    assert cli.main(["prompts", "--data", shop, "--run", str(tmp_path)]) == 2
    assert "no sid_space.json; run `genrecall sft` first" in capsys.readouterr().err
    few = tmp_path / "few"
    few.mkdir()
    (few / "items.jsonl").write_text(open(f"{shop}/items.jsonl").read())
    (few / "sequences.txt").write_text("1 1 2\n")
    assert cli.main(["prompts", "--data", str(few), "--run", folder]) == 2
    assert "no user has the three events that a target takes" in capsys.readouterr().err
