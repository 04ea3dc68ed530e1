"""Made-up but plausible requests to an exported model: for warming it up and for checking it."""

import json
import pathlib
import time

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from genrecall.kernels.prompt_spec import PromptSpec

WARMUP_PRIORITY = -1000  # kWarmupPriority of trtllm_bridge/engine.h: behind every real request
WARMUP_FILE = "tf_serving_warmup_requests"  # the name TF Serving looks for in assets.extra
MAX_WARMUP = 1000  # records TF Serving reads


def sample_requests(artefacts, count, *, seed=0) -> list[dict]:
    """`count` requests of one user each, from no behaviours to more than a prompt takes.

    Args:
      artefacts: Artefacts; items and features are drawn from its index and prompt spec.

    Returns:
      Dicts input name -> array; inputs with good defaults are left out.
    """
    rng = np.random.default_rng(seed)
    items, weight = artefacts.index.top_items(1000)
    p = np.maximum(np.asarray(weight, np.float64), 0) + 1e-9
    longest = int(artefacts.prompt.clean_options["max_events"])
    now = int(time.time())
    requests = []
    for n in range(count):
        length = round(longest * n / max(1, count - 1))
        events = max(1, length)
        requests.append(
            {
                "user_id": np.array([n], np.int64),
                "behavior_item": rng.choice(items, (1, events), p=p / p.sum()).astype(np.int64),
                "behavior_action": rng.integers(1, 3, (1, events), dtype=np.int32),
                "behavior_domain": rng.integers(0, 2, (1, events), dtype=np.int32),
                "behavior_time": np.sort(now - rng.integers(0, 60 * 86400, (1, events))),
                "behavior_length": np.array([length], np.int32),
                **_features(artefacts, rng),
            }
        )
    return requests


def _features(artefacts, rng):
    """One value per profile feature, among those its spec knows and missing."""
    spec = PromptSpec.from_json(json.loads(artefacts.prompt.spec_json))
    columns = {}
    for feature in spec.features:
        if feature.kind == "bucket":
            columns[feature.name] = np.array([rng.choice(feature.boundaries)], np.float32)
            continue
        value = rng.choice([v for v, _ in feature.values] or [-1])
        kind = (np.int64, int) if feature.kind == "int64" else (object, str)
        columns[feature.name] = np.array([kind[1](value)], kind[0])
    return columns


def write_warmup(path, requests):
    """Writes requests as TF Serving's warm-up file: at the lowest priority and with no deadline.

    Args:
      path: the file; its folder is made. requests: at most MAX_WARMUP dicts as of sample_requests.
    """
    if len(requests) > MAX_WARMUP:
        raise ValueError(f"warmup = {len(requests)}: expected 0..{MAX_WARMUP}")
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            predict = predict_pb2.PredictRequest()
            predict.model_spec.signature_name = "serving_default"
            gentle = {
                "priority": np.array([WARMUP_PRIORITY], np.int32),
                "deadline_ms": np.array([0], np.int32),
            }
            for name, value in {**request, **gentle}.items():
                predict.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictLog(request=predict)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
