"""What the tests of the numeric kernels share: names, tolerances, inputs and comparisons."""

import numpy as np

ISAS = ["scalar", "avx2", "avx512", "avx512_bf16", "amx"]  # each includes the ones before
DTYPES = ["float32", "bfloat16"]
# Relative to the largest magnitude expected: results stored as the dtype.
STORED = {"float32": 2e-6, "bfloat16": 2.0**-8}


def bf16(x):
    """float32 -> the nearest bf16, ties to even, as float32. The oracle of `convert`."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return (((u + 0x7FFF + ((u >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def rounded(x, dtype):
    return bf16(x) if dtype == "bfloat16" else np.asarray(x, np.float32)


def normal(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def assert_close(actual, expected, tolerance):
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    bound = tolerance * max(np.abs(expected).max(initial=0.0), 1e-30)
    assert np.abs(actual - expected).max(initial=0.0) <= bound


def same_bits(a, b):
    return a.shape == b.shape and np.array_equal(
        np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32)
    )


def attend(q, k, v, scale):
    """float64 softmax attention: q [heads, d], k, v [keys, kv_heads, d] -> [heads * d]."""
    group = q.shape[0] // k.shape[1]
    k, v = (np.repeat(a.astype(np.float64), group, axis=1) for a in (k, v))
    scores = scale * np.einsum("hd,khd->hk", q.astype(np.float64), k)
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.einsum("hk,khd->hd", p / p.sum(axis=1, keepdims=True), v).ravel()


def beam_inputs(beams, prompt, tail, q_heads, kv_heads, dim, rows=None):
    """The arguments of beam attention; tails of `rows` rows, or one a beam."""
    rows = rows or beams
    ancestor = np.random.default_rng(7).integers(0, rows, (tail, beams)).astype(np.int32)
    return {
        "q": normal(1, beams, q_heads, dim),
        "k": normal(2, prompt, kv_heads, dim),
        "v": normal(3, prompt, kv_heads, dim),
        "tail_k": normal(4, tail, rows, kv_heads, dim),
        "tail_v": normal(5, tail, rows, kv_heads, dim),
        "ancestor": ancestor,
    }
