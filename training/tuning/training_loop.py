"""The training loop: any objective, on one process or many, resumable. Knows no run folder, no data
and no objective.

Several processes (`torchrun`, `accelerate launch`) share every batch's rows. Losses are sums over
the targets of the whole batch, divided by their number in the whole batch, so the gradient is the
one that a single process computes, up to the order of summation; only dropout draws differ.
"""

import contextlib
import datetime
import math
import time
from dataclasses import asdict, dataclass, field
from typing import Protocol

import accelerate
import numpy as np
import torch
from accelerate.utils import send_to_device

from genrecall.training.tuning.ema import Average
from genrecall.training.tuning.loop_options import LoopOptions
from genrecall.training.tuning.optimizer import make_optimizer
from genrecall.training.tuning.schedule import Schedule

_SMOOTHING = 0.98  # of the loss that is shown


class Objective(Protocol):
    """What is trained: an nn.Module. Its parameters with requires_grad are.

    parts: K names of the loss's parts, for logs.
    """

    parts: tuple

    def forward(self, *batch):
        """Args: batch: the tensors of Samples.batch, on the module's device.

        Returns:
          (sums float [K], counts float [K]): each part's loss summed over the targets in the batch,
          and their number (or weight). The loss is the sum over parts of sum / count, both taken
          over all processes; a part with count 0 adds nothing.
        """


class Samples(Protocol):
    """One pass' samples."""

    lengths: np.ndarray  # int [n], tokens of each sample

    def batch(self, rows):
        """Tuple of CPU tensors of the chosen samples, rows int64 [b], b >= 1."""


class Hooks(Protocol):
    """What a run does at the loop's marks; called on the main process only."""

    def on_step(self, progress):
        """After every step."""

    def validate(self, progress):
        """`validations` times, the last at the end, with the weights to be judged in place: judges
        them and saves them where they are the best so far. Returns a dict of figures for
        Progress.history, from which a resumed run knows what was reached before.
        """


@dataclass
class Progress:
    """Where the loop stands.

    fraction: of the run done, in [0, 1]. epoch: of the pass under way, from 1; batch of batches are
    done in it. loss: smoothed; parts: the last step's, by name. tokens_per_s: of training alone,
    padding not counted. elapsed_s: over all resumptions. history: what validations returned.
    """

    fraction: float = 0.0
    step: int = 0
    epoch: int = 0
    batch: int = 0
    batches: int = 0
    loss: float = 0.0
    parts: dict = field(default_factory=dict)
    learning_rate: float = 0.0
    tokens: int = 0
    step_s: float = 0.0
    elapsed_s: float = 0.0
    validated: int = 0
    history: list = field(default_factory=list)

    @property
    def passes(self):
        """How many passes are done, a float."""
        return self.epoch - 1 + self.batch / self.batches

    @property
    def tokens_per_s(self):
        return self.tokens / self.step_s if self.step_s else 0.0


def train(objective, epoch_samples, options: LoopOptions, hooks, state=None):
    """Trains until the schedule ends; leaves the final weights (the averaged ones, with ema) in
    `objective`, on its device.

    Args:
      objective: Objective.
      epoch_samples: called with a numpy Generator that is a function of the seed and the epoch,
        returns the epoch's Samples; nothing else may influence them.
      options: LoopOptions.
      hooks: Hooks.
      state: training_state.StateFile, or None: not resumable. When its file is there, the run goes
        on from it; a finished one returns at once.

    Returns:
      Progress: its history is complete on the main process.

    Raises:
      ValueError: a loss that is not finite, with its step; a damaged state.
    """
    loop = _Loop(objective, options, hooks, state)
    loop.restore()
    loop.run(epoch_samples)
    return loop.progress


def make_accelerator(mixed_precision="no"):
    """The accelerator of this process: CUDA where there is any, else the CPU."""
    handlers = [
        accelerate.DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        # The other processes wait while the main one validates.
        accelerate.InitProcessGroupKwargs(timeout=datetime.timedelta(hours=12)),
    ]
    return accelerate.Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision=mixed_precision, kwargs_handlers=handlers
    )


