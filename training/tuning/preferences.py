"""Preferences as values: after which prompt which answer is better than which. Knows no rule that
says so, no prompt's text and no model.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

KINDS = ("ecpm", "interest", "negatives")


@dataclass(frozen=True)
class Pairs:
    """Preferences of one kind, row by row, in any order.

    context int64 [P], number of the context; chosen, rejected int64 [P], item ids; label float32
    [P] in [0, 1], the probability that `chosen` is the better answer, 1 where there is no doubt.
    """

    context: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    label: np.ndarray

    def __len__(self):
        return len(self.context)

    @staticmethod
    def join(parts):
        """Pairs of [(context number, chosen, rejected, label)], the last three arrays of one
        length.
        """
        if not parts:
            empty = np.zeros(0, np.int64)
            return Pairs(empty, empty, empty, np.zeros(0, np.float32))
        context = np.repeat([p[0] for p in parts], [len(p[1]) for p in parts])
        chosen, rejected, label = (np.concatenate([p[i] for p in parts]) for i in (1, 2, 3))
        return Pairs(
            context.astype(np.int64),
            chosen.astype(np.int64),
            rejected.astype(np.int64),
            label.astype(np.float32),
        )

    def take(self, rows):
        return Pairs(self.context[rows], self.chosen[rows], self.rejected[rows], self.label[rows])

    def at_most(self, count, generator):
        """At most `count` pairs of each context, chosen at random; their order is kept."""
        order = np.lexsort((generator.random(len(self)), self.context))
        context = self.context[order]
        first = np.searchsorted(context, context)  # where each one's context begins
        return self.take(np.sort(order[np.arange(len(order)) - first < count]))


@dataclass(frozen=True)
class Preferences:
    """Contexts, their possible answers, and which of these are preferred to which.

    user, end int64 [C]: context c is the prompt of the first end[c] events of user number user[c].
    begin int64 [C + 1], item int64 [R]: its distinct answers are item[begin[c]:begin[c + 1]], the
    first one the event that followed. chosen, rejected int64 [P] (numbers of answers of one
    context), kind int8 [P] (position in KINDS), label float32 [P] (see Pairs), by context.
    """

    user: np.ndarray
    end: np.ndarray
    begin: np.ndarray
    item: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    kind: np.ndarray
    label: np.ndarray

    def __len__(self):
        return len(self.user)

    @property
    def context_of_pair(self):
        """int64 [P], ascending."""
        return np.searchsorted(self.begin, self.chosen, side="right") - 1

    def counts(self):
        """{kind: number of pairs}."""
        number = np.bincount(self.kind, minlength=len(KINDS))
        return {kind: int(n) for kind, n in zip(KINDS, number, strict=True)}

    def digest(self):
        """sha256 hex of the contexts and their answers: all that reference scores depend on,
        beside the model and the prompts' texts.
        """
        digest = hashlib.sha256()
        for name in ("user", "end", "begin", "item"):
            digest.update(name.encode() + np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()

    @staticmethod
    def build(user, end, following, pairs, same_answer):
        """Puts pairs of several kinds together.

        Args:
          user, end: int64 [C], the contexts.
          following: int64 [C], the item of the event after each.
          pairs: {kind of KINDS: Pairs}.
          same_answer: int64 [n] item ids -> int64 [n], equal for items that are one answer, since
            they share a semantic ID.

        Returns:
          Preferences of the contexts that have a pair. Pairs of items that are one answer are
          dropped, and so is a pair that occurs again in its kind.
        """
        columns = [[], [], [], [], []]
        for kind, part in pairs.items():
            part = part.take(_distinct(part, same_answer))
            number = np.full(len(part), KINDS.index(kind), np.int8)
            fields = (part.context, part.chosen, part.rejected, number, part.label)
            for column, values in zip(columns, fields, strict=True):
                column.append(values)
        context, chosen, rejected, kind, label = (
            np.concatenate(c) if c else np.zeros(0, np.int64) for c in columns
        )
        order = np.argsort(context, kind="stable")
        used, context = np.unique(context[order], return_inverse=True)
        # Answers: (context, item) once each, the event that followed before all others.
        first = np.stack([np.arange(len(used)), following[used]], axis=1)
        rows = np.concatenate(
            [
                first,
                np.stack([context, chosen[order]], axis=1),
                np.stack([context, rejected[order]], axis=1),
            ]
        )
        distinct, where, number = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        # np.unique sorts by item within a context; put the event that followed (rows before
        # len(used)) to the front.
        place = np.lexsort((distinct[:, 1], where >= len(used), distinct[:, 0]))
        new_number = np.empty(len(place), np.int64)
        new_number[place] = np.arange(len(place))
        number = new_number[number.reshape(-1)]
        return Preferences(
            user[used],
            end[used],
            np.searchsorted(distinct[place, 0], np.arange(len(used) + 1)),
            distinct[place, 1],
            number[len(used) : len(used) + len(order)],
            number[len(used) + len(order) :],
            kind[order].astype(np.int8),
            label[order].astype(np.float32),
        )


def _distinct(pairs, same_answer):
    """Rows of `pairs` to keep: two different answers, each pair once."""
    chosen, rejected = same_answer(pairs.chosen), same_answer(pairs.rejected)
    key = np.stack([pairs.context, chosen, rejected], axis=1)
    _, first = np.unique(key, axis=0, return_index=True)
    first = np.sort(first)
    return first[chosen[first] != rejected[first]]
