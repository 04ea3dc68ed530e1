"""A client of genrecall's server, or of any tensorflow_model_server. Knows no data folder.

with Client("127.0.0.1:8500", model="recall") as client:
    outputs = client.predict({"user_id": [7], "beam_width": [32]})
    for item in recalled_items(outputs):
        print(item.item_id, item.score)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from genrecall.serving import tensors
from genrecall.serving.errors import Code, ServingError, code_of_number
from genrecall.serving.servable import DEFAULT_SIGNATURE

BRANCHES = ("generative", "popular")  # bit n of branch_mask, unless the export chose others


class Client:
    """Predict, signatures and status of one model. Threads may share it.

    Args:
      target: "host:port" or "unix:path".
      model: its name on the server.
      timeout_s: for calls that name none.

    All calls raise ServingError, with the server's code and message; UNAVAILABLE if there is none.
    """

    def __init__(
        self, target: str = "127.0.0.1:8500", model: str = "default", timeout_s: float = 10.0
    ):
        self.target = target
        self.model = model
        self._timeout_s = timeout_s
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(target, options=unlimited)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._signatures: dict[int | None, dict[str, meta_graph_pb2.SignatureDef]] = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        self._channel.close()

    def predict(
        self,
        inputs: Mapping[str, object],
        signature: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        timeout_s: float | None = None,
        output_filter: Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        """One Predict request.

        Args:
          inputs: input name -> ndarray, or nested lists, which take the signature's dtype.
          signature: which signature to call.
          version: which version to ask; None: the newest.
          timeout_s: the deadline; the server ends its work when it passes.
          output_filter: names of the wanted outputs; none: all.

        Returns:
          Output name -> ndarray; strings as bytes.

        Raises:
          ValueError: a value does not fit the signature's dtype.
        """
        request = predict_pb2.PredictRequest(output_filter=output_filter)
        self._specify(request.model_spec, version)
        request.model_spec.signature_name = signature
        lists = any(not isinstance(value, np.ndarray) for value in inputs.values())
        infos = self.signatures(version)[signature].inputs if lists else {}
        for name, value in inputs.items():
            array = value if isinstance(value, np.ndarray) else _array(name, value, infos.get(name))
            tensors.fill_proto(request.inputs[name], array)
        response = self._call(self._predictions.Predict, request, timeout_s)
        return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}

    def signatures(self, version: int | None = None) -> dict[str, meta_graph_pb2.SignatureDef]:
        """Signature name -> SignatureDef; asked once, then remembered."""
        if version not in self._signatures:
            request = get_model_metadata_pb2.GetModelMetadataRequest(
                metadata_field=["signature_def"]
            )
            self._specify(request.model_spec, version)
            response = self._call(self._predictions.GetModelMetadata, request)
            found = get_model_metadata_pb2.SignatureDefMap()
            response.metadata["signature_def"].Unpack(found)
            self._signatures[version] = dict(found.signature_def)
        return _Signatures(self._signatures[version])

    def status(self) -> dict[int, tuple[str, str]]:
        """version -> (state, such as "AVAILABLE", and error message or ""), newest first."""
        request = get_model_status_pb2.GetModelStatusRequest()
        self._specify(request.model_spec, None)
        response = self._call(self._models.GetModelStatus, request)
        states = get_model_status_pb2.ModelVersionStatus.State
        return {
            v.version: (states.Name(v.state), v.status.error_message)
            for v in response.model_version_status
        }

    def _specify(self, spec, version: int | None) -> None:
        spec.name = self.model
        if version is not None:
            spec.version.value = version

    def _call(self, method, request, timeout_s: float | None = None):
        try:
            return method(request, timeout=self._timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code is Code.UNAVAILABLE:
                details = f"no server answers at {self.target} ({details})"
            raise ServingError(code, details) from error


class _Signatures(dict):
    def __missing__(self, name):
        known = ", ".join(sorted(key for key in self if not key.startswith("__")))
        raise ServingError(Code.INVALID_ARGUMENT, f"no signature {name!r}; there are: {known}")


def _array(name: str, value, info: meta_graph_pb2.TensorInfo | None) -> np.ndarray:
    """Nested lists as an array of the signature's dtype; of NumPy's choice where it has none."""
    if info is None:  # no such input: the server says so
        return np.asarray(value)
    wanted = tf.dtypes.as_dtype(info.dtype)
    if wanted == tf.string:
        return np.asarray(value, dtype=object)
    array = np.asarray(value)
    if not array.size:
        return array.astype(wanted.as_numpy_dtype)
    if array.dtype.kind == "f" and wanted.is_floating:
        return array.astype(wanted.as_numpy_dtype)  # rounding is what one expects
    if array.dtype.kind in "biu":
        result = array.astype(wanted.as_numpy_dtype)
        if np.array_equal(result, array):
            return result
    raise ValueError(f"input {name!r}: {value!r} does not fit dtype {wanted.name}")


@dataclass(frozen=True)
class RecalledItem:
    """One item of an answer.

    branches are the names of those that proposed it; semantic_id is empty for an item without one.
    """

    item_id: int
    score: float
    branches: tuple[str, ...]
    semantic_id: tuple[int, ...]


def recalled_items(
    outputs: Mapping[str, np.ndarray], row: int = 0, branches: Sequence[str] = BRANCHES
) -> list[RecalledItem]:
    """The items of one row of a recall graph's outputs, best first, without padding.

    Args:
      outputs: item_id, score, branch_mask int [B, K]; semantic_id int32 [B, K, L]; num_items [B].
      row: 0 <= row < B.
      branches: their names by bit; others are called "branch <bit>".
    """
    items = []
    for i in range(int(outputs["num_items"][row])):
        mask = int(outputs["branch_mask"][row, i])
        bits = [bit for bit in range(mask.bit_length()) if mask >> bit & 1]
        codes = outputs["semantic_id"][row, i]
        items.append(
            RecalledItem(
                item_id=int(outputs["item_id"][row, i]),
                score=float(outputs["score"][row, i]),
                branches=tuple(_branch(bit, branches) for bit in bits),
                semantic_id=tuple(int(code) for code in codes if code >= 0),
            )
        )
    return items


def failed_branches(
    outputs: Mapping[str, np.ndarray], row: int = 0, branches: Sequence[str] = BRANCHES
) -> dict[str, str]:
    """branch name -> why it is empty (a canonical code's name), of the branches that failed."""
    status = outputs["branch_status"][row]
    return {
        _branch(bit, branches): code_of_number(int(code)).name
        for bit, code in enumerate(status)
        if code
    }


def semantic_id_text(codes: Sequence[int]) -> str:
    """`<a_99><b_225>` of (99, 225)."""
    return "".join(f"<{chr(ord('a') + level)}_{code}>" for level, code in enumerate(codes))


def _branch(bit: int, branches: Sequence[str]) -> str:
    return branches[bit] if bit < len(branches) else f"branch {bit}"
