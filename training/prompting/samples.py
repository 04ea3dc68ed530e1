"""Users' lines to training samples: prompts as serving assembles them, and what to predict where.

Knows no model. A sample is the prompt of a user's first k events followed by the SID of event k,
the response. Besides the response, the events inside the prompt are targets too (the history loss):
position after position one forward pass trains every next item of the line, which is what makes
training from scratch affordable.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Samples:
    """Token sequences with their targets, flat: sample s has tokens begin[s]:begin[s + 1] and
    targets target_begin[s]:target_begin[s + 1].

    tokens int32 [sum]; at int32 [targets, L], position in the sample of the token that predicts
    level l; code int32 [targets, L].
    """

    tokens: np.ndarray
    begin: np.ndarray
    at: np.ndarray
    code: np.ndarray
    target_begin: np.ndarray

    def __len__(self):
        return len(self.begin) - 1

    @property
    def lengths(self):
        return np.diff(self.begin)

    def batch(self, chosen):
        """(tokens int64 [B, T], at int64 [L, n] flat in B * T, code int64 [L, n]) of the chosen
        samples.
        """
        width = int(self.lengths[chosen].max())
        tokens = np.zeros((len(chosen), width), np.int64)
        at, code = [], []
        for row, s in enumerate(chosen):
            own = self.tokens[self.begin[s] : self.begin[s + 1]]
            tokens[row, : len(own)] = own
            targets = slice(self.target_begin[s], self.target_begin[s + 1])
            at.append(self.at[targets].astype(np.int64) + row * width)
            code.append(self.code[targets])
        at, code = np.concatenate(at).T, np.concatenate(code).T.astype(np.int64)
        return (
            torch.from_numpy(tokens),
            torch.from_numpy(np.ascontiguousarray(at)),
            torch.from_numpy(np.ascontiguousarray(code)),
        )


def row_blocks(widths, cells=1 << 20):
    """Slices of consecutive rows whose padded matrix, rows x widest, stays within `cells` (or has
    one row), so that one user of thousands of events costs no memory at thousands of others."""
    first, widest = 0, 1
    for i, width in enumerate(widths.tolist()):
        widest = max(widest, width)
        if (i + 1 - first) * widest > cells and i > first:
            yield slice(first, i)
            first, widest = i, max(1, width)
    if len(widths):
        yield slice(first, len(widths))


class SampleMaker:
    """Makes samples of lines.

    Args:
      lines: splits.Lines.
      visible: int64 [U], events of each line that training may see, targets included.
      prompt: kernels.Prompt.
      index: kernels.RecallIndex that knows every item of the lines.
      profiles: user id -> {feature: value}.
      spec: kernels.prompt_spec.PromptSpec of the prompt.
      history_loss: targets inside the prompt too.
      separator_tokens: how many tokens the spec's separator is.
    """

    def __init__(
        self, lines, visible, prompt, index, profiles, spec, history_loss=True, separator_tokens=0
    ):
        self.separator_tokens = separator_tokens
        self.lines, self.visible, self.prompt, self.index = lines, visible, prompt, index
        self.profiles = profiles
        self.history_loss = history_loss
        self.level_sizes = prompt.level_sizes
        # An interest summary is written from long-term events and stands before them: were they
        # targets, it would tell the answer. Then only recent events are; otherwise all of them.
        summary = any(s.kind == "interest" for s in spec.segments)
        kept = spec.behaviors.max_events - spec.behaviors.block  # cleaning keeps more than these
        self.reach = max(1, spec.behaviors.recent_events if summary else kept)
        levels = [np.asarray(ids) for ids in prompt.token_ids]
        size = max(int(ids.max()) for ids in levels) + 1
        self.level_of, self.code_of = np.full(size, -1, np.int8), np.full(size, -1, np.int32)
        for level, ids in enumerate(levels):
            self.level_of[ids], self.code_of[ids] = level, np.arange(len(ids))

    def epoch(self, generator=None):
        """One pass over the training part. With history_loss every event is a target at least once
        (a line's first is predicted from the profile alone); without it, a line's last event only.

        Args:
          generator: numpy Generator that moves the cuts of long lines; None leaves them fixed.

        Raises:
          ValueError: no user has two events in the training part.
        """
        users, ends = [], []
        for u in np.flatnonzero(self.visible >= 2):
            for end in self._cuts(int(self.visible[u]), generator):
                users.append(u)
                ends.append(end)
        if not users:
            raise ValueError("no user has two events in the training part: nothing to learn from")
        users, ends = np.array(users, np.int64), np.array(ends, np.int64)
        order = np.argsort(ends, kind="stable")  # short lines beside short ones: little padding
        return self.make(users[order], ends[order])

    def _cuts(self, visible, generator):
        """Positions of the responses of one line of `visible` events: the last one, then earlier
        ones where the history loss does not reach.
        """
        end = visible - 1
        yield end
        while self.history_loss and end > self.reach:
            shift = 0 if generator is None else int(generator.integers(self.reach // 2 + 1))
            end = max(1, end - self.reach + shift)
            yield end

    def make(self, users, ends):
        """Samples whose prompt is the first ends[i] >= 1 events of user number users[i], its
        response the event after them.
        """
        parts = [self._make_block(users[b], ends[b]) for b in row_blocks(ends)]
        tokens, lengths, at, code, counts = (np.concatenate(p) for p in zip(*parts, strict=True))
        return Samples(
            tokens,
            np.concatenate([[0], np.cumsum(lengths)]),
            at,
            code,
            np.concatenate([[0], np.cumsum(counts)]),
        )

    def prompts(self, users, ends):
        """The first ends[i] events of user number users[i], as serving would assemble them.

        Args:
          users, ends: int64 [B]; ends[i] in 0..the length of the user's line.

        Returns:
          (tokens int32 [B, P], length int32 [B]).
        """
        lines = self.lines
        length = ends.astype(np.int32)
        at = lines.begin[users][:, None] + np.arange(max(int(length.max(initial=0)), 1))
        valid = np.arange(at.shape[1]) < length[:, None]
        at = np.where(valid, at, 0)
        item, action, domain, time = (
            np.where(valid, c[at], 0) for c in (lines.item, lines.action, lines.domain, lines.time)
        )
        request_time = np.maximum(time.max(axis=1), 1)
        features = self._feature_columns(lines.user_id[users])
        tokens, length, _ = self.prompt.assemble(
            self.index, item, action, domain, time, length, request_time, features
        )
        return tokens, length

    def _feature_columns(self, user_ids):
        """Profile features as Prompt.assemble takes them; None where a user has no value."""
        columns = {}
        for name, kind in self.prompt.features:
            values = [self.profiles.get(int(u), {}).get(name) for u in user_ids]
            as_kind = {"string": str, "int64": int, "bucket": float}[kind]
            columns[name] = [None if v is None else as_kind(v) for v in values]
        return columns

    def _make_block(self, users, ends):
        """(tokens flat, length of each sample, at, code, targets of each sample) of one block."""
        tokens, length = self._with_response(users, ends)
        levels = len(self.level_sizes)
        inside = np.arange(tokens.shape[1]) < length[:, None]
        starts = (self.level_of[np.minimum(tokens, len(self.level_of) - 1)] == 0) & inside
        # How many events start at or after each token: 1 at the response.
        remaining = starts[:, ::-1].cumsum(axis=1)[:, ::-1]
        wanted = starts & (remaining <= (self.reach + 1 if self.history_loss else 1))
        wanted[:, 0] = False  # nothing stands before it
        row, column = np.nonzero(wanted)
        code = self.code_of[tokens[row[:, None], column[:, None] + np.arange(levels)]]
        at = column[:, None] - 1 + np.arange(levels)
        at[:, 0] = self._asked_at(starts)[row, column]
        counts = wanted.sum(axis=1)
        return tokens[inside], length, at.astype(np.int32), code, counts

    def _asked_at(self, starts):
        """Where an event that starts at [row, column] is asked for: int64 like `starts`.

        Serving asks where a prompt ends: after the event before and its separator. So is an event
        in the history, not after its own action's text, which would tell what was done before what
        it was done to. A prompt's first event is asked for at the token before it.
        """
        columns = np.arange(starts.shape[1])
        last = np.maximum.accumulate(np.where(starts, columns, -1), axis=1)
        before = np.concatenate([np.full((len(starts), 1), -1), last[:, :-1]], axis=1)
        after_it = before + len(self.level_sizes) - 1 + self.separator_tokens
        return np.where(before >= 0, after_it, np.maximum(columns - 1, 0))

    def _with_response(self, users, ends):
        """(tokens int32 [B, P + L], length int64 [B]): prompts with the SID tokens of event
        ends[i] after them.
        """
        prompt, length = self.prompts(users, ends)
        rows, levels = len(users), len(self.level_sizes)
        response = self.lines.item[self.lines.begin[users] + ends]
        codes = np.asarray(self.index.lookup(response)[0])
        tokens = np.zeros((rows, prompt.shape[1] + levels), np.int32)
        tokens[:, : prompt.shape[1]] = prompt
        for level, ids in enumerate(self.prompt.token_ids):
            tokens[np.arange(rows), length + level] = np.asarray(ids)[codes[:, level]]
        return tokens, length.astype(np.int64) + levels
