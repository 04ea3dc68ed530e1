"""model.gguf -> model.gguf with int8 matrices, an int8 KV cache, or both. Knows no data, no torch.

Weights get one scale per output row (symmetric, -127..127). For "w8a8", where activations become
int8 as well, SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) first moves the size of outlier
channels from the activations into the weights: channel j of a gemm's input is divided by

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

and column j of its weights multiplied by it. The division costs nothing at run time, since it is
folded into what makes the channel: an RMSNorm's weight, the rows of the value projection, or those
of the up projection. Embedding, head, norms and biases stay as they are.

Keys and tensors beside those of `checkpoint`:

  genrecall.quantization     "w8" | "w8a8"
  genrecall.smoothing_alpha  float, of "w8a8"
  genrecall.kv_dtype         "int8": keys and values are kept as int8, with a scale for each head's
                             vector; they are rounded when they are computed
  genrecall.source_digest    genrecall.weights_digest of the file it was made from
  NAME.scale                 F32 [rows], for the I8 tensor NAME.weight
"""

import numpy as np

from genrecall import kernels
from genrecall.trtllm_bridge import checkpoint

MODES = ("w8", "w8a8")
KV_DTYPES = ("int8",)
_MATRICES = (
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)
INPUTS = ("attn_norm", "attn_output", "ffn_norm", "ffn_down")  # as Engine.input_maxima names them
_LARGEST_FACTOR = 1e4


def quantize_rows(w):
    """Symmetric int8 with one scale a row.

    Args:
      w: float32 [rows, cols], finite.

    Returns:
      (int8 [rows, cols] in -127..127, float32 [rows]): w ~ q * scale[:, None].
    """
    scale = (np.abs(w).max(axis=1, initial=0.0) / 127).astype(np.float32)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(np.rint(w * inverse[:, None]), -127, 127).astype(np.int8), scale


