"""Alignment tasks: samples that tie semantic IDs to what is said about items. Knows no users, no
prompts and no model.

  text_to_sid       an item's text -> its SID
  sid_to_text       an item's SID -> its title
  category_to_sids  a category -> some of its items' SIDs, each a response of its own (where no item
                    has a category: an attribute)
  title_completion  the beginning of a title -> its rest

Texts are tokenized apart from each other and from the task's own, as the segments of a prompt are.
"""

import numpy as np

from genrecall.training.prompting import packing
from genrecall.training.semantic_ids import text

TASKS = {
    "text_to_sid": "Item of text:",
    "sid_to_text": "Text of item:",
    "category_to_sids": "Items of:",
    "title_completion": "Title:",
}
MAX_TEXT_TOKENS = 48  # of an item's text or title, the first ones
RESPONSES = 4  # SIDs of one category asked for at once


def check_tasks(tasks):
    """Refuses a name that is no task.

    Raises:
      ValueError: names it.
    """
    for name in tasks:
        if name not in TASKS:
            raise ValueError(f"tasks[{name!r}]: expected one of {', '.join(TASKS)}")


class Ragged:
    """Token sequences of different lengths. tokens int32 [sum], begin int64 [n + 1]."""

    def __init__(self, sequences):
        self.begin = packing.offsets([len(s) for s in sequences])
        self.tokens = np.array([t for s in sequences for t in s], np.int32)

    def __len__(self):
        return len(self.begin) - 1

    @property
    def lengths(self):
        return np.diff(self.begin)

    def padded(self, rows):
        """(int32 [len(rows), the longest], 0 pads; lengths int64)."""
        length = self.lengths[rows]
        inside = np.arange(length.max(initial=0)) < length[:, None]
        out = np.zeros(inside.shape, np.int32)
        out[inside] = self.tokens[packing.ranges(self.begin[rows], length)]
        return out, length


