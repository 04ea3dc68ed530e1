"""One loaded SavedModel version: its signatures, Predict and warm-up. Knows no transport.

A version runs in a `tf.compat.v1.Session`, as in tensorflow_model_server, and not eagerly:
docs/decisions.md says why.
"""

import logging
import os
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from genrecall.serving import tensors
from genrecall.serving.errors import Code, ServingError, code_of_number, invalid_argument

_LOG = logging.getLogger(__name__)

DEFAULT_SIGNATURE = "serving_default"
WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
MAX_WARMUP_RECORDS = 1000

# Stored as signatures by TensorFlow 2, but there to be run once at load.
_INIT_SIGNATURES = {"__saved_model_init_op", "__saved_model_train_op"}

# Session.run prefixes every message with this; tensorflow_model_server does not.
_SESSION_PREFIX = "Graph execution error:\n\n"


@dataclass(frozen=True)
class LoadOptions:
    """How versions are loaded. Thread counts of 0 leave the choice to TensorFlow."""

    tags: tuple[str, ...] = ("serve",)
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    warm_up: bool = True
    warm_up_iterations: int = 1


@dataclass(frozen=True)
class _Input:
    tensor: tf.Tensor
    dtype: int
    shape: tuple[int, ...] | None
    default: np.ndarray | None


class _Signature:
    """One SignatureDef, bound to the tensors of a graph."""

    def __init__(self, name: str, signature: meta_graph_pb2.SignatureDef, graph: tf.Graph):
        self.name = name
        self._inputs = {}
        for alias, info in sorted(signature.inputs.items()):
            default = signature.defaults.get(alias)
            self._inputs[alias] = _Input(
                tensor=_tensor(graph, name, alias, info),
                dtype=info.dtype,
                shape=tensors.static_shape(info),
                default=None if default is None else tensors.to_numpy(alias, default),
            )
        self._outputs = {
            alias: _tensor(graph, name, alias, info)
            for alias, info in sorted(signature.outputs.items())
        }

    def feeds(self, protos) -> dict[tf.Tensor, np.ndarray]:
        """The session's feeds of a request: its own tensors, and the defaults of absent ones.

        Raises:
          ServingError: INVALID_ARGUMENT naming the input that is missing, unknown or misshapen.
        """
        unknown = sorted(set(protos) - set(self._inputs))
        if unknown:
            raise invalid_argument(
                f"input tensor alias not found in signature: {', '.join(unknown)}. "
                f"Inputs expected to be in the set {{{','.join(self._inputs)}}}."
            )
        feeds = {}
        for alias, expected in self._inputs.items():
            if alias in protos:
                tensors.check_tensor(alias, protos[alias], expected.dtype, expected.shape)
                feeds[expected.tensor] = tensors.to_numpy(alias, protos[alias])
            elif expected.default is not None:
                feeds[expected.tensor] = expected.default
            else:
                raise self._missing(alias, protos)
        return feeds

    def fetches(self, output_filter) -> dict[str, tf.Tensor]:
        """alias -> tensor of the outputs in `output_filter`, or of all outputs if it is empty."""
        if not output_filter:
            return self._outputs
        chosen = {}
        for alias in output_filter:
            if alias not in self._outputs:
                raise invalid_argument(
                    f"output tensor alias not found in signature: {alias} "
                    f"Outputs expected to be in the set {{{','.join(self._outputs)}}}."
                )
            if alias in chosen:
                raise invalid_argument(f"duplicate output tensor alias: {alias}")
            chosen[alias] = self._outputs[alias]
        return chosen

    def _missing(self, alias: str, protos) -> ServingError:
        defaults = [name for name, spec in self._inputs.items() if spec.default is not None]
        return invalid_argument(
            f"Signature input alias: {alias}(feed name: {self._inputs[alias].tensor.name}) "
            "not found in request "
            "and no default value provided. Inputs expected to be in the request "
            f"{{{','.join(sorted(protos))}}}, or default input alias set: {','.join(defaults)}"
        )


