"""Users' lines to training samples: prompts as serving assembles them, and what to predict where.

Knows no model. A sample is the prompt of a user's first k events, with the event after them as its
response, or with several of those that follow, each a response of its own to the same prompt. The
events inside the prompt are targets too (the history loss): one forward pass trains every next item
of the line, which is what makes training from scratch affordable. Where each event can be asked for
comes from the C++ that wrote the prompt.
"""

import numpy as np

from genrecall.training.dataset import splits
from genrecall.training.prompting import build_index, packing


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


def make_maker(data, sids, spec, prompt, hold_out="valid", **options):
    """The SampleMaker of a data folder's training part, its index with the whole catalogue.

    Args:
      data: data_folder.DataSet.
      sids: tokenize.SemanticIds that have every item.
      spec: PromptSpec; prompt: kernels.Prompt, compiled from it.
      hold_out: what the training part leaves out, of splits.HOLD_OUT.
      **options: history_loss, responses, see SampleMaker.
    """
    lines = splits.clean_lines(data.events, **splits.clean_options(spec))
    weight = splits.popularity(lines, data.items, hold_out).astype(np.float32)
    index = build_index.build_index(data.items, sids, spec, prompt.sid_space_digest, weight)
    return SampleMaker(lines, hold_out, prompt, index, data.profiles, spec, **options)


