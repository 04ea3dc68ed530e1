"""Training on more than validation chose on: what is seen, what is kept, what is refused."""

import json
import os
import shutil

import numpy as np
import pytest
from tiny_run import fine_tuned

from genrecall import cli, kernels
from genrecall.kernels import prompt_spec
from genrecall.training.dataset import splits, training_part
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.evaluation import evaluate
from genrecall.training.tuning import refit, run
from genrecall.training.tuning.sft_options import SftOptions

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """(data folder, run folder after tokenize and two validated passes of sft)."""
    return fine_tuned(tmp_path_factory, validations=2)


@pytest.fixture(scope="module")
def refitted(shop, tmp_path_factory):
    """{hold_out: run folder} of both refits."""
    data, folder = shop
    out = {"test": os.path.join(folder, "refit"), "none": str(tmp_path_factory.mktemp("all"))}
    command = ["refit", "--data", data, "--run", folder]
    assert cli.main(command) == 0
    assert cli.main([*command, "--hold_out", "none", "--output", out["none"]]) == 0
    return out


def test_what_is_held_out_of_a_line():
    begin = np.array([0, 2, 5, 9])
    columns = [np.zeros(9, np.int64)] * 4
    lines = splits.Lines(np.arange(3), begin, *columns)
    seen = {hold_out: lines.visible(hold_out).tolist() for hold_out in splits.HOLD_OUT}
    assert seen == {"valid": [2, 1, 2], "test": [2, 2, 3], "none": [2, 3, 4]}


@pytest.mark.parametrize("hold_out", splits.HOLD_OUT)
def test_samples_ask_for_what_is_not_held_out_and_for_nothing_else(shop, hold_out):
    data, folder = shop
    made = run.prepare(data, folder, SftOptions(hold_out=hold_out))
    seen = made.lines.visible(hold_out)
    expected = {}
    for u in np.flatnonzero(seen >= 2):  # each event of theirs, the first from the profile alone
        codes, _ = made.maker.index.lookup(made.lines.items_of(u)[: seen[u]])
        for code in map(tuple, np.asarray(codes).tolist()):
            expected[code] = expected.get(code, 0) + 1
    asked = {}
    for code in map(tuple, made.maker.epoch().code.tolist()):
        asked[code] = asked.get(code, 0) + 1
    assert set(asked) == set(expected)
    assert all(asked[code] >= times for code, times in expected.items())
    counted = splits.popularity(made.lines, made.data.items, hold_out)
    assert counted.sum() == seen.sum()


def test_a_refit_is_the_recipe_with_the_passes_that_validation_found(shop, refitted):
    data, folder = shop
    best = json.load(open(f"{folder}/sft.metrics.json"))["metrics"]["best"]
    for hold_out, output in refitted.items():
        first = json.load(open(f"{folder}/sft.config.json"))
        again = json.load(open(f"{output}/sft.config.json"))
        options = again["options"]
        assert options["loop"]["epochs"] == pytest.approx(best["passes"])
        assert options["hold_out"] == hold_out == training_part.read(f"{output}/checkpoint")
        same = ("decoder", "prompt", "dropout", "tasks", "softmax")
        assert all(options[name] == first["options"][name] for name in same)
        assert again["sid_space_digest"] == first["sid_space_digest"]
        (only,) = json.load(open(f"{output}/sft.metrics.json"))["metrics"]["validations"]
        assert only["kept"] and "hr@10" not in only
    assert training_part.read(f"{folder}/checkpoint") == "valid"


def test_nobody_is_judged_by_what_was_trained_on(shop, refitted, capsys):
    data, folder = shop
    command = ["evaluate", "--data", data, "--users", "10", "--sasrec", "off"]
    assert cli.main([*command, "--run", refitted["test"], "--split", "test"]) == 0
    result = json.load(open(f"{refitted['test']}/evaluation_test.json"))
    assert result["hold_out"] == "test" and 0 <= result["methods"]["genrecall"]["hr@10"] <= 1
    capsys.readouterr()
    assert cli.main([*command, "--run", refitted["test"], "--split", "valid"]) == 2
    message = "trained with hold_out = 'test', on the valid targets too: expected --split test"
    assert message in capsys.readouterr().err
    for split in ("valid", "test"):
        assert cli.main([*command, "--run", refitted["none"], "--split", split]) == 2
        message = f"hold_out = 'none', on the {split} targets too: expected a run that holds them"
        assert message in capsys.readouterr().err
    assert not os.path.exists(f"{refitted['none']}/test_uses.jsonl")


