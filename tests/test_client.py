"""The client and `genrecall query`, against a server of a toy recall graph."""

import argparse
import json
import os

import grpc
import numpy as np
import pytest
import tensorflow as tf
from running_server import Running
from toy_model import export

from genrecall import query
from genrecall.serving.client import (
    Client,
    failed_branches,
    recalled_items,
    semantic_id_text,
)
from genrecall.serving.errors import ServingError
from genrecall.serving.quiet import quiet_stderr

I32, I64 = tf.int32, tf.int64
PAD = tf.constant([[-1]], I64)
ONE = tf.constant([[1]], I32)
ZERO = tf.constant([0], I32)
NOW = tf.constant([0], I64)
TWO = tf.constant([2], I32)
NOBODY = tf.constant([b""])


class ToyRecall(tf.Module):
    """Recommends the user's own behaviours, latest first: outputs as a recall graph has them."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], I64, name="user_id"),
            tf.TensorSpec([None, None], I64, name="behavior_item"),
            tf.TensorSpec([None, None], I32, name="behavior_action"),
            tf.TensorSpec([None, None], I32, name="behavior_domain"),
            tf.TensorSpec([None, None], I64, name="behavior_time"),
            tf.TensorSpec([None], I32, name="behavior_length"),
            tf.TensorSpec([None], I64, name="request_time"),
            tf.TensorSpec([None], I32, name="num_items"),
            tf.TensorSpec([None], tf.string, name="gender"),
        ]
    )
    def serve(
        self,
        user_id,
        behavior_item=PAD,
        behavior_action=ONE,
        behavior_domain=ONE,
        behavior_time=PAD,
        behavior_length=ZERO,
        request_time=NOW,
        num_items=TWO,
        gender=NOBODY,
    ):
        del behavior_domain, behavior_time
        items = tf.reverse(behavior_item, [1])
        scores = -tf.cast(tf.range(tf.shape(items)[1]), tf.float32)[None]
        rows = tf.ones_like(user_id)[:, None]
        codes = tf.cast(items[..., None], I32) + tf.constant([0, 1])
        return {
            "item_id": items * rows,
            "score": scores + tf.zeros_like(items, tf.float32),
            "branch_mask": tf.ones_like(items, I32) * 3,
            "semantic_id": codes,
            "num_items": tf.minimum(num_items, behavior_length),
            "branch_status": tf.stack([tf.zeros_like(behavior_length), behavior_length * 0 + 4], 1),
            "request_status": tf.zeros_like(behavior_length),
            "seen_action": behavior_action,
            "seen_time": request_time,
            "seen_gender": gender,
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], I64, name="user_id"),
            tf.TensorSpec([None, None], I64, name="behavior_item"),
            tf.TensorSpec([None], I32, name="behavior_length"),
        ]
    )
    def explain(self, user_id, behavior_item=PAD, behavior_length=ZERO):
        outputs = self.serve(user_id, behavior_item=behavior_item, behavior_length=behavior_length)
        return outputs | {
            "prompt_token": tf.constant([[5, 6, 7, 0]]),
            "prompt_length": tf.constant([3]),
            "prompt_stable_prefix": tf.constant([2]),
            "beam_semantic_id": tf.constant([[[1, 2], [-1, -1]]]),
            "beam_score": tf.constant([[-0.5, -np.inf]], tf.float32),
            "beam_step_score": tf.constant([[[-0.2, -0.3], [0.0, 0.0]]], tf.float32),
        }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("recall")
    module = ToyRecall()
    signatures = {"serving_default": module.serve, "explain": module.explain}
    tf.saved_model.save(module, str(base / "1"), signatures)
    running = Running(base)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def address(server):
    return f"127.0.0.1:{server.server.port}"


@pytest.fixture
def client(address):
    with Client(address, "toy") as client:
        yield client


@pytest.fixture
def data(tmp_path):
    titles = {11: "Lip balm", 12: "Face [mask]", 13: "Soap"}
    (tmp_path / "items.jsonl").write_text(
        "".join(
            json.dumps({"id": i, "title": t, "attributes": []}) + "\n" for i, t in titles.items()
        )
    )
    (tmp_path / "events.csv").write_text(
        "user_id,item_id,action,domain,timestamp\n"
        "7,11,click,ad,1000\n7,12,conversion,content,2000\n8,13,click,ad,3000\n7,13,click,ad,4000\n"
    )
    (tmp_path / "users.jsonl").write_text('{"user_id": 7, "gender": "F", "shoe_size": 38}\n')
    return tmp_path


def test_lists_take_the_signatures_dtypes(client):
    outputs = client.predict({"user_id": [7], "behavior_item": [[3, 4]], "behavior_length": [2]})
    assert outputs["item_id"].dtype == np.int64
    np.testing.assert_array_equal(outputs["item_id"], [[4, 3]])
    outputs = client.predict(
        {"user_id": [7], "gender": ["männlich"]}, output_filter=["seen_gender"]
    )
    assert {k: v.tolist() for k, v in outputs.items()} == {"seen_gender": ["männlich".encode()]}


@pytest.mark.parametrize(
    ("name", "value"), [("user_id", [1.5]), ("num_items", [2**40]), ("user_id", ["a"])]
)
def test_a_value_that_does_not_fit_is_named(client, name, value):
    with pytest.raises(ValueError, match=f"input '{name}': .* does not fit dtype int"):
        client.predict({name: value})


def test_arrays_are_sent_as_they_are(client):
    with pytest.raises(ServingError, match="'user_id': expects dtype int64 but int32") as caught:
        client.predict({"user_id": np.array([7], np.int32)})
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_errors_are_readable(address, client):
    with pytest.raises(
        ServingError, match="no signature 'nope'; there are: explain, serving_default"
    ):
        client.predict({"user_id": [7]}, signature="nope")
    with pytest.raises(ServingError, match="alias not found in signature: colour"):
        client.predict({"user_id": [7], "colour": [1]})
    with pytest.raises(ServingError, match=r"Specific\(toy, 4\)"):
        client.predict({"user_id": np.array([7])}, version=4)
    with Client("127.0.0.1:1", "toy", timeout_s=5) as nobody:
        with pytest.raises(ServingError, match="no server answers at 127.0.0.1:1") as caught:
            nobody.status()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_status(client):
    assert client.status() == {1: ("AVAILABLE", "")}


def test_reading_an_answer(client):
    outputs = client.predict({"user_id": [7], "behavior_item": [[3, 4, 5]], "behavior_length": [3]})
    first, second = recalled_items(outputs)
    assert (first.item_id, second.item_id) == (5, 4)
    assert first.branches == ("generative", "popular")
    assert first.semantic_id == (5, 6)
    assert recalled_items(outputs, branches=["a"])[0].branches == ("a", "branch 1")
    assert failed_branches(outputs) == {"popular": "DEADLINE_EXCEEDED"}
    assert semantic_id_text((99, 225, 0)) == "<a_99><b_225><c_0>"


def run_query(capsys, *flags):
    parser = argparse.ArgumentParser()
    query.configure(parser)
    status = query.main(parser.parse_args(flags))
    out, err = capsys.readouterr()
    return status, out, err


def test_query_of_a_user_prints_titles(address, data, capsys):
    flags = ["--server", address, "--model", "toy", "--user", "7", "--data", str(data)]
    status, out, _ = run_query(capsys, *flags)
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["1", "13", "Soap", "generative+popular", "<a_13><b_14>", "0.000"]
    assert lines[2][:4] == ["2", "12", "Face", "[mask]"]
    assert "branch popular gave nothing: DEADLINE_EXCEEDED" in out
    assert len(lines) == 4  # num_items defaults to 2


def test_query_sends_behaviours_profile_and_options(client, data):
    from genrecall.training.dataset.data_folder import read_data

    infos = client.signatures()["serving_default"].inputs
    inputs = query.user_inputs(read_data(str(data)), 7, infos)
    assert "shoe_size" not in inputs  # the signature takes no such feature
    outputs = client.predict(inputs | {"num_items": [3]})
    assert outputs["item_id"].tolist() == [[13, 12, 11]]
    assert outputs["seen_action"].tolist() == [[1, 2, 1]]
    assert outputs["seen_time"].tolist() == [4001]
    assert outputs["seen_gender"].tolist() == [b"F"]
    inputs = query.user_inputs(read_data(str(data)), 7, infos, request_time=2**63)
    with pytest.raises(ValueError, match="input 'request_time': .* does not fit dtype int64"):
        client.predict(inputs)
    with pytest.raises(ValueError, match="user 9 is not in"):
        query.user_inputs(read_data(str(data)), 9, infos)


def test_query_of_a_request_file(address, tmp_path, capsys):
    file = tmp_path / "request.json"
    file.write_text('{"user_id": [7], "behavior_item": [[3, 4]], "behavior_length": [2]}')
    flags = ["--server", address, "--model", "toy", "--request", str(file)]
    status, out, _ = run_query(capsys, *flags, "--num_items", "1")
    assert status == 0 and len(out.splitlines()) == 3 and "<a_4><b_5>" in out
    status, out, _ = run_query(capsys, *flags, "--explain")
    assert status == 0
    assert "prompt: 3 tokens, the first 2 stable: [5, 6, 7]" in out
    assert "<a_1><b_2>" in out and "-0.20 -0.30" in out and "<a_-1>" not in out


def test_query_reports_what_the_server_refuses(address, tmp_path, capsys):
    file = tmp_path / "request.json"
    file.write_text('{"inputs": {"user_id": [[7]]}}')
    status, _, err = run_query(
        capsys, "--server", address, "--model", "toy", "--request", str(file)
    )
    assert status == 1
    assert "genrecall query: INVALID_ARGUMENT: input tensor 'user_id': expects rank 1" in err
    file.write_text('{"user_id": [7]}')
    flags = ["--server", address, "--model", "toy", "--request", str(file)]
    with pytest.raises(ValueError, match="input 'num_items': .* does not fit dtype int32"):
        run_query(capsys, *flags, "--num_items", str(2**31))
    file.write_text("{")
    with pytest.raises(ValueError, match="request.json: "):
        run_query(capsys, "--server", address, "--model", "toy", "--request", str(file))
    with pytest.raises(ValueError, match="--user needs --data"):
        run_query(capsys, "--server", address, "--user", "7")


def test_query_of_another_model_prints_its_outputs(tmp_path, capsys):
    export(str(tmp_path), 1)
    running = Running(tmp_path)
    try:
        file = tmp_path / "request.json"
        file.write_text('{"signature_name": "half", "instances": [3, 5]}')
        address = f"127.0.0.1:{running.server.port}"
        status, out, _ = run_query(
            capsys, "--server", address, "--model", "toy", "--request", str(file)
        )
        assert (status, out) == (0, "y [2]: [1.5, 2.5]\n")
    finally:
        running.stop()


def test_quiet_stderr_shows_what_was_held_back_only_after_a_failure(capfd):
    with quiet_stderr():
        os.write(2, b"chatter\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(ImportError), quiet_stderr():
        os.write(2, b"the reason\n")
        raise ImportError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "the reason\nafter\n"
