"""Quantised weights files: the arithmetic of the conversion, the engine on them against Hugging
Face models that compute what int8 stands for, exactness of what is served, refusals by name.
"""

import numpy as np
import pytest
import random_decoder
from random_decoder import Decoder, decode, same_bytes

from genrecall import kernels
from genrecall.trtllm_bridge import Engine, checkpoint, quantize

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LEVEL_SIZES = (9, 14, 6, 11)
MODELS = {
    "qwen2-gqa": dict(architecture="qwen2"),
    "qwen2-mha-untied": dict(
        architecture="qwen2", num_key_value_heads=4, tie_word_embeddings=False
    ),
    "qwen3-gqa": dict(architecture="qwen3"),
}
PLACES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture(scope="module", params=MODELS, ids=str)
def decoder(request, tmp_path_factory):
    """A random decoder some of whose channels are much larger than others, as trained ones' are."""
    folder = tmp_path_factory.mktemp(request.param)
    made = Decoder(folder, level_sizes=LEVEL_SIZES, seed=7, **MODELS[request.param])
    state = made.model.state_dict()
    rng = np.random.default_rng(3)
    for name in state:
        if name.endswith("layernorm.weight"):
            state[name][rng.integers(0, 32, 3)] *= 12
    made.model.load_state_dict(state)
    made.model.save_pretrained(folder)
    checkpoint.convert(folder, made.path, "float32")
    made.engine = Engine(made.path)
    return made


@pytest.fixture(scope="module")
def index():
    return random_decoder.random_index(LEVEL_SIZES, 700, seed=9)


def maxima_of(decoder):
    found = [decoder.engine.input_maxima(decoder.prompt(90, seed)) for seed in range(4)]
    return {name: np.maximum.reduce([f[name] for f in found]) for name in quantize.INPUTS}


def quantized(decoder, mode, alpha=0.5):
    """Path of the decoder's file in that mode."""
    path = decoder.path.with_name(f"{mode}-{alpha}.gguf")
    if not path.exists():
        quantize.quantize(decoder.path, path, mode, maxima_of(decoder), alpha)
    return path


def as_model(decoder, path, quantize_inputs):
    """The decoder's Hugging Face model with what the file's int8 stands for; with quantize_inputs
    each row that enters a layer's Linear is rounded to int8 as well."""
    tensors = kernels.read_gguf(path)["tensors"]
    model = type(decoder.model)(decoder.model.config).eval()
    model.load_state_dict(decoder.model.state_dict())

    def round_rows(module, args):
        (x,) = args
        largest = x.abs().amax(dim=-1, keepdim=True)
        return (torch.round(x * (127 / largest)) * (largest / 127),)

    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            blk = f"blk.{i}."
            for norm, to in (
                ("attn_norm", layer.input_layernorm),
                ("ffn_norm", layer.post_attention_layernorm),
            ):
                to.weight.copy_(torch.from_numpy(np.array(tensors[f"{blk}{norm}.weight"])))
            for name, place in PLACES.items():
                linear = layer.get_submodule(place)
                weight, scale = tensors[f"{blk}{name}.weight"], tensors[f"{blk}{name}.scale"]
                assert weight.dtype == np.int8 and scale.dtype == np.float32
                linear.weight.copy_(torch.from_numpy(weight * scale[:, None]))
                if linear.bias is not None:
                    linear.bias.copy_(torch.from_numpy(np.array(tensors[f"{blk}{name}.bias"])))
                if quantize_inputs:
                    linear.register_forward_pre_hook(round_rows)
    return model


def logits_of(model, prompt):
    with torch.no_grad():
        return model(torch.from_numpy(np.int64(prompt))[None]).logits[0].numpy()


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("rows,cols", [(1, 1), (3, 7), (40, 130)])
def test_rows_are_rounded_to_the_nearest_step(rows, cols):
    w = np.random.default_rng(1).standard_normal((rows, cols)).astype(np.float32)
    q, scale = quantize.quantize_rows(w)
    assert q.dtype == np.int8 and np.abs(q).max() == 127
    assert (np.abs(q).max(axis=1) == 127).all()
    assert (np.abs(w - q * scale[:, None]) <= scale[:, None] * 0.501).all()


def test_rows_of_zeros_stay_zero():
    q, scale = quantize.quantize_rows(np.zeros((2, 5), np.float32))
    assert not q.any() and not scale.any()