class _Loop:
    def __init__(self, objective, options, hooks, state):
        self.options, self.hooks, self.state = options, hooks, state
        self.accelerator = make_accelerator(options.mixed_precision)
        self.objective = objective.to(self.accelerator.device)
        self.trained = [p for p in objective.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.objective, options)
        self.average = Average(self.trained, options.ema) if options.ema else None
        self.schedule = Schedule(options)
        self.progress = Progress()
        self.model = None

    def restore(self):
        saved = self.state.load(self.accelerator.device) if self.state else None
        if saved:
            with torch.no_grad():
                for p, value in zip(self.trained, saved["parameters"], strict=True):
                    p.copy_(value)
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.average:
                self.average.values = saved["average"]
            self.progress = Progress(**saved["progress"])
        self._elapsed_before = self.progress.elapsed_s
        self._started = self._saved = time.monotonic()

    def save(self):
        self._saved = time.monotonic()
        if self.state and self.accelerator.is_main_process:
            self.state.save(
                {
                    "parameters": [p.detach() for p in self.trained],
                    "optimizer": self.optimizer.state_dict(),
                    "average": self.average.values if self.average else [],
                    "progress": asdict(self.progress),
                }
            )

    def run(self, epoch_samples):
        self.model = self.accelerator.prepare_model(self.objective)
        self.model.train()
        progress = self.progress
        while progress.fraction < 1.0:
            if progress.batch == progress.batches:
                progress.epoch, progress.batch = progress.epoch + 1, 0
            generator = np.random.default_rng([self.options.seed, progress.epoch])
            samples = epoch_samples(generator)
            batches = token_batches(samples.lengths, self.options.batch_tokens, generator)
            progress.batches = len(batches)
            for rows in batches[progress.batch :]:
                self._step(samples, rows)
                self._marks()
                if progress.fraction >= 1.0:
                    break
        if self.average:
            self.average.swap()
        self.model.eval()

    def _step(self, samples, rows):
        started = time.monotonic()
        progress, options = self.progress, self.options
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        own = rows[rank::world]
        # A process without a row still takes part: with one row that counts for nothing.
        batch = samples.batch(own if len(own) else rows[:1])
        batch = send_to_device(batch, self.accelerator.device)
        # Dropout is a function of the place in the run, so there is no generator to save.
        torch.manual_seed(_step_seed(options.seed, progress.step, rank))
        progress.learning_rate = self.schedule.learning_rate(progress.step, progress.fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = progress.learning_rate
        sums, counts = self.model(*batch)
        if not len(own):
            sums, counts = 0.0 * sums, 0.0 * counts
        all_sums, all_counts = self._shared(sums.detach(), counts)
        at_least_one = all_counts.clamp(min=1)
        # Gradients are averaged over processes, hence x world.
        self.accelerator.backward(world * (sums / at_least_one).sum())
        torch.nn.utils.clip_grad_norm_(self.trained, options.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        if self.average:
            self.average.update(progress.step)
        self._record((all_sums / at_least_one).tolist())
        progress.tokens += int(samples.lengths[rows].sum())
        progress.step_s += time.monotonic() - started
        progress.batch += 1
        progress.fraction = self.schedule.fraction(
            progress.passes, progress.step, progress.elapsed_s
        )

    def _shared(self, sums, counts):
        """Sums and counts over all processes; and the main process' clock, since all must end
        together.
        """
        elapsed = self._elapsed_before + time.monotonic() - self._started
        if self.accelerator.num_processes == 1:
            self.progress.elapsed_s = elapsed
            return sums, counts
        elapsed *= self.accelerator.is_main_process
        mine = torch.cat([sums.float(), counts.float(), sums.new_tensor([elapsed]).float()])
        total = self.accelerator.reduce(mine, "sum")
        self.progress.elapsed_s = float(total[-1])
        return total[: len(sums)], total[len(sums) : -1]

    def _record(self, parts):
        progress, loss = self.progress, sum(parts)
        if not math.isfinite(loss):
            raise ValueError(f"step {progress.step}: loss = {loss}: try a lower learning rate")
        progress.parts = dict(zip(self.objective.parts, parts, strict=True))
        first = progress.step == 1
        progress.loss = loss if first else _SMOOTHING * progress.loss + (1 - _SMOOTHING) * loss

    def _marks(self):
        progress = self.progress
        if self.accelerator.is_main_process:
            self.hooks.on_step(progress)
        due = math.floor(progress.fraction * self.options.validations + 1e-9)
        if due > progress.validated:  # the clock may pass several marks in one step
            progress.validated = due
            self._validate()
            self.save()
        elif time.monotonic() - self._saved >= 60 * self.options.save_minutes:
            self.save()

    def _validate(self):
        self.model.eval()
        if self.accelerator.is_main_process:
            with self.average.applied() if self.average else contextlib.nullcontext():
                self.progress.history.append(self.hooks.validate(self.progress))
        self.accelerator.wait_for_everyone()
        self.model.train()


def token_batches(lengths, batch_tokens, generator):
    """Samples of like length together, batches in random order.

    Args:
      lengths: int [n], tokens of each sample.
      batch_tokens: rows x longest row stays within this, but a batch has at least one row.
      generator: numpy Generator.

    Returns:
      list of int64 arrays that partition range(n).
    """
    order = np.argsort(lengths + generator.random(len(lengths)), kind="stable")  # ties at random
    batches, first = [], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or (i + 1 - first) * lengths[order[i]] > batch_tokens:
            batches.append(order[first:i])
            first = i
    return [batches[i] for i in generator.permutation(len(batches))]


def _step_seed(seed, step, rank):
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
