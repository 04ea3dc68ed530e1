"""The contexts that preferences are about: prompts out of the training part of users' lines, what
their users did next, and what the engine's beams propose. Knows no rule and no loss.
"""

import numpy as np

from genrecall.training.dataset.data_folder import ACTIONS
from genrecall.training.evaluation import ranking
from genrecall.training.tuning.preference_rules import Context


def choose_prompts(lines, visible, per_user, generator):
    """Prompts to ask for preferences.

    Args:
      lines: splits.Lines.
      visible: int64 [U], events of each line that training may see.
      per_user: at most this many prompts of each user, chosen at random.
      generator: numpy Generator.

    Returns:
      (user int64 [C], end int64 [C]): the prompt is the first end[c] >= 1 events of user number
      user[c], and the event after them is in the training part and no repeat of one in the prompt
      (it would be masked, and could be recommended to nobody).
    """
    users, ends = [], []
    for u in np.flatnonzero(visible >= 2):
        line = lines.items_of(u)[: visible[u]]
        _, first = np.unique(line, return_index=True)
        fresh = np.sort(first[first >= 1])
        chosen = np.sort(generator.permutation(fresh)[:per_user])
        users.append(np.full(len(chosen), u, np.int64))
        ends.append(chosen.astype(np.int64))
    empty = np.zeros(0, np.int64)
    return np.concatenate([empty, *users]), np.concatenate([empty, *ends])


def exposures(events):
    """(item int64 [n], time int64 [n]) of each user's exposures, by user number: list."""
    parts = []
    for u in range(events.num_users):
        own = events.of(u)
        shown = events.action[own] == ACTIONS["exposure"]
        parts.append((events.item[own][shown], events.time[own][shown]))
    return parts


def make_contexts(lines, visible, shown, prompts, horizon, proposed):
    """Contexts of prompts.

    Args:
      lines, visible: as for choose_prompts.
      shown: as `exposures` gives them; their user numbers are those of the lines.
      prompts: (user, end), as choose_prompts gives them.
      horizon: events after the prompt within which an exposure counts.
      proposed: list of (item int64 [m], score float32 [m]), the beams of each prompt.

    Returns:
      list of preference_rules.Context.
    """
    contexts = []
    for user, end, (item, score) in zip(*prompts, proposed, strict=True):
        line = slice(lines.begin[user], lines.begin[user] + visible[user])
        items, time = lines.item[line], lines.time[line]
        fresh = ~np.isin(items[end:], items[:end])
        last = min(end + horizon, len(items)) - 1
        shown_item, shown_time = shown[user]
        near = (shown_time >= time[end - 1]) & (shown_time <= time[last])
        contexts.append(
            Context(
                items[end:][fresh],
                lines.action[line][end:][fresh],
                np.setdiff1d(shown_item[near], items),
                item,
                score,
            )
        )
    return contexts


def propose(engine, maker, prompts, count):
    """What the engine's beams offer after each prompt, items of its history left out.

    Args:
      engine: trtllm_bridge.Engine.
      maker: samples.SampleMaker.
      prompts: (user, end).
      count: beams.

    Returns:
      list of (item int64 [m], score float32 [m]), best first.
    """
    proposed = [None] * len(prompts[0])
    options = ranking.RankOptions(beam_width=count)
    for row, item, score in ranking.decode_items(engine, maker, *prompts, options):
        proposed[row] = (item, score)
    return proposed
