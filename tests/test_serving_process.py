"""`genrecall serve` as a process of its own: start-up, log lines, waiting for a model, SIGTERM."""

import argparse
import signal
import time

import grpc
import numpy as np
import pytest
from server_process import ServerProcess
from toy_model import expected_y, export, request

from genrecall.serving import server
from genrecall.serving.client import Client
from genrecall.serving.errors import ServingError

X = np.array([[1, 2, 3]], np.float32)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A server whose base path does not exist yet."""
    base = tmp_path_factory.mktemp("process") / "toy"
    flags = ["--model_base_path", str(base), "--model_name", "toy"]
    quick = ["--file_system_poll_wait_seconds", "0.1", "--shutdown_grace_seconds", "20"]
    running = ServerProcess(base.parent / "log", *flags, *quick)
    yield running, base
    running.kill()


def test_a_server_waits_for_its_base_path_then_drains_on_sigterm(started):
    running, base = started
    running.wait_for_log(f"serving gRPC at 127.0.0.1:{running.port}")
    assert f"base path {base} cannot be read (No such file or directory); waiting" in running.log()
    with Client(f"127.0.0.1:{running.port}", "toy", timeout_s=60) as client:
        with pytest.raises(ServingError, match=r"Latest\(toy\)"):
            client.predict({"x": X})
        base.mkdir()
        running.wait_for_log("no versions of the servable toy found under base path", 15)
        export(str(base), 1)
        running.wait_for_log("model toy version 1: available after")
        assert "signatures: echo, half, serving_default, spin" in running.log()
        np.testing.assert_array_equal(client.predict({"x": X})["y"], expected_y(X, 1))

        # A request that takes ~3 s is in flight when SIGTERM comes: it is answered, then all ends.
        steps = int(3.0 / min(seconds_a_step(client) for _ in range(3)))
        call = client._predictions.Predict.future(
            request(signature="spin", steps=np.int64(steps)), timeout=60
        )
        time.sleep(0.3)
        assert not call.done()
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_log("stopping: new requests are refused")
        time.sleep(0.2)
        with Client(f"127.0.0.1:{running.port}", "toy", timeout_s=5) as late:
            with pytest.raises(ServingError) as caught:
                late.predict({"x": X})
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert call.result().outputs["steps"].int64_val[0] == steps
    assert running.process.wait(30) == 0
    assert running.log().endswith("stopped\n")


def seconds_a_step(client):
    start = time.monotonic()
    client.predict({"steps": np.int64(50_000)}, "spin")
    return (time.monotonic() - start) / 50_000


def flags(*values):
    parser = argparse.ArgumentParser()
    server.configure(parser)
    return parser.parse_args(values)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([], "--model_base_path or --model_config_file is needed"),
        (["--model_base_path", "a", "--model_config_file", "b"], "exclude each other"),
        (["--model_base_path", "a", "--rest_api_port", "8500"], "cannot be the same as --port"),
        (["--model_base_path", "a", "--port", "0"], "nothing to listen on"),
        (["--model_base_path", "a", "--grpc_channel_arguments", "b"], "'b': expected key=value"),
    ],
)
def test_wrong_flags_are_refused(values, match):
    with pytest.raises(ValueError, match=match):
        server.main(flags(*values))


def test_defaults_are_tensorflow_servings_or_safer():
    args = flags("--model_base_path", "a", "--enable_model_warmup=false")
    assert (args.port, args.rest_api_port, args.model_name) == (8500, 0, "default")
    assert (args.file_system_poll_wait_seconds, args.rest_api_timeout_in_ms) == (1.0, 30000)
    assert (args.bind_address, args.grpc_max_threads) == ("127.0.0.1", 64)
    assert args.enable_model_warmup is False
    with pytest.raises(SystemExit):
        flags("--enable_model_warmup", "maybe")


def test_an_op_library_that_does_not_load_is_named():
    with pytest.raises(ValueError, match="--custom_op_library /nowhere/ops.so: "):
        server.load_op_libraries(["/nowhere/ops.so"])


def test_the_model_config_file_is_read(tmp_path):
    from genrecall.serving.core import read_config_file
    from genrecall.serving.model import ModelConfig, VersionPolicy

    file = tmp_path / "models.config"
    file.write_text(
        """model_config_list {
          config { name: "a" base_path: "/a" model_platform: "tensorflow" }
          config { name: "b" base_path: "/b" version_labels { key: "stable" value: 3 }
                   model_version_policy { specific { versions: 3 versions: 4 } } }
          config { name: "c" base_path: "/c" model_version_policy { latest { num_versions: 2 } } }
        }"""
    )
    assert read_config_file(str(file)) == [
        ModelConfig("a", "/a"),
        ModelConfig("b", "/b", VersionPolicy(specific=(3, 4)), {"stable": 3}),
        ModelConfig("c", "/c", VersionPolicy(latest=2)),
    ]
    file.write_text("nonsense")
    with pytest.raises(ValueError, match="models.config: "):
        read_config_file(str(file))
