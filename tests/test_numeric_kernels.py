"""The transformer's numeric kernels: each ISA this machine has, against float64 NumPy and scalar.

Three kinds of claim:
  accuracy    every ISA is within a stated tolerance of a float64 oracle, and of scalar;
  invariance  a row's bits depend on neither the batch, its place in it, the thread count nor the
              chunking of a prefill;
  edges       0 rows, 1 row, sizes that fill no vector, head dimensions of all kinds, unwritten KV
              memory never read.
"""

import numpy as np
import pytest
from kernel_checks import DTYPES, STORED, assert_close, bf16, normal, rounded, same_bits

from genrecall.kernels import _kernels

n = _kernels._numeric
# Relative to the oracle's largest magnitude: float32 accumulation.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-6}


@pytest.fixture(scope="module")
def pools():
    return {t: n.ThreadPool(t) for t in (1, 2, 3, 5)}


# --- gemm --------------------


def silu(x):
    return x / (1 + np.exp(-x))


def gemm(isa, dtype, x, w, **options):
    y = n.gemm(isa, n.Tensor(x, dtype), n.Tensor(w, dtype), **options)
    return y.numpy() if isinstance(y, n.Tensor) else y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows,k,outs",
    [
        (0, 7, 3),
        (1, 1, 1),
        (1, 7, 5),
        (2, 33, 17),
        (5, 31, 64),
        (7, 896, 37),
        (13, 64, 130),
        (23, 65, 2),
        (50, 100, 300),
        (8, 2500, 21),
    ],
)
def test_gemm_store_and_accumulate(isa, dtype, rows, k, outs, pools):
    x, w, bias = normal(1, rows, k), normal(2, outs, k), normal(3, outs)
    x64, w64 = (rounded(a, dtype).astype(np.float64) for a in (x, w))
    product = x64 @ w64.T
    assert_close(gemm(isa, dtype, x, w), product, TOLERANCE[dtype])
    assert_close(gemm(isa, dtype, x, w, bias=bias, pool=pools[2]), product + bias, TOLERANCE[dtype])
    y = normal(4, rows, outs)
    expected = y + product + bias
    gemm(isa, dtype, x, w, bias=bias, epilogue="accumulate", y=y, pool=pools[3])
    assert_close(y, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows,k,outs", [(0, 8, 8), (1, 7, 2), (3, 33, 14), (7, 96, 74), (14, 64, 600)]
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_gemm_swiglu(isa, dtype, rows, k, outs, with_bias, pools):
    x, w = normal(1, rows, k), normal(2, outs, k, scale=0.5)
    bias = normal(3, outs) if with_bias else None
    product = rounded(x, dtype).astype(np.float64) @ rounded(w, dtype).astype(np.float64).T
    if with_bias:
        product = product + bias
    expected = silu(product[:, : outs // 2]) * product[:, outs // 2 :]
    actual = gemm(isa, dtype, x, w, bias=bias, epilogue="swiglu", pool=pools[2])
    assert_close(actual, expected, STORED[dtype])


def silu_of(isa, x, outs=19):
    """SiLU of bf16 numbers as the epilogue computes it: gate = x, up = 1. -> [len(x), outs]"""
    w = np.repeat(np.float32([1, 0]), outs)[:, None]
    return gemm(isa, "bfloat16", x[:, None], w, bias=1 - w[:, 0], epilogue="swiglu")


def test_silu_is_within_one_rounding_to_bf16(isa):
    """Every bf16 number up to 86: half a unit of the last place, and 2^-14 for the function."""
    positive = (np.arange(0x10000, dtype=np.uint32) << 16).view(np.float32)
    positive = positive[(positive > 1e-30) & (positive <= 86)]
    x = np.concatenate([-positive[::-1], np.zeros(1, np.float32), positive])
    expected = silu(x.astype(np.float64))[:, None]
    error = np.abs(silu_of(isa, x) - expected)
    assert (error <= (2.0**-8 + 2.0**-14) * np.abs(expected)).all()


def test_silu_at_its_edges(isa):
    x = np.array([-1e4, -90, 90, 1e30, np.inf, -np.inf, np.nan], np.float32)
    y = silu_of(isa, x)
    assert (np.abs(y[:2]) < 1e-30).all()
    assert same_bits(y[2:4], np.repeat(rounded(x[2:4], "bfloat16")[:, None], y.shape[1], axis=1))
    assert not np.isfinite(y[4:]).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ["store", "swiglu"])
@pytest.mark.parametrize("k,outs", [(33, 34), (160, 270), (2500, 18)])
def test_gemm_rows_do_not_depend_on_the_batch(isa, dtype, epilogue, k, outs, pools):
    x, w, bias = normal(1, 70, k), normal(2, outs, k), normal(3, outs)
    whole = gemm(isa, dtype, x, w, bias=bias, epilogue=epilogue)
    for threads, pool in pools.items():
        assert same_bits(gemm(isa, dtype, x, w, bias=bias, epilogue=epilogue, pool=pool), whole), (
            threads
        )
    for first, last in [(0, 1), (69, 70), (3, 8), (17, 66), (1, 33)]:
        part = gemm(isa, dtype, x[first:last], w, bias=bias, epilogue=epilogue, pool=pools[2])
        assert same_bits(part, whole[first:last]), (first, last)
    order = np.random.default_rng(5).permutation(70)
    assert same_bits(gemm(isa, dtype, x[order], w, bias=bias, epilogue=epilogue), whole[order])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ["store", "swiglu"])
@pytest.mark.parametrize("rows,k,outs,threads", [(300, 4100, 140, 2), (1040, 544, 256, 1)])
def test_gemm_of_more_activations_than_a_cache_holds(
    isa, dtype, epilogue, rows, k, outs, threads, pools
):
    """A row among many long ones has the bits it has alone.

    They pass piece by piece: the first shape in one group of columns, the second in several.
    """
    x, w, bias = normal(1, rows, k), normal(2, outs, k, scale=0.05), normal(3, outs)
    whole = gemm(isa, dtype, x, w, bias=bias, epilogue=epilogue, pool=pools[threads])
    for first, last in [(0, 1), (150, 155), (rows - 1, rows)]:
        part = gemm(isa, dtype, x[first:last], w, bias=bias, epilogue=epilogue)
        assert same_bits(part, whole[first:last]), (first, last)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gemm_outputs_do_not_depend_on_the_other_outputs(isa, dtype):
    """So a head computed over some of its rows gives what the whole head gives."""
    x, w = normal(1, 9, 100), normal(2, 90, 100)
    whole = gemm(isa, dtype, x, w)
    for first, last in [(0, 1), (3, 40), (89, 90), (17, 81)]:
        assert same_bits(
            gemm(isa, dtype, x, w[first:last]), np.ascontiguousarray(whole[:, first:last])
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ["store", "swiglu"])
def test_gemm_non_finite_stays_in_its_row(isa, dtype, epilogue):
    x, w = normal(1, 8, 40), normal(2, 20, 40)
    clean = gemm(isa, dtype, x, w, epilogue=epilogue)
    x[3, 7] = np.nan
    dirty = gemm(isa, dtype, x, w, epilogue=epilogue)
    assert np.isnan(dirty[3]).all()
    others = [0, 1, 2, 4, 5, 6, 7]
    assert same_bits(dirty[others], clean[others])


def test_gemm_refuses_mismatched_inputs():
    x, w = n.Tensor(normal(1, 2, 3), "float32"), n.Tensor(normal(1, 2, 4), "float32")
    with pytest.raises(ValueError, match=r"x, w: expected \[n, k\] and \[rows, k\] of one dtype"):
        n.gemm("scalar", x, w)
    nothing = n.Tensor(np.zeros((2, 0), np.float32), "float32")
    with pytest.raises(ValueError, match="w: expected 1 column or more"):
        n.gemm("scalar", nothing, nothing)
    with pytest.raises(ValueError, match="epilogue = 'gelu': expected store|accumulate|swiglu"):
        n.gemm("scalar", x, x, epilogue="gelu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_isas_agree_with_scalar(isa, dtype):
    """Epsilon across ISAs: 1e-6 of the largest value."""
    x, w = normal(1, 9, 896), normal(2, 64, 896)
    assert_close(gemm(isa, dtype, x, w), gemm("scalar", dtype, x, w), 1e-6)


# --- rows --------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows,dim", [(0, 8), (1, 1), (3, 7), (2, 64), (5, 896), (2, 100)])
def test_rms_norm(isa, dtype, rows, dim):
    x, weight = normal(1, rows, dim, scale=3), normal(2, dim)
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + 1e-6) * weight
    assert_close(n.rms_norm(isa, dtype, x, weight, 1e-6), expected, STORED[dtype])


@pytest.mark.parametrize(
    "rows,heads,dim", [(0, 1, 8), (1, 1, 2), (3, 2, 8), (4, 3, 64), (2, 2, 80), (5, 1, 128)]
)
def test_rope(isa, rows, heads, dim):
    x = normal(1, rows, heads, dim)
    position = np.random.default_rng(2).integers(0, 50, rows).astype(np.int32)
    angle = np.arange(50)[:, None] * 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    cos_sin = np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    c, s = np.cos(angle)[position][:, None, :], np.sin(angle)[position][:, None, :]
    a, b = x[..., : dim // 2].astype(np.float64), x[..., dim // 2 :].astype(np.float64)
    expected = np.concatenate([a * c - b * s, b * c + a * s], axis=-1)
    assert_close(n.rope(isa, x, position, cos_sin), expected, 1e-6)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 100, 4097])
