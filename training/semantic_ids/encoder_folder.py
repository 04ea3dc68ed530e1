"""Text to vectors by the folder of a Transformers or sentence-transformers encoder. Knows no items,
no behaviours and no codes. Nothing is downloaded.

What a sentence-transformers folder says of itself (modules.json) is followed: pooling, dense
layers, normalisation, length, lower case. A plain Transformers folder is mean-pooled.
"""

import hashlib
import json
import os
from dataclasses import dataclass

import numpy as np

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
_DEFAULT_TOKENS = 128
_BATCH = 64


@dataclass(frozen=True)
class Recipe:
    """How a folder turns hidden states into a vector.

    transformer: folder of model and tokenizer; pooling: names of POOLINGS, concatenated in that
    order; dense: folders of dense layers; normalize: whether the folder's own vectors have length
    1; max_tokens; lower_case.
    """

    transformer: str
    pooling: tuple = ("mean",)
    dense: tuple = ()
    normalize: bool = False
    max_tokens: int = _DEFAULT_TOKENS
    lower_case: bool = False


def read_recipe(folder):
    """What modules.json says, or the defaults where there is none.

    Raises:
      FileNotFoundError: not a folder of an encoder.
      ValueError: a module or a pooling that is not known, by file.
    """
    modules_file = os.path.join(folder, "modules.json")
    if not os.path.exists(modules_file):
        return Recipe(_with_config(folder, folder))
    parts = {"transformer": None, "pooling": ("mean",), "dense": [], "normalize": False}
    for module in _json(modules_file):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        path = os.path.join(folder, module.get("path", ""))
        if kind == "Transformer":
            parts["transformer"] = _with_config(path, folder)
        elif kind == "Pooling":
            parts["pooling"] = _pooling(os.path.join(path, "config.json"))
        elif kind == "Dense":
            parts["dense"].append(path)
        elif kind == "Normalize":
            parts["normalize"] = True
        elif kind != "Dropout":  # which does nothing at inference
            raise ValueError(
                f"{modules_file}: module {module.get('type')!r}: "
                "expected Transformer, Pooling, Dense, Normalize or Dropout"
            )
    if parts["transformer"] is None:
        raise ValueError(f"{modules_file}: no Transformer module")
    settings_file = os.path.join(parts["transformer"], "sentence_bert_config.json")
    settings = _json(settings_file) if os.path.exists(settings_file) else {}
    return Recipe(
        **{**parts, "dense": tuple(parts["dense"])},
        max_tokens=settings.get("max_seq_length") or _DEFAULT_TOKENS,
        lower_case=bool(settings.get("do_lower_case")),
    )


class FolderEncoder:
    """The encoder of a folder, loaded. `digest`: sha256 hex of its files' names and bytes."""

    def __init__(self, folder):
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.folder = os.path.abspath(folder)
        self.recipe = read_recipe(folder)
        self.digest = _digest(folder)
        source = self.recipe.transformer
        self.tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        self.tokenizer.padding_side = "right"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model = AutoModel.from_pretrained(source, local_files_only=True, dtype=torch.float32)
        self.model = (model.get_encoder() if model.config.is_encoder_decoder else model).eval()
        self.dense = [_DenseLayer(path) for path in self.recipe.dense]

    def encode(self, texts):
        """float32 [N, D]; of length 1 where the folder normalises."""
        import torch

        if self.recipe.lower_case:
            texts = [t.lower() for t in texts]
        # Like lengths together: little padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = None
        for first in range(0, len(order), _BATCH):
            rows = order[first : first + _BATCH]
            batch = self.tokenizer(
                [texts[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=self.recipe.max_tokens,
                return_tensors="pt",
            )
            with torch.inference_mode():
                hidden = self.model(**batch).last_hidden_state
                vectors = pool(hidden, batch["attention_mask"], self.recipe.pooling)
                for layer in self.dense:
                    vectors = layer(vectors)
                if self.recipe.normalize:
                    vectors = torch.nn.functional.normalize(vectors, dim=-1)
            if out is None:
                out = np.zeros((len(texts), vectors.shape[1]), np.float32)
            out[rows] = vectors.numpy()
        return out


def pool(hidden, mask, poolings):
    """Hidden states of the tokens to one vector, as sentence-transformers pools.

    Args:
      hidden: float [B, T, H].
      mask: int [B, T], 1 for tokens, 0 for padding, which stands on the right.
      poolings: names of POOLINGS; their vectors stand one after the other.

    Returns:
      float [B, H * len(poolings)].
    """
    import torch

    weight = mask.unsqueeze(-1).to(hidden.dtype)
    total = (hidden * weight).sum(1)
    count = weight.sum(1).clamp(min=1)
    out = []
    for name in poolings:
        if name == "cls":
            out.append(hidden[:, 0])
        elif name == "max":
            out.append(hidden.masked_fill(weight == 0, -torch.inf).amax(1))
        elif name == "mean":
            out.append(total / count)
        elif name == "mean_sqrt_len":
            out.append(total / count.sqrt())
        elif name == "weightedmean":
            place = weight * torch.arange(1, hidden.shape[1] + 1).view(1, -1, 1)
            out.append((hidden * place).sum(1) / place.sum(1).clamp(min=1))
        else:
            last = mask.sum(1).clamp(min=1) - 1
            out.append(hidden[torch.arange(len(hidden)), last])
    return torch.cat(out, dim=1)


class _DenseLayer:
    """A Dense module of a sentence-transformers folder: x -> activation(W x + b)."""

    def __init__(self, folder):
        import torch
        from safetensors.torch import load_file

        settings_file = os.path.join(folder, "config.json")
        settings = _json(settings_file)
        name = str(settings.get("activation_function", "")).rsplit(".", 1)[-1]
        known = {"Tanh": torch.nn.Tanh, "Identity": torch.nn.Identity, "GELU": torch.nn.GELU}
        if name not in known:
            raise ValueError(
                f"{settings_file}: activation_function = {name!r}: expected {', '.join(known)}"
            )
        self.activation = known[name]()
        tensors = load_file(os.path.join(folder, "model.safetensors"))
        self.weight, self.bias = tensors["linear.weight"].float(), tensors.get("linear.bias")

    def __call__(self, x):
        y = x @ self.weight.T
        return self.activation(y if self.bias is None else y + self.bias.float())


def _pooling(path):
    """The pooling names of a Pooling module's config.json, in the order sentence-transformers
    concatenates them.
    """
    settings = _json(path)
    if "pooling_mode" in settings:  # the newer way: one name, or several
        mode = settings["pooling_mode"]
        chosen = {mode} if isinstance(mode, str) else set(mode)
    else:
        on = {k for k, v in settings.items() if k.startswith("pooling_mode_") and v}
        chosen = {
            k.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            for k in on
        }
    unknown = chosen - set(POOLINGS)
    if unknown or not chosen:
        raise ValueError(
            f"{path}: pooling {', '.join(sorted(unknown)) or 'none'}: "
            f"expected {', '.join(POOLINGS)}"
        )
    return tuple(p for p in POOLINGS if p in chosen)


def _with_config(path, folder):
    if not os.path.exists(os.path.join(path, "config.json")):
        raise FileNotFoundError(
            f"{folder}: no config.json; expected a Transformers or sentence-transformers folder"
        )
    return path


def _json(path):
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def _digest(folder):
    digest = hashlib.sha256()
    for base, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(base, name)
            digest.update(os.path.relpath(path, folder).encode() + b"\0")
            with open(path, "rb") as f:
                while chunk := f.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()
