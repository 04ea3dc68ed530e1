"""int8 gemms: each ISA this machine has, bit for bit against NumPy.

W8A8 multiplies exactly, so every ISA gives the bits of an oracle in integers; W8A16 widens the
weights and is held to float tolerances. tests/test_amx_emulation.py does the same for the tiles.
"""

import numpy as np
import pytest
from kernel_checks import DTYPES, assert_close, normal, same_bits

from genrecall.kernels import _kernels

n = _kernels._numeric
SHAPES = [
    (0, 7, 4),
    (1, 1, 2),
    (1, 7, 6),
    (1, 896, 40),
    (2, 33, 18),
    (5, 63, 64),
    (6, 64, 2),
    (7, 65, 38),
    (13, 200, 130),
    (33, 64, 300),
    (50, 100, 270),
    (8, 9000, 22),
]


@pytest.fixture(scope="module")
def pools():
    return {t: n.ThreadPool(t) for t in (1, 2, 3)}


def rng(seed):
    return np.random.default_rng(seed)


def int8(seed, *shape):
    """All 256 values, -128 too: a file of another quantiser may hold it."""
    return rng(seed).integers(-128, 128, shape).astype(np.int8)


def stored(x, dtype):
    """x as the kernels hold it."""
    return n.Tensor(np.ascontiguousarray(x), dtype).numpy()


def quantize(x):
    """(q int8, scale float32 [rows]): the specification of kernels/quantize.h, in NumPy."""
    with np.errstate(divide="ignore", over="ignore"):
        largest = np.abs(x).max(axis=1, initial=0.0).astype(np.float32)
        kept = largest >= np.float32(1e-36)
        scale = np.where(kept, largest / np.float32(127), np.float32(0)).astype(np.float32)
        inverse = np.where(kept, np.float32(127) / largest, np.float32(0)).astype(np.float32)
    return np.rint(x * inverse[:, None]).astype(np.int8), scale


def w8a8(x, w, scale, bias=None):
    """float32 [rows, outs]: exact integer sums, then the epilogue's three float32 roundings."""
    q, x_scale = quantize(x)
    exact = q.astype(np.int64) @ w.astype(np.int64).T
    assert np.abs(exact).max(initial=0) < 2**31
    y = exact.astype(np.float32) * scale * x_scale[:, None]
    return y if bias is None else y + bias


def gemm(isa, dtype, x, w, scale, quantize_inputs=True, **options):
    parts = 2 if options.get("epilogue") == "swiglu" else 1
    weights = n.Int8Weights(w, scale, quantize_inputs, parts)
    y = n.gemm(isa, n.Tensor(np.ascontiguousarray(x), dtype), weights, **options)
    return y.numpy() if isinstance(y, n.Tensor) else y


def inputs(rows, k, outs):
    """x with columns of very different size, int8 weights, positive scales, a bias."""
    x = normal(1, rows, k) * np.exp(normal(5, k, scale=2))
    return x, int8(2, outs, k), rng(3).uniform(1e-4, 1e-2, outs).astype(np.float32), normal(4, outs)


