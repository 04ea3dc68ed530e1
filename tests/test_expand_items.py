"""Beams -> items, and the popular branch, against brute force."""

import numpy as np
import pytest

from genrecall import kernels


def make_index(rng, n, level_sizes):
    """A random index and its rows."""
    item_id = rng.permutation(5 * n)[:n].astype(np.int64)
    codes = rng.integers(0, level_sizes, (n, len(level_sizes))).astype(np.int32)
    weight = rng.integers(-3, 4, n).astype(np.float32)
    return kernels.RecallIndex.build(level_sizes, item_id, codes, weight), item_id, codes, weight


def expand_by_force(item_id, codes, weight, sids, scores, k, cap, exclude):
    """The contract, word by word: rounds over the beams, one item of each a round."""
    queues, seen = [], set()
    for sid in sids:
        rows = np.flatnonzero((codes == sid).all(axis=1))
        rows = rows[np.lexsort((item_id[rows], -weight[rows]))]
        items = [int(i) for i in item_id[rows] if i not in set(exclude)]
        if cap:
            items = items[:cap]
        queues.append([] if tuple(sid) in seen else items)
        seen.add(tuple(sid))
    out = []
    for turn in range(max(map(len, queues), default=0)):
        out += [(q[turn], scores[b], b) for b, q in enumerate(queues) if turn < len(q)]
    return out[:k]


@pytest.mark.parametrize("seed", range(40))
def test_expand_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    levels = int(rng.integers(1, 5))
    level_sizes = rng.integers(1, 6, levels).tolist()
    n = int(rng.integers(1, 60))
    index, item_id, codes, weight = make_index(rng, n, level_sizes)
    for _ in range(10):
        beams = int(rng.integers(0, 12))
        sids = rng.integers(0, level_sizes, (beams, levels)).astype(np.int32)
        sids[rng.random(beams) < 0.2] = -1
        scores = -np.sort(rng.random(beams)).astype(np.float32)
        k, cap = int(rng.integers(1, 20)), int(rng.integers(0, 4))
        exclude = rng.choice(item_id, rng.integers(0, n + 1), replace=False)
        got = index.expand(sids, scores, k, per_sid_cap=cap, exclude=exclude)
        expected = expand_by_force(item_id, codes, weight, sids, scores, k, cap, exclude)
        assert list(zip(*(a.tolist() for a in got), strict=True)) == expected
        assert [a.dtype for a in got] == [np.int64, np.float32, np.int32]


def test_a_crowded_sid_does_not_fill_the_answer():
    item_id = np.arange(101)
    codes = np.zeros((101, 1), np.int32)
    codes[100] = 1
    index = kernels.RecallIndex.build([2], item_id, codes)
    items, scores, beams = index.expand([[0], [1]], [0.0, -1.0], 3)
    assert items.tolist() == [0, 100, 1]
    assert scores.tolist() == [0.0, -1.0, 0.0]
    assert beams.tolist() == [0, 1, 0]


def test_excluded_items_use_up_no_cap():
    index = kernels.RecallIndex.build([1], [1, 2, 3, 4], np.zeros((4, 1), np.int32), [4, 3, 2, 1])
    assert index.expand([[0]], [0.0], 9, per_sid_cap=2, exclude=[1, 3])[0].tolist() == [2, 4]


def test_everything_excluded_gives_nothing():
    index = kernels.RecallIndex.build([1], [1, 2], np.zeros((2, 1), np.int32))
    assert [len(a) for a in index.expand([[0]], [0.0], 9, exclude=[1, 2])] == [0, 0, 0]
    assert [len(a) for a in index.popular(9, exclude=[2, 1])] == [0, 0]


@pytest.mark.parametrize(
    ("sids", "scores", "options", "message"),
    [
        ([[0, 0], [0, 3]], [0, 0], {}, r"sids\[1, 1\] = 3: expected -1\.\.2"),
        ([[-2, 0]], [0], {}, r"sids\[0, 0\] = -2: expected -1\.\.1"),
        ([[0]], [0], {}, r"sids has shape \[1, 1\]: expected \[W, L\], L = 2"),
        ([[0, 0]], [0, 1], {}, r"scores has shape \[2\]: expected \[W\] = \[1\]"),
        ([[0, 0]], [0], {"k": 0}, "k = 0: expected >= 1"),
        ([[0, 0]], [0], {"per_sid_cap": -1}, "per_sid_cap = -1: expected >= 0"),
        ([[0.5, 0]], [0], {}, "sids: expected integers, got dtype float64"),
        ([[2**40, 0]], [0], {}, "sids has value 1099511627776: expected -2147483648..2147483647"),
        ([[0, 0]], [0], {"exclude": [0.5]}, "exclude: expected integers, got dtype float64"),
    ],
)
def test_bad_input_is_named(sids, scores, options, message):
    index = kernels.RecallIndex.build([2, 3], [1], [[1, 2]])
    with pytest.raises(ValueError, match=message):
        index.expand(sids, scores, **{"k": 5, **options})


@pytest.mark.parametrize("seed", range(10))
def test_popular_is_the_heaviest_items(seed):
    rng = np.random.default_rng(seed)
    index, item_id, _, weight = make_index(rng, int(rng.integers(1, 300)), [4, 4])
    exclude = rng.choice(item_id, len(item_id) // 3, replace=False)
    order = np.lexsort((item_id, -weight))
    order = order[~np.isin(item_id[order], exclude)]
    for k in (1, 7, 1000):
        items, weights = index.popular(k, exclude)
        np.testing.assert_array_equal(items, item_id[order][:k])
        np.testing.assert_array_equal(weights, weight[order][:k])


def test_popular_refuses_a_bad_k():
    index = kernels.RecallIndex.build([2, 3], [1], [[1, 2]])
    with pytest.raises(ValueError, match="k = 0: expected >= 1"):
        index.popular(0)
