"""`genrecall sft` in processes of its own: shared by two with torchrun, killed by SIGKILL and given
again. Slow: each process imports PyTorch and Transformers.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_run import tokenized

pytestmark = pytest.mark.slow
MODULE = "genrecall.cli"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """(data folder, run folder with semantic IDs)."""
    return tokenized(tmp_path_factory, users=80, items=60, codes=8)


def run_folder(shop, path):
    shutil.copytree(f"{shop[1]}/semantic_ids", f"{path}/semantic_ids")
    return str(path)


def start(launcher, shop, run, *more):
    fixed = "sft --preset tiny --validations 2 --valid_users 20 --threads 1".split()
    command = [sys.executable, "-m", *launcher, *fixed, "--data", shop[0], "--run", run, *more]
    # Not in the checkout, whose folders would be taken for packages.
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    return subprocess.Popen(
        command, cwd=run, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(process):
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()[-2000:]


def metrics(run):
    with open(f"{run}/sft.metrics.json", encoding="utf-8") as f:
        return json.load(f)["metrics"]


def weights(run):
    return load_file(f"{run}/checkpoint/model.safetensors")


def test_torchrun_with_two_processes_makes_the_run_of_one(shop, tmp_path):
    one, two = (run_folder(shop, tmp_path / name) for name in ("one", "two"))
    options = "--steps 20 --dropout 0".split()
    finish(start([MODULE], shop, one, *options))
    launcher = "torch.distributed.run --standalone --nproc_per_node 2 --module --".split()
    finish(start([*launcher, MODULE], shop, two, *options))
    with open(f"{two}/sft.config.json", encoding="utf-8") as f:
        assert json.load(f)["processes"] == 2
    for a, b in zip(metrics(one)["validations"], metrics(two)["validations"], strict=True):
        assert a["hr@10"] == b["hr@10"] and a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    others = weights(two)
    for name, tensor in weights(one).items():
        np.testing.assert_allclose(others[name], tensor, atol=2e-5, err_msg=name)


def test_sigkill_and_the_same_command_again_make_the_same_run(shop, tmp_path):
    whole, killed = (run_folder(shop, tmp_path / name) for name in ("whole", "killed"))
    options = "--epochs 12 --batch_tokens 512 --save_minutes 0".split()
    finish(start([MODULE], shop, whole, *options))
    process = start([MODULE], shop, killed, *options)
    state = f"{killed}/state/stage_2.pt"
    deadline = time.monotonic() + 200
    while not os.path.exists(state) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and os.path.exists(state)
    finish(start([MODULE], shop, killed, *options))
    assert metrics(whole) == metrics(killed)
    others = weights(killed)
    for name, tensor in weights(whole).items():
        np.testing.assert_array_equal(others[name], tensor, err_msg=name)
    assert not os.path.exists(f"{killed}/state")
