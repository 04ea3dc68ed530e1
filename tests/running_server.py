"""A model server in this process, and gRPC and REST clients of it, for the tests of serving/."""

import http.client
import json
import time

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from genrecall.serving.model import ModelConfig
from genrecall.serving.model_server import ModelServer, ServerOptions


class Running:
    """A server and clients of it."""

    def __init__(self, base_path, **options):
        self.base_path = str(base_path)
        defaults = {"port": 0, "rest_api_port": 0, "poll_s": 0.05, "rest_api_timeout_s": 5.0}
        self.server = ModelServer(
            [ModelConfig("toy", self.base_path)], ServerOptions(**defaults | options)
        )
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.port}")
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def predict(self, message, timeout=10):
        response = self.predictions.Predict(message, timeout=timeout)
        return {key: tf.make_ndarray(value) for key, value in response.outputs.items()}

    def status(self, version=None, name="toy"):
        message = get_model_status_pb2.GetModelStatusRequest()
        message.model_spec.name = name
        if version is not None:
            message.model_spec.version.value = version
        return self.models.GetModelStatus(message, timeout=10)

    def states(self):
        return {v.version: v.state for v in self.status().model_version_status}

    def wait_for(self, version, state, timeout_s=20.0):
        end = time.monotonic() + timeout_s
        while self.states().get(version) != state:
            assert time.monotonic() < end, f"version {version}: {self.states()}"
            time.sleep(0.02)

    def rest(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.rest_api_port, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()
        finally:
            connection.close()

    def rest_json(self, path, body, method="POST"):
        status, _, text = self.rest(method, path, json.dumps(body) if body is not None else None)
        return status, json.loads(text)

    def stop(self):
        self.channel.close()
        assert self.server.stop(5.0)


def rejected(call, code, match):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == code, caught.value.details()
    assert match in caught.value.details()
