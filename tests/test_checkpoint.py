"""From a Hugging Face folder to model.gguf to the engine: what is converted, what is refused."""

import json
import shutil

import numpy as np
import pytest
import random_decoder

from genrecall import kernels
from genrecall.trtllm_bridge import Engine, checkpoint, safetensors_reader

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LEVEL_SIZES = (6, 4, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Qwen2 checkpoint, tied, float32."""
    path = tmp_path_factory.mktemp("checkpoint")
    random_decoder.make_checkpoint(path, level_sizes=LEVEL_SIZES, seed=1)
    return path


@pytest.fixture(scope="module")
def gguf_file(folder):
    path = folder / "model.gguf"
    checkpoint.convert(folder, path, "float32")
    return path


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the folder that a test may spoil."""
    return shutil.copytree(folder, tmp_path / "copy")


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            del config[key]
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def edit_tensors(folder, edit):
    """edit(dict of torch tensors) in place."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


# ------------------------------------------------------------------ what is written


def test_the_file_is_llama_cpps(folder, gguf_file):
    """Names, metadata and data as the PyPI reader of GGUF sees them."""
    gguf = pytest.importorskip("gguf")
    from safetensors.numpy import load_file

    reader = gguf.GGUFReader(gguf_file)
    assert reader.fields["general.architecture"].contents() == "qwen2"
    assert reader.fields["qwen2.attention.head_count_kv"].contents() == 2
    assert reader.fields["qwen2.block_count"].contents() == 2
    assert reader.fields["qwen2.rope.freq_base"].contents() == 10000.0
    assert reader.fields["genrecall.level_sizes"].contents() == list(LEVEL_SIZES)
    stored = load_file(folder / "model.safetensors")
    written = {t.name: t for t in reader.tensors}
    for name, hf_name in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.attn_k.weight": "model.layers.1.self_attn.k_proj.weight",
        "blk.0.attn_v.bias": "model.layers.0.self_attn.v_proj.bias",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }.items():
        np.testing.assert_array_equal(written[name].data, stored[hf_name])
        assert list(written[name].shape) == list(stored[hf_name].shape[::-1])
    names = set(gguf.MODEL_TENSORS[gguf.MODEL_ARCH.QWEN2])
    known = {gguf.TENSOR_NAMES[n].format(bid=b) for n in names for b in range(2)}
    for name in written:
        assert name.rsplit(".", 1)[0] in known or name == "genrecall.sid_token_ids"
    assert "output.weight" not in written, "tied: the embedding is the head"


def test_the_card_says_what_was_converted(folder, tmp_path):
    card = checkpoint.convert(folder, tmp_path / "m.gguf", "bfloat16")
    parameters = sum(p.numel() for p in load_model(folder).parameters())
    assert card["parameters"] == parameters
    assert card["dtype"] == "bfloat16" and card["architecture"] == "qwen2"
    engine = Engine(tmp_path / "m.gguf")
    assert engine.dtype == "bfloat16" and engine.level_sizes == LEVEL_SIZES
    assert engine.weights_digest == card["weights_digest"]
    assert engine.sid_space_digest == card["sid_space_digest"]
    assert (engine.hidden_size, engine.vocab_size) == (card["hidden_size"], card["vocab_size"])


def load_model(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_bfloat16_rounds_to_nearest_even():
    special = [0.0, -0.0, 1.0, np.inf, -np.inf, 3.4e38, 1e-40, np.nan, 1.00390625, 1.01171875]
    values = np.concatenate([special, np.random.default_rng(2).normal(0, 3, 5000)])
    values = values.astype(np.float32)
    stored = safetensors_reader.StoredTensor("F32", values)
    expected = torch.from_numpy(values).bfloat16()
    bits = safetensors_reader.to_bfloat16_bits(stored)
    back = safetensors_reader.to_float32(safetensors_reader.StoredTensor("BF16", bits))
    np.testing.assert_array_equal(back, expected.float().numpy())


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_other_stored_dtypes_are_widened_exactly(copied, tmp_path, stored):
    def narrow(tensors):
        for name in tensors:
            tensors[name] = tensors[name].to(getattr(torch, stored))

    edit_tensors(copied, narrow)
    checkpoint.convert(copied, tmp_path / "m.gguf", "float32")
    prompt = np.arange(20)
    with torch.no_grad():
        expected = load_model(copied).float()(torch.from_numpy(prompt)[None]).logits[0].numpy()
    np.testing.assert_allclose(Engine(tmp_path / "m.gguf").forward(prompt), expected, atol=1e-4)


def test_shards_are_read_as_one(folder, tmp_path):
    model = load_model(folder)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    shutil.copy(folder / "sid_space.json", tmp_path)
    one = checkpoint.convert(folder, tmp_path / "one.gguf", "float32")
    many = checkpoint.convert(tmp_path, tmp_path / "many.gguf", "float32")
    assert one == many
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()


def test_configurations_of_transformers_4_are_read(copied, gguf_file, tmp_path):
    edit_config(copied, rope_parameters=..., rope_theta=10000.0, rope_scaling=None)
    checkpoint.convert(copied, tmp_path / "m.gguf", "float32")
    assert (tmp_path / "m.gguf").read_bytes() == gguf_file.read_bytes()


def test_the_digest_names_the_weights(folder, copied, tmp_path):
    def digest(folder, dtype="float32"):
        return checkpoint.convert(folder, tmp_path / "m.gguf", dtype)["weights_digest"]

    assert digest(folder) == digest(copied)
    assert digest(folder) != digest(folder, "bfloat16")
    edit_tensors(copied, lambda t: t["model.norm.weight"].__setitem__(3, 7.0))
    assert digest(folder) != digest(copied)


def test_a_tied_checkpoint_may_store_its_head_too(copied, gguf_file, tmp_path):
    def add_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_tensors(copied, add_head)
    checkpoint.convert(copied, tmp_path / "m.gguf", "float32")
    assert (tmp_path / "m.gguf").read_bytes() == gguf_file.read_bytes()


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model_type="llama"), r"model_type = 'llama': expected 'qwen2' \| 'qwen3'"),
        (dict(hidden_act="gelu"), "hidden_act = 'gelu': expected 'silu'"),
        (dict(use_sliding_window=True), "use_sliding_window = True"),
        (dict(layer_types=["full_attention", "sliding_attention"]), "layer_types = 'sliding_att"),
        (dict(is_causal=False), "is_causal = False: expected True"),
        (dict(quantization_config={"bits": 4}), "quantization_config = "),
        (
            dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
            r"rope_parameters.rope_type = 'yarn': expected 'default'",
        ),
        (
            dict(rope_scaling={"type": "linear", "factor": 2}),
            "rope_scaling.rope_type = 'linear': expected 'default'",
        ),
        (dict(rope_parameters={"rope_type": "default"}), "rope_theta = None"),
        (dict(num_key_value_heads=...), "num_key_value_heads = None: expected a positive number"),
        (dict(num_key_value_heads=3), "num_key_value_heads = 3: expected a divisor of"),
        (dict(num_hidden_layers=0), "num_hidden_layers = 0: expected a positive number"),
        (dict(num_hidden_layers=3), "tensor 'model.layers.2.self_attn.q_proj.weight' is missing"),
        (dict(num_hidden_layers=1), "unexpected tensor 'model.layers.1"),
        (
            dict(vocab_size=200),
            r"'model.embed_tokens.weight' has shape \[160, 32\]: expected \[200, 32\]",
        ),
        (dict(head_dim=16), r"q_proj.weight' has shape \[32, 32\]: expected \[64, 32\]"),
        (
            dict(model_type="qwen3", head_dim=8),
            "'model.layers.0.self_attn.q_norm.weight' is missing",
        ),
        (dict(tie_word_embeddings=False), "tensor 'lm_head.weight' is missing"),
    ],
)
def test_configurations_the_engine_would_run_wrongly_are_refused(
    copied, tmp_path, changes, message
):
    edit_config(copied, **changes)
    with pytest.raises(ValueError, match=message):
        checkpoint.convert(copied, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_unexpected_tensors_are_refused(copied, tmp_path):
    edit_tensors(copied, lambda t: t.update({"model.layers.0.lora_A": torch.zeros(4, 4)}))
    with pytest.raises(ValueError, match="unexpected tensor 'model.layers.0.lora_A'"):
        checkpoint.convert(copied, tmp_path / "m.gguf")


def test_a_sid_token_outside_the_vocabulary_is_refused(copied, tmp_path):
    ids = [np.arange(6), np.arange(10, 14), np.arange(156, 161)]
    random_decoder.write_sid_space(copied, LEVEL_SIZES, ids)
    with pytest.raises(ValueError, match=r"token of level 2, code 4 = 160: expected 0..V-1 = 159"):
        checkpoint.convert(copied, tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "sid_space.json"])
def test_missing_files_are_named(copied, tmp_path, name):
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.split(".")[0]):
        checkpoint.convert(copied, tmp_path / "m.gguf")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_damaged_safetensors_are_refused(copied, tmp_path, keep):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="not a safetensors file|truncated or damaged"):
        checkpoint.convert(copied, tmp_path / "m.gguf")


def test_an_unknown_dtype_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"dtype = 'int8': expected 'bfloat16' \| 'float32'"):
        checkpoint.convert(folder, tmp_path / "m.gguf", "int8")


# ------------------------------------------------------------------ what the engine loads


def rewrite(source, target, edit, order=None):
    """Writes a GGUF with edit(metadata, tensors, types) applied, tensors in the given order."""
    file = kernels.read_gguf(source, require_checksum=False)
    metadata, types = dict(file["metadata"]), dict(file["types"])
    tensors = {name: np.array(value) for name, value in file["tensors"].items()}
    edit(metadata, tensors, types)
    metadata.setdefault("genrecall.weights_digest", "rewritten")
    if order:
        tensors = {name: tensors[name] for name in order(tensors)}
    two_byte = {n: t for n, t in types.items() if t in ("BF16", "F16") and n in tensors}
    kernels.write_gguf(target, metadata, tensors, two_byte)
    return target


def test_tensors_in_any_order_are_the_same_model(gguf_file, tmp_path):
    """Neighbours are read in place; a user's own file, which scatters them, is copied together."""

    def rename(metadata, tensors, types):
        metadata["genrecall.weights_digest"] = "scattered"

    scattered = rewrite(gguf_file, tmp_path / "m.gguf", rename, order=sorted)
    prompt = np.arange(40)
    ours, theirs = Engine(gguf_file), Engine(scattered)
    assert not ours.shares_with(theirs)
    assert ours.forward(prompt).tobytes() == theirs.forward(prompt).tobytes()
    assert ours.stats()["weight_bytes"] == theirs.stats()["weight_bytes"]


def test_a_file_without_our_trailer_is_accepted(gguf_file, tmp_path):
    plain = tmp_path / "plain.gguf"
    plain.write_bytes(gguf_file.read_bytes()[:-16])
    assert Engine(plain).forward([1, 2]).shape == (2, 160)


def drop(name):
    return lambda metadata, tensors, types: (metadata if name in metadata else tensors).pop(name)


def put(name, value):
    return lambda metadata, tensors, types: metadata.update({name: value})


def reshape(name, shape):
    return lambda metadata, tensors, types: tensors.update({name: np.zeros(shape, np.float32)})


def as_f16(name):
    return lambda metadata, tensors, types: tensors.update({name: tensors[name].astype(np.float16)})


def as_bf16(name):
    def edit(metadata, tensors, types):
        tensors[name] = (tensors[name].view(np.uint32) >> 16).astype(np.uint16)
        types[name] = "BF16"

    return edit


def sid_tokens(values):
    return lambda m, tensors, t: tensors.update({"genrecall.sid_token_ids": np.int32(values)})


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (drop("blk.1.ffn_up.weight"), RuntimeError, "tensor 'blk.1.ffn_up.weight' is missing"),
        (drop("output_norm.weight"), RuntimeError, "tensor 'output_norm.weight' is missing"),
        (drop("blk.1.attn_q.bias"), RuntimeError, "tensor 'blk.1.attn_q.bias' is missing"),
        (drop("token_embd.weight"), RuntimeError, "tensor 'token_embd.weight' is missing"),
        (drop("qwen2.block_count"), RuntimeError, "qwen2.block_count"),
        (
            reshape("blk.0.attn_k.weight", (32, 32)),
            ValueError,
            r"'blk.0.attn_k.weight' has shape \[32, 32\]: expected \[16, 32\]",
        ),
        (
            reshape("blk.0.attn_norm.weight", (31,)),
            ValueError,
            r"has shape \[31\]: expected \[32\]",
        ),
        (reshape("rope_freqs.weight", (4,)), RuntimeError, "unexpected tensor 'rope_freqs.weight'"),
        (as_f16("blk.0.attn_q.weight"), RuntimeError, "is F16: expected F32 or BF16"),
        (as_bf16("blk.0.attn_q.weight"), ValueError, "is BF16: expected the dtype of token_embd"),
        (put("general.architecture", "llama"), RuntimeError, r"= 'llama': expected qwen2 \| qwen3"),
        (put("qwen2.rope.scaling.type", "yarn"), RuntimeError, "rope scaling is not supported"),
        (
            put("qwen2.attention.sliding_window", 128),
            RuntimeError,
            "sliding-window attention is not",
        ),
        (put("qwen2.attention.causal", False), RuntimeError, "not causal is not supported"),
        (put("qwen2.expert_count", 8), RuntimeError, "a mixture of experts is not supported"),
        (
            put("qwen2.attention.head_count_kv", 3),
            ValueError,
            "head_count_kv = 3: expected a divisor",
        ),
        (put("qwen2.block_count", 0), ValueError, "qwen2.block_count = 0: expected 1.."),
        (put("qwen2.block_count", 3), RuntimeError, "tensor 'blk.2.attn_norm.weight' is missing"),
        (
            put("qwen2.attention.key_length", 9),
            ValueError,
            "key_length = 9: expected an even number",
        ),
        (put("qwen2.rope.dimension_count", 4), RuntimeError, "rope.dimension_count = 4"),
        (drop("genrecall.level_sizes"), RuntimeError, "the file carries no SID space"),
        (drop("genrecall.sid_token_ids"), RuntimeError, "genrecall.sid_token_ids"),
        (put("genrecall.level_sizes", [6, 4]), ValueError, r"expected shape \[10\]"),
        (
            put("genrecall.level_sizes", [6, 9, 0]),
            ValueError,
            r"level_sizes\[2\] = 0: expected 1..",
        ),
        (sid_tokens([*range(14), 160]), ValueError, "level 2, code 4 = 160: expected 0..V-1 = 159"),
        (
            sid_tokens([*range(14), 10]),
            ValueError,
            "level 2, code 4 = 10: another code of the level",
        ),
    ],
)
def test_files_the_engine_would_run_wrongly_are_refused(gguf_file, tmp_path, edit, error, message):
    bad = rewrite(gguf_file, tmp_path / "bad.gguf", edit)
    with pytest.raises(error, match=message) as caught:
        Engine(bad)
    assert "bad.gguf" in str(caught.value)


def test_damaged_files_are_data_loss(gguf_file, tmp_path):
    content = gguf_file.read_bytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(content[: len(content) // 2])
    with pytest.raises(kernels.DataLossError, match="bad.gguf"):
        Engine(bad)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    bad.write_bytes(flipped)
    with pytest.raises(kernels.DataLossError, match="checksum"):
        Engine(bad)
    with pytest.raises(FileNotFoundError, match="nothing.gguf"):
        Engine(tmp_path / "nothing.gguf")