class Alignment:
    """Makes samples of the tasks.

    Args:
      items: data_folder.Items.
      codes: int [N, L], the SID of each, in their order.
      token_ids: L sequences: (level, code) -> token id.
      tokenize: text -> token ids, no special tokens added.
      end_token: id of the token that ends a text, or None: ends are not learned.
      tasks: task -> how many samples of it there are for each sample of users, > 0.

    Raises:
      ValueError: a name that is no task; a task for which no item has what it takes.
    """

    def __init__(self, items, codes, token_ids, tokenize, end_token, tasks):
        check_tasks(tasks)
        self.tasks = {name: share for name, share in tasks.items() if share > 0}
        self.codes = np.asarray(codes)
        self.sids = np.column_stack(
            [np.asarray(ids)[self.codes[:, level]] for level, ids in enumerate(token_ids)]
        ).astype(np.int32)
        self.heads = {name: np.array(tokenize(TASKS[name]), np.int32) for name in self.tasks}

        def ragged(texts, end=()):
            whole = [[*tokenize(f" {t}"), *end] if t else [] for t in texts]
            return Ragged([tokens[:MAX_TEXT_TOKENS] for tokens in whole])

        if "text_to_sid" in self.tasks:
            self.texts = ragged(text.item_texts(items))
        if {"sid_to_text", "title_completion"} & set(self.tasks):
            self.titles = ragged(items.titles, () if end_token is None else (end_token,))
        if "category_to_sids" in self.tasks:
            self.groups, members = _groups(items)
            self.group_names, self.members = ragged(self.groups), Ragged(members)
        for name in self.tasks:
            if not len(self._subjects(name)):
                raise ValueError(f"tasks[{name!r}]: no item has the text that it takes")

    def epoch(self, generator, users):
        """Samples of one pass, for `users` samples of users: packing.Samples, or None where that
        comes to none.

        Args:
          generator: numpy Generator.
          users: int >= 0.
        """
        parts = []
        for name, share in self.tasks.items():
            if number := round(share * users):
                subjects = _drawn(self._subjects(name), number, generator)
                parts.append(getattr(self, f"_{name}")(subjects, generator))
        return packing.concatenate(parts) if parts else None

    def _subjects(self, name):
        """What a task can ask about: item rows, or group numbers; int64."""
        if name == "text_to_sid":
            return np.arange(len(self.codes))
        if name == "category_to_sids":
            return np.arange(len(self.groups))
        needed = 1 if name == "sid_to_text" else 3
        return np.flatnonzero(self.titles.lengths >= needed)

    def _text_to_sid(self, rows, generator):
        prompt, length = self._after("text_to_sid", *self.texts.padded(rows))
        return self._asking_for_sids(prompt, length, np.arange(len(rows)), rows)

    def _category_to_sids(self, groups, generator):
        prompt, length = self._after("category_to_sids", *self.group_names.padded(groups))
        size = self.members.lengths[groups]
        sample = np.repeat(np.arange(len(groups)), np.minimum(size, RESPONSES))
        # A random start and consecutive members from there: distinct, and every member alike.
        first = (generator.random(len(groups)) * size).astype(np.int64)
        nth = np.arange(len(sample)) - packing.offsets(np.minimum(size, RESPONSES))[sample]
        place = self.members.begin[groups][sample] + (first[sample] + nth) % size[sample]
        return self._asking_for_sids(prompt, length, sample, self.members.tokens[place])

    def _sid_to_text(self, rows, generator):
        titles, title_length = self.titles.padded(rows)
        levels = self.sids.shape[1]
        prompt, length = self._after(
            "sid_to_text", np.column_stack([self.sids[rows], titles]), levels + title_length
        )
        return self._asking_for_text(prompt, length, title_length)

    def _title_completion(self, rows, generator):
        prompt, length = self._after("title_completion", *self.titles.padded(rows))
        title = self.titles.lengths[rows]
        rest = 1 + (generator.random(len(rows)) * (title - 1)).astype(np.int64)
        return self._asking_for_text(prompt, length, rest)

    def _after(self, name, tokens, length):
        """The task's text, then the tokens: (prompt int32 [S, P], length int64 [S])."""
        head = self.heads[name]
        heads = np.broadcast_to(head, (len(tokens), len(head)))
        return np.column_stack([heads, tokens]), length + len(head)

    def _asking_for_sids(self, prompt, length, sample, rows):
        """Samples whose prompts are answered by the SIDs of items `rows`; `sample`, ascending: to
        which prompt each belongs."""
        width = self.sids.shape[1] - 1
        return packing.pack(
            prompt,
            length,
            (sample, length[sample], self.sids[rows, :width]),
            packing.branch_targets(length, sample, length[sample], self.codes[rows]),
            packing.NO_TEXTS,
        )

    def _asking_for_text(self, prompt, length, number):
        """Samples whose last `number` [S] tokens are targets."""
        none, levels = np.zeros(0, np.int64), self.sids.shape[1]
        sample = np.repeat(np.arange(len(prompt)), number)
        place = packing.ranges(length - number, number)
        return packing.pack(
            prompt,
            length,
            (none, none, np.zeros((0, levels - 1), np.int32)),
            (none, np.zeros((0, levels), np.int64), np.zeros((0, levels), np.int64)),
            (sample, place - 1, prompt[sample, place]),
        )


def _groups(items):
    """(names, list of item row lists): categories; where there are none, attributes that more than
    one item has, but not every second one.
    """
    rows = {}
    for row, category in enumerate(items.categories):
        if category:
            rows.setdefault(category, []).append(row)
    if not rows:
        for row, attributes in enumerate(items.attributes):
            for attribute in dict.fromkeys(attributes):
                rows.setdefault(attribute, []).append(row)
        rows = {name: own for name, own in rows.items() if 1 < len(own) <= len(items) / 2}
    return list(rows), list(rows.values())


def _drawn(subjects, number, generator):
    """`number` of them in random order, each as often as every other, give or take one."""
    turns = [generator.permutation(subjects) for _ in range(-(-number // len(subjects)))]
    return np.concatenate(turns)[:number]
