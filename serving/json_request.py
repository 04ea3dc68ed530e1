"""The REST API's JSON -> PredictRequest, with tensorflow_model_server's conventions.

Knows no HTTP and no model: the caller says which inputs a signature has.

Requests are `{"signature_name": .., "instances": [..]}` (row format: one object or value a row) or
`{"inputs": ..}` (columnar format: whole tensors). Beyond tensorflow_model_server: an input that has
a default value in the signature may be left out, as over gRPC.
"""

import base64
import binascii
import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2

from genrecall.serving import tensors
from genrecall.serving.errors import ServingError, invalid_argument

ROW, COLUMNAR = "instances", "inputs"
_MAX_RANK = 32


@dataclass(frozen=True)
class Inputs:
    """What a signature takes: alias -> TensorInfo, and the aliases that may be left out."""

    infos: Mapping[str, meta_graph_pb2.TensorInfo]
    optional: frozenset[str] = frozenset()

    @property
    def required(self) -> set[str]:
        return set(self.infos) - self.optional

    def only(self, plain: str, wanted: str) -> str:
        """The one input that a nameless value is for; INVALID_ARGUMENT if there are several."""
        if len(self.infos) > 1:
            raise invalid_argument(
                f"{plain}, but expecting {wanted} as multiple input tensors required as per "
                "tensorinfo_map"
            )
        return next(iter(self.infos))


