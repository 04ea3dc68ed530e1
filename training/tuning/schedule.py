"""Where a run stands between its start and its end, and the learning rate there. Knows no model."""

import math


class Schedule:
    """A run's end is set by epochs, by steps or by the clock, whichever comes first; the learning
    rate warms up linearly, then follows half a cosine down to `final_rate` of its peak.

    Args:
      options: LoopOptions.
    """

    def __init__(self, options):
        self.options = options

    def fraction(self, epochs, steps, elapsed_s):
        """How much of the run is done, in [0, 1], after `epochs` (a float) passes, `steps` steps
        and `elapsed_s` seconds.
        """
        parts = [epochs / self.options.epochs]
        if self.options.steps is not None:
            parts.append(steps / self.options.steps)
        if self.options.minutes is not None:
            parts.append(elapsed_s / (60 * self.options.minutes))
        return min(1.0, max(parts))

    def learning_rate(self, step, fraction):
        """Of the step after `step` steps."""
        warmup = min(1.0, (step + 1) / max(1, self.options.warmup_steps))
        low = self.options.final_rate
        cosine = low + (1 - low) * (1 + math.cos(math.pi * fraction)) / 2
        return self.options.learning_rate * warmup * cosine
