"""A moving average of weights in training. Knows no model."""

import contextlib

import torch


class Average:
    """Exponential moving average of parameters. Step t decays by min(decay, (1 + t) / (10 + t)), so
    that the first weights are forgotten fast.

    Args:
      parameters: what is averaged, trained in place by others.
      decay: in (0, 1).
    """

    def __init__(self, parameters, decay):
        self._parameters, self._decay = list(parameters), decay
        self.values = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, step):
        """Takes in the weights after step `step`, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self._parameters], 1 - decay)

    @contextlib.contextmanager
    def applied(self):
        """The parameters are the averages inside the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self):
        """Exchanges parameters and averages, for good."""
        for p, value in zip(self._parameters, self.values, strict=True):
            mine = p.detach().clone()
            p.copy_(value)
            value.copy_(mine)
