"""Validation while training: a fixed sample of users ranked through the engine that serves. Knows
no objective.
"""

import os
import tempfile

import numpy as np

from genrecall.training.dataset import splits
from genrecall.training.evaluation import metrics, ranking


class Validation:
    """Ranks a fixed sample of users' validation targets; nobody's where they are trained on.

    Args:
      run: run.Run.
      users: at most this many.
      seed: of the sample.
    """

    def __init__(self, run, users, seed):
        self.run = run
        held_out = run.maker.hold_out == "valid"
        evaluated = run.lines.evaluated("valid") if held_out else np.zeros(0, np.int64)
        self.catalogue = metrics.Catalogue.of(
            run.data.items, splits.popularity(run.lines, run.data.items)
        )
        chosen = np.random.default_rng(seed).permutation(len(evaluated))[:users]
        self.users = evaluated[np.sort(chosen)]

    def __call__(self):
        """What the decoder as it is now reaches, as means over users (see metrics.user_values); {}
        with nobody to rank: no line is long enough, or their targets are trained on.
        """
        if not len(self.users):
            return {}
        with tempfile.TemporaryDirectory() as work:
            folder = os.path.join(work, "checkpoint")
            self.run.save(folder)
            engine = ranking.open_engine(folder, work)
            ranked = ranking.rank_users(engine, self.run.maker, "valid", self.users)
        lines = self.run.lines
        target = lines.item[lines.begin[self.users] + lines.visible("valid")[self.users]]
        values = metrics.user_values(ranked, self.run.data.items.rows(target), self.catalogue)
        return metrics.means(values)
