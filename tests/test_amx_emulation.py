"""The AMX kernels on emulated tiles: their own source, compiled with -DGENRECALL_EMULATE_AMX.

On a machine with AMX, test_numeric_kernels.py and test_attention.py run them on the real tiles;
this file shows that what surrounds the tile instructions is right on every machine with AVX-512.
"""

import ctypes
import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from kernel_checks import beam_inputs, normal

from genrecall.kernels import _kernels

n = _kernels._numeric
ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    "tests/amx_emulation.cc",
    "kernels/attention.cc",
    "kernels/attention_amx.cc",
    "kernels/attention_avx512.cc",
    "kernels/cpu_quota.cc",
    "kernels/gemm_amx.cc",
    "kernels/gemm_avx512.cc",
    "kernels/gemm.cc",
    "kernels/int8_panels.cc",
    "kernels/row_kernels_avx512.cc",
    "kernels/scratch.cc",
    "kernels/thread_pool.cc",
]


def build(folder):
    """Compiles the emulation with the flags of build_defs.bzl, AVX-512 around the tiles."""
    scope = {}
    exec((ROOT / "build_defs.bzl").read_text(), scope)
    flags = scope["GENRECALL_COPTS"] + scope["isa_copts"]("x_avx512.cc") + ["-O1"]
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    objects = []
    for source in SOURCES:
        # What an AVX-512 flag does to shared code does not matter here: nothing else is linked.
        objects.append(str(folder / (Path(source).name + ".o")))
        command = [*compiler, *flags, "-DGENRECALL_EMULATE_AMX", "-iquote", str(ROOT)]
        subprocess.run([*command, "-c", str(ROOT / source), "-o", objects[-1]], check=True)
    library = folder / "amx_emulation.so"
    subprocess.run([*compiler, "-shared", "-o", str(library), *objects, "-pthread"], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    if n.detected_isa() in ("scalar", "avx2"):
        pytest.skip(
            f"the AMX kernel needs AVX-512 around its tiles; this machine has {n.detected_isa()}"
        )
    if not (ROOT / "kernels/gemm_amx.cc").exists():
        pytest.skip("needs the source tree")
    return build(tmp_path_factory.mktemp("amx"))


def pointer(array, kind=ctypes.c_float):
    return None if array is None else array.ctypes.data_as(ctypes.POINTER(kind))


def bf16(x):
    """float32 -> the nearest bf16, ties to even, as float32."""
    return n.convert("scalar", "bfloat16", x.ravel()).reshape(x.shape)


def amx_gemm(library, x, w, bias=None, epilogue="store", y=None, threads=1, dtype="bfloat16"):
    rows, k = x.shape
    outs = w.shape[0]
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    if y is None:
        y = np.empty((rows, outs // 2 if epilogue == "swiglu" else outs), np.float32)
    library.genrecall_amx_gemm(
        ["float32", "bfloat16"].index(dtype),
        pointer(x),
        pointer(w),
        pointer(bias),
        ctypes.c_int64(rows),
        ctypes.c_int64(k),
        ctypes.c_int64(outs),
        ["store", "accumulate", "swiglu"].index(epilogue),
        pointer(y),
        threads,
    )
    return y


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    bound = tolerance * max(np.abs(expected).max(initial=0.0), 1e-30)
    assert np.abs(actual - expected).max(initial=0.0) <= bound


def same_bits(a, b):
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def tile_dot(library, a, b, c):
    """a [16, 32], b [32, 16] of bf16 numbers, c [16, 16] -> what the tile product leaves in c."""
    a_bits = (a.view(np.uint32) >> 16).astype(np.uint16)
    b_bits = (b.view(np.uint32) >> 16).astype(np.uint16)
    pairs = np.ascontiguousarray(b_bits.reshape(16, 2, 16).transpose(0, 2, 1))
    c = c.copy()
    library.genrecall_tile_dot(
        pointer(a_bits, ctypes.c_uint16), pointer(pairs, ctypes.c_uint16), pointer(c)
    )
    return c


def test_tile_product_is_a_matrix_product(emulation):
    a, b, c = bf16(normal(1, 16, 32)), bf16(normal(2, 32, 16)), normal(3, 16, 16)
    assert_close(tile_dot(emulation, a, b, c), c + a.astype(np.float64) @ b, 1e-6)


def test_tile_product_sums_even_and_odd_k_apart(emulation):
    """The manual's order: 2^24 + 1 is lost only where both meet in one of the two sums."""
    a, b, c = (np.zeros(s, np.float32) for s in ((16, 32), (32, 16), (16, 16)))
    a[0, 0], b[0, 0] = 2.0**12, 2.0**12  # even: 2^24, then + 1 in the same sum is lost
    a[0, 2], b[2, 0] = 1.0, 1.0
    assert tile_dot(emulation, a, b, c)[0, 0] == 2.0**24
    a[0, 3], b[3, 0] = 1.0, 1.0  # odd: 1 + 1 = 2 before it meets 2^24
    a[0, 5], b[5, 0] = 1.0, 1.0
    assert tile_dot(emulation, a, b, c)[0, 0] == 2.0**24 + 2


def test_tile_product_takes_subnormals_as_zero(emulation):
    a, b, c = (np.zeros(s, np.float32) for s in ((16, 32), (32, 16), (16, 16)))
    a[0, 0], b[0, 0] = 2.0**-127, 2.0**100  # subnormal input
    a[1, 2], b[2, 1] = 2.0**-70, 2.0**-70  # subnormal product
    c[2, 2] = 2.0**-130  # subnormal accumulator
    assert not tile_dot(emulation, a, b, c).any()


@pytest.mark.parametrize(
    "rows,k,outs",
    [
        (0, 32, 16),
        (1, 1, 1),
        (1, 7, 5),
        (2, 33, 17),
        (16, 32, 32),
        (17, 31, 64),
        (7, 896, 37),
        (33, 64, 300),
        (65, 100, 48),
        (40, 1100, 70),
    ],
)
@pytest.mark.parametrize("epilogue", ["store", "accumulate", "swiglu"])
def test_gemm_matches_scalar(emulation, rows, k, outs, epilogue):
    if epilogue == "swiglu":
        outs += outs % 2
    x, w, bias, y = normal(1, rows, k), normal(2, outs, k), normal(3, outs), normal(4, rows, outs)
    tensors = n.Tensor(x, "bfloat16"), n.Tensor(w, "bfloat16")
    if epilogue == "swiglu":
        actual = amx_gemm(emulation, x, w, bias, epilogue, threads=2)
        expected = n.gemm("scalar", *tensors, bias=bias, epilogue=epilogue).numpy()
        assert_close(actual, expected, 2.0**-8)
        return
    expected = n.gemm("scalar", *tensors, bias=bias, epilogue=epilogue, y=y.copy())
    actual = amx_gemm(emulation, x, w, bias, epilogue, y=y.copy(), threads=2)
    assert_close(actual, expected, 2e-6)


@pytest.mark.parametrize("k,outs", [(33, 34), (100, 270), (1100, 40)])
@pytest.mark.parametrize("epilogue", ["store", "swiglu"])
def test_gemm_rows_do_not_depend_on_the_batch(emulation, k, outs, epilogue):
    x, w, bias = normal(1, 70, k), normal(2, outs, k), normal(3, outs)
    whole = amx_gemm(emulation, x, w, bias, epilogue)
    assert same_bits(amx_gemm(emulation, x, w, bias, epilogue, threads=3), whole)
    for first, last in [(0, 1), (69, 70), (3, 8), (17, 66), (1, 33)]:
        part = amx_gemm(emulation, x[first:last], w, bias, epilogue, threads=2)
        assert same_bits(part, whole[first:last]), (first, last)
    order = np.random.default_rng(5).permutation(70)
    assert same_bits(amx_gemm(emulation, x[order], w, bias, epilogue), whole[order])


def test_gemm_outputs_do_not_depend_on_the_other_outputs(emulation):
    x, w = normal(1, 9, 100), normal(2, 90, 100)
    whole = amx_gemm(emulation, x, w)
    for first, last in [(0, 1), (3, 40), (89, 90), (17, 81)]:
        part = amx_gemm(emulation, x, w[first:last])
        assert same_bits(part, np.ascontiguousarray(whole[:, first:last]))


def test_float32_is_what_avx512_gives(emulation):
    x, w = normal(1, 9, 100), normal(2, 90, 100)
    expected = n.gemm("avx512", n.Tensor(x, "float32"), n.Tensor(w, "float32"))
    assert same_bits(amx_gemm(emulation, x, w, dtype="float32"), expected)


def int8_gemm(library, dtype, quantize_inputs, x, w, scale, bias, epilogue="store", threads=1):
    rows, k = x.shape
    outs = w.shape[0]
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    y = np.empty((rows, outs // 2 if epilogue == "swiglu" else outs), np.float32)
    library.genrecall_amx_int8_gemm(
        ["float32", "bfloat16"].index(dtype),
        ctypes.c_bool(quantize_inputs),
        pointer(x),
        pointer(w, ctypes.c_int8),
        pointer(scale),
        pointer(bias),
        ctypes.c_int64(rows),
        ctypes.c_int64(k),
        ctypes.c_int64(outs),
        ["store", "accumulate", "swiglu"].index(epilogue),
        pointer(y),
        threads,
    )
    return y


def int8_inputs(rows, k, outs):
    rng = np.random.default_rng(7)
    w = rng.integers(-128, 128, (outs, k)).astype(np.int8)
    return normal(1, rows, k), w, rng.uniform(1e-3, 1e-2, outs).astype(np.float32), normal(3, outs)


def test_int8_tile_product_is_exact_and_signed(emulation):
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-128, 128, s).astype(np.int8) for s in ((16, 64), (64, 16)))
    c = rng.integers(-(2**20), 2**20, (16, 16)).astype(np.int32)
    expected = c + a.astype(np.int32) @ b.astype(np.int32)
    groups = np.ascontiguousarray(b.reshape(16, 4, 16).transpose(0, 2, 1))
    emulation.genrecall_tile_dot_int8(
        pointer(a, ctypes.c_int8), pointer(groups, ctypes.c_int8), pointer(c, ctypes.c_int32)
    )
    assert np.array_equal(c, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "rows,k,outs",
    [(0, 64, 16), (1, 1, 2), (1, 63, 6), (2, 65, 18), (16, 64, 32), (17, 130, 64), (7, 896, 38)]
    + [(33, 64, 300), (70, 100, 270), (40, 2200, 70)],
)
def test_int8_gemm_is_what_scalar_gives(emulation, dtype, rows, k, outs):
    """Bit for bit when int8 meets int8; within the tiles' rounding when weights are widened."""
    x, w, scale, bias = int8_inputs(rows, k, outs)
    for exact in (True, False):
        weights = [n.Int8Weights(w, scale, exact, parts) for parts in (1, 2)]
        expected = n.gemm("scalar", n.Tensor(x, dtype), weights[0], bias=bias)
        actual = int8_gemm(emulation, dtype, exact, x, w, scale, bias, threads=2)
        if exact:
            assert same_bits(actual, expected)
        else:
            assert_close(actual, expected, 2e-6)
        expected = n.gemm("scalar", n.Tensor(x, dtype), weights[1], bias=bias, epilogue="swiglu")
        actual = int8_gemm(emulation, dtype, exact, x, w, scale, bias, "swiglu", threads=2)
        assert_close(actual, expected.numpy(), {"float32": 4e-6, "bfloat16": 2.0**-8}[dtype])


@pytest.mark.parametrize("exact", [True, False])
def test_int8_gemm_rows_do_not_depend_on_the_batch(emulation, exact):
    x, w, scale, bias = int8_inputs(70, 100, 270)
    whole = int8_gemm(emulation, "bfloat16", exact, x, w, scale, bias, "swiglu")
    again = int8_gemm(emulation, "bfloat16", exact, x, w, scale, bias, "swiglu", threads=3)
    assert same_bits(again, whole)
    for first, last in [(0, 1), (69, 70), (3, 8), (17, 66), (1, 33)]:
        part = int8_gemm(emulation, "bfloat16", exact, x[first:last], w, scale, bias, "swiglu")
        assert same_bits(part, whole[first:last]), (first, last)


HEADS = [(1, 1, 8), (4, 2, 16), (14, 2, 64), (3, 3, 80), (4, 1, 128), (6, 2, 12)]


def int32(*values):
    return np.array(values, np.int32)


def prefill(library, q, k, v, first_position, scale, threads=1, int8_kv=False):
    out = np.empty((q.shape[0], q.shape[1] * q.shape[2]), np.float32)
    q, k, v = (np.ascontiguousarray(x) for x in (q, k, v))
    library.genrecall_amx_prefill(
        pointer(int32(q.shape[1], k.shape[1], q.shape[2]), ctypes.c_int32),
        pointer(q),
        pointer(k),
        pointer(v),
        q.shape[0],
        first_position,
        ctypes.c_float(scale),
        pointer(out),
        threads,
        ctypes.c_bool(int8_kv),
    )
    return out


@pytest.mark.parametrize("int8_kv", [False, True])
@pytest.mark.parametrize("q_heads,kv_heads,dim", HEADS)
@pytest.mark.parametrize("tokens", [1, 64, 65, 150])
def test_prefill_attention_matches_scalar(emulation, q_heads, kv_heads, dim, tokens, int8_kv):
    q = normal(1, tokens, q_heads, dim)
    k, v = normal(2, tokens, kv_heads, dim), normal(3, tokens, kv_heads, dim)
    scale = dim**-0.5
    expected = n.prefill_attention("scalar", "bfloat16", q, k, v, 0, scale, int8_kv=int8_kv)
    actual = prefill(emulation, q, k, v, 0, scale, threads=2, int8_kv=int8_kv)
    assert_close(actual, expected, 2.0**-8)


@pytest.mark.parametrize("q_heads,kv_heads,dim", [(4, 2, 16), (3, 3, 20), (14, 2, 64)])
def test_prefill_does_not_depend_on_chunks_or_threads(emulation, q_heads, kv_heads, dim):
    tokens, scale = 150, 0.2
    q = normal(1, tokens, q_heads, dim)
    k, v = normal(2, tokens, kv_heads, dim), normal(3, tokens, kv_heads, dim)
    whole = prefill(emulation, q, k, v, 0, scale)
    assert same_bits(prefill(emulation, q, k, v, 0, scale, threads=3), whole)
    for chunk in (17, 64, 100):
        for first in range(0, tokens, chunk):
            last = min(first + chunk, tokens)
            part = prefill(emulation, q[first:last], k[:last], v[:last], first, scale, threads=2)
            assert same_bits(part, whole[first:last]), (chunk, first)


def beam_attention(library, inputs, scale, threads=1, int8_kv=False):
    q, k = inputs["q"], inputs["k"]
    out = np.empty((q.shape[0], q.shape[1] * q.shape[2]), np.float32)
    library.genrecall_amx_beams(
        pointer(int32(q.shape[1], k.shape[1], q.shape[2]), ctypes.c_int32),
        pointer(int32(q.shape[0], k.shape[0], len(inputs["tail_k"])), ctypes.c_int32),
        *(pointer(inputs[name]) for name in ("q", "k", "v", "tail_k", "tail_v")),
        pointer(inputs["ancestor"], ctypes.c_int32),
        ctypes.c_float(scale),
        pointer(out),
        threads,
        ctypes.c_bool(int8_kv),
    )
    return out


@pytest.mark.parametrize("int8_kv", [False, True])
@pytest.mark.parametrize("q_heads,kv_heads,dim", HEADS)
@pytest.mark.parametrize("beams,prompt,tail", [(1, 1, 1), (5, 64, 2), (9, 150, 3), (33, 70, 8)])
def test_beam_attention_matches_scalar(
    emulation, q_heads, kv_heads, dim, beams, prompt, tail, int8_kv
):
    inputs, scale = beam_inputs(beams, prompt, tail, q_heads, kv_heads, dim), dim**-0.5
    expected = n.beam_attention("scalar", "bfloat16", **inputs, scale=scale, int8_kv=int8_kv)
    actual = beam_attention(emulation, inputs, scale, threads=2, int8_kv=int8_kv)
    assert_close(actual, expected, 2.0**-8)


def test_beams_do_not_depend_on_each_other(emulation):
    inputs = beam_inputs(40, 130, 1, 6, 2, 24)
    whole = beam_attention(emulation, inputs, 0.2)
    assert same_bits(beam_attention(emulation, inputs, 0.2, threads=3), whole)
    order = np.random.default_rng(3).permutation(40)
    some = {**inputs, "q": inputs["q"][order], "ancestor": inputs["ancestor"][:, order].copy()}
    assert same_bits(beam_attention(emulation, some, 0.2, threads=2), whole[order])


def test_attention_keeps_float32_accuracy_before_it_rounds(emulation):
    """Queries and weights are two bf16 numbers each: nearly all outputs round as scalar's do."""
    q, k, v = (normal(s, 150, 2, 64) for s in (1, 2, 3))
    expected = n.prefill_attention("scalar", "bfloat16", q, k, v, 0, 0.125)
    actual = prefill(emulation, q, k, v, 0, 0.125)
    assert (actual != expected).mean() < 0.01
