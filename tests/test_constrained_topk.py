"""A step of constrained beam search equals brute force: sound, complete, the same bits again."""

import numpy as np
import pytest

from genrecall import kernels


def random_index(rng, level_sizes, num_items):
    codes = np.stack([rng.integers(0, c, num_items) for c in level_sizes], axis=1)
    return kernels.RecallIndex.build(level_sizes, np.arange(num_items), codes.astype(np.int32))


def log_sum_exp(x):
    m = np.max(x, initial=-np.inf)
    return m if np.isinf(m) else m + np.log(np.sum(np.exp(x - m)))


def step_scores(index, level, node, logits, normalize, log_normalizer, temperature):
    """Float64 step score of every (row, child): dict of (row, code, child node) -> score."""
    out = {}
    for row, n in enumerate(node):
        codes, children = index.children(level, int(n))
        x = logits[row].astype(np.float64) / temperature
        z = {
            "level": log_sum_exp(x),
            "legal": log_sum_exp(x[codes]),
            "vocab": None if log_normalizer is None else float(log_normalizer[row]),
        }[normalize]
        for code, child in zip(codes, children, strict=True):
            score = x[code]
            out[row, int(code), int(child)] = score if np.isneginf(score) else score - z
    return out


def brute_force(index, level, node, beam_score, logits, width, **kw):
    """The best candidates as (score, child node), ties to the smaller node."""
    steps = step_scores(index, level, node, logits, **kw)
    every = [(beam_score[row] + s, child) for (row, _, child), s in steps.items()]
    return sorted(every, key=lambda c: (-c[0], c[1]))[:width], steps


def check(index, level, node, beam_score, logits, width, normalize="level", temperature=1.0):
    log_normalizer = None
    if normalize == "vocab":  # a vocabulary of which the level is a part
        rest = np.random.default_rng(5).normal(size=(len(node), 7))
        whole = np.concatenate([logits.astype(np.float64), rest], axis=1) / temperature
        log_normalizer = np.array([log_sum_exp(r) for r in whole], np.float32)
    got = kernels.constrained_topk(
        index, level, node, beam_score, logits, width, normalize, log_normalizer, temperature
    )
    want, steps = brute_force(
        index,
        level,
        node,
        beam_score,
        logits,
        width,
        normalize=normalize,
        log_normalizer=log_normalizer,
        temperature=temperature,
    )
    # Complete: as many as there are, and at each rank the score brute force has there.
    assert len(got["node"]) == len(want) == min(width, len(steps))
    np.testing.assert_allclose(got["score"], [s for s, _ in want], rtol=2e-6, atol=2e-5)
    # Sound: allowed children with their own scores, nothing twice, in order.
    assert len(set(got["node"].tolist())) == len(got["node"])
    for parent, code, child, score, step in zip(*got.values(), strict=True):
        exact = steps[int(parent), int(code), int(child)]
        np.testing.assert_allclose(step, exact, rtol=2e-6, atol=2e-5)
        assert score == np.float32(beam_score[parent]) + np.float32(step)
    order = list(zip(-got["score"], got["node"].tolist(), strict=True))
    assert order == sorted(order)
    return got


@pytest.mark.parametrize("normalize", ["level", "legal", "vocab"])
@pytest.mark.parametrize("seed", range(8))
def test_equals_brute_force(normalize, seed):
    rng = np.random.default_rng(seed)
    level_sizes = rng.integers(1, [4, 40, 300]).tolist()
    index = random_index(rng, level_sizes, int(rng.integers(1, 400)))
    for level in range(3):
        num_nodes = index.num_nodes(level)
        rows = int(rng.integers(1, num_nodes + 1))
        node = rng.permutation(num_nodes)[:rows].astype(np.uint32)
        beam_score = -rng.exponential(3, rows).astype(np.float32)
        logits = rng.normal(0, 4, (rows, level_sizes[level])).astype(np.float32)
        for width in (1, 2, 17, 1000):
            for temperature in (1.0, 0.3):
                check(index, level, node, beam_score, logits, width, normalize, temperature)