class SampleMaker:
    """Makes samples of lines.

    Args:
      lines: splits.Lines.
      hold_out: what the training part leaves out, of splits.HOLD_OUT.
      prompt: kernels.Prompt.
      index: kernels.RecallIndex that knows every item of the lines.
      profiles: user id -> {feature: value}.
      spec: kernels.prompt_spec.PromptSpec of the prompt.
      history_loss: targets inside the prompt too.
      responses: at most this many events after a prompt are its responses, >= 1.

    `visible`, int64 [U], is how many events of each line training may see, targets included.
    """

    def __init__(
        self, lines, hold_out, prompt, index, profiles, spec, history_loss=True, responses=1
    ):
        if responses < 1:
            raise ValueError(f"responses = {responses}: expected >= 1")
        self.lines, self.hold_out, self.visible = lines, hold_out, lines.visible(hold_out)
        self.prompt, self.index, self.profiles = prompt, index, profiles
        self.history_loss, self.responses = history_loss, responses
        self.reach = Reach(spec)
        sizes = [len(ids) for ids in prompt.token_ids]
        self.token_table = np.zeros((len(sizes), max(sizes)), np.int32)
        for level, ids in enumerate(prompt.token_ids):
            self.token_table[level, : len(ids)] = ids

    def epoch(self, generator=None):
        """One pass over the training part. With history_loss every event is a target at least once
        (a line's first is predicted from the profile alone); without it, each line's last events
        only, as many as there are responses.

        Args:
          generator: numpy Generator that moves the cuts of long lines, and draws how many of the
            last events are responses; None leaves cuts fixed and takes as many as allowed.

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
        """How long the prompts of one line of `visible` events are, in events: all but the
        responses, then shorter ones that ask for the events that the history loss did not reach.
        """
        responses = min(self.responses, visible - 1)
        if generator is not None:
            responses = int(generator.integers(responses)) + 1
        end = visible - responses
        yield end
        while self.history_loss and end > 1 and (first := self.reach.first_target(end)) > 0:
            low = max(1, first - self.responses)
            shift = 0 if generator is None else int(generator.integers((end - low) // 2 + 1))
            end = min(low + shift, end - 1)
            yield end

    def make(self, users, ends):
        """Samples whose prompt is the first ends[i] >= 1 events of user number users[i], its
        responses the visible events after them, `responses` at most.

        Returns:
          packing.Samples.
        """
        return packing.concatenate([self._make_block(users[b], ends[b]) for b in row_blocks(ends)])

    def prompts(self, users, ends):
        """The first ends[i] events of user number users[i], as serving would assemble them.

        Args:
          users, ends: int64 [B]; ends[i] in 0..the length of the user's line.

        Returns:
          (tokens int32 [B, P], length int32 [B]).
        """
        tokens, length, _ = self.prompt.assemble(*self.requests(users, ends))
        return tokens, length

    def requests(self, users, ends):
        """The arguments of Prompt.assemble that stand for the first ends[i] events of user number
        users[i].
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
        return self.index, item, action, domain, time, length, request_time, features

    def _feature_columns(self, user_ids):
        """Profile features as Prompt.assemble takes them; None where a user has no value."""
        columns = {}
        for name, kind in self.prompt.features:
            values = [self.profiles.get(int(u), {}).get(name) for u in user_ids]
            as_kind = {"string": str, "int64": int, "bucket": float}[kind]
            columns[name] = [None if v is None else as_kind(v) for v in values]
        return columns

    def _make_block(self, users, ends):
        prompt, length, _, asked, begin, codes = self.prompt.assemble_events(
            *self.requests(users, ends)
        )
        length = length.astype(np.int64)
        sample, code = self._responses(users, ends)
        anchor = length[sample]
        inline = np.zeros((0, 2), np.int64)
        if self.history_loss:
            asked = np.where(asked >= 1, asked, -1)  # at 0 nothing stands before
            hidden = np.argwhere((asked >= 0) & (begin < 0))
            inline = np.argwhere((asked >= 0) & (begin >= 0))
            row, event = hidden.T
            sample, anchor = np.append(sample, row), np.append(anchor, asked[row, event])
            code = np.append(code, codes[row, event], axis=0)
        # Branches of a sample: its responses first, in their order, then hidden events.
        order = np.argsort(sample, kind="stable")
        sample, anchor, code = sample[order], anchor[order], code[order]
        tail = self.token_table[np.arange(code.shape[1]), code][:, :-1]
        row, event = inline.T
        inside = packing.places(asked[row, event], begin[row, event], codes[row, event])
        inside = row, inside, codes[row, event]
        behind = packing.branch_targets(length, sample, anchor, code)
        targets = [np.concatenate(pair) for pair in zip(inside, behind, strict=True)]
        order = np.argsort(targets[0], kind="stable")
        targets = tuple(t[order] for t in targets)
        return packing.pack(prompt, length, (sample, anchor, tail), targets, packing.NO_TEXTS)

    def _responses(self, users, ends):
        """(row int64 [n], codes int32 [n, L]) of the responses to the prompts of ends[i] events."""
        number = np.clip(self.visible[users] - ends, 1, self.responses)
        row = np.repeat(np.arange(len(users)), number)
        nth = np.arange(len(row)) - packing.offsets(number)[row]
        item = self.lines.item[self.lines.begin[users[row]] + ends[row] + nth]
        return row, np.asarray(self.index.lookup(item)[0])


class Reach:
    """How far back in a prompt the history loss reaches, by the layout of its spec."""

    def __init__(self, spec):
        self.behaviors = spec.behaviors
        kinds = [s.kind for s in spec.segments]
        past = [i for i, kind in enumerate(kinds) if kind == "long_term"]
        recent = [i for i, kind in enumerate(kinds) if kind == "recent"]
        summary = kinds.index("interest") if "interest" in kinds else len(kinds)
        in_order = len(recent) == 1 and max(past, default=-1) < recent[0]
        self.recent = in_order
        self.past = in_order and len(past) == 1 and past[0] < summary

    def first_target(self, end):
        """Number of the first event from which on all are targets in a prompt of the first `end`
        events, the response included.
        """
        b = self.behaviors
        if not self.recent:
            return end
        dropped = max(0, end - b.max_events + b.block - 1) // b.block * b.block
        past = max(0, end - b.recent_events) // b.block * b.block
        return max(dropped, past - b.long_term_events if self.past else past)
