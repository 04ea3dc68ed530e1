"""Pairs of preferred and rejected answers: every rule against brute force, what may not be seen,
and how pairs are put together.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrecall.training import files
from genrecall.training.dataset import splits
from genrecall.training.dataset.data_folder import Events
from genrecall.training.tuning import dpo_cache, preference_contexts, preference_rules
from genrecall.training.tuning.preference_pairs import PairOptions, ecpm_lookup
from genrecall.training.tuning.preference_rules import Context, RuleOptions
from genrecall.training.tuning.preferences import KINDS, Pairs, Preferences

CLICK, CONVERSION = 1, 2


def context(own, proposed=(), score=None, grade=None, shown=()):
    own, proposed = np.array(own, np.int64), np.array(proposed, np.int64)
    score = -np.arange(len(proposed), dtype=np.float32) if score is None else score
    grade = np.full(len(own), CLICK, np.int32) if grade is None else np.array(grade, np.int32)
    score = np.array(score, np.float32)
    return Context(own, grade, np.array(shown, np.int64), proposed, score)


def as_set(found):
    chosen, rejected, _ = found
    pairs = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


@st.composite
def contexts(draw):
    """A context over items 0..14; some own items are proposed too, some repeat."""
    own = draw(st.lists(st.integers(0, 14), min_size=1, max_size=6))
    proposed = draw(st.lists(st.integers(0, 14), max_size=10, unique=True))
    score = np.sort(draw(st.lists(st.floats(-9, 0), min_size=10, max_size=10)))[::-1]
    grade = draw(st.lists(st.integers(1, 2), min_size=len(own), max_size=len(own)))
    shown = draw(st.lists(st.integers(15, 19), max_size=3, unique=True))
    return context(own, proposed, score[: len(proposed)], grade, shown)


ECPM = np.array([1, 2, 4, 8, np.nan] * 4)  # of items 0..19


def ecpm_of(item):
    return ECPM[item]


# --- the rules ------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(contexts(), st.integers(1, 6), st.integers(2, 10), st.floats(0, 5))
def test_ecpm_pairs_are_all_there_and_no_others(c, horizon, proposals, gap):
    options = RuleOptions(horizon=horizon, proposals=proposals, max_gap=gap, min_ecpm_ratio=1.5)
    own, near = set(c.own.tolist()), set(c.own[:horizon].tolist())
    score = dict(zip(c.proposed[:proposals].tolist(), c.score[:proposals].tolist(), strict=True))
    expected = set()
    for a in near | set(score):
        for b in near | set(score):
            if not ECPM[a] >= 1.5 * ECPM[b]:
                continue
            if a in own or (b not in own and score[a] >= score[b] - gap):
                expected.add((a, b))
    assert as_set(preference_rules.ecpm_pairs(c, ecpm_of, options)) == expected


def test_what_the_user_took_never_loses_to_what_pays_more():
    c = context(own=[0, 5], proposed=[3, 0, 8], score=[-1, -1, -1])
    found = as_set(preference_rules.ecpm_pairs(c, ecpm_of, RuleOptions()))
    assert found == set()  # 3 and 8 pay 8, the own items 0 and 5 pay 1
    c = context(own=[2], proposed=[1, 0], score=[-1, -1])
    assert as_set(preference_rules.ecpm_pairs(c, ecpm_of, RuleOptions())) == {
        (2, 1),
        (2, 0),
        (1, 0),
    }


def test_a_proposal_far_less_likely_is_not_chosen():
    c = context(own=[4], proposed=[0, 1, 2], score=[-1.0, -2.0, -5.0])
    options = RuleOptions(max_gap=3.5)
    assert as_set(preference_rules.ecpm_pairs(c, ecpm_of, options)) == {(1, 0), (2, 1)}


def test_labels_of_uncertain_ecpm_preferences():
    c = context(own=[4], proposed=[0, 2], score=[-1, -1])
    chosen, rejected, label = preference_rules.ecpm_pairs(c, ecpm_of, RuleOptions(ecpm_power=2))
    assert (chosen.tolist(), rejected.tolist()) == ([2], [0])
    assert label == pytest.approx(16 / 17)  # 4 ** 2 / (4 ** 2 + 1 ** 2)
    assert preference_rules.ecpm_pairs(c, ecpm_of, RuleOptions())[2].tolist() == [1.0]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(contexts(), st.integers(1, 6))
def test_interest_pairs_are_all_there_and_no_others(c, horizon):
    grade = dict.fromkeys(c.shown.tolist(), 0)
    for item, action in zip(c.own[:horizon].tolist(), c.own_grade[:horizon].tolist(), strict=True):
        grade[item] = max(grade.get(item, -1), action)
    expected = {(a, b) for a in grade for b in grade if grade[a] > grade[b]}
    found = preference_rules.interest_pairs(c, RuleOptions(horizon=horizon))
    assert as_set(found) == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(contexts(), st.integers(1, 10))
def test_negatives_are_the_best_wrong_beams(c, count):
    found = preference_rules.negative_pairs(c, RuleOptions(negatives=count))
    wrong = [i for i in c.proposed.tolist() if i not in c.own.tolist()][:count]
    assert found[1].tolist() == wrong
    assert found[0].tolist() == [c.own[0]] * len(wrong)


def test_pairs_of_joins_contexts():
    both = [context([3], [0, 1]), context([9], []), context([2], [7])]
    pairs = preference_rules.pairs_of("negatives", both, ecpm_of, RuleOptions())
    assert pairs.context.tolist() == [0, 0, 2]
    assert pairs.chosen.tolist() == [3, 3, 2] and pairs.rejected.tolist() == [0, 1, 7]
    assert len(preference_rules.pairs_of("negatives", [], ecpm_of, RuleOptions())) == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("horizon", 0, "horizon = 0: expected >= 1"),
        ("proposals", 1, "proposals = 1: expected >= 2"),
        ("min_ecpm_ratio", 1.0, "min_ecpm_ratio = 1.0: expected > 1"),
        ("max_gap", float("nan"), "max_gap = nan: expected >= 0"),
        ("ecpm_power", -1.0, "ecpm_power = -1.0: expected >= 0"),
        ("negatives", 0, "negatives = 0: expected >= 1"),
    ],
)
def test_rule_options_out_of_bounds(field, value, message):
    with pytest.raises(ValueError, match=message):
        RuleOptions(**{field: value})


def test_pair_options_want_one_kind_at_least():
    assert PairOptions(negatives_weight=0.5).kinds == ("ecpm", "negatives")
    with pytest.raises(ValueError, match="ecpm_weight, interest_weight, negatives_weight: all 0"):
        PairOptions(ecpm_weight=0.0, interest_weight=0.0, negatives_weight=0.0)


# --- contexts -------------------------------------------------------------------------------------

HOUR = 3600


def make_events(*users):
    """Events of users, each a list of (item, action, hour)."""
    rows = [row for user in users for row in user]
    item, action, hour = (np.array(c) for c in zip(*rows, strict=True))
    begin = np.cumsum([0, *map(len, users)])
    return Events(
        np.arange(len(users)),
        begin,
        item.astype(np.int64),
        action.astype(np.int32),
        np.zeros(len(rows), np.int32),
        1_000_000 + hour.astype(np.int64) * HOUR,
    )


ACTIONS_OF_LINES = {"actions": 0b110}  # clicks and conversions, as a prompt spec asks by default


def test_prompts_are_of_the_training_part_and_ask_for_something_new():
    day = 48  # hours, beyond the window in which repeats are folded
    line = [(i, CLICK, day * n) for n, i in enumerate([1, 2, 1, 3, 2, 4, 5, 6])]
    short = [(7, CLICK, 0), (8, CLICK, day)]
    lines = splits.clean_lines(make_events(line, short), **ACTIONS_OF_LINES)
    visible = lines.visible("valid")
    assert visible.tolist() == [6, 2]
    user, end = preference_contexts.choose_prompts(lines, visible, 99, np.random.default_rng(0))
    # 1 at position 2 and 2 at position 4 repeat; 5 and 6 are held out.
    assert list(zip(user.tolist(), end.tolist(), strict=True)) == [(0, 1), (0, 3), (0, 5), (1, 1)]
    for seed in range(5):
        user, end = preference_contexts.choose_prompts(
            lines, visible, 2, np.random.default_rng(seed)
        )
        assert user.tolist() == [0, 0, 1] and end[0] < end[1] and set(end[:2]) <= {1, 3, 5}


def test_contexts_know_the_training_part_only():
    day = 48
    events = make_events(
        [
            (1, CLICK, 0),
            (20, 0, 1),  # shown near, never taken
            (2, CLICK, day),
            (1, CLICK, 2 * day),  # a repeat of the prompt below
            (3, 0, 3 * day - 1),  # shown and then taken
            (3, CONVERSION, 3 * day),
            (21, 0, 3 * day + 1),  # shown after the horizon of the prompt below
            (4, CLICK, 4 * day),
            (22, 0, 4 * day + 1),  # shown after the training part's end
            (5, CLICK, 5 * day),
            (6, CLICK, 6 * day),
        ]
    )
    lines = splits.clean_lines(events, **ACTIONS_OF_LINES)
    visible = lines.visible("valid")
    assert lines.items_of(0)[: visible[0]].tolist() == [1, 2, 1, 3, 4]
    proposed = [(np.array([9]), np.array([-1.0], np.float32))]
    shown = preference_contexts.exposures(events)
    prompt = np.array([0]), np.array([1])
    for horizon, expected in ((1, [20]), (3, [20]), (4, [20, 21]), (50, [20, 21])):
        [c] = preference_contexts.make_contexts(lines, visible, shown, prompt, horizon, proposed)
        assert c.own.tolist() == [2, 3, 4] and c.own_grade.tolist() == [1, 2, 1]
        assert c.shown.tolist() == expected
        assert c.proposed.tolist() == [9]


# --- put together ---------------------------------------------------------------------------------


def pairs_of_rows(rows):
    parts = [(c, np.array([a]), np.array([b]), np.array([label])) for c, a, b, label in rows]
    return Pairs.join(parts)


def test_at_most_keeps_a_random_few_of_each_context():
    rows = [(c, 10 * c, 10 * c + n, 1.0) for c in (2, 0, 1) for n in range(1, 1 + 3 * c)]
    pairs = pairs_of_rows(rows)
    seen = set()
    for seed in range(20):
        few = pairs.at_most(4, np.random.default_rng(seed))
        assert np.bincount(few.context).tolist() == [0, 3, 4]
        kept = list(zip(few.context.tolist(), few.rejected.tolist(), strict=True))
        assert set(kept) <= {(c, b) for c, _, b, _ in rows} and len(set(kept)) == 7
        seen |= set(kept)
    assert seen == {(c, b) for c, _, b, _ in rows}  # every pair has its chance
    assert len(pairs.at_most(9, np.random.default_rng(0))) == len(pairs)
    assert len(Pairs.join([]).at_most(3, np.random.default_rng(0))) == 0


def test_build_numbers_answers_by_context():
    made = Preferences.build(
        np.array([7, 8, 9]),
        np.array([1, 2, 3]),
        np.array([50, 51, 52]),
        {
            "ecpm": pairs_of_rows([(2, 60, 10, 0.75), (0, 50, 20, 1.0), (0, 50, 20, 1.0)]),
            "negatives": pairs_of_rows([(0, 20, 50, 1.0), (2, 30, 31, 1.0)]),
        },
        lambda item: np.where(item == 31, 30, item),  # 30 and 31 share a semantic ID
    )
    # Context 1 has no pair, and the pair (30, 31) is of one answer.
    assert made.user.tolist() == [7, 9] and made.end.tolist() == [1, 3]
    assert made.begin.tolist() == [0, 2, 5]
    assert made.item.tolist() == [50, 20, 52, 10, 60]  # the event that followed is the first
    pairs = zip(
        made.item[made.chosen].tolist(),
        made.item[made.rejected].tolist(),
        made.kind.tolist(),
        made.label.tolist(),
        strict=True,
    )
    assert list(pairs) == [(50, 20, 0, 1.0), (20, 50, 2, 1.0), (60, 10, 0, 0.75)]
    assert made.context_of_pair.tolist() == [0, 0, 1]
    assert made.counts() == {"ecpm": 2, "interest": 0, "negatives": 1}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_build_keeps_every_pair(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 5))
    pairs = {}
    for kind in KINDS:
        n = int(generator.integers(0, 12))
        context, chosen, rejected = generator.integers(0, [[count], [8], [8]], (3, n))
        pairs[kind] = Pairs(context, chosen, rejected, np.ones(n, np.float32))
    following = generator.integers(0, 8, count)
    made = Preferences.build(np.arange(count), np.ones(count), following, pairs, lambda i: i)
    expected = {
        (kind, c, a, b)
        for kind, p in pairs.items()
        for c, a, b in zip(p.context, p.chosen, p.rejected, strict=True)
        if a != b
    }
    found = [
        (KINDS[k], made.user[c], made.item[a], made.item[b])
        for k, c, a, b in zip(
            made.kind, made.context_of_pair, made.chosen, made.rejected, strict=True
        )
    ]
    assert len(found) == len(expected) and set(found) == expected
    assert (made.item[made.begin[:-1]] == following[made.user]).all()
    for c in range(len(made)):
        answers = made.item[made.begin[c] : made.begin[c + 1]]
        assert len(np.unique(answers)) == len(answers)


def test_digest_tells_contexts_and_answers_apart():
    base = Preferences.build(
        np.array([0, 1]),
        np.array([1, 2]),
        np.array([5, 6]),
        {"ecpm": pairs_of_rows([(0, 7, 8, 1.0), (1, 7, 9, 1.0)])},
        lambda i: i,
    )
    assert base.digest() == dataclasses.replace(base, label=base.label * 0.5).digest()
    for name in ("user", "end", "item"):
        changed = dataclasses.replace(base, **{name: getattr(base, name) + 1})
        assert changed.digest() != base.digest()


def test_ecpm_lookup():
    items = type("Items", (), {"ids": np.array([30, 10, 20]), "ecpm": np.array([3.0, 1.0, np.nan])})
    np.testing.assert_array_equal(ecpm_lookup(items)(np.array([10, 20, 30, 10])), [1, np.nan, 3, 1])


# --- computed once --------------------------------------------------------------------------------


def test_cached_is_found_by_its_key_and_replaced_for_another(tmp_path):
    path, calls = str(tmp_path / "x.npz"), []

    def compute():
        calls.append(1)
        return {"score": np.arange(3) + len(calls)}

    key = dpo_cache.key_of(model="a", pairs="b")
    assert key != dpo_cache.key_of(model="a", pairs="c")
    first, found = dpo_cache.cached(path, key, compute)
    assert not found
    again, found = dpo_cache.cached(path, key, compute)
    assert found and len(calls) == 1
    np.testing.assert_array_equal(again["score"], first["score"])
    _, found = dpo_cache.cached(path, "another", compute)
    assert not found and len(calls) == 2
    with open(path, "wb") as f:
        f.write(b"half a file")
    _, found = dpo_cache.cached(path, "another", compute)
    assert not found and len(calls) == 3
    assert set(files.read_npz(path)) == {"key", "score"}


def test_checkpoint_digest_sees_every_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    before = dpo_cache.checkpoint_digest(tmp_path)
    assert before == dpo_cache.checkpoint_digest(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    changed = dpo_cache.checkpoint_digest(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert len({before, changed, dpo_cache.checkpoint_digest(tmp_path)}) == 3
