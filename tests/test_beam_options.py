"""Diversity caps, sampling and exclusions of the beam search, against brute force."""

import itertools
import math

import numpy as np
import pytest
import random_decoder

from genrecall import kernels
from genrecall.trtllm_bridge import _engine

SHAPES = [
    ((2,), 1),
    ((300,), 250),
    ((7, 3, 11), 150),
    ((4, 4, 4, 4), 200),
    ((2, 3, 2, 3, 2, 3), 60),
]


def random_trie(level_sizes, items, seed):
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, c, items) for c in level_sizes], axis=1).astype(np.int32)
    index = kernels.RecallIndex.build(list(level_sizes), np.arange(items), codes)
    return index, codes


def table(level_sizes, seed, step=0.5):
    """logits(level, prefixes) drawn from the prefix alone, in multiples of `step`: exact sums."""

    def row(level, prefix):
        rng = np.random.default_rng([seed, level, *map(int, prefix)])
        return np.round(rng.normal(0, 2, level_sizes[level]) / step) * step

    def logits(level, prefixes):
        return np.stack([row(level, p) for p in prefixes]).astype(np.float32)

    return logits


def search(index, width, logits, **options):
    """(SIDs as tuples, scores) of the real beams, scores being plain sums of logits."""

    def with_zero_normalizer(level, prefixes):
        return logits(level, prefixes), np.zeros(len(prefixes), np.float32)

    out = _engine.beam_search(index, width, with_zero_normalizer, normalize="vocab", **options)
    n = out["beams"]
    assert (out["sids"][n:] == -1).all() and np.isneginf(out["score"][n:]).all()
    return [tuple(s) for s in out["sids"][:n].tolist()], out["score"][:n].tolist()