@pytest.mark.parametrize("normalize", ["level", "legal", "vocab"])
def test_full_nodes_and_nodes_that_lack_a_code(normalize):
    """A node with a child for every code is scored without a look-up, its neighbours are not."""
    rng = np.random.default_rng(4)
    every = np.stack(np.meshgrid(range(6), range(37), indexing="ij"), axis=-1).reshape(-1, 2)
    kept = np.delete(every, [37 * 2 + 5, 37 * 4, 37 * 5 + 36], axis=0).astype(np.int32)
    index = kernels.RecallIndex.build([6, 37], np.arange(len(kept)), kept)
    logits = rng.normal(size=(6, 37), scale=3).astype(np.float32)
    beam_score = -rng.random(6, dtype=np.float32)
    for width in (1, 20, 128, 300):
        check(index, 1, np.arange(6, dtype=np.uint32), beam_score, logits, width, normalize)


def test_wide_beams_go_through_the_bounded_selection():
    rng = np.random.default_rng(1)
    index = random_index(rng, [32, 32, 256], 9_000)
    node = rng.permutation(index.num_nodes(2)).astype(np.uint32)
    beam_score = -np.sort(rng.exponential(3, len(node))).astype(np.float32)
    logits = rng.normal(0, 3, (len(node), 256)).astype(np.float32)
    for width in (5, 50, 700, 4096):
        check(index, 2, node, beam_score, logits, width)
        check(index, 2, node[::-1], beam_score, logits, width, "legal")


@pytest.mark.parametrize("seed", range(10))
def test_ties_go_to_the_smaller_node_exactly(seed):
    """Scores of a few discrete values, so that nearly all candidates tie, at every width."""
    rng = np.random.default_rng(seed)
    index = random_index(rng, [6, 50], 200)
    rows = index.num_nodes(1)
    node = rng.permutation(rows).astype(np.uint32)
    beam_score = -rng.integers(0, 3, rows).astype(np.float32)
    logits = np.tile(rng.integers(0, 2, 50).astype(np.float32), (rows, 1))
    everything = check(index, 1, node, beam_score, logits, 10_000)
    keys = list(zip(-everything["score"], everything["node"].tolist(), strict=True))
    assert len(set(everything["score"].tolist())) < 10 < len(keys)
    for width in range(1, len(keys) + 2):
        got = kernels.constrained_topk(index, 1, node, beam_score, logits, width)
        assert list(zip(-got["score"], got["node"].tolist(), strict=True)) == keys[:width]


def test_minus_infinity_is_allowed_and_ranks_last():
    index = kernels.RecallIndex.build(
        [2, 4], [0, 1, 2, 3, 4], [[0, 0], [0, 1], [0, 3], [1, 0], [1, 2]]
    )
    logits = np.array([[0, -np.inf, 0, 1], [-np.inf] * 4], np.float32)
    beam_score = np.array([-1, 0], np.float32)
    got = check(index, 1, np.array([0, 1], np.uint32), beam_score, logits, 10)
    assert got["node"].tolist() == [2, 0, 1, 3, 4]
    assert np.isneginf(got["score"][2:]).all() and np.isneginf(got["step_score"][2:]).all()
    for normalize in ("legal", "vocab"):
        check(index, 1, np.array([0, 1], np.uint32), beam_score, logits, 4, normalize)


def test_an_only_child_costs_nothing_under_legal():
    index = kernels.RecallIndex.build([3, 5], [7], [[1, 4]])
    got = kernels.constrained_topk(
        index, 1, [0], [-2.5], np.full((1, 5), 1e30, np.float32), 3, "legal"
    )
    assert got["score"].tolist() == [-2.5] and got["step_score"].tolist() == [0.0]


