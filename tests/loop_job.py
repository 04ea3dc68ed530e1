"""A training run small enough to be killed and to be shared by processes: a regression with
dropout, as a script.

    python loop_job.py OUT OPTIONS_JSON [kill_after_step]

Trains by training_loop on OUT/state.pt, leaves OUT/result.json (weights as hex, losses of its
steps, history) from the main process. With kill_after_step it kills itself with SIGKILL after that
many steps of its own.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass

import numpy as np
import torch

from genrecall.training.tuning import training_loop
from genrecall.training.tuning.loop_options import LoopOptions
from genrecall.training.tuning.training_state import StateFile


class Regression(torch.nn.Module):
    parts = ("left", "right")

    def __init__(self, dropout):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.first = torch.nn.Parameter(torch.randn(6, 16, generator=generator) / 3)
        self.second = torch.nn.Parameter(torch.randn(16, 2, generator=generator) / 3)
        self.bias = torch.nn.Parameter(torch.zeros(2))
        self.dropout = dropout

    def forward(self, x, y, used):
        hidden = torch.nn.functional.dropout(
            torch.tanh(x @ self.first), self.dropout, self.training
        )
        error = (hidden @ self.second + self.bias - y) ** 2 * used
        return error.sum(0), used.sum(0)


@dataclass
class Points:
    """Rows of unlike weight: some have no target of a part."""

    generator: np.random.Generator

    def __post_init__(self):
        rng = self.generator
        self.x = rng.standard_normal((37, 6)).astype(np.float32)
        self.y = np.stack([self.x[:, 0] * self.x[:, 1], np.sin(self.x[:, 2])], 1)
        self.used = (rng.random((37, 2)) < 0.7).astype(np.float32)
        self.lengths = rng.integers(1, 9, 37)

    def batch(self, rows):
        return tuple(torch.from_numpy(a[rows]) for a in (self.x, self.y, self.used))


class Hooks:
    def __init__(self, objective, kill_after_step=None):
        self.objective, self.kill_after, self.losses = objective, kill_after_step, []

    def on_step(self, progress):
        self.losses.append((progress.step, progress.loss))
        if self.kill_after and len(self.losses) == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def validate(self, progress):
        norm = sum(float(p.detach().norm()) for p in self.objective.parameters())
        return {"score": norm, "step": progress.step, "fraction": progress.fraction}


def run(out, options, kill_after_step=None, dropout=0.3):
    """Trains; returns (objective, hooks, progress)."""
    torch.set_num_threads(1)
    objective = Regression(dropout)
    hooks = Hooks(objective, kill_after_step)
    state = StateFile(os.path.join(out, "state.pt"))
    progress = training_loop.train(objective, Points, LoopOptions(**options), hooks, state)
    return objective, hooks, progress


def main(out, options, kill_after_step=None):
    options = json.loads(options)
    dropout = options.pop("dropout", 0.3)
    kill = kill_after_step and int(kill_after_step)
    objective, hooks, progress = run(out, options, kill, dropout)
    if int(os.environ.get("RANK", 0)) == 0:
        weights = {n: p.detach().numpy().tobytes().hex() for n, p in objective.named_parameters()}
        with open(os.path.join(out, "result.json"), "w", encoding="utf-8") as f:
            json.dump({"weights": weights, "losses": hooks.losses, "history": progress.history}, f)


if __name__ == "__main__":
    main(*sys.argv[1:])
