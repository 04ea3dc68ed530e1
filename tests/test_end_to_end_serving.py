"""An exported model, a server process, real clients: same items, refusals, full queue, cancelling.

Knows nothing of the repository's own client: what is sent and read is what any client sends.
"""

import concurrent.futures
import contextlib
import json
import shutil
import subprocess
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
import tiny_model
from server_process import ServerProcess
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from genrecall.graphs.export import export
from genrecall.graphs.loaded import LoadedModel
from genrecall.graphs.options import RecallOptions
from genrecall.graphs.recall_graph import OUTPUTS

K = tiny_model.OPTIONS["num_items"]
GENERATIVE, POPULAR = 0, 1  # columns of branch_status, bits of branch_mask
RESOURCE_EXHAUSTED, INVALID_ARGUMENT = 8, 3


@pytest.fixture(scope="module")
def server(tiny, exported, tmp_path_factory):
    """One server of two models: `shop`, and `narrow`, in whose engine two requests may wait."""
    folder = tmp_path_factory.mktemp("served")
    export(
        tiny.checkpoint,
        tiny.index,
        folder / "narrow",
        dtype="float32",
        options=RecallOptions(**tiny_model.OPTIONS),
        engine={"num_threads": 1, "max_queue": 2},
        check=False,
        report=lambda line: None,
    )
    (folder / "models.config").write_text(
        "model_config_list {\n"
        f'  config {{ name: "shop" base_path: "{exported.parent}" }}\n'
        f'  config {{ name: "narrow" base_path: "{folder / "narrow"}" }}\n'
        "}\n"
    )
    running = ServerProcess(folder / "log", "--model_config_file", str(folder / "models.config"))
    running.wait_for_log("serving HTTP")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def stub(server):
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.target, options=unlimited) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def in_process(exported):
    with LoadedModel(exported) as model:
        yield model


