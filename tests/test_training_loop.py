"""The training loop: resumed after SIGKILL to the same bits, shared by processes to the same
weights, its schedule, its averages.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys

import loop_job
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from genrecall.training.tuning import training_loop
from genrecall.training.tuning.ema import Average
from genrecall.training.tuning.loop_options import LoopOptions
from genrecall.training.tuning.schedule import Schedule
from genrecall.training.tuning.training_state import StateFile, StateFolder

JOB = loop_job.__file__
SHORT = {
    "epochs": 6,
    "batch_tokens": 40,
    "warmup_steps": 5,
    "validations": 3,
    "learning_rate": 1e-2,
    "save_minutes": 0,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def job(out, options, *more, rank=0, world=1, port=0):
    """Starts loop_job.py in a process of its own."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if world > 1:
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, JOB, str(out), json.dumps(options), *map(str, more)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def forked(out, options, *more):
    """Exit code of loop_job.py's main in a fork of this process: no imports to wait for."""
    arguments = (str(out), json.dumps(options), *more)
    process = multiprocessing.get_context("fork").Process(target=loop_job.main, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def result(folder):
    with open(f"{folder}/result.json", encoding="utf-8") as f:
        return json.load(f)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    """SIGKILL in the middle of an epoch, and again; what was trained after a save is done again."""
    options = SHORT | {"ema": 0.9}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    for steps in (4, 11):
        assert forked(killed, options, steps) == -signal.SIGKILL
        assert not (killed / "result.json").exists()
    assert forked(killed, options) == 0
    loop_job.main(str(whole), json.dumps(options))
    a, b = result(whole), result(killed)
    assert a["weights"] == b["weights"] and a["history"] == b["history"]
    steps = [s for s, _ in a["losses"]]
    assert b["losses"] == a["losses"][-len(b["losses"]) :]
    assert 3 < len(b["losses"]) < len(steps) and len(a["history"]) == 3


def test_two_processes_train_the_weights_of_one(tmp_path):
    """Without dropout: rows are shared, the loss is over the whole batch, also where a process has
    no row of a batch or a part no target.
    """
    options = SHORT | {"dropout": 0.0, "epochs": 3, "batch_tokens": 24}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    ranks = [job(two, options, rank=r, world=2, port=port) for r in range(2)]
    loop_job.main(str(one), json.dumps(options))
    for process in ranks:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
    a, b = result(one), result(two)
    assert [s for s, _ in a["losses"]] == [s for s, _ in b["losses"]]
    np.testing.assert_allclose([x for _, x in a["losses"]], [x for _, x in b["losses"]], rtol=1e-5)
    for name, weights in a["weights"].items():
        one_weights, two_weights = (
            np.frombuffer(bytes.fromhex(w), np.float32) for w in (weights, b["weights"][name])
        )
        np.testing.assert_allclose(one_weights, two_weights, atol=2e-5)


def test_the_gradient_is_of_the_loss_over_the_whole_batch(tmp_path):
    """One step of plain SGD arithmetic, by hand, against the sums the objective returns."""
    objective = loop_job.Regression(0.0)
    points = loop_job.Points(np.random.default_rng(0))
    sums, counts = objective(*points.batch(np.arange(37)))
    loss = (sums / counts).sum()
    whole = torch.autograd.grad(loss, objective.first)[0]
    parts = [objective(*points.batch(np.arange(37)[r::2])) for r in range(2)]
    total = parts[0][1] + parts[1][1]
    halves = sum(torch.autograd.grad((s / total).sum(), objective.first)[0] for s, _ in parts)
    torch.testing.assert_close(whole, halves)


def test_a_finished_run_returns_at_once(tmp_path):
    first, hooks, progress = loop_job.run(str(tmp_path), SHORT)
    again, hooks_again, progress_again = loop_job.run(str(tmp_path), SHORT)
    assert hooks.losses and not hooks_again.losses
    assert progress_again == progress
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_loss_falls_and_validations_come_evenly(tmp_path):
    options = SHORT | {"epochs": 40, "validations": 4}
    _, hooks, progress = loop_job.run(str(tmp_path), options, dropout=0.0)
    assert hooks.losses[-1][1] < 0.5 * hooks.losses[0][1]
    fractions = [entry["fraction"] for entry in progress.history]
    assert fractions == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.01)


def test_steps_bound_a_run(tmp_path):
    _, hooks, progress = loop_job.run(str(tmp_path), SHORT | {"steps": 7})
    assert len(hooks.losses) == progress.step == 7 and progress.history[-1]["fraction"] == 1.0


def test_a_budget_in_minutes_counts_what_was_spent_before_the_kill(tmp_path):
    options = SHORT | {"epochs": 10**6, "minutes": 0.01}
    _, hooks, progress = loop_job.run(str(tmp_path), options)
    assert 0.6 <= progress.elapsed_s < 3 and progress.fraction == 1.0
    state = StateFile(str(tmp_path / "state.pt"))
    content = state.load()
    content["progress"] |= {"elapsed_s": 0.55, "fraction": 0.9}
    state.save(content)
    _, hooks, progress = loop_job.run(str(tmp_path), options)
    assert hooks.losses and 0.6 <= progress.elapsed_s < 3


