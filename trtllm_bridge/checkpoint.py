"""Hugging Face checkpoint folder -> model.gguf, which the engine loads. Needs no torch.

Names and metadata are those of llama.cpp, so a user's own GGUF of the same model differs only in
the genrecall.* keys:

  genrecall.level_sizes        the SID space: codes of each level
  genrecall.sid_space_digest   its name
  genrecall.weights_digest     sha256 of the configuration and the tensors; names the weights
  genrecall.sid_token_ids      tensor I32 [sum of level sizes]: token of each code, level by level
"""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from genrecall import kernels
from genrecall.kernels.json_fields import read_json
from genrecall.kernels.prompt_spec import SidSpace
from genrecall.trtllm_bridge import safetensors_reader

_FILE_TYPE = {"float32": 0, "bfloat16": 32}  # ggml's LLAMA_FTYPE_ALL_F32, LLAMA_FTYPE_MOSTLY_BF16
_ARCHITECTURES = ("qwen2", "qwen3")


@dataclasses.dataclass(frozen=True)
class DecoderShape:
    """The hyper-parameters of a checked Hugging Face config.json."""

    architecture: str
    layers: int
    hidden: int
    ffn: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_length: int
    rms_eps: float
    rope_base: float
    tied: bool

    def metadata(self):
        """The GGUF keys of llama.cpp."""
        prefix = self.architecture + "."
        return {
            "general.architecture": self.architecture,
            prefix + "block_count": self.layers,
            prefix + "context_length": self.context_length,
            prefix + "embedding_length": self.hidden,
            prefix + "feed_forward_length": self.ffn,
            prefix + "attention.head_count": self.q_heads,
            prefix + "attention.head_count_kv": self.kv_heads,
            prefix + "attention.key_length": self.head_dim,
            prefix + "attention.value_length": self.head_dim,
            prefix + "attention.layer_norm_rms_epsilon": self.rms_eps,
            prefix + "rope.freq_base": self.rope_base,
            prefix + "vocab_size": self.vocab,
        }


