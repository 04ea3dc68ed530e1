"""The server over REST: formats, texts, refusals, limits, status, metadata, Prometheus."""

import http.client
import json

import grpc
import numpy as np
import pytest
from running_server import Running
from toy_model import expected_y, export, request

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
PREDICT = "/v1/models/toy:predict"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    base = tmp_path_factory.mktemp("toy")
    export(str(base), 3)
    running = Running(base)
    yield running
    running.stop()


def test_rest_row_format(toy):
    rows = [{"x": row.tolist()} for row in X]
    status, headers, text = toy.rest("POST", PREDICT, json.dumps({"instances": rows}))
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(text) == {
        "predictions": [
            {"y": expected_y(X, 3)[0].tolist(), "z": [0, 7]},
            {"y": expected_y(X, 3)[1].tolist(), "z": [1, 7]},
        ]
    }


def test_rest_single_input_and_output_text_is_tensorflow_servings(toy):
    body = json.dumps({"signature_name": "half", "instances": [1.0, 2.0, 5]})
    _, _, text = toy.rest("POST", PREDICT, body)
    assert text == '{\n    "predictions": [0.5, 1.0, 2.5\n    ]\n}'
    body = json.dumps({"signature_name": "half", "inputs": [1.0, 5e9]})
    _, _, text = toy.rest("POST", "/v1/models/toy/versions/3:predict", body)
    assert text == '{\n    "outputs": [\n        0.5,\n        2.5e+09\n    ]\n}'


def test_rest_columnar_format(toy):
    status, reply = toy.rest_json(PREDICT, {"inputs": {"x": X.tolist(), "count": [4]}})
    assert status == 200
    assert reply == {"outputs": {"y": expected_y(X, 3).tolist(), "z": [[0, 4], [1, 4]]}}


def test_rest_strings_bytes_and_special_floats(toy):
    body = """{"signature_name": "echo", "inputs": {
        "text": ["caf\u00e9", {"b64": "/wA="}, ""], "number": [NaN, -Infinity, 0.1]}}"""
    status, _, text = toy.rest("POST", PREDICT, body.encode())
    assert status == 200
    assert "NaN" in text and "-Infinity" in text and "0.1\n" in text
    reply = json.loads(text)["outputs"]
    assert reply["text_bytes"] == [{"b64": "Y2Fmw6k="}, {"b64": "/wA="}, {"b64": ""}]
    assert reply["text"][0] == "café"
    assert reply["known"] == [False, False, True]


MALFORMED = {
    "": "JSON Parse error: The document is empty",
    "{": "JSON Parse error: ",
    "[]": "Is not object",
    "{}": "Missing 'inputs' or 'instances' key",
    '{"inputs": 1, "instances": []}': "expecting only one of",
    '{"instances": 1}': "to be an list/array",
    '{"instances": []}': "No values in 'instances' array",
    '{"instances": [1]}': "expecting list of objects as multiple",
    '{"instances": [{"w": 1}]}': "keys must be equal to: x",
    '{"instances": [{"x": [1,2,3]}, 4]}': "Expecting object but got list at item 1",
    '{"instances": [{"x": [1,2,3]}, {"x": [1,2]}]}': "Expecting tensor size: 3 but got: 2",
    '{"instances": [{"x": [[1],[2]]}, {"x": [1,2]}]}': "Expecting shape [2,1] but got: [2]",
    '{"inputs": {"count": [1]}}': "Missing named input: x in 'inputs' object.",
    '{"inputs": {"x": [["a"]]}}': 'JSON Value: "a" Type: String is not of expected type: float',
    '{"inputs": {"x": [[null]]}}': "JSON Value: null Type: Null is not of expected type: float",
    '{"inputs": {"x": [[true]]}}': "JSON Value: true Type: True is not of expected type: float",
    '{"inputs": {"x": [[1,2],[3]]}}': "unexpected size: 1 at level: 1 expected size: 2",
    '{"inputs": {"x": [[1,2],3]}}': "found at incorrect level: 2 in the JSON DOM",
    '{"inputs": {"x": [[1,2],[[3],4]]}}': "Encountered list at unexpected level: 2 expected < 2",
    '{"inputs": {"x": [[1,2,3]], "count": [1.0]}}': "is not of expected type: int32",
    '{"inputs": {"x": [[1,2,3]], "count": [3000000000]}}': "is not of expected type: int32",
    '{"inputs": {"x": [[16777217,2,3]]}}': "to float32 without loss of precision",
    '{"inputs": {"x": [[1e39,2,3]]}}': "to float32 without loss of precision",
    '{"inputs": {"x": ' + "[" * 400 + "1" + "]" * 400 + "}}": "Encountered 400 nested lists",
    '{"inputs": {"x": ' + "[" * 10**5 + "1" + "]" * 10**5 + "}}": "JSON Parse error: ",
    '{"inputs": {"x": [1,2,3]}}': "expects rank 2",
    '{"inputs": {"x": [[1,2,3]], "w": 1}}': "alias not found in signature: w",
    '{"inputs": {"x": [[1000,2,3]]}}': "x is above 100",
    '{"signature_name": 1}': "'signature_name' key must be a string value.",
    '{"signature_name": "nope", "inputs": 1}': '"nope" not found in signature def',
    '{"signature_name": "echo", "inputs": {"text": [{"b64": "*"}], "number": [1]}}': "base64",
    '{"signature_name": "echo", "inputs": {"text": [{"c": 1}], "number": [1]}}': "for base64 data",
}


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_bodies_are_refused(toy, body):
    status, _, text = toy.rest("POST", PREDICT, body)
    reply = json.loads(text)
    assert list(reply) == ["error"]
    assert (status, MALFORMED[body] in reply["error"]) == (400, True), reply