def plain_search(sids, width, logits, caps):
    """A beam search that grows every prefix, then takes the best first within the caps."""
    beams = [((), 0.0)]
    for level in range(len(sids[0])):
        grown = []
        for prefix, total in beams:
            row = logits(level, [prefix])[0]
            legal = {s[level] for s in sids if s[:level] == prefix}
            grown += [((*prefix, c), total + float(row[c])) for c in legal]
        beams, used = [], {}
        for prefix, total in sorted(grown, key=lambda b: (-b[1], b[0])):
            groups = [prefix[:n] for n in range(1, level + 1) if caps[n - 1]]
            if len(beams) < width and all(used.get(g, 0) < caps[len(g) - 1] for g in groups):
                beams.append((prefix, total))
                for g in groups:
                    used[g] = used.get(g, 0) + 1
    return [b[0] for b in beams], [b[1] for b in beams]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("width", [1, 5, 40, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_caps_equal_a_plain_greedy_search(shape, width, seed):
    level_sizes, items = shape
    index, codes = random_trie(level_sizes, items, seed)
    sids = sorted({tuple(c) for c in codes.tolist()})
    logits = table(level_sizes, seed)
    rng = np.random.default_rng(seed)
    caps = rng.integers(0, 6, len(level_sizes) - 1).tolist()
    assert search(index, width, logits, prefix_caps=caps) == plain_search(sids, width, logits, caps)


def test_no_more_beams_than_the_cap_share_a_prefix_and_the_rest_move_up():
    index, codes = random_trie((4, 8, 8), 300, seed=3)
    logits = table((4, 8, 8), seed=4)
    free, _ = search(index, 30, logits)
    capped, scores = search(index, 30, logits, prefix_caps=[9, 2])
    assert max(np.unique([s[0] for s in free], return_counts=True)[1]) > 9
    assert max(np.unique([s[0] for s in capped], return_counts=True)[1]) <= 9
    assert max(np.unique([s[:2] for s in capped], axis=0, return_counts=True)[1]) <= 2
    assert len(capped) == 30 and scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", [0.1, 0.9, 1.0])
@pytest.mark.parametrize("normalize", ["level", "legal", "vocab"])
def test_excluded_items_cost_no_beam(shape, share, normalize):
    """The search is the one over a catalogue that never had them."""
    level_sizes, items = shape
    index, codes = random_trie(level_sizes, items, seed=5)
    rng = np.random.default_rng(6)
    gone = rng.permutation(items)[: math.ceil(share * items)]
    exclude = [*gone.tolist(), 10**9, gone[0]]  # unknown and repeated ones change nothing
    left = np.setdiff1d(np.arange(items), gone)
    logits = table(level_sizes, seed=7)

    def run(index, **options):
        def answer(level, prefixes):
            return logits(level, prefixes), np.zeros(len(prefixes), np.float32)

        return _engine.beam_search(index, 20, answer, normalize=normalize, **options)

    found = run(index, exclude=exclude)
    if not len(left):
        assert found["beams"] == 0 and (found["sids"] == -1).all()
        return
    without = kernels.RecallIndex.build(list(level_sizes), left, codes[left])
    expected = run(without)
    for key in ("sids", "score", "step_score", "beams"):
        np.testing.assert_array_equal(found[key], expected[key])


def test_a_sid_with_one_item_left_is_legal():
    codes = np.array([[0, 1], [0, 1], [1, 0]], np.int32)
    index = kernels.RecallIndex.build([2, 2], np.array([10, 11, 12]), codes)
    logits = table((2, 2), seed=1)
    assert (0, 1) in search(index, 4, logits, exclude=[10])[0]
    assert search(index, 4, logits, exclude=[10, 11])[0] == [(1, 0)]


def legal_probabilities(sids, logits, temperature):
    """{sid: probability}: at each level a softmax over the legal codes."""
    out = {}
    for sid in sids:
        p = 1.0
        for level in range(len(sid)):
            legal = sorted({s[level] for s in sids if s[:level] == sid[:level]})
            x = logits(level, [sid[:level]])[0][legal].astype(float) / temperature
            weight = np.exp(x - x.max())
            p *= weight[legal.index(sid[level])] / weight.sum()
        out[sid] = p
    return out


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_samples_are_drawn_without_replacement_with_the_models_probabilities(temperature):
    """Ordered pairs (first, second): p_i p_j / (1 - p_i), over 6,000 seeds; chi-square by hand."""
    index, codes = random_trie((3, 2, 3), 9, seed=8)
    sids = sorted({tuple(c) for c in codes.tolist()})
    logits = table((3, 2, 3), seed=9)
    p = legal_probabilities(sids, logits, temperature)
    draws, counts = 6000, {}
    for seed in range(1, draws + 1):
        pair = tuple(search(index, 2, logits, seed=seed, temperature=temperature)[0])
        counts[pair] = counts.get(pair, 0) + 1
    expected = {
        (a, b): draws * p[a] * p[b] / (1 - p[a]) for a, b in itertools.permutations(sids, 2)
    }
    assert set(counts) <= set(expected)
    common = {pair: e for pair, e in expected.items() if e >= 5}
    rest = draws - sum(common.values()), draws - sum(counts.get(pair, 0) for pair in common)
    terms = [(counts.get(pair, 0) - e) ** 2 / e for pair, e in common.items()]
    terms.append((rest[1] - rest[0]) ** 2 / max(rest[0], 1))
    freedom = len(terms) - 1
    assert sum(terms) < freedom + 5 * math.sqrt(2 * freedom)  # five standard deviations


def test_a_seed_repeats_its_draw_and_scores_stay_log_probabilities():
    index, codes = random_trie((8, 8, 8), 300, seed=10)
    logits = table((8, 8, 8), seed=11)
    every = dict(zip(*search(index, 1000, logits), strict=True))
    first = search(index, 25, logits, seed=5)
    assert first == search(index, 25, logits, seed=5) != search(index, 25, logits, seed=6)
    assert len(set(first[0])) == 25 and all(every[s] == v for s, v in zip(*first, strict=True))
    assert first[1] != sorted(first[1], reverse=True)  # in the order of the draw, not of the scores
    # A wider beam draws the same ones first: what is drawn does not depend on who else is kept.
    assert search(index, 60, logits, seed=5)[0][:25] == first[0]


def test_a_draw_does_not_depend_on_what_else_is_on_air():
    """Items elsewhere change neither the noise of a SID nor, with it, the order of the rest."""
    _, codes = random_trie((6, 6), 12, seed=12)
    logits = table((6, 6), seed=13)
    whole = kernels.RecallIndex.build([6, 6], np.arange(12), codes)
    excluded = [int(i) for i in np.flatnonzero(codes[:, 0] == codes[0, 0])]
    left = np.setdiff1d(np.arange(12), excluded)
    part = kernels.RecallIndex.build([6, 6], left, codes[left])
    for seed in range(1, 30):
        drawn = search(whole, 100, logits, seed=seed, exclude=excluded)
        assert drawn == search(part, 100, logits, seed=seed)


def test_caps_hold_while_sampling():
    index, _ = random_trie((4, 8, 8), 300, seed=3)
    logits = table((4, 8, 8), seed=4)
    for seed in range(1, 20):
        sids, _ = search(index, 12, logits, seed=seed, prefix_caps=[3])
        assert len(sids) == 12
        assert max(np.unique([s[0] for s in sids], return_counts=True)[1]) <= 3


def test_bad_caps_are_refused():
    index, _ = random_trie((4, 8, 8), 30, seed=3)
    logits = table((4, 8, 8), seed=4)
    with pytest.raises(ValueError, match=r"prefix_caps\[1\] = -2: expected >= 0"):
        search(index, 4, logits, prefix_caps=[1, -2])
    with pytest.raises(ValueError, match="prefix_caps has 3 entries: expected at most L - 1 = 2"):
        search(index, 4, logits, prefix_caps=[1, 1, 1])


def test_the_engines_door_takes_them_all(tmp_path):
    decoder = random_decoder.Decoder(tmp_path, level_sizes=(8, 8, 8))
    index, _ = random_decoder.random_index((8, 8, 8), 200, seed=1)
    prompt, engine = decoder.prompt(12), decoder.engine
    plain = random_decoder.decode(engine, prompt, index, beam_width=200)
    best = plain["sids"][0].tolist()
    item_id, codes, _, _ = index.rows()
    gone = [int(i) for i, c in zip(item_id, codes.tolist(), strict=True) if c == best]
    options = {"beam_width": 9, "seed": 3, "prefix_caps": [2]}
    batch = engine.decode(
        np.stack([prompt] * 2), [12, 12], index, exclude=[gone, []], normalize="legal", **options
    )
    alone = engine.submit(prompt, index, exclude=gone, normalize="legal", **options).result()
    np.testing.assert_array_equal(batch["sids"][0], alone["sids"])
    assert best not in alone["sids"].tolist() and alone["beams"] == 9
    assert max(np.unique(alone["sids"][:, 0], return_counts=True)[1]) <= 2
    everything = engine.submit(prompt, index, exclude=item_id.tolist()).result()
    assert everything["beams"] == 0 and np.isfinite(everything["user_state"]).all()
    with pytest.raises(ValueError, match="exclude: expected one list of items for each of 1 rows"):
        engine.decode(prompt[None], [12], index, exclude=[[], []])
    with pytest.raises(ValueError, match="prefix_caps has 3 entries: expected at most L - 1 = 2"):
        engine.submit(prompt, index, prefix_caps=[1, 1, 1])
