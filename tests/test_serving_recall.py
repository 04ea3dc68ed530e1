"""A real recall graph behind the server: items over gRPC and REST, refusals, the index replaced."""

import concurrent.futures
import json
import shutil
import threading
import time

import grpc
import numpy as np
import pytest
import tiny_model
from running_server import Running

from genrecall import kernels
from genrecall.serving.client import Client, recalled_items
from genrecall.serving.errors import ServingError
from genrecall.serving.server import load_op_libraries


@pytest.fixture(scope="module")
def recall(exported, tmp_path_factory):
    """A server of the exported tiny model, whose index follows a directory."""
    load_op_libraries([])
    indexes = tmp_path_factory.mktemp("indexes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENRECALL_INDEX_DIR", str(indexes))
        patch.setenv("GENRECALL_INDEX_POLL_MS", "50")
        running = Running(exported.parent)
        running.indexes = indexes
        yield running
        running.stop()


@pytest.fixture
def client(recall):
    with Client(f"127.0.0.1:{recall.server.port}", "toy") as client:
        yield client


def test_a_user_id_is_enough(client):
    items = recalled_items(client.predict({"user_id": [7]}))
    assert len(items) == tiny_model.OPTIONS["num_items"]
    assert len({item.item_id for item in items}) == len(items)
    assert {name for item in items for name in item.branches} == {"generative", "popular"}
    assert all(len(item.semantic_id) == len(tiny_model.LEVEL_SIZES) for item in items)


def test_rest_and_grpc_give_the_same_items(recall, client, tiny):
    request = tiny_model.random_users(tiny, 5)
    outputs = client.predict(request)
    columns = {
        name: [text.decode() for text in value] if value.dtype == object else value.tolist()
        for name, value in request.items()
    }
    status, reply = recall.rest_json("/v1/models/toy:predict", {"inputs": columns})
    assert status == 200
    assert reply["outputs"]["item_id"] == outputs["item_id"].tolist()
    got = np.array(reply["outputs"]["score"], np.float32)
    np.testing.assert_array_equal(got, outputs["score"])  # every float32 survives the JSON
    rows = [{name: value[row] for name, value in columns.items()} for row in range(5)]
    status, reply = recall.rest_json("/v1/models/toy:predict", {"instances": rows})
    assert [row["item_id"] for row in reply["predictions"]] == outputs["item_id"].tolist()


def test_concurrent_clients_get_what_one_alone_gets(client, tiny):
    requests = [tiny_model.random_users(tiny, 1, seed=seed) for seed in range(24)]
    alone = [client.predict(request) for request in requests]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(client.predict, requests))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one["item_id"], other["item_id"])
        np.testing.assert_array_equal(one["score"], other["score"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_width", [0]),
        ("beam_width", [10**6]),
        ("num_items", [0]),
        ("behavior_length", [2]),
        ("behavior_length", [-1]),
        ("age", [np.nan]),
        ("user_id", []),
    ],
)
def test_a_bad_value_is_named_and_the_server_lives_on(client, name, value):
    with pytest.raises(ServingError, match=name) as caught:
        client.predict({"user_id": [7]} | {name: value})
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.message.count("\n") <= 1, "one line for the client, one for the node"
    assert recalled_items(client.predict({"user_id": [7]}))


def test_prometheus_shows_the_ops_metrics(recall, client):
    client.predict({"user_id": [7]})
    text = recall.rest("GET", "/monitoring/prometheus/metrics")[2]
    assert ':tensorflow:serving:request_count{model_name="toy",status="OK"}' in text
    assert ":genrecall:" in text


def test_the_index_is_replaced_under_a_stream_without_a_failure(recall, client, tiny):
    index = kernels.RecallIndex.load(str(tiny.index))
    item_id, codes, weight, facets = index.rows()
    half = np.arange(len(item_id)) % 2 == 0
    smaller = kernels.RecallIndex.build(
        list(index.level_sizes),
        item_id[half],
        codes[half],
        weight=weight[half],
        facets=facets[half],
        sid_space_digest=index.sid_space_digest,
    )
    left = set(item_id[half].tolist())
    stop, failures, answers = threading.Event(), [], []

    def wait_until(condition):
        end = time.monotonic() + 30
        while not condition():
            assert not failures and time.monotonic() < end
            time.sleep(0.02)

    def stream():
        while not stop.is_set():
            try:
                items = recalled_items(client.predict({"user_id": [7], "beam_width": [64]}))
                answers.append({item.item_id for item in items})
            except ServingError as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=stream) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        (recall.indexes / "0.gguf").write_bytes(tiny.index.read_bytes()[:-100])  # truncated
        time.sleep(0.3)  # several polls
        seen = len(answers)
        wait_until(lambda: len(answers) > seen + 3)
        assert answers[-1] - left, "the truncated file is refused"
        smaller.save(str(recall.indexes / "new"))
        shutil.move(recall.indexes / "new", recall.indexes / "1.gguf")
        wait_until(lambda: answers[-1] <= left)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert json.dumps(recall.states()) == json.dumps({1: 30}), "no version was reloaded for it"
