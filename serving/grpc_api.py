"""PredictionService and ModelService over gRPC. Knows no model: the core does the work."""

import contextlib
import logging
from collections.abc import Iterator
from concurrent import futures

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from genrecall.serving.core import ServerCore, configs_from_proto
from genrecall.serving.errors import Code, ServingError, invalid_argument
from genrecall.serving.metrics import RequestMetrics

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def _answer_errors(context: grpc.ServicerContext) -> Iterator[None]:
    """Ends the call with the status of a ServingError; any other exception is INTERNAL."""
    try:
        yield
    except ServingError as error:
        context.abort(error.code, error.message)
    except Exception as error:
        _LOG.exception("a request failed unexpectedly")
        context.abort(Code.INTERNAL, f"{type(error).__name__}: {error}")


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata. The Example-based methods are UNIMPLEMENTED.

    Args:
      core: the models.
      metrics: counts every Predict.
      enforce_timeout: whether a client's deadline also cancels the running session step.
    """

    def __init__(self, core: ServerCore, metrics: RequestMetrics, enforce_timeout: bool = True):
        self._core = core
        self._metrics = metrics
        self._enforce_timeout = enforce_timeout

    def Predict(  # noqa: N802
        self, request: predict_pb2.PredictRequest, context
    ) -> predict_pb2.PredictResponse:
        with (
            _answer_errors(context),
            self._metrics.measure(request.model_spec.name, "Predict", "GRPC"),
        ):
            if not context.is_active():
                raise ServingError(
                    Code.CANCELLED, "the client went away before its request was run"
                )
            timeout_s = context.time_remaining() if self._enforce_timeout else None
            return self._core.predict(request, timeout_s)

    def GetModelMetadata(  # noqa: N802
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        with _answer_errors(context):
            return self._core.metadata(request)

    def Classify(self, request, context):  # noqa: N802
        self._unimplemented("Classify", context)

    def Regress(self, request, context):  # noqa: N802
        self._unimplemented("Regress", context)

    def MultiInference(self, request, context):  # noqa: N802
        self._unimplemented("MultiInference", context)

    @staticmethod
    def _unimplemented(method: str, context) -> None:
        context.abort(
            Code.UNIMPLEMENTED,
            f"{method} is not served here; use Predict (recall takes tensors, not tf.Example)",
        )


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, core: ServerCore):
        self._core = core

    def GetModelStatus(  # noqa: N802
        self, request: get_model_status_pb2.GetModelStatusRequest, context
    ) -> get_model_status_pb2.GetModelStatusResponse:
        with _answer_errors(context):
            if not request.HasField("model_spec"):
                raise invalid_argument("Missing ModelSpec")
            return self._core.status(request.model_spec)

    def HandleReloadConfigRequest(  # noqa: N802
        self, request: model_management_pb2.ReloadConfigRequest, context
    ) -> model_management_pb2.ReloadConfigResponse:
        """Answers when all models of the new config are loaded or have failed.

        A config that is refused is no RPC error: the reply's status says why.
        """
        response = model_management_pb2.ReloadConfigResponse()
        with _answer_errors(context):
            try:
                self._core.reload(configs_from_proto(request.config))
            except ServingError as error:
                response.status.error_code = error.code.value[0]
                response.status.error_message = error.message
        return response


def create_server(
    core: ServerCore,
    metrics: RequestMetrics,
    addresses: list[str],
    max_threads: int,
    enforce_timeout: bool = True,
    channel_arguments: list[tuple[str, str | int]] | None = None,
) -> tuple[grpc.Server, list[int]]:
    """A server bound to its addresses, not yet started.

    Args:
      addresses: "host:port" (port 0: any free one) or "unix:path".
      max_threads: requests served at the same time. As many again wait for a thread; what comes
        beyond is refused with RESOURCE_EXHAUSTED at once, so that no queue grows without end.
      channel_arguments: further gRPC options.

    Returns:
      The server, and the port of each address.

    Raises:
      OSError: an address cannot be bound.
    """
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # else a second server would share the port instead of failing
        *(channel_arguments or []),
    ]
    server = grpc.server(
        futures.ThreadPoolExecutor(max_threads, thread_name_prefix="grpc"),
        options=options,
        maximum_concurrent_rpcs=2 * max_threads,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(core, metrics, enforce_timeout), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(core), server)
    ports = []
    for address in addresses:
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address}: is it in use? ({error})") from error
        if port == 0:
            raise OSError(f"gRPC cannot listen on {address}: is it in use?")
        ports.append(port)
    return server, ports