def parse_predict(
    body: bytes, inputs_of: Callable[[str], Inputs]
) -> tuple[predict_pb2.PredictRequest, str]:
    """A REST body as a PredictRequest (without a model name) and its format, ROW or COLUMNAR.

    Args:
      body: UTF-8 JSON; NaN, Infinity and -Infinity are numbers.
      inputs_of: signature name ("" for the default one) -> its inputs; may raise ServingError.

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    document = _parse(body)
    request = predict_pb2.PredictRequest()
    signature_name = document.get("signature_name", "")
    if not isinstance(signature_name, str):
        raise invalid_argument(
            f"JSON Value: {_text(document)} not formatted correctly. 'signature_name' key "
            "must be a string value."
        )
    request.model_spec.signature_name = signature_name
    inputs = inputs_of(signature_name)
    if not inputs.infos:
        raise invalid_argument(
            f"Failed to get input map for signature: {signature_name or 'DEFAULT'}"
        )
    if ROW in document and COLUMNAR in document:
        raise invalid_argument(
            f"JSON Value: {_text(document)} Not formatted correctly expecting only one of "
            f"'{COLUMNAR}' or '{ROW}' keys to exist "
        )
    if ROW in document:
        values = _rows(document, inputs)
        batched = ROW
    elif COLUMNAR in document:
        values = _columns(document[COLUMNAR], inputs)
        batched = COLUMNAR
    else:
        raise invalid_argument("Missing 'inputs' or 'instances' key")
    for name, (flat, shape) in values.items():
        _fill(request.inputs[name], inputs.infos[name].dtype, flat, shape)
    return request, batched


def _parse(body: bytes) -> dict:
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    try:
        document = json.loads(body)
    except json.JSONDecodeError as error:
        raise invalid_argument(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise invalid_argument(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {_text(document)} Is not object")
    return document


def _rows(document: dict, inputs: Inputs) -> dict[str, tuple[list, tuple[int, ...]]]:
    """alias -> (flat values, shape) of the row format; dimension 0 is the rows."""
    rows = document[ROW]
    if not isinstance(rows, list):
        raise invalid_argument(
            f"JSON Value: {_text(document)} Excepting '{ROW}' to be an list/array"
        )
    if not rows:
        raise invalid_argument(f"JSON Value: {_text(document)} No values in '{ROW}' array")
    named = _is_named(rows[0])
    only = None if named else inputs.only("instances is a plain list", "list of objects")
    names = set(rows[0]) if named else {only}
    flats: dict[str, list] = {name: [] for name in names}
    shapes: dict[str, tuple[int, ...]] = {}
    for number, row in enumerate(rows):
        if named != _is_named(row):
            expected, got = ("object", "list") if named else ("value/list", "object")
            raise invalid_argument(
                f"Expecting {expected} but got {got} at item {number} of input list"
            )
        members = row if named else {only: row}
        if named and (set(row) != names or not inputs.required <= names <= set(inputs.infos)):
            wanted = ",".join(sorted(inputs.required | (names & set(inputs.infos))))
            raise invalid_argument(
                f"Failed to process element: {number} of 'instances' list. JSON object: "
                f"{_text(row)} keys must be equal to: {wanted}"
            )
        for name, value in members.items():
            try:
                shape = _append(value, inputs.infos[name].dtype, flats[name])
                _check_same_shape(shapes.setdefault(name, shape), shape)
            except ServingError as error:
                key = f" key: {name}" if named else ""
                raise invalid_argument(
                    f"Failed to process element: {number}{key} of 'instances' list. Error: "
                    f"INVALID_ARGUMENT: {error.message}"
                ) from error
    return {name: (flats[name], (len(rows), *shapes[name])) for name in names}


def _check_same_shape(want: tuple[int, ...], got: tuple[int, ...]) -> None:
    if math.prod(want) != math.prod(got):
        raise invalid_argument(
            f"Expecting tensor size: {math.prod(want)} but got: {math.prod(got)}"
        )
    if want != got:
        raise invalid_argument(
            f"Expecting shape {tensors.shape_text(want)} but got: {tensors.shape_text(got)}"
        )


def _columns(value, inputs: Inputs) -> dict[str, tuple[list, tuple[int, ...]]]:
    """alias -> (flat values, shape) of the columnar format."""
    if not _is_named(value):
        value = {inputs.only("inputs is a plain value/list", "an object"): value}
    for name in sorted(inputs.required):
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
    result = {}
    for name, item in value.items():
        if name not in inputs.infos:
            raise invalid_argument(
                f"input tensor alias not found in signature: {name}. "
                f"Inputs expected to be in the set {{{','.join(sorted(inputs.infos))}}}."
            )
        flat: list = []
        result[name] = (flat, _append(item, inputs.infos[name].dtype, flat))
    return result


def _append(value, dtype: int, flat: list) -> tuple[int, ...]:
    """Appends the values of a nested list to `flat`, row-major, and returns its shape."""
    shape = []
    probe = value
    while isinstance(probe, list):
        shape.append(len(probe))
        if not probe:
            break
        probe = probe[0]
    if len(shape) > _MAX_RANK:
        raise invalid_argument(f"Encountered {len(shape)} nested lists, expected <= {_MAX_RANK}")
    convert = _converter(dtype)

    def visit(item, level):
        if not isinstance(item, list):
            if level != len(shape):
                raise invalid_argument(
                    f"JSON Value: {_text(item)} found at incorrect level: {level + 1} in the JSON "
                    f"DOM. Expected at level: {len(shape)}"
                )
            flat.append(convert(item))
            return
        if level >= len(shape):
            raise invalid_argument(
                f"Encountered list at unexpected level: {level} expected < {len(shape)}"
            )
        if len(item) != shape[level]:
            raise invalid_argument(
                f"Encountered list at unexpected size: {len(item)} at level: {level} expected "
                f"size: {shape[level]}"
            )
        for member in item:
            visit(member, level + 1)

    visit(value, 0)
    return tuple(shape)


@functools.cache
def _converter(dtype: int) -> Callable:
    """JSON leaf -> Python value of a dtype; the result raises INVALID_ARGUMENT."""
    kind = tf.dtypes.as_dtype(dtype)

    def type_error(value):
        return invalid_argument(
            f"JSON Value: {_text(value)} Type: {_json_type(value)} is not of expected type: "
            f"{kind.name}"
        )

    def to_float(value):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise type_error(value)
        # An integer that the mantissa cannot hold, or a number beyond the range, would silently
        # become another one.
        digits = np.finfo(kind.as_numpy_dtype).nmant + 1
        lossy = (
            abs(value) >= 2**digits
            if isinstance(value, int)
            else math.isfinite(value) and abs(value) > float(kind.max)
        )
        if lossy:
            raise invalid_argument(
                f"Cannot convert JSON value: {_text(value)} to {kind.name} without loss of "
                "precision."
            )
        return float(value)

    def to_int(value):
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not kind.min <= value <= kind.max
        ):
            raise type_error(value)
        return value

    def to_bool(value):
        if not isinstance(value, bool):
            raise type_error(value)
        return value

    def to_bytes(value):
        if isinstance(value, str):
            return value.encode("utf-8", "surrogatepass")
        if isinstance(value, dict):
            return _decode_base64(value)
        raise type_error(value)

    if kind == tf.string:
        return to_bytes
    if kind == tf.bool:
        return to_bool
    if kind.is_integer and not kind.is_quantized:
        return to_int
    if kind in (tf.float16, tf.float32, tf.float64):
        return to_float

    def unsupported(value):
        raise invalid_argument(
            f"Conversion of JSON Value: {_text(value)} to type: {kind.name} is not supported"
        )

    return unsupported


def _fill(proto: tensor_pb2.TensorProto, dtype: int, flat: list, shape: tuple[int, ...]) -> None:
    kind = tf.dtypes.as_dtype(dtype)
    array = (
        np.empty(len(flat), dtype=object)
        if kind == tf.string
        else np.empty(len(flat), kind.as_numpy_dtype)
    )
    array[:] = flat
    tensors.fill_proto(proto, array.reshape(shape))


def _is_base64(value) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_named(value) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _decode_base64(value: dict) -> bytes:
    if not _is_base64(value):
        raise invalid_argument(
            f"JSON Value: {_text(value)} not formatted correctly for base64 data"
        )
    text = value["b64"].translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("Unable to base64 decode") from error


_URL_SAFE = str.maketrans("-_", "+/")


def _json_type(value) -> str:
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return "True" if value else "False"
    return {dict: "Object", list: "Array", str: "String"}.get(type(value), "Number")


def _text(value, limit: int = 1000) -> str:
    """A value as an error message shows it; long ones are cut."""
    text = json.dumps(value, indent=4, ensure_ascii=False)
    return text if len(text) <= limit else text[:limit] + "..."
