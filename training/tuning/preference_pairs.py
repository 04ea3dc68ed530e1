"""The preferences of a run: prompts, beams, rules and limits put together. Knows no loss and no
training loop.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from genrecall.training import config
from genrecall.training.config import nested, option
from genrecall.training.dataset.data_folder import ACTIONS
from genrecall.training.tuning import preference_contexts, preference_rules
from genrecall.training.tuning.preferences import KINDS, Preferences

# What a kind of preference is made of, for the message when a data folder has none of it.
_NEEDS = {
    "ecpm": "items with an ecpm of at least two values in items.jsonl",
    "interest": "exposures in events.csv (action `exposure`)",
}


@dataclass(frozen=True)
class PairOptions:
    """Which preferences, how many, and how much each kind counts."""

    ecpm_weight: float = option(1.0, "of <user, high-eCPM item> over <user, low-eCPM item>", low=0)
    interest_weight: float = option(0.0, "of converted over clicked over exposed", low=0)
    negatives_weight: float = option(0.0, "of the event that followed over wrong beams", low=0)
    prompts_per_user: int = option(2, "prompts out of each user's line, at most", low=1)
    pairs_per_prompt: int = option(8, "pairs of each kind of a prompt, at most", low=1)
    beam_width: int = option(50, "of the beams that propose items", low=1, high=4096)
    rules: preference_rules.RuleOptions = nested(preference_rules.RuleOptions)

    def __post_init__(self):
        config.check(self)
        if not any(self.weights):
            flags = ", ".join(f"{kind}_weight" for kind in KINDS)
            raise ValueError(f"{flags}: all 0: expected a weight > 0 for one kind of preference")

    @property
    def weights(self):
        """Tuple of floats, by KINDS."""
        return tuple(getattr(self, f"{kind}_weight") for kind in KINDS)

    @property
    def kinds(self):
        """The kinds that are asked for."""
        return tuple(k for k, weight in zip(KINDS, self.weights, strict=True) if weight)


def check_kinds(data, kinds):
    """ValueError unless the data folder has what every kind of preference is made of."""
    ecpm = data.items.ecpm[np.isfinite(data.items.ecpm)]
    has = {
        "ecpm": len(np.unique(ecpm)) > 1,
        "interest": bool((data.events.action == ACTIONS["exposure"]).any()),
    }
    for kind in kinds:
        if not has.get(kind, True):
            raise ValueError(
                f"{data.path}: preference kind '{kind}' needs {_NEEDS[kind]}, and there are none; "
                f"--{kind}_weight 0 leaves it out"
            )


def make_preferences(data, maker, engine, options, seed):
    """All preferences of a run, of the training part only.

    Args:
      data: data_folder.DataSet.
      maker: samples.SampleMaker of the model that is to be improved.
      engine: trtllm_bridge.Engine of that model.
      options: PairOptions.
      seed: of the choice of prompts and pairs.

    Returns:
      Preferences.

    Raises:
      ValueError: a kind that the folder has nothing for; a kind without a single pair.
    """
    check_kinds(data, options.kinds)
    generator = np.random.default_rng(seed)
    lines, visible, rules = maker.lines, maker.visible, options.rules
    prompts = preference_contexts.choose_prompts(
        lines, visible, options.prompts_per_user, generator
    )
    proposed = preference_contexts.propose(engine, maker, prompts, options.beam_width)
    shown = preference_contexts.exposures(data.events)
    contexts = preference_contexts.make_contexts(
        lines, visible, shown, prompts, rules.horizon, proposed
    )
    pairs = {}
    for kind in options.kinds:
        found = preference_rules.pairs_of(kind, contexts, ecpm_lookup(data.items), rules)
        if not len(found):
            raise ValueError(
                f"{data.path}: preference kind '{kind}': not one pair in {len(contexts)} prompts "
                f"of the training part; --{kind}_weight 0 leaves it out"
            )
        pairs[kind] = found.at_most(options.pairs_per_prompt, generator)
    following = np.array([c.own[0] for c in contexts], np.int64)
    return Preferences.build(*prompts, following, pairs, answer_lookup(maker.index))


def ecpm_lookup(items):
    """The function item ids int64 [n] -> eCPM float64 [n], NaN where unknown."""
    order = np.argsort(items.ids)

    def ecpm_of(item):
        return items.ecpm[order[np.searchsorted(items.ids, item, sorter=order)]].astype(np.float64)

    return ecpm_of


def answer_lookup(index):
    """The function item ids int64 [n] -> int64 [n], equal for items of one semantic ID."""
    item, codes, _, _ = index.rows()
    _, number = np.unique(codes, axis=0, return_inverse=True)
    order = np.argsort(item)

    def answer_of(wanted):
        return number.reshape(-1)[order[np.searchsorted(item, wanted, sorter=order)]]

    return answer_of


def to_arrays(preferences):
    """name -> array, for files.write_npz; from_arrays takes them back."""
    return dict(vars(preferences))


def from_arrays(arrays):
    return Preferences(**{f.name: arrays[f.name] for f in dataclasses.fields(Preferences)})
