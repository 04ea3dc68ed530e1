"""`genrecall dpo` end to end on a tiny shop: what it reaches and leaves, what it computes once, how
it resumes and what it refuses.
"""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import fine_tuned

from genrecall import cli
from genrecall.training import files
from genrecall.training.dataset import splits
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.tuning import dpo, dpo_run
from genrecall.training.tuning.dpo_options import DpoOptions

DPO = "--epochs 6 --validations 2 --valid_users 60 --threads 1 --beta 0.5 --learning_rate 3e-3"
DPO = f"{DPO} --warmup_steps 2 --max_hr_loss 1".split()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(shop, run) of a tiny shop after tokenize and a little sft."""
    return fine_tuned(tmp_path_factory, users=80, items=60)


@pytest.fixture(scope="module")
def improved(tuned):
    """(shop, run, dpo run, its metrics)."""
    shop, run = tuned
    assert cli.main(["dpo", "--data", shop, "--run", run, *DPO]) == 0
    return shop, run, f"{run}/dpo", read(f"{run}/dpo/dpo.metrics.json")["metrics"]


def read(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def test_ecpm_rises(improved):
    *_, metrics = improved
    start, best = metrics["start"], metrics["best"]
    assert best["ecpm@10"] > 1.1 * start["ecpm@10"]
    assert best["accuracy"] > 0.6 and best["margin"] > 0
    kept = [entry for entry in metrics["validations"] if entry["kept"]]
    assert best == kept[-1] == max(kept, key=lambda entry: entry["ecpm@10"])


def test_the_folder_is_a_run_folder(improved, tmp_path):
    shop, run, output, metrics = improved
    for name in ("config.json", "model.safetensors", "prompt.gguf", "sid_space.json"):
        assert (tmp_path / f"{output}/checkpoint/{name}").exists()
    assert not (tmp_path / f"{output}/state").exists()
    evaluate = ["evaluate", "--data", shop, "--run", output, "--users", "60", "--sasrec", "off"]
    assert cli.main([*evaluate, "--output", str(tmp_path / "e.json")]) == 0
    index = ["index", "--data", shop, "--checkpoint", f"{output}/checkpoint"]
    index += ["--semantic_ids", f"{output}/semantic_ids/semantic_ids.npz"]
    assert cli.main([*index, "--output", str(tmp_path / "index.gguf")]) == 0
    manifest = read(f"{output}/dpo.config.json")
    assert manifest["options"]["loss"]["beta"] == 0.5 and manifest["checkpoint_digest"]
    assert list((tmp_path / f"{output}/tensorboard/dpo").glob("events.*"))


def test_reference_scores_are_computed_once_and_again_for_another_model(improved, tmp_path, capsys):
    shop, run, output, _ = improved
    again = ["dpo", "--data", shop, "--run", run, *DPO, "--epochs", "1", "--validations", "1"]
    capsys.readouterr()
    assert cli.main([*again, "--pair_smoothing", "0.1"]) == 0
    said = capsys.readouterr().out
    assert said.count("(computed before)") == 2
    # Other pairs of the same model: both are made again.
    assert cli.main([*again, "--pairs_per_prompt", "2"]) == 0
    assert "(computed before)" not in capsys.readouterr().out
    # The same answers scored by another model.
    other = str(tmp_path / "other")
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("checkpoint", "dpo"))
    shutil.copytree(f"{output}/checkpoint", f"{other}/checkpoint")
    shutil.copytree(output, f"{other}/dpo")
    before = files.read_npz(f"{other}/dpo/cache/reference.npz")
    assert cli.main([*[a.replace(run, other) for a in again], "--pairs_per_prompt", "2"]) == 0
    assert "(computed before)" not in capsys.readouterr().out
    after = files.read_npz(f"{other}/dpo/cache/reference.npz")
    assert before["key"] != after["key"]


KILLED_AT_THE_SECOND_VALIDATION = """
import os, signal, sys
from genrecall import cli
from genrecall.training.tuning import dpo

judge, calls = dpo.judge, []

def once(*args):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    judge(*args)

dpo.judge = once
cli.main(sys.argv[1:])
"""


def child(*arguments):
    """A Python of its own that finds the package where this one does."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, check=False
    )