def smoothing_factors(inputs, weights, alpha):
    """SmoothQuant's s.

    Args:
      inputs: float32 [channels], largest magnitude of each input channel.
      weights: float32 [rows, channels], the matrices that read the input, one above the other.
      alpha: 0 leaves all to the activations, 1 moves all to the weights.

    Returns:
      float32 [channels], > 0; 1 where a channel or its weights are always 0.
    """
    largest = np.abs(weights).max(axis=0)
    used = (inputs > 0) & (largest > 0)
    x, w = np.where(used, inputs, 1).astype(np.float64), np.where(used, largest, 1)
    factors = np.clip(x**alpha / w ** (1 - alpha), 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    return np.where(used, factors, 1).astype(np.float32)


def smooth(tensors, metadata, maxima, alpha):
    """Moves the size of activation channels into the weights, in place; the function that the model
    computes stays the same.

    Args:
      tensors: dict of llama.cpp's name to float32 array.
      metadata: the file's; head counts are read from it.
      maxima: dict of INPUTS to float32 [layers, channels].
      alpha: as for smoothing_factors.

    Raises:
      ValueError: maxima of another model.
    """
    arch = metadata["general.architecture"]
    q_heads, kv_heads, head_dim = (
        metadata[f"{arch}.attention.{key}"] for key in ("head_count", "head_count_kv", "key_length")
    )
    for layer in range(metadata[f"{arch}.block_count"]):
        t = _Layer(tensors, layer)
        for norm, readers in (
            ("attn_norm", ("attn_q", "attn_k", "attn_v")),
            ("ffn_norm", ("ffn_gate", "ffn_up")),
        ):
            columns = np.concatenate([t[f"{name}.weight"] for name in readers])
            factors = smoothing_factors(_of_layer(maxima, norm, layer, columns), columns, alpha)
            t[f"{norm}.weight"] = t[f"{norm}.weight"] / factors
            for name in readers:
                t[f"{name}.weight"] = t[f"{name}.weight"] * factors

        down = t["ffn_down.weight"]
        factors = smoothing_factors(_of_layer(maxima, "ffn_down", layer, down), down, alpha)
        t["ffn_up.weight"] = t["ffn_up.weight"] / factors[:, None]
        t["ffn_down.weight"] = down * factors

        # All query heads of a group read the same values: one factor for the group's channel.
        out = t["attn_output.weight"]
        group = (kv_heads, q_heads // kv_heads, head_dim)
        inputs = _of_layer(maxima, "attn_output", layer, out).reshape(group).max(axis=1)
        shared = np.abs(out).max(axis=0).reshape(group).max(axis=1)
        factors = smoothing_factors(inputs.ravel(), shared.reshape(1, -1), alpha)
        t["attn_v.weight"] = t["attn_v.weight"] / factors[:, None]
        if "attn_v.bias" in t:
            t["attn_v.bias"] = t["attn_v.bias"] / factors
        repeated = np.broadcast_to(factors.reshape(kv_heads, 1, head_dim), group)
        t["attn_output.weight"] = out * repeated.ravel()


def quantize(model, output, mode, maxima=None, alpha=0.5, kv_dtype=None):
    """Writes an int8 version of a weights file.

    Args:
      model: model.gguf of `checkpoint.convert`.
      output: the file to write; written beside and renamed.
      mode: "w8": int8 weights that are widened when they are used; "w8a8": int8 products; "none":
        matrices stay as they are.
      maxima: for "w8a8", the largest magnitude of every input channel of the layers' gemms over
        calibration prompts: dict of INPUTS to float32 [layers, channels] (Engine.input_maxima).
      alpha: 0..1, how much of the activations' size goes to the weights.
      kv_dtype: "int8", or None for the dtype of what is not int8.

    Returns:
      dict for the model card, as checkpoint.convert's; dtype is that of what is not int8.

    Raises:
      ValueError: a file that is quantised already, an unknown mode, maxima that are missing or of
        another model, weights that are not finite. FileNotFoundError; kernels.DataLossError.
    """
    if mode not in ("none", *MODES):
        raise ValueError(f"mode = {mode!r}: expected none | {' | '.join(MODES)}")
    if kv_dtype not in (None, *KV_DTYPES):
        raise ValueError(f"kv_dtype = {kv_dtype!r}: expected None | 'int8'")
    if mode == "none" and kv_dtype is None:
        raise ValueError("mode 'none' without int8 keys and values: nothing to do")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha}: expected 0..1")
    if mode == "w8a8" and maxima is None:
        raise ValueError("mode 'w8a8' needs maxima: int8 activations are calibrated")
    file = kernels.read_gguf(model, require_checksum=False)
    metadata, types = dict(file["metadata"]), dict(file["types"])
    for key in ("genrecall.quantization", "genrecall.kv_dtype"):
        if key in metadata:
            raise ValueError(f"{model}: {key} = {metadata[key]!r}: expected a float model")
    tensors = dict(file["tensors"])
    if mode != "none":
        _to_int8(model, tensors, types, metadata, mode, maxima, alpha)
        metadata["genrecall.quantization"] = mode
        metadata.pop("general.file_type", None)  # ggml has no number for this mixture
    if kv_dtype is not None:
        metadata["genrecall.kv_dtype"] = kv_dtype
    metadata["genrecall.source_digest"] = metadata.pop("genrecall.weights_digest", "")
    kept = {name: "BF16" for name in tensors if types.get(name) == "BF16"}
    return checkpoint.write_model(output, metadata, tensors, kept)


def _to_int8(model, tensors, types, metadata, mode, maxima, alpha):
    """The layers' matrices as int8 and scales, in place; all else of the layers as float32."""
    names = [name for name in tensors if name.startswith("blk.")]
    blocks = {name: as_float32(tensors[name], types.pop(name)) for name in names}
    if mode == "w8a8":
        smooth(blocks, metadata, maxima, alpha)
        metadata["genrecall.smoothing_alpha"] = float(alpha)
    tensors |= blocks
    for layer in range(metadata[metadata["general.architecture"] + ".block_count"]):
        t = _Layer(tensors, layer)
        for name in _MATRICES:
            weight = t[f"{name}.weight"]
            if not np.isfinite(weight).all():
                raise ValueError(f"{model}: tensor 'blk.{layer}.{name}.weight' is not finite")
            t[f"{name}.weight"], t[f"{name}.scale"] = quantize_rows(weight)


def as_float32(array, gguf_type):
    """A tensor of read_gguf as float32."""
    if gguf_type == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _of_layer(maxima, name, layer, weights):
    """maxima[name][layer], checked to be of the columns of `weights`."""
    found = maxima.get(name)
    if found is None or np.ndim(found) != 2 or layer >= len(found):
        raise ValueError(f"maxima[{name!r}]: expected [layers, channels], one row per layer")
    if found.shape[1] != weights.shape[1]:
        raise ValueError(
            f"maxima[{name!r}] has {found.shape[1]} channels: expected {weights.shape[1]}"
        )
    if not np.isfinite(found[layer]).all():
        raise ValueError(f"maxima[{name!r}][{layer}]: not finite")
    return np.asarray(found[layer], np.float32)


class _Layer:
    """A layer's tensors by the names behind `blk.N.`."""

    def __init__(self, tensors, layer):
        self.tensors, self.prefix = tensors, f"blk.{layer}."

    def __getitem__(self, name):
        return self.tensors[self.prefix + name]

    def __setitem__(self, name, value):
        self.tensors[self.prefix + name] = np.ascontiguousarray(value)

    def __contains__(self, name):
        return self.prefix + name in self.tensors
