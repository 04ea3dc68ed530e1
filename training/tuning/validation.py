"""Validation while training: a fixed sample of users ranked through the engine that serves. Knows
no objective.
"""

import os
import tempfile

import numpy as np

from genrecall.training.evaluation import metrics, ranking


class Validation:
    """Ranks a fixed sample of users' validation targets.

    Args:
      run: run.Run.
      users: at most this many.
      seed: of the sample.
    """

    def __init__(self, run, users, seed):
        self.run = run
        evaluated = run.lines.evaluated("valid")
        chosen = np.random.default_rng(seed).permutation(len(evaluated))[:users]
        self.users = evaluated[np.sort(chosen)]

    def __call__(self):
        """The hit rates of the decoder as it is now (see metrics.hit_rates); {} with nobody to
        rank: no line is long enough.
        """
        if not len(self.users):
            return {}
        with tempfile.TemporaryDirectory() as work:
            folder = os.path.join(work, "checkpoint")
            self.run.save(folder)
            engine = ranking.open_engine(folder, work)
            ranks = ranking.rank_users(engine, self.run.maker, "valid", self.users).ranks
        return metrics.hit_rates(ranks)
