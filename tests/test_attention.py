"""Attention of prompts and of beams, on each ISA this machine has.

Beside a float64 oracle, beside scalar, and to the bit beside itself in other chunks, company and
thread counts.
"""

import numpy as np
import pytest
from kernel_checks import (
    DTYPES,
    STORED,
    assert_close,
    attend,
    beam_inputs,
    normal,
    rounded,
    same_bits,
)

from genrecall.kernels import _kernels

n = _kernels._numeric


@pytest.fixture(scope="module")
def pools():
    return {t: n.ThreadPool(t) for t in (1, 2, 3, 5)}


HEADS = [
    (1, 1, 8),
    (4, 2, 16),
    (14, 2, 64),
    (3, 3, 80),
    (4, 1, 128),
    (6, 2, 12),
]  # q_heads, kv_heads, head_dim


def prefill_inputs(tokens, q_heads, kv_heads, dim):
    return (
        normal(1, tokens, q_heads, dim),
        normal(2, tokens, kv_heads, dim),
        normal(3, tokens, kv_heads, dim),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_heads,kv_heads,dim", HEADS)
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 150])
def test_prefill_attention(isa, dtype, q_heads, kv_heads, dim, tokens, pools):
    q, k, v = prefill_inputs(tokens, q_heads, kv_heads, dim)
    scale = dim**-0.5
    actual = n.prefill_attention(isa, dtype, q, k, v, 0, scale, pools[2])
    k, v = rounded(k, dtype), rounded(v, dtype)
    expected = np.stack([attend(q[t], k[: t + 1], v[: t + 1], scale) for t in range(tokens)])
    assert_close(actual, expected, STORED[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_heads,kv_heads,dim", [(4, 2, 16), (3, 3, 20), (14, 2, 64)])
def test_prefill_does_not_depend_on_chunks_or_threads(isa, dtype, q_heads, kv_heads, dim, pools):
    tokens, scale = 150, 0.2
    q, k, v = prefill_inputs(tokens, q_heads, kv_heads, dim)
    whole = n.prefill_attention(isa, dtype, q, k, v, 0, scale)
    for pool in pools.values():
        assert same_bits(n.prefill_attention(isa, dtype, q, k, v, 0, scale, pool), whole)
    for chunk in (1, 17, 64, 100):
        for first in range(0, tokens, chunk):
            last = min(first + chunk, tokens)
            part = n.prefill_attention(
                isa, dtype, q[first:last], k[:last], v[:last], first, scale, pools[2]
            )
            assert same_bits(part, whole[first:last]), (chunk, first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_heads,kv_heads,dim", HEADS)
@pytest.mark.parametrize("beams,prompt,tail", [(1, 1, 1), (5, 64, 2), (9, 150, 3), (33, 70, 8)])
def test_beam_attention(isa, dtype, q_heads, kv_heads, dim, beams, prompt, tail, pools):
    inputs, scale = beam_inputs(beams, prompt, tail, q_heads, kv_heads, dim), dim**-0.5
    actual = n.beam_attention(isa, dtype, **inputs, scale=scale, pool=pools[2])
    k, v, tail_k, tail_v = (rounded(inputs[name], dtype) for name in ("k", "v", "tail_k", "tail_v"))
    expected = []
    for b in range(beams):
        own = [
            (tail_k[j, inputs["ancestor"][j, b]], tail_v[j, inputs["ancestor"][j, b]])
            for j in range(tail)
        ]
        keys = np.concatenate([k, [x for x, _ in own]])
        values = np.concatenate([v, [x for _, x in own]])
        expected.append(attend(inputs["q"][b], keys, values, scale))
    assert_close(actual, np.stack(expected), STORED[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_beams_do_not_depend_on_each_other(isa, dtype, pools):
    inputs = beam_inputs(40, 130, 3, 6, 2, 24)
    whole = n.beam_attention(isa, dtype, **inputs, scale=0.2)
    for pool in pools.values():
        assert same_bits(n.beam_attention(isa, dtype, **inputs, scale=0.2, pool=pool), whole)
    order = np.random.default_rng(3).permutation(40)[:23]
    some = {**inputs, "q": inputs["q"][order], "ancestor": inputs["ancestor"][:, order]}
    assert same_bits(n.beam_attention(isa, dtype, **some, scale=0.2, pool=pools[3]), whole[order])


@pytest.mark.parametrize("magnitude", [30.0, 1e4])
def test_attention_survives_large_scores(isa, magnitude):
    """The running maximum keeps exp in range: one key wins, and no value is lost to overflow."""
    q, k, v = prefill_inputs(100, 2, 1, 16)
    actual = n.prefill_attention(isa, "float32", q * magnitude, k, v, 0, 1.0)
    expected = np.stack([attend(q[t] * magnitude, k[: t + 1], v[: t + 1], 1.0) for t in range(100)])
    assert_close(actual, expected, 1e-5 * magnitude)


@pytest.mark.parametrize("dtype", DTYPES)
def test_isas_agree_with_scalar(isa, dtype):
    """Epsilon across ISAs: 1e-6 of the largest value for float32 results, one rounding for bf16."""
    q, k, v = prefill_inputs(90, 4, 2, 64)
    scalar = n.prefill_attention("scalar", dtype, q, k, v, 0, 0.125)
    assert_close(
        n.prefill_attention(isa, dtype, q, k, v, 0, 0.125),
        scalar,
        {"float32": 1e-6, "bfloat16": 2.0**-8}[dtype],
    )