def message(inputs, model="shop", signature="serving_default"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def predict(stub, inputs, model="shop", timeout=30, signature="serving_default"):
    reply = stub.Predict(message(inputs, model, signature), timeout=timeout)
    return {name: tf.make_ndarray(proto) for name, proto in reply.outputs.items()}


def assert_same(got, expected):
    assert set(got) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def as_json(request):
    """Name -> nested lists, strings as text."""
    return {
        name: [x.decode() for x in value] if value.dtype == object else value.tolist()
        for name, value in request.items()
    }


# ------------------------------------------------------------------------------- the same items


def test_grpc_answers_as_the_model_in_process(stub, in_process, tiny):
    request = tiny_model.random_users(tiny, 40)
    for signature in ("serving_default", "explain"):
        expected = in_process(request, signature)
        assert_same(predict(stub, request, signature=signature), expected)
    assert (expected["num_items"] > 0).all()
    assert not expected["branch_status"].any()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_answers_as_the_model_in_process(server, in_process, tiny, tmp_path):
    request = tiny_model.random_users(tiny, 5)
    (tmp_path / "request.json").write_text(json.dumps({"inputs": as_json(request)}))
    curl = ["curl", "-sS", "--fail", "-d", f"@{tmp_path}/request.json"]
    reply = subprocess.run(
        [*curl, f"{server.url}/v1/models/shop:predict"], capture_output=True, check=True
    )
    outputs = json.loads(reply.stdout)["outputs"]
    expected = in_process(request)
    assert set(outputs) == set(expected)
    for name, (dtype, _, _) in OUTPUTS.items():
        np.testing.assert_array_equal(np.array(outputs[name], dtype), expected[name], name)


def test_a_user_id_alone_is_served_from_all_branches(stub, in_process, tiny):
    answer = predict(stub, {"user_id": np.array([7])})
    nothing_known = {
        "user_id": np.array([7]),
        "behavior_item": np.full((1, 3), 5),
        "behavior_length": np.zeros(1, np.int32),
        "request_time": np.array([tiny_model.REQUEST_TIME]),
        "exclude_length": np.zeros(1, np.int32),
        "gender": np.array([b""], object),
        "age": np.array([-np.inf], np.float32),
        "city": np.array([-1]),
        "num_items": np.array([K], np.int32),
        "beam_width": np.array([tiny_model.OPTIONS["beam_width"]], np.int32),
    }
    assert_same(answer, in_process(nothing_known))
    assert answer["num_items"][0] == K == len(set(answer["item_id"][0]))
    proposed = np.bitwise_or.reduce(answer["branch_mask"][0])
    assert proposed == 1 << GENERATIVE | 1 << POPULAR
    best = tiny.item_id[np.argmax(tiny.weight)]
    assert best in answer["item_id"][0], "the most popular item"


# -------------------------------------------------------------------------------------- refusals

ONE = np.array([7])
ROWS = np.array([7, 8, 9])


def i32(*values):
    return np.array(values, np.int32)


def f32(*values):
    return np.array(values, np.float32)


# (inputs beside user_id, what the message must say); {b: behaviours} are given where T matters.
HISTORY = {
    "behavior_item": np.array([[1000, 1003]]),
    "behavior_action": i32(1, 1)[None],
    "behavior_domain": i32(1, 1)[None],
    "behavior_time": np.array([[1, 2]]),
}
REFUSED = [
    ({"user_id": np.zeros([0], np.int64)}, "user_id: expected at least one row"),
    ({"behavior_length": i32(-1)}, r"behavior_length[0] = -1: expected 0..T = 1"),
    (HISTORY | {"behavior_length": i32(3)}, r"behavior_length[0] = 3: expected 0..T = 2"),
    (HISTORY | {"behavior_length": i32(2**31 - 1)}, r"behavior_length[0] = 2147483647: expected 0"),
    ({"request_time": np.array([-5])}, r"request_time[0] = -5: expected >= 0"),
    ({"exclude_length": i32(-1)}, r"exclude_length[0] = -1: expected 0..E = 1"),
    ({"exclude_length": i32(2)}, r"exclude_length[0] = 2: expected 0..E = 1"),
    ({"beam_width": i32(0)}, r"beam_width[0] = 0: expected 1..max_beam_width = 64"),
    ({"beam_width": i32(-1)}, r"beam_width[0] = -1: expected 1..max_beam_width = 64"),
    ({"beam_width": i32(10**6)}, r"beam_width[0] = 1000000: expected 1..max_beam_width = 64"),
    ({"num_items": i32(0)}, f"num_items[0] = 0: expected 1..max_items = {K}"),
    ({"num_items": i32(K + 1)}, f"num_items[0] = {K + 1}: expected 1..max_items = {K}"),
    ({"priority": i32(1001)}, "priority[0] = 1001: expected -1000..max_priority = 1000"),
    ({"age": f32(np.nan)}, "age[0] = nan: expected a finite number, or -inf for a missing one"),
    ({"age": f32(np.inf)}, "age[0] = inf: expected a finite number"),
    # Sizes that do not go together.
    ({"user_id": ROWS, "behavior_length": i32(0, 0)}, "behavior_length: got shape [2], expected"),
    ({"user_id": ROWS, "age": f32(1, 2)}, "age: got shape [2], expected [B = 3]"),
    ({"user_id": ROWS, "gender": np.array([b"F"] * 4, object)}, "gender: got shape [4], expected"),
    ({"user_id": ROWS, "num_items": i32(1, 2)}, "num_items: got shape [2], expected [B = 3]"),
    (
        HISTORY | {"behavior_time": np.array([[1, 2, 3]])},
        "behavior_time: got shape [1,3], expected [B = 1, T = 2]",
    ),
    (
        HISTORY | {"behavior_action": np.ones((1, 0), np.int32)},
        "behavior_action: got shape [1,0], expected [B = 1, T = 2]",
    ),
    ({"user_id": ROWS, "exclude_item": np.ones((2, 1), np.int64)}, "exclude_item: got shape [2,1]"),
]


@pytest.mark.parametrize("inputs, expected", REFUSED, ids=[text for _, text in REFUSED])
def test_what_is_malformed_is_named_with_its_value(stub, inputs, expected):
    assert expected in refusal(stub, {"user_id": ONE} | inputs)
    assert predict(stub, {"user_id": ONE})["num_items"][0] == K, "the server goes on"


def refusal(stub, inputs):
    """The message with which the server refuses."""
    with pytest.raises(grpc.RpcError) as caught:
        predict(stub, inputs)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    assert caught.value.details().count("\n") <= 1, "one line, and TensorFlow names the node"
    return caught.value.details()


INPUTS = {  # name: (dtype, rank)
    "user_id": (np.int64, 1),
    "behavior_item": (np.int64, 2),
    "behavior_action": (np.int32, 2),
    "behavior_domain": (np.int32, 2),
    "behavior_time": (np.int64, 2),
    "behavior_length": (np.int32, 1),
    "request_time": (np.int64, 1),
    "exclude_item": (np.int64, 2),
    "exclude_length": (np.int32, 1),
    "beam_width": (np.int32, 1),
    "num_items": (np.int32, 1),
    "deadline_ms": (np.int32, 1),
    "priority": (np.int32, 1),
    "seed": (np.int32, 1),
    "gender": (object, 1),
    "age": (np.float32, 1),
    "city": (np.int64, 1),
}


def test_every_input_is_tried(in_process):
    assert set(in_process.signatures["serving_default"].inputs) == set(INPUTS)


@pytest.mark.parametrize("name", INPUTS)
def test_a_wrong_dtype_or_rank_is_named(stub, name):
    dtype, rank = INPUTS[name]
    value = np.full([1] * rank, b"1" if dtype is object else 1, dtype)
    assert predict(stub, {"user_id": ONE, name: value})["num_items"][0] >= 1
    for wrong in {np.float32, np.int64, np.int32, np.float64, object} - {dtype}:
        as_wrong = np.full([1] * rank, b"1" if wrong is object else 1, wrong)
        assert name in refusal(stub, {"user_id": ONE, name: as_wrong})
    for shape in ([], [1] * (3 - rank), [1, 1, 1]):
        assert name in refusal(stub, {"user_id": ONE, name: np.resize(value, shape)})
    assert predict(stub, {"user_id": ONE})["num_items"][0] == K


def test_what_makes_no_sense_but_is_well_formed_is_dropped(stub):
    """The documented defaults: unknown items are skipped, impossible events cleaned away."""
    plain = predict(stub, {"user_id": ONE})
    strange = HISTORY | {
        "behavior_item": np.array([[-7, 2**62]]),
        "behavior_action": i32(99, -1)[None],
        "behavior_domain": i32(-5, 77)[None],
        "behavior_time": np.array([[-(2**63), 2**63 - 1]]),
        "behavior_length": i32(2),
        "exclude_item": np.array([[-1, 2**63 - 1]]),
        "exclude_length": i32(2),
        "gender": np.array(["\u2603".encode() * 1000], object),
        "city": np.array([-(2**63)]),
        "deadline_ms": i32(-(2**31)),
        "user_id": np.array([-(2**63)]),
    }
    assert_same(predict(stub, strange), plain)


def test_a_seed_samples_and_repeats(stub):
    """Any seed but 0, the smallest number there is too."""
    request = HISTORY | {"user_id": ONE}
    best = predict(stub, request)["semantic_id"]
    for seed in (7, -(2**31)):
        drawn = predict(stub, request | {"seed": i32(seed)})
        assert_same(predict(stub, request | {"seed": i32(seed)}), drawn)
        assert not np.array_equal(drawn["semantic_id"], best)


def test_a_malformed_row_is_marked_and_its_neighbours_are_answered_as_alone(stub, tiny):
    request = tiny_model.random_users(tiny, 6)
    bad = {
        "behavior_length": (1, 25),
        "exclude_length": (2, -1),
        "beam_width": (3, 10**6),
        "age": (4, np.nan),
    }
    spoiled = request | {"beam_width": np.full(6, 8, np.int32)}
    for name, (row, value) in bad.items():
        spoiled[name] = spoiled[name].copy()
        spoiled[name][row] = value
    answer = predict(stub, spoiled)
    assert answer["request_status"].tolist() == [0, 3, 3, 3, 3, 0]
    for row in range(6):
        if answer["request_status"][row] == 0:
            alone = predict(stub, {name: value[row : row + 1] for name, value in request.items()})
            for name in ("item_id", "score", "branch_mask", "semantic_id", "branch_status"):
                np.testing.assert_array_equal(answer[name][row], alone[name][0], name)
        else:
            assert answer["num_items"][row] == 0
            assert (answer["item_id"][row] == -1).all()
            assert (answer["branch_status"][row] == INVALID_ARGUMENT).all()


def test_sizes_at_the_far_end(stub, tiny):
    """512 users of 2,000 events with 300 exclusions, most of them duplicates."""
    request = tiny_model.random_users(tiny, 512, max_behaviors=2000, max_exclude=300)
    request["exclude_length"][:] = 300
    answer = predict(stub, request, timeout=120)
    assert not answer["request_status"].any()
    for row in range(0, 512, 37):
        items = answer["item_id"][row, : answer["num_items"][row]]
        assert len(set(items.tolist())) == len(items)
        assert not set(items.tolist()) & set(request["exclude_item"][row].tolist())
        if answer["branch_status"][row, GENERATIVE] == 0:
            alone = predict(stub, {name: value[row : row + 1] for name, value in request.items()})
            np.testing.assert_array_equal(answer["item_id"][row], alone["item_id"][0])


# ------------------------------------------------------------------------ full queue, cancelling


def engine_load(server):
    return [server.metric(f":genrecall:engine:{what}") for what in ("queued", "running")]


def test_a_full_queue_is_said_at_once_and_popular_items_come(server, stub, tiny):
    """More rows than `narrow` runs and lets wait: the surplus gets 8 in its branch_status."""
    rows = 200
    request = tiny_model.random_users(tiny, rows)
    answer = predict(stub, request, "narrow")
    status = answer["branch_status"]
    assert set(status[:, GENERATIVE]) == {0, RESOURCE_EXHAUSTED}
    assert not status[:, POPULAR].any() and not answer["request_status"].any()
    full = status[:, GENERATIVE] == RESOURCE_EXHAUSTED
    assert (answer["num_items"][full] == K).all()
    placed = answer["item_id"] >= 0
    assert (answer["branch_mask"][full][placed[full]] == 1 << POPULAR).all()
    expected = predict(stub, request)  # by the model with room: same items for those who got in
    np.testing.assert_array_equal(answer["item_id"][~full], expected["item_id"][~full])

    def one(seed):
        user = tiny_model.random_users(tiny, 1, seed=seed) | {"beam_width": i32(64)}
        return predict(stub, user, "narrow")

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(one, range(256)))
    codes = {int(a["branch_status"][0, GENERATIVE]) for a in answers}
    assert codes <= {0, RESOURCE_EXHAUSTED}
    assert all(a["num_items"][0] == K for a in answers)
    server.wait_until(lambda: engine_load(server) == [0, 0])


def test_a_request_past_its_deadline_frees_its_rows(server, stub, tiny):
    rows = 250
    request = tiny_model.random_users(tiny, rows, max_behaviors=64)
    request["beam_width"] = np.full(rows, 64, np.int32)
    before = cancelled_rows(server)
    end = time.monotonic() + 30
    while cancelled_rows(server) == before:  # a fast engine may be done before its deadline
        assert time.monotonic() < end
        with contextlib.suppress(grpc.RpcError):
            stub.Predict(message(request), timeout=0.1)
    gone = stub.Predict.future(message(request), timeout=60)
    gone.cancel()  # stops no running step, as in tensorflow_model_server; its rows end all the same
    server.wait_until(lambda: engine_load(server) == [0, 0])
    start = time.monotonic()
    assert predict(stub, {"user_id": ONE})["branch_status"].tolist() == [[0, 0]]
    assert time.monotonic() - start < 5


def cancelled_rows(server):
    return server.metrics().get(':genrecall:decode:finished{status="CANCELLED"}', 0)
