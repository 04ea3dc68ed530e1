"""The server over gRPC: Predict, metadata, status, refusals, deadlines, concurrency."""

import concurrent.futures
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from running_server import Running, rejected
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    regression_pb2,
)
from toy_model import expected_y, export, request

from genrecall.serving.model_server import ModelServer, ServerOptions

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    base = tmp_path_factory.mktemp("toy")
    export(str(base), 3)
    running = Running(base)
    yield running
    running.stop()


def test_predict_answers_and_names_version_and_signature(toy):
    response = toy.predictions.Predict(request(x=X, count=np.array([9], np.int32)), timeout=10)
    assert response.model_spec.name == "toy"
    assert response.model_spec.version.value == 3
    assert response.model_spec.signature_name == "serving_default"
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), expected_y(X, 3))
    # Typed fields, as tensorflow_model_server sends: clients without TensorFlow read them.
    assert list(response.outputs["z"].int64_val) == [0, 9, 1, 9]
    assert not response.outputs["z"].tensor_content


def test_absent_inputs_take_the_signature_defaults(toy):
    np.testing.assert_array_equal(toy.predict(request(x=X))["z"], [[0, 7], [1, 7]])


def test_output_filter(toy):
    assert set(toy.predict(request(x=X, output_filter=["z"]))) == {"z"}
    rejected(
        lambda: toy.predict(request(x=X, output_filter=["w"])),
        grpc.StatusCode.INVALID_ARGUMENT,
        "output tensor alias not found in signature: w Outputs expected to be in the set {y,z}.",
    )
    rejected(
        lambda: toy.predict(request(x=X, output_filter=["z", "z"])),
        grpc.StatusCode.INVALID_ARGUMENT,
        "duplicate output tensor alias: z",
    )


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (request(x=X, signature="nope"), 'signature name: "nope" not found in signature def'),
        (
            request(x=X, w=X),
            "not found in signature: w. Inputs expected to be in the set {count,x}.",
        ),
        (
            request(count=np.array([1], np.int32)),
            "alias: x(feed name: serving_default_x:0) not found",
        ),
        (request(x=X.astype(np.float64)), "'x': expects dtype float32 but float64 is provided"),
        (request(x=X[0]), "'x': expects rank 2 (shape [?,3]) but shape [3] of rank 1 is provided"),
        (request(x=X[:, :2]), "'x': expects shape [?,3] but [2,2] is provided"),
        (request(x=X * 1000), "x is above 100"),
        (request(x=X, count=np.array([b"s"])), "'count': expects dtype int32 but string is"),
    ],
)
def test_malformed_requests_are_refused_by_name(toy, message, match):
    rejected(lambda: toy.predict(message), grpc.StatusCode.INVALID_ARGUMENT, match)
    np.testing.assert_array_equal(toy.predict(request(x=X))["y"], expected_y(X, 3))


def test_a_tensor_that_does_not_fill_its_shape_is_refused(toy):
    message = request(x=X)
    message.inputs["x"].tensor_content = b"\0" * 7
    rejected(
        lambda: toy.predict(message), grpc.StatusCode.INVALID_ARGUMENT, "tensor parsing error: x"
    )
    message = request(x=X)
    message.inputs["x"].tensor_shape.dim[0].size = -5
    rejected(
        lambda: toy.predict(message), grpc.StatusCode.INVALID_ARGUMENT, "tensor parsing error: x"
    )
    message = request(x=X)  # one value that claims to be 12 terabytes
    message.inputs["x"].tensor_content = b""
    message.inputs["x"].float_val.append(1.0)
    message.inputs["x"].tensor_shape.dim[0].size = 10**12
    rejected(
        lambda: toy.predict(message), grpc.StatusCode.INVALID_ARGUMENT, "tensor parsing error: x"
    )


def test_unknown_models_and_versions_are_not_found(toy):
    not_found = grpc.StatusCode.NOT_FOUND
    rejected(
        lambda: toy.predict(request("other", x=X)),
        not_found,
        "Servable not found for request: Latest(other)",
    )
    rejected(
        lambda: toy.predict(request(version=9, x=X)),
        not_found,
        "Servable not found for request: Specific(toy, 9)",
    )
    rejected(
        lambda: toy.predict(request("", x=X)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "Missing model name",
    )
    rejected(lambda: toy.status(9), not_found, "Could not find version 9 of model toy")
    rejected(
        lambda: toy.status(name="other"), not_found, "Could not find any versions of model other"
    )


def test_a_deadline_ends_the_running_step(toy):
    start = time.monotonic()
    message = request(signature="spin", steps=np.int64(10**12))
    rejected(lambda: toy.predict(message, timeout=0.3), grpc.StatusCode.DEADLINE_EXCEEDED, "")
    assert time.monotonic() - start < 10
    # The step itself ended, too: while one is in flight, its version cannot be unloaded.
    model = toy.server.core._models["toy"]
    end = time.monotonic() + 20
    while model._versions[3].in_flight:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_other_prediction_methods_are_unimplemented(toy):
    for method, message in [
        (toy.predictions.Classify, classification_pb2.ClassificationRequest()),
        (toy.predictions.Regress, regression_pb2.RegressionRequest()),
        (toy.predictions.MultiInference, inference_pb2.MultiInferenceRequest()),
    ]:
        rejected(
            lambda m=method, r=message: m(r, timeout=10),
            grpc.StatusCode.UNIMPLEMENTED,
            "use Predict",
        )


def test_metadata_has_the_signatures_with_their_defaults(toy):
    message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    message.model_spec.name = "toy"
    response = toy.predictions.GetModelMetadata(message, timeout=10)
    assert response.model_spec.version.value == 3
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    default = signatures.signature_def["serving_default"]
    assert set(default.inputs) == {"x", "count"}
    assert list(default.defaults) == ["count"]
    message.metadata_field[:] = []
    rejected(
        lambda: toy.predictions.GetModelMetadata(message, timeout=10),
        grpc.StatusCode.INVALID_ARGUMENT,
        "must specify at least one metadata_field",
    )
    message.metadata_field[:] = ["colour"]
    rejected(
        lambda: toy.predictions.GetModelMetadata(message, timeout=10),
        grpc.StatusCode.INVALID_ARGUMENT,
        "Metadata field colour is not supported",
    )


def test_many_threads_get_their_own_answers(toy):
    def ask(i):
        x = np.full((1 + i % 3, 3), i % 100, np.float32)
        np.testing.assert_array_equal(toy.predict(request(x=x))["y"], expected_y(x, 3))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(200)))


def test_more_requests_than_threads_are_refused_at_once(tmp_path):
    export(str(tmp_path), 1)
    running = Running(tmp_path, grpc_max_threads=2)
    try:
        slow = [
            running.predictions.Predict.future(
                request(signature="spin", steps=np.int64(10**12)), timeout=2
            )
            for _ in range(4)  # two run, two wait
        ]
        time.sleep(0.5)
        rejected(lambda: running.predict(request(x=X)), grpc.StatusCode.RESOURCE_EXHAUSTED, "limit")
        for call in slow:
            assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        running.stop()


def test_a_port_in_use_is_named(toy):
    with pytest.raises(OSError, match=f"gRPC cannot listen on 127.0.0.1:{toy.server.port}"):
        ModelServer([], ServerOptions(port=toy.server.port))
    with pytest.raises(
        OSError, match=f"REST cannot listen on 127.0.0.1:{toy.server.rest_api_port}"
    ):
        ModelServer([], ServerOptions(port=0, rest_api_port=toy.server.rest_api_port))
