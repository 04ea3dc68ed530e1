"""Which answer is better: the three kinds of preference, each a rule over one context. Knows no
model; reads the training part of a line and nothing after it.

A context is the first `end` events of a user's line. Its *own* items are those of the events after
it, up to the training part's end; *proposed* items are what a model's beams offer instead. Neither
holds items of the history: these are masked when served.
"""

from dataclasses import dataclass

import numpy as np

from genrecall.training import config
from genrecall.training.config import option
from genrecall.training.dataset.data_folder import ACTIONS
from genrecall.training.tuning.preferences import Pairs


@dataclass(frozen=True)
class RuleOptions:
    """What makes a pair, of each kind."""

    horizon: int = option(5, "own events after the prompt that count as wanted now", low=1)
    proposals: int = option(20, "beams that count as plausible", low=2)
    min_ecpm_ratio: float = option(1.5, "eCPM of the chosen item over the rejected one's", above=1)
    max_gap: float = option(3.0, "nats by which a chosen beam may be less likely", low=0)
    ecpm_power: float = option(
        0.0,
        "0: the higher eCPM is better without doubt; s: as probable as eCPM ** s weighs it",
        low=0,
    )
    negatives: int = option(5, "wrong beams set against each event that followed", low=1)

    def __post_init__(self):
        config.check(self)


@dataclass(frozen=True)
class Context:
    """One prompt and what is known to be a better or a worse answer to it.

    own int64 [n >= 1]: items of all events after the prompt, oldest first, and own_grade int32 [n],
    their actions; shown int64 [e]: items shown within the horizon and never taken; proposed int64
    [m], best first, with score float32 [m], sums of log-probabilities.
    """

    own: np.ndarray
    own_grade: np.ndarray
    shown: np.ndarray
    proposed: np.ndarray
    score: np.ndarray


def ecpm_pairs(context, ecpm_of, options):
    """<user, high-eCPM item> over <user, low-eCPM item>, both plausible.

    Candidates are the first proposed items and the own items within the horizon. An own item is
    rejected in favour of another own item only: what the user is known to want never loses to what
    merely pays more. A proposed item is chosen over another when it is at most `max_gap` nats less
    likely.

    Args:
      context: Context.
      ecpm_of: int64 [n] item ids -> float [n], NaN where unknown: in no pair.
      options: RuleOptions.

    Returns:
      (chosen int64 [p], rejected int64 [p], label float32 [p]).
    """
    near = np.unique(context.own[: options.horizon])
    proposed, score = context.proposed[: options.proposals], context.score[: options.proposals]
    fresh = ~np.isin(proposed, near)
    item = np.concatenate([near, proposed[fresh]])
    score = np.concatenate([np.full(len(near), np.inf), score[fresh]])
    own = np.isin(item, context.own)
    ecpm = ecpm_of(item)
    with np.errstate(invalid="ignore"):  # inf - inf, of two own items
        close = score[:, None] >= score[None, :] - options.max_gap
        pays = ecpm[:, None] >= options.min_ecpm_ratio * ecpm[None, :]
    chosen, rejected = np.nonzero(pays & (own[:, None] | (close & ~own[None, :])))
    if options.ecpm_power:
        label = 1 / (1 + (ecpm[rejected] / ecpm[chosen]) ** options.ecpm_power)
    else:
        label = np.ones(len(chosen))
    return item[chosen], item[rejected], label.astype(np.float32)


def interest_pairs(context, options):
    """Converted over clicked over exposed: within the horizon, the item the user went further with
    over the one left earlier. An item counts by the furthest the user went with it.

    Returns:
      As ecpm_pairs; labels are 1.
    """
    item = np.concatenate([context.own[: options.horizon], context.shown])
    grade = np.concatenate(
        [
            context.own_grade[: options.horizon],
            np.full(len(context.shown), ACTIONS["exposure"], np.int32),
        ]
    )
    item, inverse = np.unique(item, return_inverse=True)
    furthest = np.full(len(item), -1)
    np.maximum.at(furthest, inverse, grade)
    chosen, rejected = np.nonzero(furthest[:, None] > furthest[None, :])
    return item[chosen], item[rejected], np.ones(len(chosen), np.float32)


def negative_pairs(context, options):
    """The event that followed over what the beams propose wrongly: their best items that the user
    did not take anywhere in the training part.

    Returns:
      As ecpm_pairs; labels are 1.
    """
    wrong = context.proposed[~np.isin(context.proposed, context.own)][: options.negatives]
    return np.full(len(wrong), context.own[0]), wrong, np.ones(len(wrong), np.float32)


def pairs_of(kind, contexts, ecpm_of, options):
    """Pairs of one kind of KINDS over all contexts."""
    rules = {
        "ecpm": lambda c: ecpm_pairs(c, ecpm_of, options),
        "interest": lambda c: interest_pairs(c, options),
        "negatives": lambda c: negative_pairs(c, options),
    }
    return Pairs.join([(number, *rules[kind](c)) for number, c in enumerate(contexts)])