def test_convert_rounds_to_nearest_even(isa, size):
    bits = np.random.default_rng(1).integers(0, 2**32, size, dtype=np.uint32)
    x = bits.view(np.float32)
    x = np.where(np.isnan(x), np.float32(1), x)
    x[: min(size, 4)] = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x80000000], np.uint32).view(
        np.float32
    )[:size]
    assert same_bits(n.convert(isa, "bfloat16", x), bf16(x))
    assert same_bits(n.convert(isa, "float32", x), x)


def test_convert_keeps_nan(isa):
    x = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    assert np.isnan(n.convert(isa, "bfloat16", x)).all()


@pytest.mark.parametrize("rows,cols", [(0, 3), (1, 1), (3, 7), (2, 256), (2, 1003)])
def test_max_sum_exp(isa, rows, cols):
    x = normal(1, rows, cols, scale=5)
    m, s = n.max_sum_exp(isa, x)
    np.testing.assert_array_equal(m, x.max(axis=1) if rows else np.zeros(0))
    np.testing.assert_allclose(
        s, np.exp(x.astype(np.float64) - m[:, None].astype(np.float64)).sum(axis=1), rtol=1e-6
    )


def test_max_sum_exp_with_minus_infinity(isa):
    x = np.array([[-np.inf, 1.0, -np.inf, 2.0, 1.0]], np.float32)
    m, s = n.max_sum_exp(isa, x)
    assert m[0] == 2.0
    np.testing.assert_allclose(s, 1 + 2 * np.exp(-1.0), rtol=1e-6)