def silu(x):
    return x / (1 + np.exp(np.minimum(-x, 700)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows,k,outs", SHAPES)
def test_w8a8_is_exact_on_every_isa(isa, dtype, rows, k, outs, pools):
    x, w, scale, bias = inputs(rows, k, outs)
    kept = stored(x, dtype)
    assert same_bits(gemm(isa, dtype, x, w, scale), w8a8(kept, w, scale))
    expected = w8a8(kept, w, scale, bias)
    assert same_bits(gemm(isa, dtype, x, w, scale, bias=bias, pool=pools[2]), expected)
    y = normal(6, rows, outs)
    gemm(isa, dtype, x, w, scale, bias=bias, epilogue="accumulate", y=(added := y.copy()))
    assert same_bits(added, y + expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows,k,outs", SHAPES)
def test_w8a8_swiglu(isa, dtype, rows, k, outs, pools):
    x, w, scale, bias = inputs(rows, k, outs)
    both = w8a8(stored(x, dtype), w, scale, bias).astype(np.float64)
    expected = silu(both[:, : outs // 2]) * both[:, outs // 2 :]
    actual = gemm(isa, dtype, x, w, scale, bias=bias, epilogue="swiglu", pool=pools[2])
    assert_close(actual, expected, {"float32": 1e-6, "bfloat16": 2.0**-8}[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows,k,outs", SHAPES)
def test_w8a16_multiplies_by_the_weights_that_int8_stands_for(isa, dtype, rows, k, outs, pools):
    x, w, scale, bias = inputs(rows, k, outs)
    product = stored(x, dtype).astype(np.float64) @ w.astype(np.float64).T * scale + bias
    options = {"quantize_inputs": False, "bias": bias, "pool": pools[2]}
    # Scalar adds 9,000 products of very different size one after the other.
    assert_close(gemm(isa, dtype, x, w, scale, **options), product, 1e-5)
    expected = silu(product[:, : outs // 2]) * product[:, outs // 2 :]
    actual = gemm(isa, dtype, x, w, scale, epilogue="swiglu", **options)
    assert_close(actual, expected, {"float32": 2e-5, "bfloat16": 2.0**-8}[dtype])


@pytest.mark.parametrize("quantize_inputs", [True, False])
@pytest.mark.parametrize("epilogue", ["store", "swiglu"])
@pytest.mark.parametrize("rows,k,outs,threads", [(300, 4100, 140, 2), (1040, 1088, 256, 1)])
def test_many_long_rows(isa, quantize_inputs, epilogue, rows, k, outs, threads, pools):
    """More activations than a cache holds pass piece by piece: a row has the bits it has alone."""
    x, w, scale, bias = inputs(rows, k, outs)
    options = {"quantize_inputs": quantize_inputs, "bias": bias, "epilogue": epilogue}
    whole = gemm(isa, "bfloat16", x, w, scale, pool=pools[threads], **options)
    for first, last in [(0, 1), (150, 155), (rows - 1, rows)]:
        part = gemm(isa, "bfloat16", x[first:last], w, scale, **options)
        assert same_bits(part, whole[first:last]), (first, last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantize_inputs", [True, False])
@pytest.mark.parametrize("epilogue", ["store", "swiglu"])
@pytest.mark.parametrize("k,outs", [(33, 34), (160, 270), (5000, 18)])
def test_rows_do_not_depend_on_the_batch(isa, dtype, quantize_inputs, epilogue, k, outs, pools):
    x, w, scale, bias = inputs(70, k, outs)
    options = {"quantize_inputs": quantize_inputs, "bias": bias, "epilogue": epilogue}
    whole = gemm(isa, dtype, x, w, scale, **options)
    for pool in pools.values():
        assert same_bits(gemm(isa, dtype, x, w, scale, pool=pool, **options), whole)
    for first, last in [(0, 1), (69, 70), (3, 8), (17, 66), (1, 33)]:
        part = gemm(isa, dtype, x[first:last], w, scale, pool=pools[2], **options)
        assert same_bits(part, whole[first:last]), (first, last)
    order = rng(5).permutation(70)
    assert same_bits(gemm(isa, dtype, x[order], w, scale, **options), whole[order])


@pytest.mark.parametrize("quantize_inputs", [True, False])
def test_outputs_do_not_depend_on_the_other_outputs(isa, quantize_inputs):
    x, w, scale, _ = inputs(9, 100, 90)
    whole = gemm(isa, "bfloat16", x, w, scale, quantize_inputs)
    for first, last in [(0, 1), (3, 40), (89, 90), (17, 81)]:
        part = gemm(isa, "bfloat16", x, w[first:last], scale[first:last], quantize_inputs)
        assert same_bits(part, whole[:, first:last])


def test_largest_sums_do_not_saturate(isa):
    """Pairs and quadruples of the largest products: what vpmaddubsw would clip."""
    k = 4096
    x = np.ones((2, k), np.float32)
    x[1] = -1
    w = np.stack([np.full(k, 127), np.full(k, -128)]).astype(np.int8)
    y = gemm(isa, "float32", x, w, np.ones(2, np.float32))
    exact = 127.0 * np.array([[127 * k, -128 * k], [-127 * k, 128 * k]])
    assert same_bits(y, exact.astype(np.float32) * np.float32(1 / np.float32(127)))


@pytest.mark.parametrize("k", [3, 64, 130])
def test_rows_of_zeros_and_rows_too_small_to_scale_are_zero(isa, k):
    x = np.zeros((4, k), np.float32)
    x[1, k // 2] = 1e-38
    x[2, 0] = -1.0
    x[3, 1] = 2e-36
    w, scale = int8(1, 10, k), np.ones(10, np.float32)
    y = gemm(isa, "float32", x, w, scale)
    assert not y[:2].any()
    assert same_bits(y, w8a8(x, w, scale))
    assert y[2].any() and y[3].any()


def test_an_outlier_takes_the_row_and_no_other(isa):
    x, w, scale, _ = inputs(5, 200, 20)
    clean = gemm(isa, "float32", x, w, scale)
    x[2, 17] = 3e38
    dirty = gemm(isa, "float32", x, w, scale)
    others = [0, 1, 3, 4]
    assert same_bits(dirty[others], clean[others])
    assert same_bits(dirty, w8a8(x, w, scale))
    assert np.array_equal(quantize(x)[0][2].nonzero()[0], [17])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantize_inputs", [True, False])
@pytest.mark.parametrize("place", [0, 7, 39, 70])
def test_non_finite_stays_in_its_row(isa, bad, quantize_inputs, place):
    x, w, scale, _ = inputs(8, 71, 20)
    w[w == 0] = 1  # infinity times 0 is NaN, times another weight infinity: not finite either way
    clean = gemm(isa, "bfloat16", x, w, scale, quantize_inputs)
    x[3, place] = bad
    dirty = gemm(isa, "bfloat16", x, w, scale, quantize_inputs)
    assert not np.isfinite(dirty[3]).any()
    others = [0, 1, 2, 4, 5, 6, 7]
    assert same_bits(dirty[others], clean[others])


def test_refuses_mismatched_inputs():
    x, scale = n.Tensor(normal(1, 2, 3), "float32"), np.ones(5, np.float32)
    with pytest.raises(ValueError, match=r"w, scale: expected \[rows, k\] and \[rows\]"):
        n.Int8Weights(int8(1, 4, 3), scale, True)
    with pytest.raises(
        ValueError, match=r"expected \[n, k\] and \[rows, k\] of one dtype, or int8"
    ):
        n.gemm("scalar", x, n.Int8Weights(int8(1, 5, 4), scale, True))
    for epilogue, parts in (("store", 2), ("accumulate", 2), ("swiglu", 1)):
        weights = n.Int8Weights(int8(1, 6, 3), np.ones(6, np.float32), True, parts)
        with pytest.raises(ValueError, match="w: expected int8 weights in 2 parts for swiglu"):
            n.gemm("scalar", x, weights, epilogue=epilogue)
    for parts in (0, 2, 3):
        with pytest.raises(ValueError, match="parts: expected 1, or 2 for an even number of rows"):
            n.Int8Weights(int8(1, 5, 3), scale, True, parts)
