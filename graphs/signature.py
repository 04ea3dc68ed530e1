"""The Predict signature: names, dtypes, dimensions and defaults of its inputs. Knows no branch."""

import dataclasses
import inspect
import keyword

import numpy as np
import tensorflow as tf

# A profile feature on the wire, by its kind in the prompt spec: dtype, and the value for "missing".
FEATURE_DTYPES = {
    "string": (tf.string, b""),
    "int64": (tf.int64, -1),
    "bucket": (tf.float32, float("-inf")),
}


@dataclasses.dataclass(frozen=True)
class RequestInput:
    """One input of the signature.

    dims has one letter per dimension: B rows, T behaviours, E exclusions. A size of 1 stands for
    all rows or columns, so the default, of shape [1] or [1, 1], does too. default None: required.
    """

    name: str
    dtype: tf.DType
    dims: str
    default: object
    doc: str

    def __post_init__(self):
        if not self.name.isidentifier() or keyword.iskeyword(self.name):
            raise ValueError(f"input name {self.name!r}: expected a Python identifier")

    def spec(self) -> tf.TensorSpec:
        return tf.TensorSpec([None] * len(self.dims), self.dtype, name=self.name)

    def default_tensor(self) -> tf.Tensor:
        with tf.init_scope():
            value = np.full([1] * len(self.dims), self.default, self.dtype.as_numpy_dtype)
            return tf.constant(value, self.dtype)

    def parameter(self) -> inspect.Parameter:
        default = inspect.Parameter.empty if self.default is None else self.default_tensor()
        return inspect.Parameter(
            self.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default
        )

    def to_json(self) -> dict:
        default = self.default.decode() if isinstance(self.default, bytes) else self.default
        if isinstance(default, float) and not np.isfinite(default):
            default = str(default)
        shape = [letter for letter in self.dims]
        return {
            "name": self.name,
            "dtype": self.dtype.name,
            "shape": shape,
            "default": default,
            "doc": self.doc,
        }


def request_inputs(features, *, num_items, beam_width, deadline_ms) -> tuple[RequestInput, ...]:
    """The inputs of a recall graph; the required one first.

    Args:
      features: [(name, kind)] of the prompt, kind one of FEATURE_DTYPES.
      num_items, beam_width, deadline_ms: defaults of these inputs.

    Raises:
      ValueError: a feature of an unknown kind, or named like another input.
    """
    i32, i64 = tf.int32, tf.int64
    inputs = [
        RequestInput("user_id", i64, "B", None, "opaque; gives the number of rows"),
        RequestInput(
            "behavior_item", i64, "BT", -1, "item ids, in any order; unknown ones are skipped"
        ),
        RequestInput("behavior_action", i32, "BT", 1, "0 exposure, 1 click, 2 conversion"),
        RequestInput("behavior_domain", i32, "BT", 1, "0 ad, 1 content"),
        RequestInput(
            "behavior_time",
            i64,
            "BT",
            1,
            "Unix seconds. One column: the first one's; the rest follow in their order",
        ),
        RequestInput(
            "behavior_length", i32, "B", 0, "behaviours of the row, 0..T; the rest is padding"
        ),
        RequestInput(
            "request_time", i64, "B", 0, "Unix seconds; 0: now. Later behaviours are dropped"
        ),
        RequestInput("exclude_item", i64, "BE", -1, "item ids never to return"),
        RequestInput(
            "exclude_length", i32, "B", 0, "exclusions of the row, 0..E; the rest is padding"
        ),
        RequestInput("beam_width", i32, "B", beam_width, "beams of the generative branch"),
        RequestInput("num_items", i32, "B", num_items, "items wanted, 1..K"),
        RequestInput("deadline_ms", i32, "B", deadline_ms, "time to answer in; <= 0: none"),
        RequestInput(
            "priority", i32, "B", 0, "-1000..1000, higher goes first in the engine's queue"
        ),
        RequestInput("seed", i32, "B", 0, "0: the best beams; else samples beams by this seed"),
    ]
    taken = {i.name for i in inputs}
    for name, kind in features:
        if kind not in FEATURE_DTYPES:
            raise ValueError(
                f"feature {name!r}: kind {kind!r}: expected {'|'.join(FEATURE_DTYPES)}"
            )
        if name in taken:
            raise ValueError(
                f"feature {name!r} is named like an input of the signature or another one"
            )
        taken.add(name)
        dtype, missing = FEATURE_DTYPES[kind]
        inputs.append(RequestInput(name, dtype, "B", missing, f"profile feature ({kind})"))
    return tuple(inputs)


def signature_function(inputs, body) -> tf.types.experimental.PolymorphicFunction:
    """A tf.function of these inputs, their defaults written into the SignatureDef when it is saved.

    TensorFlow reads names and defaults from the Python function's own signature, so one is made.

    Args:
      inputs: RequestInputs, required ones first.
      body: function of a dict name -> tensor.
    """
    signature = inspect.Signature([i.parameter() for i in inputs])

    def recall(*args, **kwargs):
        return body(dict(signature.bind(*args, **kwargs).arguments))

    recall.__signature__ = signature
    return tf.function(recall, input_signature=[i.spec() for i in inputs], autograph=False)
