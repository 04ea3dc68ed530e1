"""The server as an object: gRPC and REST in front of one core. Knows no command line."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from genrecall.serving.core import ServerCore
from genrecall.serving.grpc_api import create_server
from genrecall.serving.metrics import RequestMetrics
from genrecall.serving.model import ModelConfig
from genrecall.serving.rest_api import RestOptions, RestServer
from genrecall.serving.servable import LoadOptions


@dataclass(frozen=True)
class ServerOptions:
    """Where a server listens and how it runs, named as the flags. A port of None: not served."""

    bind_address: str = "127.0.0.1"
    port: int | None = 8500
    rest_api_port: int | None = None
    grpc_socket_path: str = ""
    grpc_max_threads: int = 64
    grpc_channel_arguments: Sequence[tuple[str, str | int]] = ()
    rest_api_num_threads: int = 8
    rest_api_timeout_s: float = 30.0
    rest_api_max_body_bytes: int = 256 << 20
    rest_api_enable_cors: bool = False
    enforce_session_run_timeout: bool = True
    poll_s: float = 1.0
    load: LoadOptions = LoadOptions()

    def __post_init__(self):
        for name in ("port", "rest_api_port"):
            port = getattr(self, name)
            if port is not None and not 0 <= port < 65536:
                raise ValueError(f"{name} = {port}: expected 0..65535")
        for name in (
            "grpc_max_threads",
            "rest_api_num_threads",
            "rest_api_timeout_s",
            "rest_api_max_body_bytes",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected > 0")
        if self.poll_s < 0:
            raise ValueError(f"file_system_poll_wait_seconds = {self.poll_s}: expected >= 0")


class ModelServer:
    """The whole server in this process: `start`, use, `stop`. Ports of 0 take any free one.

    Attributes:
      endpoints: where clients find it, in words.
      port, rest_api_port: the bound ports, None if not served.
      core: the models; see core.ServerCore.
    """

    def __init__(self, models: Sequence[ModelConfig], options: ServerOptions = ServerOptions()):
        """Binds the ports.

        Args:
          models: what to serve.
          options: where to listen and how to run.

        Raises:
          OSError: a port is in use.
        """
        self._models = list(models)
        self.core = ServerCore(options.load, options.poll_s)
        metrics = RequestMetrics()
        host = f"[{options.bind_address}]" if ":" in options.bind_address else options.bind_address
        addresses = [] if options.port is None else [f"{host}:{options.port}"]
        if options.grpc_socket_path:
            addresses.append(f"unix:{options.grpc_socket_path}")
        self._grpc, ports = create_server(
            self.core,
            metrics,
            addresses,
            options.grpc_max_threads,
            options.enforce_session_run_timeout,
            list(options.grpc_channel_arguments),
        )
        self.port = None if options.port is None else ports[0]
        self.rest_api_port = None
        self._rest = None
        if options.rest_api_port is not None:
            self._rest = RestServer(
                self.core,
                metrics,
                _process_metrics,
                RestOptions(
                    host=options.bind_address,
                    port=options.rest_api_port,
                    threads=options.rest_api_num_threads,
                    timeout_s=options.rest_api_timeout_s,
                    max_body_bytes=options.rest_api_max_body_bytes,
                    enable_cors=options.rest_api_enable_cors,
                ),
            )
            self._rest.start()  # so its status page answers while models load
            self.rest_api_port = self._rest.port

        self.endpoints = []
        if self.port is not None:
            self.endpoints.append(f"gRPC at {host}:{self.port}")
        if options.grpc_socket_path:
            self.endpoints.append(f"gRPC at unix:{options.grpc_socket_path}")
        if self._rest is not None:
            self.endpoints.append(f"HTTP/REST at http://{host}:{self.rest_api_port}")

    def start(self) -> None:
        """Loads every version found, then serves gRPC: who can connect finds the models loaded.

        Raises:
          ServingError: UNAVAILABLE if `stop` is called meanwhile.
        """
        self.core.reload(self._models)
        self._grpc.start()

    def stop(self, grace_s: float = 30.0) -> bool:
        """Refuses new requests, finishes those in flight, unloads the models.

        Returns:
          False if a request or a load was still running after `grace_s`.
        """
        deadline = time.monotonic() + grace_s
        grpc_done = self._grpc.stop(grace_s)
        if self._rest is not None:
            self._rest.stop(grace_s)
        grpc_done.wait()
        return self.core.stop(max(0.1, deadline - time.monotonic()))


def _process_metrics() -> str:
    """Prometheus text of TensorFlow's and our ops' metrics; empty where the ops are not built."""
    try:
        from genrecall.tf_ops import metrics_text

        return metrics_text().numpy().decode()
    except (ImportError, OSError, tf.errors.OpError):
        return ""