def test_a_killed_run_resumes_to_the_same_figures(improved, tmp_path, capsys):
    shop, run, _, metrics = improved
    command = ["dpo", "--data", shop, "--run", run, "--output", str(tmp_path / "d"), *DPO]
    command += ["--save_minutes", "0"]
    killed = child("-c", KILLED_AT_THE_SECOND_VALIDATION, *command)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "d" / "state").exists()
    assert cli.main([*command, "--beta", "0.4"]) == 2
    assert "options.loss.beta = 0.5, now 0.4" in capsys.readouterr().err
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "resumed after step" in said and said.count("(computed before)") == 2
    resumed = read(tmp_path / "d" / "dpo.metrics.json")["metrics"]
    for a, b in zip(resumed["validations"], metrics["validations"], strict=True):
        assert a["ecpm@10"] == b["ecpm@10"] and a["hr@10"] == b["hr@10"]


@pytest.mark.slow
def test_two_processes_make_the_same_run(improved, tmp_path):
    shop, run, _, metrics = improved
    command = ["dpo", "--data", shop, "--run", run, "--output", str(tmp_path / "d"), *DPO]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "--"]
    done = child(*torchrun, "genrecall.cli", *command)
    assert done.returncode == 0, done.stderr[-2000:]
    shared = read(tmp_path / "d" / "dpo.metrics.json")["metrics"]
    for a, b in zip(shared["validations"], metrics["validations"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["ecpm@10"] == pytest.approx(b["ecpm@10"], rel=0.05)


def test_a_run_that_ruins_hr_keeps_the_start(tuned, tmp_path, monkeypatch, capsys):
    shop, run = tuned
    start = {"hr@10": 1.0, "ecpm@10": 0.0}  # whatever comes has lost HR and gained eCPM
    monkeypatch.setattr(dpo_run, "start_figures", lambda *_: start)
    output = str(tmp_path / "d")
    command = ["dpo", "--data", shop, "--run", run, "--output", output, *DPO]
    command += "--epochs 1 --validations 1 --max_hr_loss 0.01".split()
    assert cli.main(command) == 0
    assert "as it was: no validation was better" in capsys.readouterr().out
    assert read(f"{output}/dpo.metrics.json")["metrics"]["best"] is None
    for name in ("model.safetensors", "sid_space.json"):
        assert same_file(f"{output}/checkpoint/{name}", f"{run}/checkpoint/{name}")


def same_file(a, b):
    with open(a, "rb") as x, open(b, "rb") as y:
        return x.read() == y.read()


def test_judge():
    options = DpoOptions()
    start = {"hr@10": 0.5, "ecpm@10": 4.0}

    def judged(history, **figures):
        entry = {"loss": 1.0, **figures}
        dpo.judge(entry, history, start, options)
        return entry

    first = judged([], **{"hr@10": 0.49, "ecpm@10": 4.4})
    assert first["kept"] and first["score"] == 4.4
    assert not judged([], **{"hr@10": 0.5, "ecpm@10": 3.9})["kept"]  # not better than the start
    low = judged([first], **{"hr@10": 0.48, "ecpm@10": 9.0})
    assert not low["kept"]  # 4 % of HR lost, 3 % allowed
    assert judged([first, low], **{"hr@10": 0.485, "ecpm@10": 4.5})["kept"]  # low is no rival
    assert not judged([first], **{"hr@10": 0.6, "ecpm@10": 4.3})["kept"]
    options = DpoOptions(pairs=type(options.pairs)(ecpm_weight=0.0, negatives_weight=1.0))
    assert judged([], **{"hr@10": 0.51, "ecpm@10": 1.0})["kept"]
    assert not judged([], **{"hr@10": 0.5, "ecpm@10": 9.0})["kept"]
    start, entry = {}, {"loss": 2.0}  # nobody to rank
    dpo.judge(entry, [], start, options)
    assert entry == {"loss": 2.0, "score": -2.0, "kept": True}


# --- what is refused ------------------------------------------------------------------------------


def without(shop, folder, field=None, action=None):
    """A copy of a shop without one field of its items, or without one kind of event."""
    shutil.copytree(shop, folder)
    if field:
        path = folder / "items.jsonl"
        items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [{k: v for k, v in item.items() if k != field} for item in items]
        path.write_text("".join(json.dumps(i) + "\n" for i in kept), encoding="utf-8")
    if action:
        path = folder / "events.csv"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(x for x in lines if f",{action}," not in x), encoding="utf-8")
    return str(folder)


def refused(capsys, *command):
    capsys.readouterr()
    assert cli.main(["dpo", *command]) == 2
    return capsys.readouterr().err


def test_a_kind_that_the_data_has_nothing_for_is_refused(tuned, tmp_path, capsys):
    shop, run = tuned
    command = ["--run", run, "--output", str(tmp_path / "d"), *DPO]
    poor = without(shop, tmp_path / "poor", field="ecpm")
    error = refused(capsys, "--data", poor, *command)
    assert "preference kind 'ecpm' needs items with an ecpm" in error
    assert "--ecpm_weight 0 leaves it out" in error
    blind = without(shop, tmp_path / "blind", action="exposure")
    error = refused(capsys, "--data", blind, *command, "--interest_weight", "1")
    assert "preference kind 'interest' needs exposures in events.csv" in error
    assert not (tmp_path / "d").exists()


def test_ecpm_that_never_differs_enough_is_refused(tuned, tmp_path, capsys):
    shop, run = tuned
    command = ["--data", shop, "--run", run, "--output", str(tmp_path / "d"), *DPO]
    error = refused(capsys, *command, "--min_ecpm_ratio", "1e6")
    assert "preference kind 'ecpm': not one pair" in error


def test_runs_that_cannot_be_opened_are_refused(tuned, tmp_path, capsys):
    shop, run = tuned
    data = ["--data", shop]
    assert "run `genrecall sft` first" in refused(capsys, *data, "--run", str(tmp_path))
    error = refused(capsys, *data, "--run", run, "--output", run)
    assert "expected another folder than --run's" in error
    error = refused(capsys, *data, "--run", run, "--beta", "0")
    assert "beta = 0.0: expected > 0" in error
    error = refused(capsys, *data, "--run", run, "--ecpm_weight", "0")
    assert "expected a weight > 0 for one kind of preference" in error


def test_pairs_do_not_depend_on_what_is_held_out(tuned, tmp_path):
    """Other events in the places of the held-out two: not a bit of the preferences changes."""
    shop, run = tuned
    changed = str(tmp_path / "changed")
    shutil.copytree(shop, changed)
    assert swap_held_out(shop, f"{changed}/events.csv") > 0.5
    command = [*DPO, "--epochs", "0.2", "--validations", "1", "--interest_weight", "1"]
    command += ["--negatives_weight", "1"]
    arrays = []
    for data in (shop, changed):
        output = str(tmp_path / f"out_{len(arrays)}")
        assert cli.main(["dpo", "--data", data, "--run", run, "--output", output, *command]) == 0
        arrays.append(files.read_npz(f"{output}/cache/preferences.npz"))
    for name in set(arrays[0]) - {"key"}:
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name], err_msg=name)
    assert arrays[0]["key"] != arrays[1]["key"]  # they are computed again all the same


