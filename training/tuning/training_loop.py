"""The fine-tuning loop: batches, schedule, validation, best checkpoint. Knows no files and no data
folder.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class LoopOptions:
    """How a decoder is trained.

    minutes: wall-clock budget, validation included; the learning rate's schedule is fitted to it.
    None: epochs alone count.
    epochs: at most this many passes. batch_tokens: of a batch, padding included. learning_rate: the
    peak's. validations: how often, evenly spread, the last at the end.
    """

    minutes: float | None = None
    epochs: int = 40
    batch_tokens: int = 2048
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    validations: int = 4
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_tokens", "learning_rate", "validations"):
            if not getattr(self, name) > 0:  # NaN is not
                raise ValueError(f"{name} = {getattr(self, name)}: expected > 0")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes = {self.minutes}: expected > 0")


@dataclass
class Progress:
    """What the loop tells `on_step`: fraction done in [0, 1], step, epoch, smoothed loss, tokens
    per second.
    """

    fraction: float = 0.0
    step: int = 0
    epoch: int = 0
    loss: float = 0.0
    tokens_per_s: float = 0.0


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


class Schedule:
    """Learning rate over a run whose end is set by epochs or by the clock, whichever comes first:
    linear warm-up, then a half cosine down to 2 % of the peak.
    """

    def __init__(self, options, clock=time.monotonic):
        self.options, self.clock = options, clock
        self.start = clock()

    def fraction(self, epochs):
        """How much of the run is done, in [0, 1], after `epochs` (a float) passes."""
        by_time = 0.0
        if self.options.minutes is not None:
            by_time = (self.clock() - self.start) / (60 * self.options.minutes)
        return min(1.0, max(epochs / self.options.epochs, by_time))

    def learning_rate(self, step, fraction):
        warmup = min(1.0, (step + 1) / max(1, self.options.warmup_steps))
        return self.options.learning_rate * warmup * (0.51 + 0.49 * math.cos(math.pi * fraction))


def train(model, epoch_samples, options, validate, on_step):
    """Trains until the schedule ends.

    Args:
      model: NextSid.
      epoch_samples: called with a numpy Generator before each epoch, returns Samples.
      options: LoopOptions.
      validate: called with the Progress, `validations` times; the last call is at the end.
      on_step: called with the Progress after every step.

    Raises:
      ValueError: a loss that is not finite, with its step.
    """
    generator = np.random.default_rng(options.seed)
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, options)
    state, schedule, tokens_seen, validated = Progress(), Schedule(options), 0, 0
    model.train()
    while state.fraction < 1.0:
        samples = epoch_samples(generator)
        batches = token_batches(samples.lengths, options.batch_tokens, generator)
        state.epoch += 1
        for number, batch in enumerate(batches, 1):
            tokens, at, code = (t.to(device) for t in samples.batch(batch))
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate(state.step, state.fraction)
            loss, _ = model(tokens, at, code)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _record(state, float(loss.detach()))
            tokens_seen += tokens.numel()
            state.fraction = schedule.fraction(state.epoch - 1 + number / len(batches))
            state.tokens_per_s = tokens_seen / (time.monotonic() - schedule.start)
            on_step(state)
            due = math.floor(state.fraction * options.validations + 1e-9)
            if (
                due > validated
            ):  # the clock may pass several marks in one step: one call stands for them
                validated = due
                model.eval()
                validate(state)
                model.train()
            if state.fraction >= 1.0:
                break


def make_optimizer(model, options):
    """AdamW; norms and biases are not decayed."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), fused=True)


def _record(state, loss):
    if not math.isfinite(loss):
        raise ValueError(f"step {state.step + 1}: loss = {loss}: try a lower learning rate")
    state.step += 1
    state.loss = loss if state.step == 1 else 0.98 * state.loss + 0.02 * loss