def read_shape(config):
    """Checks a config.json and returns its DecoderShape.

    Args:
      config: dict, as parsed from config.json (of transformers 4 or 5).

    Raises:
      ValueError: a model this engine would run wrongly (architecture, activation, rope scaling,
        sliding window, quantisation), or a missing or impossible number; the message names the key
        and its value.
    """

    if not isinstance(config, dict):
        raise ValueError(f"config.json: expected an object, got {type(config).__name__}")

    def number(key, kind=int):
        value = config.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
            raise ValueError(f"config.json: {key} = {value!r}: expected a positive number")
        return kind(value)

    def expect(key, value, *allowed):
        if value not in allowed:
            expected = " | ".join(repr(a) for a in allowed)
            raise ValueError(f"config.json: {key} = {value!r}: expected {expected}")

    expect("model_type", config.get("model_type"), *_ARCHITECTURES)
    expect("hidden_act", config.get("hidden_act", "silu"), "silu")
    expect("use_sliding_window", config.get("use_sliding_window", False), False, None)
    for kind in config.get("layer_types") or ():
        expect("layer_types", kind, "full_attention")
    expect("is_causal", config.get("is_causal", True), True)
    expect("quantization_config", config.get("quantization_config"), None)
    q_heads, kv_heads, hidden = (
        number(k) for k in ("num_attention_heads", "num_key_value_heads", "hidden_size")
    )
    if q_heads % kv_heads:
        raise ValueError(
            f"config.json: num_key_value_heads = {kv_heads}: expected a divisor of "
            f"num_attention_heads = {q_heads}"
        )
    if config.get("head_dim") is not None:
        head_dim = number("head_dim")
    elif config["model_type"] == "qwen3":
        head_dim = 128  # the default of transformers' Qwen3Config
    else:
        head_dim = hidden // q_heads
    return DecoderShape(
        architecture=config["model_type"],
        layers=number("num_hidden_layers"),
        hidden=hidden,
        ffn=number("intermediate_size"),
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=number("vocab_size"),
        context_length=number("max_position_embeddings"),
        rms_eps=number("rms_norm_eps", float),
        rope_base=_rope_base(config, expect),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _rope_base(config, expect):
    """rope_parameters is transformers 5, rope_theta and rope_scaling are 4."""
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    expect("rope_parameters.rope_type", rope.get("rope_type", "default"), "default")
    scaling_type = scaling.get("rope_type", scaling.get("type", "default"))
    expect("rope_scaling.rope_type", scaling_type, "default")
    expect("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), 1.0)
    base = rope.get("rope_theta", config.get("rope_theta"))
    if not isinstance(base, (int, float)) or base < 1:
        raise ValueError(f"config.json: rope_theta = {base!r}: expected a number >= 1")
    return float(base)


def _layer_names(layer):
    """(Hugging Face, llama.cpp) names of a layer's tensors.

    q, k, v and gate, up are neighbours in the file: the engine then reads them as one matrix
    without a copy.
    """
    hf, blk = f"model.layers.{layer}.", f"blk.{layer}."
    return [
        (hf + "self_attn.q_proj.weight", blk + "attn_q.weight"),
        (hf + "self_attn.k_proj.weight", blk + "attn_k.weight"),
        (hf + "self_attn.v_proj.weight", blk + "attn_v.weight"),
        (hf + "self_attn.o_proj.weight", blk + "attn_output.weight"),
        (hf + "mlp.gate_proj.weight", blk + "ffn_gate.weight"),
        (hf + "mlp.up_proj.weight", blk + "ffn_up.weight"),
        (hf + "mlp.down_proj.weight", blk + "ffn_down.weight"),
        (hf + "self_attn.q_proj.bias", blk + "attn_q.bias"),
        (hf + "self_attn.k_proj.bias", blk + "attn_k.bias"),
        (hf + "self_attn.v_proj.bias", blk + "attn_v.bias"),
        (hf + "self_attn.q_norm.weight", blk + "attn_q_norm.weight"),
        (hf + "self_attn.k_norm.weight", blk + "attn_k_norm.weight"),
        (hf + "input_layernorm.weight", blk + "attn_norm.weight"),
        (hf + "post_attention_layernorm.weight", blk + "ffn_norm.weight"),
    ]


def _expected_shape(name, shape):
    """Shape that the tensor of that llama.cpp name must have."""
    q_dim, kv_dim = shape.q_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, ffn = shape.hidden, shape.ffn
    leaf = name.split(".", 2)[-1] if name.startswith("blk.") else name
    return {
        "token_embd.weight": (shape.vocab, hidden),
        "output.weight": (shape.vocab, hidden),
        "output_norm.weight": (hidden,),
        "attn_q.weight": (q_dim, hidden),
        "attn_k.weight": (kv_dim, hidden),
        "attn_v.weight": (kv_dim, hidden),
        "attn_output.weight": (hidden, q_dim),
        "ffn_gate.weight": (ffn, hidden),
        "ffn_up.weight": (ffn, hidden),
        "ffn_down.weight": (hidden, ffn),
        "attn_q.bias": (q_dim,),
        "attn_k.bias": (kv_dim,),
        "attn_v.bias": (kv_dim,),
        "attn_q_norm.weight": (shape.head_dim,),
        "attn_k_norm.weight": (shape.head_dim,),
        "attn_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
    }[leaf]


def _select(stored, shape):
    """{llama.cpp name: StoredTensor} in file order; refuses missing, unexpected, misshapen ones."""
    names = [("model.embed_tokens.weight", "token_embd.weight")]
    for layer in range(shape.layers):
        names += _layer_names(layer)
    names.append(("model.norm.weight", "output_norm.weight"))
    if not shape.tied:
        names.append(("lm_head.weight", "output.weight"))
    biased = "model.layers.0.self_attn.q_proj.bias" in stored
    selected, used = {}, set()
    for hf_name, name in names:
        if name.endswith(".bias") and not biased:
            continue
        if (
            name.endswith(("attn_q_norm.weight", "attn_k_norm.weight"))
            and shape.architecture != "qwen3"
        ):
            continue
        if hf_name not in stored:
            raise ValueError(f"tensor '{hf_name}' is missing")
        expected = _expected_shape(name, shape)
        if stored[hf_name].data.shape != expected:
            actual = list(stored[hf_name].data.shape)
            raise ValueError(f"tensor '{hf_name}' has shape {actual}: expected {list(expected)}")
        selected[name] = stored[hf_name]
        used.add(hf_name)
    # A tied checkpoint may store the head as well: it is the embedding again.
    ignored = {"lm_head.weight"} if shape.tied else set()
    unexpected = sorted(set(stored) - used - ignored)
    if unexpected:
        raise ValueError(f"unexpected tensor '{unexpected[0]}' for model_type {shape.architecture}")
    return selected


def _check_sid_space(space, vocab):
    for level, tokens in enumerate(space.token_ids):
        for code, token in enumerate(tokens):
            if not 0 <= token < vocab:
                raise ValueError(
                    f"sid_space.json: token of level {level}, code {code} = {token}: "
                    f"expected 0..V-1 = {vocab - 1}"
                )


def _weights_digest(metadata, tensors):
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def write_model(path, metadata, tensors, types):
    """Writes a weights file and names it by its content.

    Args:
      path: written beside and renamed.
      metadata: dict of keys, all but genrecall.weights_digest, which is added.
      tensors: dict of llama.cpp's name to array, in any order.
      types: "BF16" of the tensors given as its bits.

    Returns:
      dict for the model card, see `model_card`.
    """
    arch = metadata["general.architecture"]
    order = ["token_embd.weight"]
    for layer in range(metadata[arch + ".block_count"]):
        names = [name for _, name in _layer_names(layer)]
        order += names + [name.removesuffix("weight") + "scale" for name in names]
    order += ["output_norm.weight", "output.weight", "genrecall.sid_token_ids"]
    ordered = {name: tensors[name] for name in order if name in tensors}
    unknown = sorted(set(tensors) - set(ordered))
    if unknown:
        raise ValueError(f"tensor '{unknown[0]}' is none of a {arch} model")
    metadata = metadata | {"genrecall.weights_digest": _weights_digest(metadata, tensors)}
    kernels.write_gguf(path, metadata, ordered, types)
    return model_card(metadata, ordered, types)


def model_card(metadata, tensors, types):
    """What a weights file is: dict of architecture, dtype (of all that is not int8), quantization
    ("none" | "w8" | "w8a8"), kv_dtype, parameters, weights_digest, sid_space_digest, level_sizes,
    hidden_size, layers, vocab_size, tied_head. Arguments as read_gguf returns them.
    """
    arch = metadata["general.architecture"]
    vocab, hidden = tensors["token_embd.weight"].shape
    dtype = "bfloat16" if types.get("token_embd.weight") == "BF16" else "float32"
    beside = {name for name in tensors if name.endswith(".scale")} | {"genrecall.sid_token_ids"}
    return {
        "architecture": arch,
        "dtype": dtype,
        "quantization": metadata.get("genrecall.quantization", "none"),
        "kv_dtype": metadata.get("genrecall.kv_dtype", dtype),
        "parameters": int(sum(t.size for name, t in tensors.items() if name not in beside)),
        "weights_digest": metadata["genrecall.weights_digest"],
        "sid_space_digest": metadata["genrecall.sid_space_digest"],
        "level_sizes": [int(size) for size in metadata["genrecall.level_sizes"]],
        "hidden_size": int(hidden),
        "layers": metadata[arch + ".block_count"],
        "vocab_size": int(vocab),
        "tied_head": "output.weight" not in tensors,
    }


def describe(path):
    """The model card of a weights file that this package wrote; see `model_card`.

    Raises:
      ValueError: a key or the embedding is missing. FileNotFoundError; kernels.DataLossError.
    """
    file = kernels.read_gguf(path)
    try:
        return model_card(file["metadata"], file["tensors"], file["types"])
    except KeyError as error:
        raise ValueError(f"{path}: no {error}: not written by genrecall") from error


def convert(checkpoint_dir, out_path, dtype="bfloat16"):
    """Writes the engine's weights file for a Qwen2 / Qwen3 checkpoint folder.

    Args:
      checkpoint_dir: Hugging Face folder: config.json, model.safetensors (or its shards), and
        sid_space.json.
      out_path: the model.gguf to write; written beside and renamed.
      dtype: "bfloat16" or "float32": of the matrices. Norm weights and biases are always float32.

    Returns:
      dict for the model card, see `model_card`.

    Raises:
      ValueError: anything the engine would run wrongly; names the config key or the tensor.
      FileNotFoundError: a file of the folder is missing.
    """
    if dtype not in _FILE_TYPE:
        raise ValueError(f"dtype = {dtype!r}: expected 'bfloat16' | 'float32'")
    folder = pathlib.Path(checkpoint_dir)
    shape = read_shape(read_json(folder / "config.json"))
    space = SidSpace.load(folder / "sid_space.json")
    _check_sid_space(space, shape.vocab)
    try:
        selected = _select(safetensors_reader.read_folder(folder), shape)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error

    tensors, types = {}, {}
    for name, stored in selected.items():
        if stored.data.ndim == 2 and dtype == "bfloat16":
            tensors[name] = safetensors_reader.to_bfloat16_bits(stored)
            types[name] = "BF16"
        else:
            tensors[name] = safetensors_reader.to_float32(stored)
    token_ids = np.concatenate([np.asarray(t, np.int32) for t in space.token_ids])
    tensors["genrecall.sid_token_ids"] = token_ids
    metadata = shape.metadata()
    metadata["general.file_type"] = _FILE_TYPE[dtype]
    metadata["genrecall.level_sizes"] = list(space.level_sizes)
    metadata["genrecall.sid_space_digest"] = space.digest
    return write_model(out_path, metadata, tensors, types)
