"""Beam search alone, on logits from a table, against a plain Python one and against brute force."""

import numpy as np
import pytest

from genrecall import kernels
from genrecall.trtllm_bridge import _engine

INF = np.inf

# (level sizes, items): depth 1 to 6, unequal sizes, one item, more items than SIDs.
SHAPES = [
    ((2,), 1),
    ((300,), 250),
    ((2, 300), 400),
    ((300, 2), 400),
    ((7, 3, 11), 150),
    ((4, 4, 4, 4), 200),
    ((256, 256, 256, 256), 500),
    ((3, 2, 5, 2, 4), 100),
    ((2, 3, 2, 3, 2, 3), 60),
    ((5, 1, 9), 30),
]
WIDTHS = [1, 2, 5, 17, 128, 1000]


def random_trie(level_sizes, items, seed):
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, c, items) for c in level_sizes], axis=1).astype(np.int32)
    index = kernels.RecallIndex.build(list(level_sizes), np.arange(items), codes)
    return index, np.unique(codes, axis=0)


def table(level_sizes, seed, step=None):
    """logits(level, prefixes) drawn from the prefix alone; multiples of `step`: sums are exact."""

    def row(level, prefix):
        rng = np.random.default_rng([seed, level, *map(int, prefix)])
        logits = rng.normal(0, 2, level_sizes[level])
        return np.round(logits / step) * step if step else logits

    def logits(level, prefixes):
        return np.stack([row(level, p) for p in prefixes]).astype(np.float32)

    return logits


def plain_beam_search(sids, width, step_score):
    """step_score(level, prefix) -> [C]. Returns [(sid, total, steps)]; ties: the smaller prefix."""
    beams = [((), 0.0, ())]
    for level in range(sids.shape[1]):
        grown = []
        for prefix, total, steps in beams:
            scores = step_score(level, prefix)
            legal = {int(s[level]) for s in sids if tuple(s[:level]) == prefix}
            for c in legal:
                score = float(scores[c])
                grown.append(((*prefix, c), total + score, (*steps, score)))
        beams = sorted(grown, key=lambda b: (-b[1], b[0]))[:width]
    return beams


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_equals_a_plain_beam_search_ties_included(shape, width):
    level_sizes, items = shape
    index, sids = random_trie(level_sizes, items, seed=1)
    logits = table(level_sizes, seed=2, step=0.5)  # coarse: many ties, no rounding

    def with_zero_normalizer(level, prefixes):
        return logits(level, prefixes), np.zeros(len(prefixes), np.float32)

    out = _engine.beam_search(index, width, with_zero_normalizer, normalize="vocab")
    expected = plain_beam_search(sids, width, lambda level, prefix: logits(level, [prefix])[0])
    n = len(expected)
    assert out["beams"] == n == min(width, n)
    np.testing.assert_array_equal(out["sids"][:n], [b[0] for b in expected])
    np.testing.assert_array_equal(out["score"][:n], np.float32([b[1] for b in expected]))
    np.testing.assert_array_equal(out["step_score"][:n], np.float32([b[2] for b in expected]))
    assert (out["sids"][n:] == -1).all() and (out["score"][n:] == -INF).all()
    assert (out["step_score"][n:] == -INF).all()