def test_an_index_is_weighed_by_what_its_checkpoint_has_seen(shop, refitted, tmp_path):
    data, folder = shop
    items = read_data(data).items
    lines = splits.clean_lines(read_data(data).events)
    for hold_out, output in {"valid": folder, **refitted}.items():
        command = ["index", "--data", data, "--checkpoint", f"{output}/checkpoint"]
        npz, path = f"{folder}/semantic_ids/semantic_ids.npz", str(tmp_path / f"{hold_out}.gguf")
        assert cli.main([*command, "--semantic_ids", npz, "--output", path]) == 0
        space = prompt_spec.SidSpace.load(f"{output}/checkpoint/sid_space.json")
        item_id, _, weight, _ = kernels.RecallIndex.load(path, space.digest).rows()
        counted = splits.popularity(lines, items, hold_out)
        assert weight.tolist() == counted[items.rows(item_id)].tolist()


def test_a_makers_training_part_is_the_checkpoints(shop, refitted):
    data, folder = shop
    for hold_out, output in {"valid": folder, **refitted}.items():
        maker = evaluate.load_maker(read_data(data), output)
        assert maker.visible.tolist() == maker.lines.visible(hold_out).tolist()


def test_preferences_come_from_the_training_part_of_the_checkpoint(shop, refitted, tmp_path):
    data, _ = shop
    output = str(tmp_path / "dpo")
    command = ["dpo", "--data", data, "--run", refitted["none"], "--output", output]
    assert cli.main([*command, "--steps", "2", "--threads", "1"]) == 0
    assert training_part.read(f"{output}/checkpoint") == "none"


def test_stages_share_the_passes(shop, tmp_path):
    _, folder = shop
    other = tmp_path / "run"
    shutil.copytree(folder, other)
    config = json.loads((other / "sft.config.json").read_text())
    config["options"]["stages"]["new_rows_share"] = 0.25
    config["options"]["loop"] |= {"minutes": 5.0, "steps": 9}
    (other / "sft.config.json").write_text(json.dumps(config))
    measured = json.loads((other / "sft.metrics.json").read_text())
    measured["metrics"]["best"] |= {"passes": 3.0}
    (other / "sft.metrics.json").write_text(json.dumps(measured))
    loop = refit.recipe(str(other), "none").loop
    assert (loop.epochs, loop.minutes, loop.steps) == (4.0, None, None)


def test_refusals(shop, tmp_path, capsys):
    data, folder = shop

    def refused(run_folder, message, *more):
        command = ["refit", "--data", data, "--run", str(run_folder), *more]
        capsys.readouterr()
        assert cli.main(command) == 2
        assert message in capsys.readouterr().err

    refused(tmp_path, "sft.config.json: missing; run `genrecall sft` to its end first")
    refused(folder, "expected another folder than --run's", "--output", folder)
    other = tmp_path / "run"
    shutil.copytree(folder, other)
    measured = json.loads((other / "sft.metrics.json").read_text())
    best = measured["metrics"]["best"]
    for change, message in (
        ({"stage": 1}, "the best checkpoint is of stage 1: expected one of stage 2"),
        ({"hr@10": ...}, "has no 'hr@10': expected a run that ranked validation users"),
    ):
        wrong = {k: v for k, v in (best | change).items() if v is not ...}
        measured["metrics"]["best"] = wrong
        (other / "sft.metrics.json").write_text(json.dumps(measured))
        refused(other, message)
    (other / "checkpoint" / "training_part.json").write_text('{"hold_out": "some"}')
    with pytest.raises(ValueError, match="hold_out = 'some': expected one of valid, test, none"):
        training_part.read(str(other / "checkpoint"))
    ablate = ["ablate", "--data", data, "--run", folder, "--hold_out", "none"]
    assert cli.main(ablate) == 2
    assert "hold_out = 'none': expected 'valid'" in capsys.readouterr().err
