"""TensorProtos -> the REST API's JSON reply, as tensorflow_model_server lays it out."""

import base64
import json
import math
from collections.abc import Mapping

import numpy as np
from tensorflow.core.framework import tensor_pb2

from genrecall.serving import tensors
from genrecall.serving.errors import invalid_argument
from genrecall.serving.json_request import COLUMNAR, ROW

_REPLY_KEY = {ROW: "predictions", COLUMNAR: "outputs"}
_BYTES_SUFFIX = "_bytes"  # string outputs with such a name are binary


def format_predict(outputs: Mapping[str, tensor_pb2.TensorProto], batched: str) -> str:
    """The JSON reply to a request of format `batched`.

    Raises:
      ServingError: INVALID_ARGUMENT if the outputs have no row format: no, or different, first
        dimensions.
    """
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    arrays = {name: tensors.to_numpy(name, outputs[name]) for name in sorted(outputs)}
    if batched == ROW:
        size = _batch_size(arrays)
        named = {
            name: [_nested(row, name.endswith(_BYTES_SUFFIX), indent=None) for row in array]
            for name, array in arrays.items()
        }
        if len(named) == 1:
            body = "[" + ", ".join(next(iter(named.values()))) + ("\n    ]" if size else "]")
        else:
            rows = (
                "        {\n"
                + ",\n".join(
                    f"            {json.dumps(name)}: {values[row]}"
                    for name, values in named.items()
                )
                + "\n        }"
                for row in range(size)
            )
            body = "[\n" + ",\n".join(rows) + "\n    ]" if size else "[]"
    elif len(arrays) == 1:
        ((name, array),) = arrays.items()
        body = _nested(array, name.endswith(_BYTES_SUFFIX), indent=4)
    else:
        members = (
            f"        {json.dumps(name)}: {_nested(array, name.endswith(_BYTES_SUFFIX), indent=8)}"
            for name, array in arrays.items()
        )
        body = "{\n" + ",\n".join(members) + "\n    }"
    return f'{{\n    "{_REPLY_KEY[batched]}": {body}\n}}'


def _batch_size(arrays: Mapping[str, np.ndarray]) -> int:
    size = -1
    for name, array in arrays.items():
        if array.ndim == 0:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if size not in (-1, array.shape[0]):
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {array.shape[0]} "
                f"expecting: {size}"
            )
        size = array.shape[0]
    return size


def _nested(array, binary: bool, indent: int | None) -> str:
    """Nested JSON lists of an array, on one line (`indent` None) or one value a line."""
    array = np.asarray(array)
    leaves = iter(_leaves(array, binary))

    def build(level: int, margin: int) -> str:
        if level == array.ndim:
            return next(leaves)
        items = [build(level + 1, margin + 4) for _ in range(array.shape[level])]
        if indent is None or not items:
            return "[" + ", ".join(items) + "]"
        inner, outer = "\n" + " " * (margin + 4), "\n" + " " * margin
        return "[" + inner + ("," + inner).join(items) + outer + "]"

    return build(0, indent or 0)


def _leaves(array: np.ndarray, binary: bool) -> list[str]:
    """Every value, row-major, as JSON."""
    flat = array.reshape(-1)
    if array.dtype == object:
        if binary:
            return [f'{{"b64": "{base64.b64encode(value).decode()}"}}' for value in flat]
        return [json.dumps(value.decode("utf-8", "replace"), ensure_ascii=False) for value in flat]
    if array.dtype == np.bool_:
        return ["true" if value else "false" for value in flat]
    if np.issubdtype(array.dtype, np.integer):
        return [str(value) for value in flat.tolist()]
    if array.dtype == np.float64:
        return [_decimal(value, 17) for value in flat.tolist()]
    if array.dtype.kind in "fV":  # bfloat16 is of kind V
        return [_decimal(value, 9) for value in flat.astype(np.float32)]
    raise invalid_argument(f"Failed to write JSON value for tensor type: {array.dtype.name}")


def _decimal(value, digits: int) -> str:
    """Six digits if they give the number back, else `digits`; always a point or exponent."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    text = f"{value:g}"
    if type(value)(text) != value:
        text = f"{value:.{digits}g}"
    return text if "." in text or "e" in text else text + ".0"
