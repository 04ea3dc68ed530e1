"""TensorBoard logs of a training run. Knows no model."""

import sys
import types

_EVERY_STEPS = 10


class EventLog:
    """Writes the loop's progress as TensorBoard events, into `folder`."""

    def __init__(self, folder):
        self._folder, self._writer = folder, None

    def step(self, progress):
        """After every step; writes one in ten."""
        if progress.step % _EVERY_STEPS:
            return
        scalars = {"train/loss": progress.loss, "train/learning_rate": progress.learning_rate}
        scalars |= {f"train/{part}": value for part, value in progress.parts.items()}
        scalars["train/tokens_per_s"] = progress.tokens_per_s
        self._write(scalars, progress.step)

    def validation(self, entry):
        """After every validation: an entry of Progress.history, with its `step`."""
        figures = {k: v for k, v in entry.items() if isinstance(v, float) and k != "fraction"}
        self._write({f"valid/{name}": value for name, value in figures.items()}, entry["step"])

    def close(self):
        if self._writer:
            self._writer.close()

    def _write(self, scalars, step):
        if self._writer is None:
            # A resumed run's first step hides what the killed one wrote after it.
            self._writer = _summary_writer(self._folder, step)
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)


def _summary_writer(folder, step):
    # TensorBoard would import TensorFlow, where it is installed, to write a file (15 s); this
    # module's presence is how it is told not to.
    name = "tensorboard.compat.notf"
    sys.modules.setdefault(name, types.ModuleType(name))
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=step, flush_secs=10)
