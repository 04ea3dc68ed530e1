"""Metrics, intervals, the counted baselines and their comparison, against counting by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrecall.training.dataset import splits
from genrecall.training.dataset.data_folder import Events, Items
from genrecall.training.evaluation import (
    baselines,
    comparison,
    intervals,
    metrics,
    protocol,
)
from genrecall.training.evaluation.protocol import MISS, Cases, Ranking

DAY_S = 86_400


def catalogue(n, ecpm=None, first_id=1):
    ids = np.arange(first_id, first_id + n)
    empty = np.full(n, np.nan, np.float32)
    ecpm = empty if ecpm is None else np.array(ecpm, np.float32)
    rows = {int(i): row for row, i in enumerate(ids)}
    return Items(ids, [""] * n, [()] * n, [""] * n, empty, ecpm, rows)


def lines_of(sequences):
    begin = np.concatenate([[0], np.cumsum([len(s) for s in sequences])])
    item = np.concatenate(sequences).astype(np.int64)
    ones = np.ones(len(item), np.int32)
    time = np.concatenate([1_000_000 + 2 * DAY_S * np.arange(len(s)) for s in sequences])
    return splits.clean_lines(Events(np.arange(len(sequences)), begin, item, ones, ones, time))


def ranking_of(lists, targets, ids, width):
    """The Ranking of shown lists (item ids) for targets (rows)."""
    top = np.full((len(lists), width), -1, np.int64)
    ranks = np.full(len(lists), MISS, np.int64)
    for row, (own, target) in enumerate(zip(lists, targets, strict=True)):
        top[row, : len(own)] = own
        if ids[target] in own:
            ranks[row] = 1 + own.index(ids[target])
    return Ranking(ranks, top)


def test_hit_rates_by_hand():
    got = metrics.hit_rates([1, 5, 6, 10, 11, MISS])
    assert got["hr@5"] == pytest.approx(2 / 6)
    assert got["hr@10"] == pytest.approx(4 / 6)
    assert got["hr@50"] == pytest.approx(5 / 6)
    assert got["ndcg@5"] == pytest.approx((1 + 1 / math.log2(6)) / 6)
    assert got["ndcg@10"] == pytest.approx(
        (1 + 1 / math.log2(6) + 1 / math.log2(7) + 1 / math.log2(11)) / 6
    )
    assert metrics.hit_rates([])["hr@10"] == 0.0


def test_ecpm_coverage_and_hot_share_by_hand():
    nan = float("nan")
    items = catalogue(6, ecpm=[1, 2, 3, nan, 5, nan], first_id=10)
    facts = metrics.Catalogue.of(items, np.array([9, 0, 0, 40, 0, 1]))
    assert facts.hot.tolist() == [False, False, False, True, False, False]
    assert facts.hot_share == pytest.approx(0.8)
    lists, targets = [[10, 11, 13], [13, 15], [12], []], np.array([1, 3, 4, 0])
    ranking = ranking_of(lists, targets, items.ids, 3)
    got = metrics.user_values(ranking, targets, facts, cutoffs=(2, 3))
    # Item 13 has no eCPM: it is not in the mean; user 1 saw nothing that has one, user 3 nothing.
    assert got["ecpm@2"].tolist() == pytest.approx([1.5, nan, 3, nan], nan_ok=True)
    assert got["ecpm@3"].tolist() == pytest.approx([1.5, nan, 3, nan], nan_ok=True)
    assert got["hot@2"].tolist() == pytest.approx([0, 0.5, 0, nan], nan_ok=True)
    assert got["hot@3"].tolist() == pytest.approx([1 / 3, 0.5, 0, nan], nan_ok=True)
    # User 0 hits an item worth 2, user 1 one of unknown worth, users 2 and 3 nothing.
    assert got["ecpm_hit@2"].tolist() == pytest.approx([2, nan, 0, 0], nan_ok=True)
    means = metrics.means(got)
    assert means["ecpm@2"] == pytest.approx(2.25) and means["ecpm_hit@3"] == pytest.approx(2 / 3)
    assert means["hr@3"] == 0.5
    assert metrics.coverage(ranking, 6, (1, 3)) == {"coverage@1": 0.5, "coverage@3": 5 / 6}


def test_a_catalogue_without_ecpm_has_no_ecpm_metrics():
    items = catalogue(3)
    facts = metrics.Catalogue.of(items, np.array([1, 2, 0]))
    got = metrics.user_values(ranking_of([[1]], [0], items.ids, 1), np.array([0]), facts, (1,))
    assert sorted(got) == ["hot@1", "hr@1", "ndcg@1"]


def test_wilson_by_hand_and_at_the_edges():
    # Wilson's interval of 1 in 10: 0.0179..0.4042 (Newcombe, 1998).
    assert intervals.wilson(1, 10) == pytest.approx((0.0179, 0.4042), abs=1e-4)
    low, high = intervals.wilson(0, 100)
    assert low == 0 and high == pytest.approx(0.0370, abs=1e-4)
    assert intervals.wilson(100, 100) == pytest.approx((1 - high, 1))
    assert intervals.wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(0).normal(3.0, 2.0, (400, 1))
    low, high = intervals.percentile_interval(intervals.bootstrap_means(values, 2000)[:, 0])
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_bootstrap_differences_are_paired_and_users_left_out_do_not_count():
    own = np.random.default_rng(0).normal(0, 5, 300)
    samples = intervals.bootstrap_means(np.stack([own, own + 1.0], axis=1), 200)
    assert samples[:, 1] - samples[:, 0] == pytest.approx(np.ones(200))
    holes = np.where(np.arange(300) < 150, own, np.nan)
    samples = intervals.bootstrap_means(np.stack([holes, np.full(300, np.nan)], axis=1), 2000)
    assert samples[:, 0].mean() == pytest.approx(own[:150].mean(), abs=0.05)
    assert all(np.isnan(v) for v in intervals.percentile_interval(samples[:, 1]))


def test_comparison_names_the_best_baseline_and_the_paired_difference():
    items = catalogue(20, ecpm=np.arange(20))
    facts = metrics.Catalogue.of(items, np.zeros(20, np.int64))
    targets = np.arange(20)
    hits = {"genrecall": 12, "good": 10, "bad": 2}
    rankings = {
        name: ranking_of([[i + 1] if i < n else [] for i in range(20)], targets, items.ids, 50)
        for name, n in hits.items()
    }
    result = comparison.compare(rankings, targets, facts, "genrecall")
    assert {n: m["hr@10"] for n, m in result["methods"].items()} == {
        "genrecall": 0.6,
        "good": 0.5,
        "bad": 0.1,
    }
    assert result["intervals"]["bad"]["hr@10"] == list(intervals.wilson(2, 20))
    difference = result["difference"]
    assert difference["from"] == "good" and difference["hr@10"]["mean"] == pytest.approx(0.1)
    # Unpaired, two shares of 20 users would differ by 0.1 +- 0.31; here 2 users differ.
    assert 0 <= difference["hr@10"]["low"] and difference["hr@10"]["high"] <= 0.3
    line = comparison.difference_line(result, "genrecall")
    assert line.startswith("genrecall - good: HR@10 +0.1000 [+0.0")
    alone = comparison.compare({"genrecall": rankings["genrecall"]}, targets, facts, "genrecall")
    assert alone["difference"] is None and comparison.difference_line(alone, "genrecall") == ""


def fitted(sequences, num_items, split, users):
    lines, items = lines_of(sequences), catalogue(num_items)
    cases = protocol.cases_of(lines, items, split, np.array(users))
    scorers = baselines.fit_baselines(lines, items, split)
    return {
        name: protocol.rank_by_scores(scorer, cases, items.ids, num_items)
        for name, scorer in scorers.items()
    }


def test_popularity_and_markov_by_hand():
    sequences = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 3, 2, 4], [2, 1, 5, 4]]
    got = fitted(sequences, 6, "valid", [0, 1, 2, 3])
    # Seen on validation: 1 2 | 1 2 | 1 3 | 2 1. Popularity: 1, 2, 3, then in the file's order.
    assert got["popularity"].ranks.tolist() == [1, 1, 1, 3]
    assert got["popularity"].top[3].tolist() == [3, 4, 5, 6, -1, -1]
    # From 2 only 1 followed, which is masked; from 3 nothing; from 1: 2 (masked) and 3.
    assert got["markov-1"].ranks.tolist() == [1, 1, 1, 3]
    # On test the validation items are seen, too: 1 2 3 | 1 2 3 | 1 3 2 | 2 1 5.
    got = fitted(sequences, 6, "test", [2, 3])
    assert got["popularity"].top[0].tolist() == [5, 4, 6, -1, -1, -1]
    # User 3 ends with 5, which nothing followed: popularity. 2 -> 1, 3: both masked for user 2.
    assert got["markov-1"].top.tolist() == [[5, 4, 6, -1, -1, -1], [3, 4, 6, -1, -1, -1]]


def test_equal_counts_go_by_what_came_first():
    # After 1 came 4, then 3, once each; 5 and 6 were seen twice.
    sequences = [[1, 4, 5, 6, 1, 2], [1, 3, 6, 5, 2, 1], [7, 1, 8, 2]]
    got = fitted(sequences, 9, "valid", [2])
    assert got["markov-1"].top[0].tolist() == [4, 3, 5, 6, 2, 8, 9, -1, -1]


def cosine_by_hand(history, seen, num_items):
    """Item-to-item scores by the definition, with sets of users."""
    users = [{u for u, s in enumerate(seen) if i in s} for i in range(1, num_items + 1)]
    scores = np.zeros(num_items)
    for age, item in enumerate(history[::-1][: baselines.RECENT]):
        for other in range(1, num_items + 1):
            a, b = users[item - 1], users[other - 1]
            if other != item and a & b:
                cosine = len(a & b) / math.sqrt(len(a) * len(b))
                scores[other - 1] += baselines.DECAY**age * cosine
    return scores


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(1, 12), min_size=3, max_size=30), min_size=1, max_size=12))
def test_item_to_item_is_its_definition(sequences):
    lines, items = lines_of(sequences), catalogue(12)
    users = lines.evaluated("test")
    cases = protocol.cases_of(lines, items, "test", users)
    got = baselines.fit_baselines(lines, items, "test")["item-to-item"](cases)
    seen = [lines.items_of(u)[: lines.visible("test")[u]].tolist() for u in range(len(sequences))]
    for row, u in enumerate(users):
        expected = cosine_by_hand(seen[u], seen, 12)
        own = np.where(np.isfinite(got[row]), got[row], 0.0)
        assert own == pytest.approx(expected, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=15))
def test_evaluated_users_and_cases_are_the_protocols(sequences):
    lines, items = lines_of(sequences), catalogue(9)
    for split, held_out in (("valid", 2), ("test", 1)):
        own = [lines.items_of(u).tolist() for u in range(len(sequences))]
        expected = [
            (u, s[:-held_out], s[-held_out])
            for u, s in enumerate(own)
            if len(s) >= 3 and s[-held_out] not in s[:-held_out]
        ]
        users = lines.evaluated(split)
        assert users.tolist() == [u for u, _, _ in expected]
        cases = protocol.cases_of(lines, items, split, users)
        assert (cases.target + 1).tolist() == [target for _, _, target in expected]
        for c, block in enumerate(cases.blocks(1)):
            assert (block.history + 1).tolist() == expected[c][1]
            assert block.last[0] + 1 == expected[c][1][-1]
            assert block.age.tolist() == list(range(len(expected[c][1])))[::-1]
        taken = cases.take(np.arange(len(cases))[::-2])
        assert taken.target.tolist() == cases.target[::-2].tolist()
        assert [b.history.tolist() for b in taken.blocks(1)] == [
            b.history.tolist() for b in list(cases.blocks(1))[::-2]
        ]


def test_ranks_by_scores_mask_the_history_and_count_ties_against():
    cases = Cases(np.arange(3), np.array([0, 3, 2]), np.array([0, 1, 2, 4]), np.array([1, 1, 1, 0]))
    scores = np.array([[3.0, 9, 3, 1], [3, 9, 3, 1], [1, 9, -np.inf, 0]])
    ids = np.array([10, 20, 30, 40])
    for cells in (1, 8, 100):
        got = protocol.rank_by_scores(lambda c: scores[c.user].copy(), cases, ids, 3, cells)
        assert got.ranks.tolist() == [2, 3, MISS]
        assert sorted(got.top[0, :2].tolist()) == [10, 30] and got.top[0, 2] == 40
        assert got.top[2].tolist() == [40, -1, -1]
    wide = protocol.rank_by_scores(lambda c: scores[c.user].copy(), cases, ids, 6)
    assert wide.top.shape == (3, 6) and wide.top[2].tolist() == [40, -1, -1, -1, -1, -1]


def test_rows_of_unknown_items_are_refused():
    with pytest.raises(ValueError, match="item 7: not in items.jsonl"):
        catalogue(5).rows(np.array([[1, 2], [7, 3]]))
    assert catalogue(5, first_id=3).rows(np.array([7, 3])).tolist() == [4, 0]
