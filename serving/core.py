"""All models of the server: look-up by name, version and label. Knows no transport."""

import contextlib
import threading
from collections.abc import Iterator, Sequence

from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from genrecall.serving.errors import Code, ServingError, invalid_argument, not_found
from genrecall.serving.model import Model, ModelConfig, VersionPolicy, status_error
from genrecall.serving.servable import LoadOptions, Servable

SIGNATURE_DEF = "signature_def"


class ServerCore:
    """Owns the models. All methods may be called by many threads at once.

    Args:
      load_options: how versions are loaded.
      poll_s: seconds between looks at the base paths; 0: look once.
    """

    def __init__(self, load_options: LoadOptions, poll_s: float = 1.0):
        self._load_options = load_options
        self._poll_s = poll_s
        self._reload_lock = threading.Lock()  # one reload at a time
        self._lock = threading.Lock()  # guards the two below; never held while something loads
        self._models: dict[str, Model] = {}  # replaced as a whole, so that readers need no lock
        self._stopped = False

    def reload(self, configs: Sequence[ModelConfig]) -> None:
        """Serves exactly these models: starts new ones, stops those not listed, updates the rest.

        Returns when every version found for them is loaded or has failed.

        Raises:
          ServingError: INVALID_ARGUMENT for a bad config (nothing is changed then), UNAVAILABLE
            when the server stops meanwhile.
        """
        names = [config.name for config in configs]
        if (
            len(set(names)) != len(names)
            or not all(names)
            or not all(config.base_path for config in configs)
        ):
            raise invalid_argument(
                "every model of a config needs a base_path and a name of its own"
            )
        with self._reload_lock:
            with self._lock:
                self._check_not_stopped()
                old, new = self._models, {}
                for config in configs:
                    kept = old.get(config.name)
                    same = kept is not None and kept.config.base_path == config.base_path
                    new[config.name] = kept if same else self._start(config)
                # What is replaced serves until its successor has loaded.
                self._models = {**new, **old}
            for config in configs:
                new[config.name].refresh(config)
            with self._lock:
                self._check_not_stopped()
                self._models = new
            for name, model in old.items():
                if new.get(name) is not model:
                    model.stop()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Stops all models, after their requests in flight; a reload under way ends at once.

        Returns:
          False if a request or a load was still running after `timeout_s`.
        """
        with self._lock:
            self._stopped = True
            models = list(self._models.values())
        return all([model.stop(timeout_s) for model in models])

    def _check_not_stopped(self) -> None:
        if self._stopped:
            raise ServingError(Code.UNAVAILABLE, "the server is stopping")

    def predict(
        self, request: predict_pb2.PredictRequest, timeout_s: float | None = None
    ) -> predict_pb2.PredictResponse:
        """Runs a request on the version it names, or on the newest one: see Servable.predict."""
        with self.acquire(request.model_spec) as servable:
            return servable.predict(request, timeout_s)

    @contextlib.contextmanager
    def acquire(self, spec: model_pb2.ModelSpec) -> Iterator[Servable]:
        """The servable that a ModelSpec names, kept loaded inside the `with` block."""
        if not spec.name:
            raise invalid_argument("Missing model name in ModelSpec")
        version = self._version_of(spec)
        model = self._models.get(spec.name)
        if model is None:
            request = (
                f"Latest({spec.name})" if version is None else f"Specific({spec.name}, {version})"
            )
            raise not_found(f"Servable not found for request: {request}")
        with model.acquire(version) as servable:
            yield servable

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """The state of the version that the spec names, or of all versions of its model."""
        version = self._version_of(spec)
        model = self._models.get(spec.name)
        known = model.status() if model else {}
        if version is not None:
            if version not in known:
                raise not_found(f"Could not find version {version} of model {spec.name}")
            known = {version: known[version]}
        if not known:
            raise not_found(f"Could not find any versions of model {spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, (state, error) in known.items():
            code, message = status_error(error)
            entry = response.model_version_status.add(version=number, state=state)
            entry.status.error_code = code.value[0]
            entry.status.error_message = message
        return response

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The SignatureDefs of a version."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid_argument(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for name in request.metadata_field:
            if name != SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {name} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self.acquire(request.model_spec) as servable:
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for key, signature in servable.signature_def.items():
                signatures.signature_def[key].CopyFrom(signature)
            response.model_spec.name = servable.name
            response.model_spec.version.value = servable.version
        response.metadata[SIGNATURE_DEF].Pack(signatures)
        return response

    def versions(self) -> dict[str, dict[int, tuple[int, ServingError | None]]]:
        """model name -> version -> (state, error or None)."""
        return {name: model.status() for name, model in self._models.items()}

    def _start(self, config: ModelConfig) -> Model:
        model = Model(
            config, lambda version, path: Servable(config.name, version, path, self._load_options)
        )
        model.start(self._poll_s)
        return model

    def _version_of(self, spec: model_pb2.ModelSpec) -> int | None:
        choice = spec.WhichOneof("version_choice")
        if choice == "version":
            return spec.version.value
        if choice == "version_label":
            model = self._models.get(spec.name)
            if model is None or spec.version_label not in model.config.labels:
                raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
            return model.config.labels[spec.version_label]
        return None


def configs_from_proto(proto: model_server_config_pb2.ModelServerConfig) -> list[ModelConfig]:
    """The models of a ModelServerConfig.

    Raises:
      ServingError: INVALID_ARGUMENT if it is not a list of TensorFlow models.
    """
    if proto.WhichOneof("config") != "model_config_list":
        raise invalid_argument(
            "the config must be a model_config_list; custom_model_config is not supported"
        )
    configs = []
    for config in proto.model_config_list.config:
        if config.model_platform not in ("", "tensorflow"):
            raise invalid_argument(
                f"model {config.name}: model_platform {config.model_platform!r} is not "
                "supported; expected 'tensorflow'"
            )
        policy = config.model_version_policy
        kind = policy.WhichOneof("policy_choice")
        configs.append(
            ModelConfig(
                name=config.name,
                base_path=config.base_path,
                policy=VersionPolicy(
                    latest=0 if kind == "all" else policy.latest.num_versions or 1,
                    specific=tuple(policy.specific.versions) if kind == "specific" else (),
                ),
                labels=dict(config.version_labels),
            )
        )
    return configs


def read_config_file(path: str) -> list[ModelConfig]:
    """The models of a --model_config_file (a ModelServerConfig in text format).

    Raises:
      ValueError: it does not parse, or asks for what is not supported.
      OSError: it cannot be read.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        return configs_from_proto(
            text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        )
    except (text_format.ParseError, ServingError) as error:
        raise ValueError(f"{path}: {error}") from error
