"""Progress of a training run: a live bar on a terminal, a line now and then in a log. Knows no
model.
"""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LOG_EVERY_S = 20.0


class Report:
    """What a training loop tells; use as a context manager around it."""

    def __init__(self, console=None):
        self.console = console or Console()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn(
                "{task.percentage:>3.0f}% epoch {task.fields[epoch]} loss {task.fields[loss]:.3f}"
            ),
            TextColumn("{task.fields[speed]:.0f} tokens/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task("training", total=1.0, epoch=0, loss=float("nan"), speed=0)
        self._last, self._first = time.monotonic(), True

    def __enter__(self):
        self._last, self._first = time.monotonic(), True
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self.console.is_terminal:
            self._bar.stop()

    def step(self, state):
        """After every step."""
        if self._first and state.step > 1:
            self.console.print(f"resumed after step {state.step - 1}", highlight=False)
        self._first = False
        if self.console.is_terminal:
            self._bar.update(
                self._task,
                completed=state.fraction,
                epoch=state.epoch,
                loss=state.loss,
                speed=state.tokens_per_s,
            )
            return
        now = time.monotonic()
        if now - self._last >= _LOG_EVERY_S:
            self._last = now
            left = state.elapsed_s * (1 - state.fraction) / max(state.fraction, 1e-9)
            self.console.print(
                f"training {state.fraction:4.0%}  epoch {state.epoch}  loss {state.loss:.3f}  "
                f"{state.tokens_per_s:.0f} tokens/s  {left:.0f} s left",
                highlight=False,
            )

    def validation(self, entry):
        """After every validation: an entry of the loop's history."""
        hits = "  ".join(
            f"{name.upper()} {entry[name]:.4f}"
            for name in ("hr@10", "ndcg@10", "ecpm@10")
            if name in entry
        )
        kept = "  kept" if entry.get("kept") else ""
        stage = f"stage {entry['stage']}, " if "stage" in entry else ""
        self.console.print(
            f"{stage}validation after epoch {entry['epoch']}: {hits or 'no user to rank'}{kept}",
            highlight=False,
            soft_wrap=True,
        )
