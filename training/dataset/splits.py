"""Protocol A: a user's last item is the test target, the one before it the validation target, the
rest is training. Once validation has chosen, the training part may grow: what it still holds out is
named by the first split that it does not see ("valid": both; "test"; "none").

Knows no semantic IDs and no model. What a user's *line* is (which events count, in which order) is
behaviour cleaning's decision, so it is taken from the same C++ that serving runs.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genrecall import kernels
from genrecall.training.dataset.data_folder import ACTIONS, DOMAINS

# Targets held out of the end of a user's line, by the first split that may not be seen: validation
# may not see the test target.
_HELD_OUT = {"valid": 2, "test": 1, "none": 0}
HOLD_OUT = tuple(_HELD_OUT)
_NO_LIMIT = 2**30


@dataclass(frozen=True)
class Lines:
    """The cleaned behaviours of all users, user u at begin[u]:begin[u + 1], oldest first.

    user_id int64 [U], begin int64 [U + 1]; item int64 [E], action, domain int32 [E], time int64
    [E].
    """

    user_id: np.ndarray
    begin: np.ndarray
    item: np.ndarray
    action: np.ndarray
    domain: np.ndarray
    time: np.ndarray

    @property
    def num_users(self):
        return len(self.user_id)

    @property
    def lengths(self):
        return np.diff(self.begin)

    def items_of(self, u):
        return self.item[self.begin[u] : self.begin[u + 1]]

    def visible(self, hold_out):
        """How many events of each user's line come before what is held out, int64 [U]: the history
        with which a split is evaluated, and all that training may see of it.

        Args:
          hold_out: of HOLD_OUT.

        Lines of fewer than 3 events are training as a whole: they have nothing to hold out.
        """
        return np.where(self.lengths >= 3, self.lengths - _HELD_OUT[hold_out], self.lengths)

    def evaluated(self, split):
        """Numbers of the users that have a target in `split` ("valid" or "test"), int64 [<= U]; the
        target of user u is the event begin[u] + visible(split)[u]. A target that repeats an item of
        its own history is masked by the
        protocol and cannot be hit: such users are left out."""
        seen = self.visible(split)
        long_enough = self.lengths >= 3
        target_at = np.where(long_enough, self.begin[:-1] + seen, -1)  # -1: compared, not used
        target = self.item[target_at] if len(self.item) else np.zeros(0, np.int64)
        repeats = (self.item == target[self.owner]) & (self.position < seen[self.owner])
        repeated = np.bincount(self.owner[repeats], minlength=self.num_users) > 0
        return np.flatnonzero(long_enough & ~repeated)

    @cached_property
    def owner(self):
        """The number of the user whose event it is, int64 [E]."""
        return np.repeat(np.arange(self.num_users), self.lengths)

    @cached_property
    def position(self):
        """Each event's place in its user's line, from 0, int64 [E]."""
        return np.arange(len(self.item)) - self.begin[:-1][self.owner]

    def seen_events(self, hold_out):
        """Whether each event comes before what is held out (see visible), bool [E]."""
        return self.position < self.visible(hold_out)[self.owner]


def clean_options(spec):
    """The cleaning a PromptSpec asks for, as clean_lines takes it."""
    b = spec.behaviors
    return {
        "actions": sum(1 << ACTIONS[name] for name in b.actions),
        "domains": sum(1 << DOMAINS[name] for name in b.domains),
        "attribution_window_s": b.attribution_window_s,
        "repeat_window_s": b.repeat_window_s,
    }


def clean_lines(events, **options):
    """Events -> Lines: each user's events through kernels.clean_behaviors, with no limit on their
    number.

    Args:
      events: genrecall.training.dataset.data_folder.Events.
      **options: fields of CleanOptions (actions, domains, attribution_window_s, repeat_window_s).

    Returns:
      Lines of the same users in the same order; a user whose events all fall to cleaning has an
      empty line.
    """
    options = {**options, "max_events": _NO_LIMIT}
    parts, begin = [], [0]
    for u in range(events.num_users):
        own = events.of(u)
        part = kernels.clean_behaviors(
            events.item[own],
            events.action[own],
            events.domain[own],
            events.time[own],
            int(events.time[own].max()),
            **options,
        )
        parts.append(part)
        begin.append(begin[-1] + len(part["item"]))
    columns = (
        np.concatenate([p[name] for p in parts]) for name in ("item", "action", "domain", "time")
    )
    return Lines(events.user_id, np.array(begin, np.int64), *columns)


def training_sequences(lines, hold_out="valid"):
    """The training part of every line, as item ids: list of int64 arrays."""
    seen = lines.visible(hold_out)
    return [lines.items_of(u)[: seen[u]] for u in range(lines.num_users)]


def popularity(lines, items, hold_out="valid"):
    """How often each item occurs in the training part, int64 [N] by row of `items`."""
    rows = items.rows(lines.item[lines.seen_events(hold_out)])
    return np.bincount(rows, minlength=len(items)).astype(np.int64)
