"""MergeBranches against its definition."""

import numpy as np
import pytest

from genrecall.kernels import merge_branches


def merge_by_force(items, scores, quotas, k):
    placed = {}
    for quota_of in (lambda b: quotas[b], lambda b: -1):
        for b, branch in enumerate(items):
            fresh = [
                (i, s) for i, s in dict(reversed(list(zip(branch, scores[b], strict=True)))).items()
            ]
            fresh = sorted(fresh, key=lambda pair: branch.index(pair[0]))
            fresh = [(i, s) for i, s in fresh if i >= 0 and i not in placed]
            limit = quota_of(b) if quota_of(b) >= 0 else len(fresh)
            for i, s in fresh[:limit]:
                if len(placed) < k:
                    placed[i] = (s, b)
    return [
        (i, s, sum(1 << p for p, branch in enumerate(items) if i in branch), b)
        for i, (s, b) in placed.items()
    ]


@pytest.mark.parametrize("seed", range(60))
def test_merge_equals_its_definition(seed):
    rng = np.random.default_rng(seed)
    branches = int(rng.integers(1, 6))
    items = [rng.integers(-1, 15, rng.integers(0, 12)).tolist() for _ in range(branches)]
    scores = [rng.random(len(i)).astype(np.float32).tolist() for i in items]
    quotas = rng.integers(-1, 6, branches).tolist()
    k = int(rng.integers(1, 20))
    got = merge_branches([np.array(i, np.int64) for i in items], scores, quotas, k)
    assert [a.dtype for a in got] == [np.int64, np.float32, np.int32, np.int32]
    assert list(zip(*(a.tolist() for a in got), strict=True)) == merge_by_force(
        items, scores, quotas, k
    )


def test_quotas_first_then_branches_in_order():
    item, score, mask, source = merge_branches(
        [[1, 2, 3, 4], [9, 1, 8, 7]], [[0.9, 0.8, 0.7, 0.6], [5, 4, 3, 2]], [2, 1], 5
    )
    assert item.tolist() == [1, 2, 9, 3, 4]
    assert source.tolist() == [0, 0, 1, 0, 0]
    assert mask.tolist() == [0b11, 0b01, 0b10, 0b01, 0b01]
    np.testing.assert_allclose(score, [0.9, 0.8, 5, 0.7, 0.6])


def test_a_proposal_beyond_a_quota_still_counts_in_the_mask():
    item, _, mask, source = merge_branches([[1], [5, 1]], [[1], [1, 1]], [-1, 0], 1)
    assert (item.tolist(), mask.tolist(), source.tolist()) == ([1], [0b11], [0])


def test_no_branches_or_empty_branches_give_nothing():
    for got in (
        merge_branches([], [], [], 5),
        merge_branches([[], [-1, -1]], [[], [0, 0]], [-1, -1], 5),
    ):
        assert [len(a) for a in got] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1]], [], [1], 5), "items, scores and quotas have 1, 0 and 1 entries"),
        (([[1]] * 32, [[1]] * 32, [1] * 32, 5), "at most 31"),
        (([[1, 2]], [[1]], [1], 5), r"scores\[0\] has shape \[1\]: expected \[2\]"),
        (([[1.5]], [[1]], [1], 5), r"items\[0\]: expected integers"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        merge_branches(*arguments)
