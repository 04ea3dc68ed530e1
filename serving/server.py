"""The `genrecall serve` command: flags, start-up and clean shutdown of the server.

Flags are tensorflow_model_server's where it has them. TensorFlow is imported when the server
starts, not for --help.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence

_LOG = logging.getLogger("genrecall.serving")


def _bool(text: str) -> bool:
    """A flag value as tensorflow_model_server reads it: true/false or 1/0."""
    values = {"true": True, "1": True, "false": False, "0": False}
    try:
        return values[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected true or false") from None


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `genrecall serve`."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    models = parser.add_argument_group("models")
    models.add_argument(
        "--model_base_path", help="folder of the numbered version folders of the model"
    )
    models.add_argument("--model_name", default="default", help="name of the model in requests")
    models.add_argument(
        "--model_config_file",
        help="ModelServerConfig in text format: several models, policies, labels",
    )
    models.add_argument(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1.0,
        help="seconds between looks for new versions; 0: never",
    )
    models.add_argument(
        "--saved_model_tags", default="serve", help="comma-separated tags of the graph to load"
    )
    models.add_argument(
        "--enable_model_warmup",
        type=_bool,
        default=True,
        help="replay the model's warm-up requests",
    )
    models.add_argument(
        "--num_request_iterations_for_warmup",
        type=int,
        default=1,
        help="how often each warm-up request is replayed",
    )
    models.add_argument(
        "--custom_op_library",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="op libraries to load before any model, beside genrecall's own",
    )
    network = parser.add_argument_group("network")
    network.add_argument("--port", type=int, default=8500, help="gRPC port; 0: none")
    network.add_argument(
        "--rest_api_port", type=int, default=0, help="HTTP port of REST and Prometheus; 0: none"
    )
    network.add_argument(
        "--bind_address",
        default="127.0.0.1",
        help="address both ports listen on: reachable by this machine's own programs only, unless "
        "you say 0.0.0.0 (all of its addresses; there is no authentication)",
    )
    network.add_argument(
        "--grpc_socket_path", default="", help="also serve gRPC on this Unix socket"
    )
    network.add_argument(
        "--grpc_max_threads",
        type=int,
        default=64,
        help="gRPC requests at a time; as many again wait, more get RESOURCE_EXHAUSTED at once",
    )
    network.add_argument(
        "--grpc_channel_arguments", default="", help="key=value,... options of the gRPC server"
    )
    network.add_argument(
        "--rest_api_num_threads",
        type=int,
        default=4 * (os.cpu_count() or 1),
        help="threads of REST",
    )
    network.add_argument(
        "--rest_api_timeout_in_ms", type=int, default=30000, help="limit for one REST request"
    )
    network.add_argument(
        "--rest_api_max_body_bytes",
        type=int,
        default=256 << 20,
        help="a longer REST request is refused with 413",
    )
    network.add_argument(
        "--rest_api_enable_cors_support", type=_bool, default=False, help="send CORS headers"
    )
    run = parser.add_argument_group("running")
    run.add_argument(
        "--enforce_session_run_timeout",
        type=_bool,
        default=True,
        help="a client's deadline cancels the running step",
    )
    run.add_argument(
        "--tensorflow_session_parallelism",
        type=int,
        default=0,
        help="threads within and across ops; 0: auto",
    )
    run.add_argument(
        "--tensorflow_intra_op_parallelism",
        type=int,
        default=0,
        help="threads within an op; 0: auto",
    )
    run.add_argument(
        "--tensorflow_inter_op_parallelism", type=int, default=0, help="threads across ops; 0: auto"
    )
    run.add_argument(
        "--shutdown_grace_seconds",
        type=float,
        default=30.0,
        help="on SIGTERM: how long requests in flight may take",
    )
    run.add_argument(
        "--monitoring_config_file",
        help="accepted and ignored: the Prometheus page is always on, at its usual path on the "
        "REST port",
    )


def load_op_libraries(paths: Sequence[str]) -> None:
    """Loads genrecall's own ops, if they were built, and the libraries at `paths`.

    Raises:
      ValueError: a library at `paths` cannot be loaded.
    """
    import tensorflow as tf

    try:
        from genrecall.tf_ops import library

        tf.load_op_library(library.path())
    except (ImportError, OSError, tf.errors.OpError) as error:
        _LOG.warning(
            "genrecall's own ops are not loaded (%s): models exported by genrecall cannot be "
            "served",
            error,
        )
    for path in paths:
        try:
            tf.load_op_library(path)
        except (tf.errors.OpError, OSError) as error:
            raise ValueError(
                f"--custom_op_library {path}: {getattr(error, 'message', error)}"
            ) from error
        _LOG.info("loaded op library %s", path)


def main(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT. Bad flags, and ports in use, are ValueError and OSError."""
    if not args.model_base_path and not args.model_config_file:
        raise ValueError("--model_base_path or --model_config_file is needed")
    if args.model_base_path and args.model_config_file:
        raise ValueError("--model_base_path and --model_config_file exclude each other")
    if args.port and args.port == args.rest_api_port:
        raise ValueError(f"--rest_api_port cannot be the same as --port ({args.port})")
    if not (args.port or args.rest_api_port or args.grpc_socket_path):
        raise ValueError("nothing to listen on: give --port, --rest_api_port or --grpc_socket_path")
    channel_arguments = _channel_arguments(args.grpc_channel_arguments)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    _start_logging()

    from genrecall.serving.core import read_config_file
    from genrecall.serving.model import ModelConfig
    from genrecall.serving.model_server import ModelServer, ServerOptions
    from genrecall.serving.servable import LoadOptions

    load_op_libraries(args.custom_op_library)
    if args.model_config_file:
        models = read_config_file(args.model_config_file)
    else:
        models = [ModelConfig(args.model_name, os.path.abspath(args.model_base_path))]
    server = ModelServer(
        models,
        ServerOptions(
            bind_address=args.bind_address,
            port=args.port or None,
            rest_api_port=args.rest_api_port or None,
            grpc_socket_path=args.grpc_socket_path,
            grpc_max_threads=args.grpc_max_threads,
            grpc_channel_arguments=channel_arguments,
            rest_api_num_threads=args.rest_api_num_threads,
            rest_api_timeout_s=args.rest_api_timeout_in_ms / 1000,
            rest_api_max_body_bytes=args.rest_api_max_body_bytes,
            rest_api_enable_cors=args.rest_api_enable_cors_support,
            enforce_session_run_timeout=args.enforce_session_run_timeout,
            poll_s=args.file_system_poll_wait_seconds,
            load=LoadOptions(
                tags=tuple(args.saved_model_tags.split(",")),
                intra_op_threads=args.tensorflow_intra_op_parallelism
                or args.tensorflow_session_parallelism,
                inter_op_threads=args.tensorflow_inter_op_parallelism
                or args.tensorflow_session_parallelism,
                warm_up=args.enable_model_warmup,
                warm_up_iterations=args.num_request_iterations_for_warmup,
            ),
        ),
    )
    _serve(server, args, stopping)
    return 0