def test_extreme_logits_do_not_overflow():
    index = random_index(np.random.default_rng(0), [20], 100)
    logits = np.linspace(-3e38, 3e38, 20, dtype=np.float32)[None]
    for temperature in (1e-30, 1.0, 1e30):
        got = kernels.constrained_topk(index, 0, [0], [0.0], logits, 20, "level", None, temperature)
        assert not np.isnan(got["score"]).any() and got["code"][0] == 19
    assert got["score"][0] == pytest.approx(-np.log(np.exp(np.linspace(-6e8, 0, 20)).sum()))


def test_rows_are_independent_and_repeatable():
    """A row's scores are the same bits alone, among others, in any order."""
    rng = np.random.default_rng(3)
    index = random_index(rng, [30, 257], 3000)
    rows = index.num_nodes(1)
    logits = rng.normal(0, 5, (rows, 257)).astype(np.float32)
    node = np.arange(rows, dtype=np.uint32)
    zeros = np.zeros(rows, np.float32)
    together = kernels.constrained_topk(index, 1, node, zeros, logits, 4096)
    by_node = dict(zip(together["node"].tolist(), together["step_score"].tolist(), strict=True))
    for row in range(rows):
        alone = kernels.constrained_topk(index, 1, [row], [0.0], logits[row : row + 1], 300)
        for n, s in zip(alone["node"].tolist(), alone["step_score"].tolist(), strict=True):
            assert by_node[n] == s


def test_no_rows_give_no_beams():
    index = random_index(np.random.default_rng(0), [4, 4], 5)
    got = kernels.constrained_topk(
        index, 1, np.zeros(0, np.uint32), np.zeros(0), np.zeros((0, 4), np.float32), 5
    )
    assert all(len(v) == 0 for v in got.values())


@pytest.mark.parametrize("bad,shown", [(np.nan, "nan"), (np.inf, "inf")])
def test_a_bad_logit_is_refused_with_its_place(bad, shown):
    index = kernels.RecallIndex.build([2, 4], [0, 1], [[0, 0], [1, 1]])
    logits = np.zeros((2, 4), np.float32)
    logits[1, 2] = bad  # not even an allowed code
    with pytest.raises(
        RuntimeError, match=rf"logits\[1, 2\] = {shown} at level 1: expected finite"
    ):
        kernels.constrained_topk(index, 1, [0, 1], [-1.0, -2.0], logits, 1)


def test_other_errors_name_the_value():
    index = kernels.RecallIndex.build([2, 4], [0, 1], [[0, 0], [1, 1]])
    good = {
        "level": 1,
        "node": [0, 1],
        "beam_score": [0.0, 0.0],
        "logits": np.zeros((2, 4), np.float32),
        "width": 3,
    }

    def refuse(error, message, **changes):
        with pytest.raises(error, match=message):
            kernels.constrained_topk(index, **{**good, **changes})

    refuse(ValueError, r"level = 2: expected 0..1", level=2)
    refuse(ValueError, r"width = 0: expected >= 1", width=0)
    refuse(ValueError, r"node\[1\] = 2 at level 1: expected < 2", node=[0, 2])
    refuse(ValueError, r"temperature = 0: expected > 0 and finite", temperature=0.0)
    refuse(ValueError, r"temperature = nan", temperature=np.nan)
    refuse(ValueError, r"log_normalizer = null", normalize="vocab")
    refuse(ValueError, r"normalize = 'none': expected level, legal or vocab", normalize="none")
    refuse(ValueError, r"logits has shape \[2, 3\]: expected \[2, 4\]", logits=np.zeros((2, 3)))
    refuse(RuntimeError, r"beam_score\[1\] = nan at level 1", beam_score=[0.0, np.nan])
    refuse(
        RuntimeError,
        r"log_normalizer\[0\] = nan at level 1",
        normalize="vocab",
        log_normalizer=[np.nan, 0.0],
    )