def test_factors_are_smoothquants():
    x = np.array([10.0, 1.0, 0.0, 4.0], np.float32)
    w = np.array([[0.1, -2.0, 1.0, 0.0], [-0.4, 0.5, 1.0, 0.0]], np.float32)
    half = quantize.smoothing_factors(x, w, 0.5)
    np.testing.assert_allclose(half, [np.sqrt(10 / 0.4), np.sqrt(1 / 2), 1, 1], rtol=1e-6)
    np.testing.assert_allclose(quantize.smoothing_factors(x, w, 1.0)[:2], [10, 1], rtol=1e-6)
    np.testing.assert_allclose(quantize.smoothing_factors(x, w, 0.0)[:2], [2.5, 0.5], rtol=1e-6)
    # At alpha 1/2 an input channel and its weights end with the same largest magnitude.
    np.testing.assert_allclose((x / half)[:2], (np.abs(w).max(axis=0) * half)[:2], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
def test_smoothing_leaves_the_function_as_it_is(decoder, tmp_path, alpha):
    file = kernels.read_gguf(decoder.path)
    tensors, maxima = dict(file["tensors"]), maxima_of(decoder)
    quantize.smooth(tensors, file["metadata"], maxima, alpha)
    assert not np.array_equal(
        tensors["blk.0.ffn_up.weight"], file["tensors"]["blk.0.ffn_up.weight"]
    )
    checkpoint.write_model(tmp_path / "m.gguf", file["metadata"], tensors, {})
    prompt = decoder.prompt(70)
    smoothed = Engine(tmp_path / "m.gguf").forward(prompt)
    expected = decoder.engine.forward(prompt)
    np.testing.assert_allclose(smoothed, expected, atol=1e-3 * np.abs(expected).max(), rtol=0)


def test_maxima_are_what_enters_the_linears(decoder):
    prompt, seen = decoder.prompt(33), {}

    def remember(name):
        def hook(module, args):
            seen[name] = args[0][0].abs().amax(dim=0).numpy()

        return hook

    hooks = []
    for i, layer in enumerate(decoder.model.model.layers):
        for name, place in PLACES.items():
            linear = layer.get_submodule(place)
            hooks.append(linear.register_forward_pre_hook(remember((i, name))))
    decoder.hf_logits(prompt)
    for hook in hooks:
        hook.remove()
    maxima = decoder.engine.input_maxima(prompt)
    assert set(maxima) == set(quantize.INPUTS)
    entering = {"attn_norm": "attn_k", "attn_output": "attn_output"}
    entering |= {"ffn_norm": "ffn_up", "ffn_down": "ffn_down"}
    for name, linear in entering.items():
        for layer in range(2):
            expected = seen[layer, linear]
            np.testing.assert_allclose(
                maxima[name][layer], expected, rtol=0, atol=1e-4 * expected.max()
            )


# ---------------------------------------------------------------- the engine


@pytest.mark.parametrize("tokens", [1, 65, 150])
def test_w8_equals_the_model_with_rounded_weights(decoder, tokens):
    path = quantized(decoder, "w8")
    engine, prompt = Engine(path), decoder.prompt(tokens)
    assert (engine.quantization, engine.dtype) == ("w8", "float32")
    expected = logits_of(as_model(decoder, path, False), prompt)
    actual = engine.forward(prompt)
    np.testing.assert_allclose(actual, expected, atol=1e-3 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("tokens", [1, 65, 150])
def test_w8a8_equals_the_model_with_rounded_weights_and_inputs(decoder, tokens):
    """But for inputs that lie so near the middle of two steps that either is right."""
    path = quantized(decoder, "w8a8")
    engine, prompt = Engine(path), decoder.prompt(tokens)
    assert engine.quantization == "w8a8"
    expected = logits_of(as_model(decoder, path, True), prompt)
    apart = np.abs(engine.forward(prompt) - expected)
    step = np.abs(expected - decoder.hf_logits(prompt)).mean()  # what rounding as such does
    assert apart.mean() <= 0.25 * step


def test_smoothing_makes_int8_activations_more_accurate(decoder):
    prompt = decoder.prompt(150)
    exact = decoder.hf_logits(prompt)
    error = {
        alpha: np.abs(Engine(quantized(decoder, "w8a8", alpha)).forward(prompt) - exact).mean()
        for alpha in (0.0, 0.5)
    }
    assert error[0.5] < error[0.0]


@pytest.mark.parametrize("mode", quantize.MODES)
def test_bfloat16_files_are_quantised_alike(decoder, tmp_path, mode):
    """The same int8; what is not int8 stays bf16."""
    checkpoint.convert(decoder.path.parent, tmp_path / "bf16.gguf", "bfloat16")
    card = quantize.quantize(tmp_path / "bf16.gguf", tmp_path / "q.gguf", mode, maxima_of(decoder))
    assert (card["dtype"], card["quantization"]) == ("bfloat16", mode)
    engine, prompt = Engine(tmp_path / "q.gguf"), decoder.prompt(80)
    assert engine.dtype == "bfloat16"
    expected = Engine(quantized(decoder, mode)).forward(prompt)
    apart = np.abs(engine.forward(prompt) - expected)
    assert apart.mean() <= 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("mode", quantize.MODES)
def test_alone_in_a_crowd_and_in_chunks_the_bits_are_the_same(decoder, index, mode):
    path, recall_index = quantized(decoder, mode), index[0]
    prompts = [decoder.prompt(n) for n in (1, 40, 64, 65, 150)]
    widths = [5, 300, 1, 40, 9]
    reference = [
        decode(Engine(path), p, recall_index, beam_width=w)
        for p, w in zip(prompts, widths, strict=True)
    ]
    for options in (
        dict(num_threads=1, prefill_chunk=7),
        dict(num_threads=2, prefill_chunk=64),
        dict(num_threads=2, max_step_rows=16),
    ):
        engine = Engine(path, **options)
        crowd = [
            engine.submit(p, recall_index, beam_width=w)
            for _ in range(3)
            for p, w in zip(prompts, widths, strict=True)
        ]
        for i, request in enumerate(crowd):
            got = request.result(timeout_s=60)
            assert same_bytes(got, reference[i % len(prompts)]), (options, i)


def test_the_conversion_is_reproducible_and_named_by_its_content(decoder, tmp_path):
    maxima = maxima_of(decoder)

    def convert(name, *args):
        return quantize.quantize(decoder.path, tmp_path / name, *args)

    first = convert("a.gguf", "w8a8", maxima)
    again = convert("b.gguf", "w8a8", maxima)
    assert first == again
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    other = convert("c.gguf", "w8a8", maxima, 0.7)
    source = kernels.read_gguf(decoder.path)["metadata"]["genrecall.weights_digest"]
    w8 = convert("d.gguf", "w8")
    digests = {source, *(card["weights_digest"] for card in (first, other, w8))}
    assert len(digests) == 4
    metadata = kernels.read_gguf(tmp_path / "c.gguf")["metadata"]
    assert metadata["genrecall.source_digest"] == source
    assert metadata["genrecall.smoothing_alpha"] == pytest.approx(0.7)
    assert first["parameters"] == sum(p.numel() for p in decoder.model.parameters())
    a, b = Engine(tmp_path / "a.gguf"), Engine(tmp_path / "b.gguf")
    assert a.shares_with(b) and not a.shares_with(Engine(tmp_path / "c.gguf"))


def weight_bytes(path):
    return Engine(path).stats()["weight_bytes"]


def test_int8_weights_take_a_quarter_of_float32s_beside_the_panels_padding(decoder):
    tables = kernels.read_gguf(decoder.path)["tensors"]
    shapes = {name: tables[f"blk.0.{name}.weight"].shape for name in PLACES}
    float_bytes = sum(
        tables[n].nbytes for n in tables if n in ("token_embd.weight", "output.weight")
    )
    heads = sum(LEVEL_SIZES) * 32 * 4
    assert decoder.engine.stats()["weight_bytes"] == float_bytes + heads + 2 * sum(
        4 * rows * cols for rows, cols in shapes.values()
    )
    rows = sum(rows for rows, _ in shapes.values())
    w8 = sum(rows * cols for rows, cols in shapes.values()) + 4 * rows
    assert weight_bytes(quantized(decoder, "w8")) == float_bytes + heads + 2 * w8
    # A panel is 16 outputs x 64 k; gate and up have panels of their own.
    together = [("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate",), ("ffn_up",)]
    w8a8 = 2 * 4 * rows
    for names in [*together, ("ffn_down",)]:
        outs, cols = sum(shapes[n][0] for n in names), shapes[names[0]][1]
        w8a8 += -(-outs // 16) * 16 * -(-cols // 64) * 64
    assert weight_bytes(quantized(decoder, "w8a8")) == float_bytes + heads + 2 * w8a8


# ---------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Decoder(tmp_path_factory.mktemp("plain"), level_sizes=LEVEL_SIZES, seed=8)


def damage(path, out, metadata=None, types=None, **tensors):
    file = kernels.read_gguf(path)
    kernels.write_gguf(
        out,
        file["metadata"] | (metadata or {}),
        file["tensors"] | tensors,
        types or {},
    )
    return out


def test_damaged_files_are_refused_by_name(plain, tmp_path):
    good = tmp_path / "good.gguf"
    quantize.quantize(plain.path, good, "w8")
    tensors = kernels.read_gguf(good)["tensors"]
    out = tmp_path / "bad.gguf"
    with pytest.raises(ValueError, match=r"genrecall.quantization = 'w4': expected w8\|w8a8"):
        Engine(damage(good, out, {"genrecall.quantization": "w4"}))
    scale = tensors["blk.1.ffn_up.scale"].copy()
    for bad in (np.nan, np.inf, -1.0):
        scale[3] = bad
        with pytest.raises(kernels.DataLossError, match=r"'blk.1.ffn_up.scale'\[3\] = .*finite"):
            Engine(damage(good, out, **{"blk.1.ffn_up.scale": scale}))
    short = tensors["blk.0.attn_k.scale"][:-1].copy()
    with pytest.raises(ValueError, match=r"'blk.0.attn_k.scale' has shape \[15\]: expected \[16\]"):
        Engine(damage(good, out, **{"blk.0.attn_k.scale": short}))
    with pytest.raises(
        ValueError, match="'blk.0.attn_k.weight' is F32: expected the type of 'blk.0.a"
    ):
        Engine(damage(good, out, **{"blk.0.attn_k.weight": np.zeros((16, 32), np.float32)}))
    with pytest.raises(RuntimeError, match="'token_embd.weight' is I8: expected F32 or BF16"):
        Engine(damage(good, out, **{"token_embd.weight": np.zeros((160, 32), np.int8)}))

    def without(name, metadata=None):
        file = kernels.read_gguf(good)
        kept = {n: t for n, t in file["tensors"].items() if n != name}
        meta = {k: v for k, v in file["metadata"].items() if k != metadata}
        kernels.write_gguf(out, meta, kept)
        return out

    with pytest.raises(kernels.DataLossError, match="'blk.0.ffn_down.scale' is missing"):
        Engine(without("blk.0.ffn_down.scale"))
    with pytest.raises(RuntimeError, match="'blk.0.attn_q.weight' is I8: expected F32 or BF16"):
        Engine(without("", "genrecall.quantization"))


def test_layers_may_stay_float(plain, tmp_path):
    """A user may leave a sensitive matrix as it was; its scale is then one tensor too many."""
    good = tmp_path / "good.gguf"
    quantize.quantize(plain.path, good, "w8")
    file = kernels.read_gguf(good)
    original = kernels.read_gguf(plain.path)["tensors"]["blk.1.ffn_down.weight"]
    tensors = file["tensors"] | {"blk.1.ffn_down.weight": original}
    with pytest.raises(RuntimeError, match="unexpected tensor 'blk.1.ffn_down.scale'"):
        kernels.write_gguf(tmp_path / "m.gguf", file["metadata"], tensors)
        Engine(tmp_path / "m.gguf")
    del tensors["blk.1.ffn_down.scale"]
    kernels.write_gguf(tmp_path / "m.gguf", file["metadata"], tensors)
    prompt = plain.prompt(30)
    apart = np.abs(Engine(tmp_path / "m.gguf").forward(prompt) - plain.hf_logits(prompt))
    assert apart.max() < 0.2 * np.abs(plain.hf_logits(prompt)).max()


def test_bad_conversions_are_refused(plain, tmp_path):
    out, maxima = tmp_path / "q.gguf", maxima_of(plain)
    with pytest.raises(ValueError, match=r"mode = 'int4': expected none \| w8 \| w8a8"):
        quantize.quantize(plain.path, out, "int4")
    with pytest.raises(ValueError, match="alpha = 1.5: expected 0..1"):
        quantize.quantize(plain.path, out, "w8a8", maxima, 1.5)
    with pytest.raises(ValueError, match="mode 'w8a8' needs maxima"):
        quantize.quantize(plain.path, out, "w8a8")
    with pytest.raises(ValueError, match=r"maxima\['ffn_norm'\] has 31 channels: expected 32"):
        quantize.quantize(plain.path, out, "w8a8", maxima | {"ffn_norm": np.ones((2, 31))})
    with pytest.raises(ValueError, match=r"maxima\['ffn_down'\]: expected \[layers, channels\]"):
        quantize.quantize(plain.path, out, "w8a8", {k: maxima[k] for k in quantize.INPUTS[:3]})
    with pytest.raises(ValueError, match=r"maxima\['attn_norm'\]\[1\]: not finite"):
        bad = maxima["attn_norm"].copy()
        bad[1, 5] = np.nan
        quantize.quantize(plain.path, out, "w8a8", maxima | {"attn_norm": bad})
    quantize.quantize(plain.path, out, "w8")
    with pytest.raises(ValueError, match="genrecall.quantization = 'w8': expected a float model"):
        quantize.quantize(out, tmp_path / "again.gguf", "w8")
    weight = kernels.read_gguf(plain.path)["tensors"]["blk.1.attn_q.weight"].copy()
    weight[2, 2] = np.inf
    broken = damage(plain.path, tmp_path / "inf.gguf", **{"blk.1.attn_q.weight": weight})
    with pytest.raises(ValueError, match="tensor 'blk.1.attn_q.weight' is not finite"):
        quantize.quantize(broken, out, "w8")
