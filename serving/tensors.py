"""TensorProto <-> NumPy, and the checks of a tensor against its TensorInfo."""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from genrecall.serving.errors import invalid_argument

# The typed field of TensorProto that holds a dtype's values. Replies use these fields, not the
# packed `tensor_content`, as tensorflow_model_server does by default: clients without TensorFlow
# read `int64_val` and know no byte layout.
_VALUE_FIELD = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT8: "int_val",
    types_pb2.DT_INT16: "int_val",
    types_pb2.DT_INT32: "int_val",
    types_pb2.DT_UINT8: "int_val",
    types_pb2.DT_UINT16: "int_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_STRING: "string_val",
    types_pb2.DT_HALF: "half_val",
    types_pb2.DT_BFLOAT16: "half_val",
    types_pb2.DT_COMPLEX64: "scomplex_val",
    types_pb2.DT_COMPLEX128: "dcomplex_val",
}


_MAX_REPEATED = 1 << 20  # elements


def dtype_name(dtype: int) -> str:
    """The name of a DataType number, such as "int64"; its number if TensorFlow knows none."""
    try:
        return tf.dtypes.as_dtype(dtype).name
    except TypeError:
        return f"DataType({dtype})"


def shape_text(shape) -> str:
    """`[?,3]` for (-1, 3); "unknown" for None."""
    if shape is None:
        return "unknown"
    return "[" + ",".join("?" if size < 0 else str(size) for size in shape) + "]"


def static_shape(info: meta_graph_pb2.TensorInfo) -> tuple[int, ...] | None:
    """The shape of a TensorInfo, -1 for open dimensions; None if even the rank is open."""
    if info.tensor_shape.unknown_rank:
        return None
    return tuple(dim.size for dim in info.tensor_shape.dim)


def check_tensor(alias: str, proto: tensor_pb2.TensorProto, dtype: int, shape) -> None:
    """Raises INVALID_ARGUMENT, naming the input, unless `proto` has this dtype and shape."""
    if proto.dtype != dtype:
        raise invalid_argument(
            f"input tensor {alias!r}: expects dtype {dtype_name(dtype)} but "
            f"{dtype_name(proto.dtype)} is provided"
        )
    got = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in got):
        raise invalid_argument(f"tensor parsing error: {alias} (its shape is not fully known)")
    if shape is None:
        return
    if len(got) != len(shape):
        raise invalid_argument(
            f"input tensor {alias!r}: expects rank {len(shape)} (shape {shape_text(shape)}) "
            f"but shape {shape_text(got)} of rank {len(got)} is provided"
        )
    if any(want >= 0 and want != size for want, size in zip(shape, got, strict=True)):
        raise invalid_argument(
            f"input tensor {alias!r}: expects shape {shape_text(shape)} but {shape_text(got)} "
            "is provided"
        )


def to_numpy(alias: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """The values of `proto`; INVALID_ARGUMENT, naming the input, if they do not fill its shape."""
    # Too few values mean: repeat the last one. A few bytes must not claim gigabytes that way.
    size = math.prod(dim.size for dim in proto.tensor_shape.dim)
    if size > _MAX_REPEATED and not proto.tensor_content:
        sent = len(getattr(proto, _VALUE_FIELD.get(proto.dtype, "variant_val")))
        if sent != size:
            raise invalid_argument(
                f"tensor parsing error: {alias} ({sent} values for a shape of {size} elements)"
            )
    try:
        return tf.make_ndarray(proto)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise invalid_argument(f"tensor parsing error: {alias} ({error})") from error


def fill_proto(proto: tensor_pb2.TensorProto, array) -> None:
    """Writes an array into an empty `proto`, one value per typed field entry.

    Args:
      proto: the TensorProto to fill.
      array: ndarray or NumPy scalar of any TensorFlow dtype; strings as objects (bytes).

    Raises:
      TypeError: TensorFlow has no such dtype.
    """
    array = np.asarray(array)
    dtype = tf.dtypes.as_dtype(array.dtype).as_datatype_enum
    field = _VALUE_FIELD.get(dtype)
    if field is None:
        raise TypeError(f"tensors of dtype {dtype_name(dtype)} cannot be sent")
    proto.dtype = dtype
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    flat = np.ascontiguousarray(array).reshape(-1)
    if field == "half_val":
        flat = flat.view(np.uint16)
    elif field.endswith("complex_val"):
        flat = flat.view(flat.real.dtype)
    elif field == "string_val":
        flat = [value.encode() if isinstance(value, str) else bytes(value) for value in flat]
    getattr(proto, field).extend(flat.tolist() if isinstance(flat, np.ndarray) else flat)
