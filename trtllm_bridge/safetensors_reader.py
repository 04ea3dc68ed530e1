"""Tensors of a Hugging Face checkpoint folder, memory-mapped. Knows no model and needs no torch.

The format (https://github.com/huggingface/safetensors#format): 8 bytes of header length, a JSON
header of {name: {dtype, shape, data_offsets}}, then the data. bfloat16, which NumPy lacks, comes as
its uint16 bits.
"""

import dataclasses
import json
import pathlib

import numpy as np

from genrecall.kernels.json_fields import read_json

_NUMPY_TYPE = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_MAX_HEADER_BYTES = 100 << 20


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor as it lies in the file."""

    dtype: str  # "F32", "F16" or "BF16" (uint16 bits)
    data: np.ndarray


def read_folder(folder):
    """All tensors of a checkpoint folder.

    Args:
      folder: holds model.safetensors, or model.safetensors.index.json and the shards it names.

    Returns:
      dict of name -> StoredTensor, read-only maps of the files.

    Raises:
      FileNotFoundError: neither file. ValueError: a damaged file, an unknown dtype, an index that
        names a tensor its shard lacks.
    """
    folder = pathlib.Path(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return read_file(single)
    if not index.exists():
        raise FileNotFoundError(f"{folder}: no model.safetensors and no {index.name}")
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: expected an object with a weight_map")
    shards = {name: read_file(folder / name) for name in sorted(set(weight_map.values()))}
    missing = [name for name, shard in weight_map.items() if name not in shards[shard]]
    if missing:
        raise ValueError(f"{index}: tensor '{missing[0]}' is not in {weight_map[missing[0]]}")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def read_file(path):
    """All tensors of one .safetensors file; see read_folder."""
    path = pathlib.Path(path)
    size = path.stat().st_size
    with open(path, "rb") as f:
        prefix = f.read(8)
        header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or header_bytes > min(_MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"{path}: not a safetensors file (header of {header_bytes} bytes)")
        try:
            header = json.loads(f.read(header_bytes))
        except ValueError as error:
            raise ValueError(f"{path}: not a safetensors file ({error})") from error
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = _tensor(path, name, entry, 8 + header_bytes, size)
    return tensors


def _tensor(path, name, entry, start, file_size):
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: tensor '{name}' = {entry!r}: expected dtype, shape and data_offsets"
        ) from None
    if dtype not in _NUMPY_TYPE:
        raise ValueError(f"{path}: tensor '{name}' is {dtype}: expected F32, BF16 or F16")
    numpy_type = np.dtype(_NUMPY_TYPE[dtype])
    count = int(np.prod(shape, dtype=np.int64))
    if not (0 <= begin and end - begin == count * numpy_type.itemsize and start + end <= file_size):
        raise ValueError(
            f"{path}: tensor '{name}' of shape {shape} at bytes {begin}..{end}: "
            "truncated or damaged file"
        )
    if count == 0:
        return StoredTensor(dtype, np.zeros(shape, numpy_type))
    data = np.memmap(path, numpy_type, mode="r", offset=start + begin, shape=tuple(shape))
    return StoredTensor(dtype, data)


def to_float32(tensor):
    """float32 array of a stored tensor, exact."""
    if tensor.dtype == "BF16":
        return (tensor.data.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(tensor.data, np.float32)


def to_bfloat16_bits(tensor):
    """uint16 bits of a stored tensor rounded to bfloat16 (nearest, ties to even)."""
    if tensor.dtype == "BF16":
        return tensor.data
    values = to_float32(tensor)
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    # Rounding would carry a NaN's payload into infinity: keep it a quiet NaN.
    return np.where(np.isnan(values), (bits >> 16).astype(np.uint16) | 0x40, rounded)