class Servable:
    """A loaded version. Threads may share `predict`; `close` only after the last one returned."""

    def __init__(self, name: str, version: int, path: str, options: LoadOptions = LoadOptions()):
        """Loads the SavedModel in `path`, runs its initializers and replays its warm-up requests.

        Raises:
          ServingError: it cannot be loaded, or a warm-up request failed; the message says which.
        """
        self.name = name
        self.version = version
        self.path = path
        self._signatures = {}
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=_session_config(options))
        try:
            with graph.as_default():
                self._meta_graph = tf.compat.v1.saved_model.load(
                    self._session, list(options.tags), path
                )
            self._signatures = {
                key: _Signature(key, signature, graph)
                for key, signature in self._meta_graph.signature_def.items()
                if key not in _INIT_SIGNATURES
            }
            # Nothing may be added while requests run, and a frozen graph makes Session.run cheaper.
            graph.finalize()
            if options.warm_up:
                self._warm_up(options.warm_up_iterations)
        except BaseException as error:
            self.close()
            raise _as_serving_error(error) from error

    @property
    def signature_def(self) -> dict[str, meta_graph_pb2.SignatureDef]:
        """The SignatureDefs as stored, the initializer's included."""
        return self._meta_graph.signature_def

    @property
    def signature_names(self) -> list[str]:
        """The signatures that can be called."""
        return sorted(self._signatures)

    def predict(self, request: predict_pb2.PredictRequest, timeout_s: float | None = None):
        """Runs one request.

        Args:
          request: checked against the signature; absent inputs take its defaults.
          timeout_s: the step is cancelled when this many seconds have passed; None: never.

        Returns:
          A PredictResponse whose model_spec names the version and signature that answered.

        Raises:
          ServingError: INVALID_ARGUMENT for a malformed request, DEADLINE_EXCEEDED, or the code of
            the op that failed.
        """
        signature = self._signature(request.model_spec.signature_name)
        feeds = signature.feeds(request.inputs)
        fetches = signature.fetches(request.output_filter)
        try:
            values = self._session.run(
                list(fetches.values()), feeds, options=_run_options(timeout_s)
            )
        except tf.errors.OpError as error:
            raise _as_serving_error(error) from error
        except (ValueError, TypeError) as error:
            # The session refuses a feed that the TensorInfo let pass.
            raise invalid_argument(str(error)) from error
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self.name
        response.model_spec.version.value = self.version
        response.model_spec.signature_name = signature.name
        for alias, value in zip(fetches, values, strict=True):
            tensors.fill_proto(response.outputs[alias], value)
        return response

    def close(self) -> None:
        """Frees the model. No `predict` may be running or follow."""
        self._session.close()
        # Its resources are freed when the session is deleted, not when it is closed.
        self._session = None
        self._signatures = {}

    def inputs_of(
        self, signature_name: str
    ) -> tuple[dict[str, meta_graph_pb2.TensorInfo], set[str]]:
        """The inputs of a signature ("" is the default one), and which have a default value."""
        signature = self._meta_graph.signature_def[self._signature(signature_name).name]
        return dict(signature.inputs), set(signature.defaults)

    def _signature(self, name: str) -> _Signature:
        name = name or DEFAULT_SIGNATURE
        try:
            return self._signatures[name]
        except KeyError:
            raise invalid_argument(
                f'Serving signature name: "{name}" not found in signature def'
            ) from None

    def _warm_up(self, iterations: int) -> None:
        path = os.path.join(self.path, WARMUP_FILE)
        if not os.path.exists(path):
            return
        replayed = 0
        for number, record in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator()):
            if number >= MAX_WARMUP_RECORDS:
                raise invalid_argument(
                    f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}) at {path}"
                )
            log = prediction_log_pb2.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            if kind != "predict_log":
                _LOG.warning(
                    "%s: record %d is a %s; only predict_log is replayed", path, number, kind
                )
                continue
            try:
                for _ in range(iterations):
                    self.predict(log.predict_log.request)
            except ServingError as error:
                raise ServingError(
                    error.code, f"warm-up request {number} of {path}: {error.message}"
                ) from error
            replayed += 1
        _LOG.info(
            "model %s version %d: replayed %d warm-up requests", self.name, self.version, replayed
        )


def _tensor(
    graph: tf.Graph, signature: str, alias: str, info: meta_graph_pb2.TensorInfo
) -> tf.Tensor:
    if info.WhichOneof("encoding") != "name":
        raise ServingError(
            Code.UNIMPLEMENTED,
            f"signature {signature!r}: {alias!r} is a sparse or composite tensor; only dense "
            "are served",
        )
    return graph.get_tensor_by_name(info.name)


def _session_config(options: LoadOptions) -> tf.compat.v1.ConfigProto:
    return tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=options.intra_op_threads,
        inter_op_parallelism_threads=options.inter_op_threads,
    )


def _run_options(timeout_s: float | None) -> tf.compat.v1.RunOptions | None:
    if timeout_s is None:
        return None
    if timeout_s <= 0:
        raise ServingError(Code.DEADLINE_EXCEEDED, "the deadline passed before the request was run")
    # At least 1 ms: 0 would mean no limit.
    return tf.compat.v1.RunOptions(timeout_in_ms=max(1, int(timeout_s * 1000)))


def _as_serving_error(error: BaseException) -> BaseException:
    """`error` with a canonical code; what is no Exception (KeyboardInterrupt) as it is."""
    if isinstance(error, tf.errors.OpError):
        return ServingError(
            code_of_number(error.error_code), str(error.message).removeprefix(_SESSION_PREFIX)
        )
    if isinstance(error, ServingError) or not isinstance(error, Exception):
        return error
    return ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")