def _serve(server, args: argparse.Namespace, stopping: threading.Event) -> None:
    """Runs the server until `stopping` is set, then drains it."""
    from genrecall.serving.errors import ServingError

    def start():
        try:
            server.start()
        except ServingError as error:  # stopped while it loaded
            _LOG.info("not started: %s", error.message)
            return
        for endpoint in server.endpoints:
            _LOG.info("serving %s", endpoint)

    # In a thread: loading takes long, and a signal must end it too.
    threading.Thread(target=start, name="start", daemon=True).start()
    stopping.wait()
    _LOG.info(
        "stopping: new requests are refused, those in flight have %g s", args.shutdown_grace_seconds
    )
    if server.stop(args.shutdown_grace_seconds):
        _LOG.info("stopped")
        return
    _LOG.warning("stopped; a load or a step that would not end was abandoned")
    sys.stderr.flush()
    # A thread inside TensorFlow can neither be joined nor outlive the interpreter.
    os._exit(0)


def _start_logging() -> None:
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
    )
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def _channel_arguments(text: str) -> list[tuple[str, str | int]]:
    """[("grpc.x", 1), ..] of "grpc.x=1,..."."""
    result = []
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not separator:
            raise ValueError(f"--grpc_channel_arguments {part!r}: expected key=value")
        result.append((key, int(value) if value.lstrip("-").isdigit() else value))
    return result