def test_averaged_weights_are_what_is_validated_and_left(tmp_path):
    seen = []

    class Hooks(loop_job.Hooks):
        def validate(self, progress):
            seen.append([p.detach().clone() for p in self.objective.parameters()])
            return super().validate(progress)

    objective = loop_job.Regression(0.0)
    trained, steps = [[p.detach().clone() for p in objective.parameters()]], []

    def on_step(progress):
        trained.append([p.detach().clone() for p in objective.parameters()])
        steps.append(progress.step)

    hooks = Hooks(objective)
    hooks.on_step = on_step
    options = LoopOptions(**SHORT | {"ema": 0.8})
    training_loop.train(objective, loop_job.Points, options, hooks)
    average = trained[0]
    for step, weights in zip(steps, trained[1:], strict=True):
        decay = min(0.8, (1 + step) / (10 + step))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
    for left, last_seen, want in zip(objective.parameters(), seen[-1], average, strict=True):
        torch.testing.assert_close(left, want)
        assert torch.equal(left, last_seen)


def test_an_average_is_swapped_in_and_out():
    parameter = torch.nn.Parameter(torch.tensor([4.0]))
    average = Average([parameter], 0.5)
    with torch.no_grad():
        parameter.fill_(8.0)
    average.update(1000)
    with average.applied():
        assert parameter.item() == 6.0
    assert parameter.item() == 8.0 and average.values[0].item() == 6.0


def test_bf16_computes_close_to_float32(tmp_path):
    options = SHORT | {"steps": 3}
    _, exact, _ = loop_job.run(str(tmp_path / "a"), options, dropout=0.0)
    # A process has one accelerator state, and with it one precision.
    AcceleratorState._reset_state()
    options |= {"mixed_precision": "bf16"}
    _, rounded, _ = loop_job.run(str(tmp_path / "b"), options, dropout=0.0)
    AcceleratorState._reset_state()
    losses, want = ([x for _, x in hooks.losses] for hooks in (rounded, exact))
    np.testing.assert_allclose(losses, want, rtol=0.03)
    assert losses != want


def test_a_loss_that_is_not_finite_stops_the_run_by_its_step():
    class Bad(loop_job.Regression):
        def forward(self, *batch):
            sums, counts = super().forward(*batch)
            return sums * float("nan"), counts

    with pytest.raises(ValueError, match="step 1: loss = nan: try a lower learning rate"):
        objective = Bad(0.0)
        options = LoopOptions(**SHORT)
        training_loop.train(objective, loop_job.Points, options, loop_job.Hooks(objective))


# --- batches and schedule -------------------------------------------------------------------------


def test_batches_partition_and_stay_within_their_tokens():
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    batches = training_loop.token_batches(lengths, 128, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    assert all(len(b) * lengths[b].max() <= 128 for b in batches)
    long = training_loop.token_batches(np.array([500, 600]), 128, np.random.default_rng(1))
    assert [len(b) for b in long] == [1, 1]


def test_the_schedule_fits_the_clock():
    options = LoopOptions(minutes=1.0, epochs=1000, warmup_steps=10)
    schedule = Schedule(options)
    assert schedule.learning_rate(0, 0.0) == pytest.approx(options.learning_rate / 10)
    assert schedule.fraction(3, 10, 30.0) == pytest.approx(0.5)
    assert schedule.learning_rate(100, 0.5) == pytest.approx(0.51 * options.learning_rate)
    assert schedule.fraction(3, 10, 61.0) == 1.0
    assert schedule.learning_rate(100, 1.0) == pytest.approx(0.02 * options.learning_rate)


def test_the_schedule_ends_with_whatever_ends_first():
    assert Schedule(LoopOptions(epochs=4)).fraction(1, 10**6, 1e9) == 0.25
    assert Schedule(LoopOptions(epochs=4, steps=20)).fraction(1, 10, 1e9) == 0.5


# --- states ---------------------------------------------------------------------------------------


def test_a_state_of_another_run_is_refused_by_its_first_difference(tmp_path):
    path = str(tmp_path / "state")
    identity = {"options": {"loop": {"epochs": 3}, "softmax": "level"}, "data_digest": "a"}
    StateFolder(path, identity).open()
    StateFolder(path, identity).open()
    other = {"options": {"loop": {"epochs": 4}, "softmax": "level"}, "data_digest": "a"}
    message = r"unfinished run with options.loop.epochs = 3, now 4: .* --restart forgets it"
    with pytest.raises(ValueError, match=message):
        StateFolder(path, other).open()
    folder = StateFolder(path, other)
    folder.stage("x").save({"a": 1})
    folder.open(restart=True)
    assert folder.stage("x").load() is None
    folder.open()
    folder.remove()
    assert not os.path.exists(path)


def test_a_damaged_state_is_named(tmp_path):
    file = StateFile(str(tmp_path / "s.pt"))
    file.save({"tensor": torch.arange(100.0)})
    assert file.load()["tensor"][99] == 99
    whole = (tmp_path / "s.pt").read_bytes()
    (tmp_path / "s.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"s.pt: not a readable training state: .* --restart"):
        file.load()
