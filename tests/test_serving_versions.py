"""Versions that come, break, heal and go under a running server, without a failed request."""

import gc
import os
import shutil
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from running_server import Running, rejected
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
)
from toy_model import expected_y, export, request

from genrecall.serving.errors import ServingError
from genrecall.serving.model import ModelConfig
from genrecall.serving.model_server import ModelServer, ServerOptions

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
STATE = get_model_status_pb2.ModelVersionStatus


@pytest.fixture
def fresh(tmp_path):
    """A server of its own, on version 1."""
    export(str(tmp_path), 1)
    running = Running(tmp_path)
    yield running
    running.stop()


def test_versions_swap_under_a_steady_stream_without_a_failure(fresh):
    stop = threading.Event()
    seen, failures = set(), []

    def stream(use_rest):
        while not stop.is_set():
            try:
                if use_rest:
                    status, reply = fresh.rest_json(
                        "/v1/models/toy:predict", {"inputs": {"x": X.tolist()}}
                    )
                    assert status == 200, reply
                    got = np.array(reply["outputs"]["y"])
                    version = int(got[0, 0] - expected_y(X, 0)[0, 0])
                else:
                    response = fresh.predictions.Predict(request(x=X), timeout=10)
                    version = response.model_spec.version.value
                    got = tf.make_ndarray(response.outputs["y"])
                np.testing.assert_array_equal(got, expected_y(X, version))
                seen.add(version)
            except Exception as error:  # every failure counts, whatever it is
                failures.append(error)
                return

    threads = [threading.Thread(target=stream, args=(i == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for version in (2, 3):
        export(fresh.base_path, version)
        fresh.wait_for(version, STATE.AVAILABLE)
        fresh.wait_for(version - 1, STATE.END)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert seen == {1, 2, 3}


def test_an_old_version_is_unloaded_only_after_its_requests_in_flight(fresh):
    slow = fresh.predictions.Predict.future(
        request(signature="spin", steps=np.int64(10**12)), timeout=3
    )
    time.sleep(0.3)
    export(fresh.base_path, 2)
    fresh.wait_for(2, STATE.AVAILABLE)
    fresh.wait_for(1, STATE.UNLOADING)
    rejected(
        lambda: fresh.predict(request(version=1, x=X)),
        grpc.StatusCode.NOT_FOUND,
        "Specific(toy, 1)",
    )
    assert slow.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    fresh.wait_for(1, STATE.END)


def test_a_broken_version_leaves_the_old_one_and_heals_when_its_files_change(fresh):
    broken = os.path.join(fresh.base_path, "2")
    os.makedirs(broken)
    with open(os.path.join(broken, "saved_model.pb"), "wb") as file:
        file.write(b"not a SavedModel")
    fresh.wait_for(2, STATE.END)
    status = {v.version: v for v in fresh.status().model_version_status}
    assert status[2].status.error_code != 0 and status[2].status.error_message
    assert status[1].state == STATE.AVAILABLE
    np.testing.assert_array_equal(fresh.predict(request(x=X))["y"], expected_y(X, 1))
    good = export(fresh.base_path, 22, bias=2)
    fresh.wait_for(22, STATE.AVAILABLE)
    shutil.rmtree(broken)
    os.rename(good, broken)  # version 22 goes, version 2 is whole now
    fresh.wait_for(2, STATE.AVAILABLE)
    fresh.wait_for(22, STATE.END)
    np.testing.assert_array_equal(fresh.predict(request(x=X))["y"], expected_y(X, 2))


def test_unloaded_and_broken_versions_are_freed(fresh):
    def sessions():
        gc.collect()
        return sum(type(o) is tf.compat.v1.Session for o in gc.get_objects())

    before = sessions()
    export(fresh.base_path, 2)
    fresh.wait_for(1, STATE.END)
    export(fresh.base_path, 3, warm_up=[request(x=X[0])])  # fails after it has been loaded
    fresh.wait_for(3, STATE.END)
    assert sessions() == before


def test_a_deleted_version_goes_unless_it_is_the_last(fresh):
    export(fresh.base_path, 2)
    fresh.wait_for(2, STATE.AVAILABLE)
    fresh.wait_for(1, STATE.END)
    shutil.rmtree(os.path.join(fresh.base_path, "2"))  # back to the older one
    fresh.wait_for(1, STATE.AVAILABLE)
    fresh.wait_for(2, STATE.END)
    shutil.rmtree(os.path.join(fresh.base_path, "1"))
    time.sleep(0.3)
    np.testing.assert_array_equal(fresh.predict(request(x=X))["y"], expected_y(X, 1))


def test_warm_up_runs_before_a_version_is_visible(fresh):
    export(fresh.base_path, 2, warm_up=[request(x=X)] * 3)
    fresh.wait_for(2, STATE.AVAILABLE)
    export(fresh.base_path, 3, warm_up=[request(x=X), request(x=X[0])])
    fresh.wait_for(3, STATE.END)
    status = fresh.status(3).model_version_status[0].status
    assert "warm-up request 1" in status.error_message and "expects rank 2" in status.error_message
    assert fresh.states()[2] == STATE.AVAILABLE


def test_stopping_does_not_wait_for_a_load(tmp_path, monkeypatch):
    export(str(tmp_path), 1)
    go_on = threading.Event()

    def load(*_):
        go_on.wait(30)
        raise ServingError(grpc.StatusCode.INTERNAL, "the load was abandoned")

    monkeypatch.setattr("genrecall.serving.core.Servable", load)
    server = ModelServer([ModelConfig("toy", str(tmp_path))], ServerOptions(port=0))
    refused = []

    def start():
        try:
            server.start()
        except ServingError as error:
            refused.append(error.message)

    starter = threading.Thread(target=start)
    starter.start()
    while server.core.versions() != {"toy": {1: (STATE.LOADING, None)}}:
        time.sleep(0.01)
    began = time.monotonic()
    assert not server.stop(0.3)
    assert time.monotonic() - began < 10
    starter.join(10)
    assert refused == ["the server is stopping"]
    go_on.set()


def test_reload_config_changes_the_models(fresh, tmp_path_factory):
    other = str(tmp_path_factory.mktemp("other"))
    export(other, 5)
    export(other, 6)
    message = model_management_pb2.ReloadConfigRequest()
    config = message.config.model_config_list.config.add(
        name="other", base_path=other, model_platform="tensorflow"
    )
    config.model_version_policy.all.SetInParent()
    config.version_labels["stable"] = 5
    message.config.model_config_list.config.add(name="toy", base_path=fresh.base_path)
    assert fresh.models.HandleReloadConfigRequest(message, timeout=30).status.error_code == 0
    for version in (5, 6):
        np.testing.assert_array_equal(
            fresh.predict(request("other", version=version, x=X))["y"], expected_y(X, version)
        )
    labelled = predict_pb2.PredictRequest()
    labelled.CopyFrom(request("other", x=X))
    labelled.model_spec.version_label = "stable"
    np.testing.assert_array_equal(fresh.predict(labelled)["y"], expected_y(X, 5))
    assert (
        fresh.rest_json("/v1/models/other/labels/stable:predict", {"inputs": {"x": X.tolist()}})[0]
        == 200
    )
    np.testing.assert_array_equal(fresh.predict(request(x=X))["y"], expected_y(X, 1))
    del message.config.model_config_list.config[0]
    assert fresh.models.HandleReloadConfigRequest(message, timeout=30).status.error_code == 0
    rejected(
        lambda: fresh.predict(request("other", x=X)), grpc.StatusCode.NOT_FOUND, "Latest(other)"
    )
    message.config.model_config_list.config[0].model_platform = "caffe"
    status = fresh.models.HandleReloadConfigRequest(message, timeout=30).status
    assert "model_platform 'caffe' is not supported" in status.error_message