@pytest.mark.parametrize(
    ("path", "status", "match"),
    [
        ("/v1/models/other:predict", 404, "Servable not found for request: Latest(other)"),
        ("/v1/models/toy/versions/9:predict", 404, "not found for request: Specific(toy, 9)"),
        (f"/v1/models/toy/versions/{10**30}:predict", 400, "Failed to convert version"),
        ("/v1/models/toy/labels/best:predict", 400, "Unrecognized servable version label: best"),
        ("/v1/models/toy:classify", 501, "use :predict"),
        ("/v1/models/toy:fly", 400, "Malformed request: POST /v1/models/toy:fly"),
        ("/nowhere", 404, "no such path"),
    ],
)
def test_wrong_paths_are_refused(toy, path, status, match):
    got, _, text = toy.rest("POST", path, "{}")
    assert (got, match in json.loads(text)["error"]) == (status, True), text


def test_rest_timeout_is_a_gateway_timeout(tmp_path):
    export(str(tmp_path), 1)
    running = Running(tmp_path, rest_api_timeout_s=0.3)
    try:
        status, reply = running.rest_json(PREDICT, {"signature_name": "spin", "inputs": 10**12})
        assert (status, list(reply)) == (504, ["error"])
    finally:
        running.stop()


def test_rest_body_limit(tmp_path):
    export(str(tmp_path), 1)
    running = Running(tmp_path, rest_api_max_body_bytes=1000)
    try:
        status, _, text = running.rest("POST", PREDICT, " " * 2000)
        assert (status, list(json.loads(text))) == (413, ["error"])
    finally:
        running.stop()


def test_rest_keeps_connections_alive(toy):
    connection = http.client.HTTPConnection("127.0.0.1", toy.server.rest_api_port, timeout=10)
    body = json.dumps({"signature_name": "half", "instances": [1.0]})
    sockets = set()
    for _ in range(3):
        connection.request("POST", PREDICT, body)
        response = connection.getresponse()
        assert response.version == 11 and response.status == 200
        response.read()
        sockets.add(connection.sock)
    assert len(sockets) == 1
    connection.close()


def test_rest_status_is_tensorflow_servings_text(toy):
    want = """{
 "model_version_status": [
  {
   "version": "3",
   "state": "AVAILABLE",
   "status": {
    "error_code": "OK",
    "error_message": ""
   }
  }
 ]
}
"""
    for path in ("/v1/models/toy", "/v1/models/toy/versions/3", "/V1/Models/toy"):
        assert toy.rest("GET", path)[2] == want
    status, reply = toy.rest_json("/v1/models/toy/versions/4", None, "GET")
    assert (status, reply) == (404, {"error": "Could not find version 4 of model toy"})
    assert toy.rest("GET", "/v1/models")[0] == 400


def test_rest_metadata(toy):
    status, reply = toy.rest_json("/v1/models/toy/metadata", None, "GET")
    assert status == 200
    assert reply["model_spec"] == {"name": "toy", "signature_name": "", "version": "3"}
    signature = reply["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "3", "name": ""}],
            "unknown_rank": False,
        },
        "name": "serving_default_x:0",
    }


def test_prometheus_page_counts_requests(toy):
    def count(text, line):
        return sum(
            int(found.rsplit(" ", 1)[1]) for found in text.splitlines() if found.startswith(line)
        )

    ok = ':tensorflow:serving:request_count{model_name="toy",status="OK"}'
    bad = ':tensorflow:serving:request_count{model_name="toy",status="INVALID_ARGUMENT"}'
    latency = ':tensorflow:serving:request_latency_count{model_name="toy",API="Predict",'
    status, headers, before = toy.rest("GET", "/monitoring/prometheus/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain")
    toy.predict(request(x=X))
    with pytest.raises(grpc.RpcError):
        toy.predict(request(x=X[0]))
    after = toy.rest("GET", "/monitoring/prometheus/metrics")[2]
    assert count(after, ok) == count(before, ok) + 1
    assert count(after, bad) == count(before, bad) + 1
    assert count(after, latency) == count(before, latency) + 2