def ulp_error(actual, expected):
    return np.abs(actual.astype(np.float64) - expected) / np.spacing(
        expected.astype(np.float32)
    ).astype(np.float64)


def test_exp_is_within_two_ulp(isa):
    x = np.concatenate([np.linspace(-87.33, 88.37, 400_003), np.linspace(-1, 1, 200_001)]).astype(
        np.float32
    )
    assert ulp_error(n.exp(isa, x), np.exp(x.astype(np.float64))).max() <= 2.0


def test_exp_at_its_edges(isa):
    x = np.array([0.0, -0.0, -np.inf, -87.4, -1e30, 88.4, 1e30, np.inf, np.nan], np.float32)
    y = n.exp(isa, x)
    assert (y[:2] == 1.0).all() and (y[2:5] == 0.0).all()
    assert np.isfinite(y[5:8]).all() and (y[5:8] > 2e38).all()
    assert np.isnan(y[8])


# --- threads --------------------


@pytest.mark.parametrize(
    "size,grain", [(0, 1), (1, 1), (7, 1), (7, 3), (64, 64), (1000, 7), (1000, 2000), (10, 0)]
)
def test_parallel_for_visits_each_element_once(pools, size, grain):
    for pool in pools.values():
        np.testing.assert_array_equal(pool.visits(size, grain, repeats=50), np.full(size, 50))


def test_parallel_for_survives_many_short_forks(pools):
    np.testing.assert_array_equal(pools[5].visits(16, 1, repeats=20_000), np.full(16, 20_000))


def test_thread_pool_refuses_no_threads():
    with pytest.raises(ValueError, match="num_threads = 0: expected >= 1"):
        n.ThreadPool(0)
