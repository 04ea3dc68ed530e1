"""Attention over int8 keys and values: each ISA against float64 NumPy over what int8 stands for;
a row's bits do not depend on its neighbours; the engine with an int8 cache.
"""

import numpy as np
import pytest
import random_decoder
from kernel_checks import DTYPES, STORED, assert_close, attend, normal, same_bits
from random_decoder import Decoder, decode, same_bytes

from genrecall import kernels
from genrecall.kernels import _kernels
from genrecall.trtllm_bridge import Engine, quantize

n = _kernels._numeric
HEADS = [(1, 1, 8), (4, 2, 16), (14, 2, 64), (3, 3, 80), (4, 1, 128), (6, 2, 13)]
LEVEL_SIZES = (9, 14, 6, 11)


@pytest.fixture(scope="module")
def pool():
    return n.ThreadPool(2)


def rounded(x):
    """float64: x as int8 with one scale for each last axis stands for it."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    kept = largest >= np.float32(1e-36)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=kept)
    return np.rint(x * inverse).astype(np.float64) * np.where(kept, largest / np.float32(127), 0)


def keys_and_values(tokens, kv_heads, dim):
    """Tokens of very different size, one of zeros: each vector has a scale of its own."""
    size = np.exp(normal(9, tokens, kv_heads, 1))
    k, v = normal(2, tokens, kv_heads, dim) * size, normal(3, tokens, kv_heads, dim) / size
    k[tokens // 2] = v[tokens // 2] = 0
    return k, v


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_heads,kv_heads,dim", HEADS)
@pytest.mark.parametrize("tokens", [1, 64, 65, 150])
def test_prefill(isa, dtype, q_heads, kv_heads, dim, tokens, pool):
    q, (k, v) = normal(1, tokens, q_heads, dim), keys_and_values(tokens, kv_heads, dim)
    scale = dim**-0.5
    actual = n.prefill_attention(isa, dtype, q, k, v, 0, scale, pool, int8_kv=True)
    k, v = rounded(k), rounded(v)
    expected = np.stack([attend(q[t], k[: t + 1], v[: t + 1], scale) for t in range(tokens)])
    assert_close(actual, expected, STORED[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_heads,kv_heads,dim", HEADS)
@pytest.mark.parametrize("beams,prompt,tail", [(1, 1, 1), (9, 150, 3), (33, 70, 8)])
def test_beams(isa, dtype, q_heads, kv_heads, dim, beams, prompt, tail, pool):
    q, (k, v) = normal(1, beams, q_heads, dim), keys_and_values(prompt, kv_heads, dim)
    tail_k, tail_v = (
        x.reshape(tail, beams, kv_heads, dim) for x in keys_and_values(tail * beams, kv_heads, dim)
    )
    ancestor = np.random.default_rng(7).integers(0, beams, (tail, beams)).astype(np.int32)
    scale = dim**-0.5
    inputs = dict(k=k, v=v, tail_k=tail_k, tail_v=tail_v)
    actual = n.beam_attention(
        isa, dtype, q, **inputs, ancestor=ancestor, scale=scale, pool=pool, int8_kv=True
    )
    own = [np.arange(tail), ancestor.T]
    expected = np.stack(
        [
            attend(
                q[b],
                np.concatenate([rounded(k), rounded(tail_k)[own[0], own[1][b]]]),
                np.concatenate([rounded(v), rounded(tail_v)[own[0], own[1][b]]]),
                scale,
            )
            for b in range(beams)
        ]
    )
    assert_close(actual, expected, STORED[dtype])
    order = np.random.default_rng(3).permutation(beams)[: (beams + 1) // 2]
    some = n.beam_attention(
        isa, dtype, q[order], **inputs, ancestor=ancestor[:, order], scale=scale, int8_kv=True
    )
    assert same_bits(some, actual[order])


@pytest.mark.parametrize("dtype", DTYPES)
def test_prefill_does_not_depend_on_chunks(isa, dtype, pool):
    tokens = 150
    q, (k, v) = normal(1, tokens, 6, 20), keys_and_values(tokens, 2, 20)
    whole = n.prefill_attention(isa, dtype, q, k, v, 0, 0.2, int8_kv=True)
    for chunk in (17, 64, 100):
        for first in range(0, tokens, chunk):
            last = min(first + chunk, tokens)
            part = n.prefill_attention(
                isa, dtype, q[first:last], k[:last], v[:last], first, 0.2, pool, int8_kv=True
            )
            assert same_bits(part, whole[first:last]), (chunk, first)


# ---------------------------------------------------------------- the engine


@pytest.fixture(scope="module", params=["none", *quantize.MODES])
def pair(request, tmp_path_factory):
    """(decoder, engine of the same weights with an int8 cache)."""
    decoder = Decoder(tmp_path_factory.mktemp("kv"), level_sizes=LEVEL_SIZES, seed=8)
    path = decoder.path.with_name("kv.gguf")
    maxima = decoder.engine.input_maxima(decoder.prompt(100))
    quantize.quantize(decoder.path, path, request.param, maxima, kv_dtype="int8")
    same = decoder.path.with_name("same.gguf")
    if request.param == "none":
        same = decoder.path
    else:
        quantize.quantize(decoder.path, same, request.param, maxima)
    return decoder, Engine(same), Engine(path)


def test_the_cache_is_smaller_and_the_logits_nearly_the_same(pair):
    decoder, full, small = pair
    assert (full.kv_dtype, small.kv_dtype) == ("float32", "int8")
    assert full.quantization == small.quantization and full.dtype == small.dtype
    assert not full.shares_with(small)
    prompt = decoder.prompt(150)
    exact = full.forward(prompt)
    apart = np.abs(small.forward(prompt) - exact)
    assert 0 < apart.max() and apart.mean() < 0.02 * np.abs(exact).max()


def test_alone_in_a_crowd_and_in_chunks_the_bits_are_the_same(pair):
    decoder, _, engine = pair
    path = decoder.path.with_name("kv.gguf")
    index = random_decoder.random_index(LEVEL_SIZES, 700, seed=9)[0]
    prompts = [decoder.prompt(size) for size in (1, 40, 64, 65, 150)]
    widths = [5, 300, 1, 40, 9]
    reference = [
        decode(engine, p, index, beam_width=w) for p, w in zip(prompts, widths, strict=True)
    ]
    for options in (dict(num_threads=1, prefill_chunk=7), dict(num_threads=2, max_step_rows=16)):
        other = Engine(path, **options)
        crowd = [
            other.submit(p, index, beam_width=w)
            for _ in range(2)
            for p, w in zip(prompts, widths, strict=True)
        ]
        for i, request in enumerate(crowd):
            got = request.result(timeout_s=60)
            assert same_bytes(got, reference[i % len(prompts)]), (options, i)


def test_unknown_kinds_are_refused(pair, tmp_path):
    decoder, _, _ = pair
    with pytest.raises(ValueError, match=r"kv_dtype = 'int4': expected None \| 'int8'"):
        quantize.quantize(decoder.path, tmp_path / "q.gguf", "w8", kv_dtype="int4")
    with pytest.raises(ValueError, match="mode 'none' without int8 keys and values: nothing to do"):
        quantize.quantize(decoder.path, tmp_path / "q.gguf", "none")
    file = kernels.read_gguf(decoder.path)
    metadata = file["metadata"] | {"genrecall.kv_dtype": "fp8"}
    kernels.write_gguf(tmp_path / "q.gguf", metadata, file["tensors"])
    with pytest.raises(ValueError, match="genrecall.kv_dtype = 'fp8': expected int8"):
        Engine(tmp_path / "q.gguf")