def step_scores(sids, level_sizes, logits, normalize, temperature=1.0):
    """Brute force in float64: every SID's step scores, [S, L]."""
    scores = np.zeros(sids.shape)
    for i, sid in enumerate(sids):
        for level in range(len(level_sizes)):
            row = logits(level, [sid[:level]])[0].astype(np.float64) / temperature
            if normalize == "legal":
                same = (sids[:, :level] == sid[:level]).all(axis=1)
                pool = row[np.unique(sids[same, level])]
            else:
                pool = row
            scores[i, level] = row[sid[level]] - np.log(np.exp(pool).sum())
    return scores


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("normalize", ["level", "legal"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_wide_enough_search_ranks_the_whole_catalogue(shape, normalize, temperature):
    level_sizes, items = shape
    index, sids = random_trie(level_sizes, items, seed=3)
    logits = table(level_sizes, seed=4)
    width = len(sids) + 3
    out = _engine.beam_search(index, width, logits, normalize=normalize, temperature=temperature)
    steps = step_scores(sids, level_sizes, logits, normalize, temperature)
    assert out["beams"] == len(sids)
    got, n = out["sids"], len(sids)
    order = np.lexsort(got[:n].T[::-1])  # by SID, as `sids` is
    np.testing.assert_array_equal(got[:n][order], sids)
    np.testing.assert_allclose(out["step_score"][:n][order], steps, atol=2e-5)
    np.testing.assert_allclose(out["score"][:n][order], steps.sum(axis=1), atol=5e-5)
    assert (np.diff(out["score"][:n]) <= 0).all()


def test_all_sids_equal_is_one_beam():
    codes = np.tile(np.int32([3, 1, 4]), (50, 1))
    index = kernels.RecallIndex.build([8, 8, 8], np.arange(50), codes)
    out = _engine.beam_search(index, 10, table((8, 8, 8), seed=5))
    assert out["beams"] == 1
    assert out["sids"].tolist() == [[3, 1, 4]] + [[-1] * 3] * 9


@pytest.mark.parametrize("width", [1, 4, 9, 100])
def test_live_width_grows_with_the_prefixes(width):
    index, sids = random_trie((3, 5, 7), 80, seed=6)
    out = _engine.beam_search(index, width, table((3, 5, 7), seed=7))
    prefixes = [len(np.unique(sids[:, :level], axis=0)) if level else 1 for level in range(3)]
    live = out["live"]
    assert live[0] == 1
    for level in (1, 2):
        assert live[level] <= min(width, prefixes[level])
        if width >= prefixes[level]:
            assert live[level] == prefixes[level]


def test_ancestors_lead_back_to_each_beams_own_codes():
    level_sizes = (6, 5, 4, 3)
    index, _ = random_trie(level_sizes, 150, seed=8)
    seen = []
    inner = table(level_sizes, seed=9)

    def logits(level, prefixes):
        seen.append(np.array(prefixes))
        return inner(level, prefixes)

    out = _engine.beam_search(index, 12, logits)
    for level in range(1, 4):  # ancestors after `level` advances, beside the prefixes then live
        ancestors, prefixes = out["ancestors"][level - 1], seen[level]
        assert ancestors.shape == (level, len(prefixes))
        np.testing.assert_array_equal(ancestors[-1], np.arange(len(prefixes)))
        for j in range(level):
            parent = seen[j + 1][ancestors[j]]
            np.testing.assert_array_equal(parent, prefixes[:, : j + 1])


def test_impossible_logits_rank_last_but_stay_legal():
    index, sids = random_trie((4, 4), 16, seed=10)

    def logits(level, prefixes):
        out = np.zeros((len(prefixes), 4), np.float32)
        out[:, 0] = -INF
        return out

    out = _engine.beam_search(index, 20, logits, normalize="level")
    n = out["beams"]
    np.testing.assert_array_equal(np.unique(out["sids"][:n], axis=0), sids)
    dead = (out["sids"][:n] == 0).any(axis=1)
    assert (out["score"][:n][dead] == -INF).all() and np.isfinite(out["score"][:n][~dead]).all()
    assert not dead[: (~dead).sum()].any()


@pytest.mark.parametrize("value", [np.nan, INF])
def test_a_logit_that_is_not_a_number_is_an_error(value):
    index, _ = random_trie((4, 4), 16, seed=11)

    def logits(level, prefixes):
        out = np.zeros((len(prefixes), 4), np.float32)
        if level == 1:
            out[0, 2] = value
        return out

    with pytest.raises(
        RuntimeError, match=r"logits\[0, 2\] = (nan|inf) at level 1: expected finite"
    ):
        _engine.beam_search(index, 5, logits)


def test_unknown_normalization_is_refused():
    index, _ = random_trie((4,), 4, seed=12)
    with pytest.raises(ValueError, match=r"normalize = 'softmax': expected level\|legal\|vocab"):
        _engine.beam_search(index, 5, table((4,), seed=1), normalize="softmax")
