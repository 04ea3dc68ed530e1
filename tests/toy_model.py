"""Small SavedModels for the tests of serving/: defaults, errors, loops, strings, odd floats."""

import os

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

SCALE = 2.0
DEFAULT_COUNT = tf.constant([7], tf.int32)  # becomes a default of the SignatureDef


class Toy(tf.Module):
    """`serving_default`: y = x * 2 + bias and z int64 [B, 2]; fails when an x is above 100.

    `spin` loops `steps` times (cancellable); `echo` gives strings and floats back.
    """

    def __init__(self, bias):
        super().__init__()
        self.bias = tf.Variable(float(bias))

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 3], tf.float32, name="x"),
            tf.TensorSpec([None], tf.int32, name="count"),
        ]
    )
    def scale(self, x, count=DEFAULT_COUNT):
        small = tf.debugging.Assert(tf.reduce_all(x <= 100.0), ["x is above 100:", x])
        with tf.control_dependencies([small]):
            y = x * SCALE + self.bias
        rows = tf.cast(tf.range(tf.shape(x)[0]), tf.int64)
        counts = tf.zeros_like(rows) + tf.cast(count, tf.int64)
        return {"y": y, "z": tf.stack([rows, counts], axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int64, name="steps")])
    def spin(self, steps):
        return {
            "steps": tf.while_loop(
                lambda i: i < steps, lambda i: (i + 1,), [tf.constant(0, tf.int64)]
            )[0]
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="text"),
            tf.TensorSpec([None], tf.float32, name="number"),
        ]
    )
    def echo(self, text, number):
        return {
            "text": text,
            "text_bytes": text,
            "number": number,
            "known": tf.math.is_finite(number),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def half(self, x):
        return {"y": x / 2.0}


def export(base_path, version, bias=None, warm_up=()):
    """Writes base_path/version, which appears at once, complete; the bias is the version."""
    toy = Toy(version if bias is None else bias)
    path = os.path.join(base_path, str(version))
    new = os.path.join(base_path, f"tmp-{version}")
    signatures = {
        "serving_default": toy.scale,
        "spin": toy.spin,
        "echo": toy.echo,
        "half": toy.half,
    }
    tf.saved_model.save(toy, new, signatures)
    if warm_up:
        extra = os.path.join(new, "assets.extra")
        os.makedirs(extra)
        with tf.io.TFRecordWriter(os.path.join(extra, "tf_serving_warmup_requests")) as writer:
            for request in warm_up:
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                writer.write(log.SerializeToString())
    os.rename(new, path)
    return path


def request(name="toy", signature="", version=None, output_filter=(), **inputs):
    """A PredictRequest of arrays (or TensorProtos)."""
    message = predict_pb2.PredictRequest(output_filter=output_filter)
    message.model_spec.name = name
    message.model_spec.signature_name = signature
    if version is not None:
        message.model_spec.version.value = version
    for key, value in inputs.items():
        proto = value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value)
        message.inputs[key].CopyFrom(proto)
    return message


def expected_y(x, version):
    return np.asarray(x, np.float32) * np.float32(SCALE) + np.float32(version)