def swap_held_out(shop, target):
    """Copies the shop's events.csv; what users did after the training part is done to items that
    they never met. Left alone are users who then went on with an item of the training part, since
    cleaning folds such events into one. Returns the share of users changed.
    """
    lines = splits.clean_lines(read_data(shop).events, actions=0b110)
    end = lines.begin[:-1] + lines.visible("valid") - 1
    cut = {str(user): lines.time[e] for user, e in zip(lines.user_id, end, strict=True)}
    with open(f"{shop}/events.csv", encoding="utf-8") as f:
        header, *rows = [line.split(",") for line in f.read().splitlines()]
    changed = 0
    for user in cut:
        own = [row for row in rows if row[0] == user]
        after = [row for row in own if int(row[4]) > cut[user]]
        taken = {row[1] for row in own if row[2] != "exposure" and row not in after}
        if not after or taken & {row[1] for row in after if row[2] != "exposure"}:
            continue
        new = iter(sorted({str(i) for i in range(1, 61)} - {row[1] for row in own}))
        swapped = {item: next(new) for item in sorted({row[1] for row in after})}
        for row in after:
            row[1] = swapped[row[1]]
        changed += 1
    with open(target, "w", encoding="utf-8") as f:
        f.writelines(",".join(row) + "\n" for row in [header, *rows])
    return changed / len(cut)
