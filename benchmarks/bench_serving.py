"""Latency and throughput of a running server over the number of concurrent clients.

    genrecall serve --model_base_path DIR --model_name recall &
    python benchmarks/bench_serving.py --model recall --concurrency 1,4,16 --beam_width 32

Closed loop: each client sends its next request when the last one is answered. The clients are
threads of one Python process, so above a thousand requests a second they are what is measured.
Works with any server of the PredictionService, tensorflow_model_server too.
"""

import argparse
import json
import os
import sys
import threading
from dataclasses import asdict, dataclass

import numpy as np
from throughput import closed_loop

WARM_UP_REQUESTS = 3


@dataclass(frozen=True)
class Result:
    """One row of the table. Latencies are of answered requests, in milliseconds."""

    concurrency: int
    answered: int
    failed: int
    per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


def synthetic_requests(infos, args, count=256):
    """Random requests for a recall signature, or random tensors for any other.

    Args:
      infos: input name -> TensorInfo.
      args: num_behaviors and max_item_id of the flags.
      count: how many different ones.
    """
    rng = np.random.default_rng(args.seed)
    requests = []
    for _ in range(count):
        if "behavior_item" in infos:
            length = int(rng.integers(1, args.num_behaviors + 1))
            now = 1_750_000_000
            ages = np.sort(rng.integers(1, 90 * 86400, length))[::-1]
            request = {
                "user_id": rng.integers(0, 1 << 40, 1),
                "behavior_item": rng.integers(0, args.max_item_id + 1, (1, length)),
                "behavior_action": rng.integers(1, 3, (1, length), dtype=np.int32),
                "behavior_domain": rng.integers(0, 2, (1, length), dtype=np.int32),
                "behavior_time": now - ages[None],
                "behavior_length": np.array([length], np.int32),
                "request_time": np.array([now], np.int64),
            }
        else:
            request = {name: random_tensor(info, rng) for name, info in infos.items()}
        requests.append(request)
    return requests


def random_tensor(info, rng):
    """A tensor that fits a TensorInfo; open dimensions are 1."""
    import tensorflow as tf

    shape = [max(1, dim.size) for dim in info.tensor_shape.dim]
    dtype = tf.dtypes.as_dtype(info.dtype)
    if dtype == tf.string:
        return np.full(shape, b"text", object)
    if dtype == tf.bool:
        return rng.integers(0, 2, shape).astype(bool)
    return (10 * rng.random(shape)).astype(dtype.as_numpy_dtype)


def measure(predict, requests, concurrency, seconds):
    """Runs `concurrency` clients for `seconds` and returns a Result."""
    from genrecall.serving.errors import ServingError

    said = threading.Event()  # one failure's words will do

    def ask(i):
        try:
            predict(requests[i % len(requests)])
        except ServingError as error:
            if not said.is_set():
                said.set()
                print(f"{error.code.name}: {error.message}", file=sys.stderr)
            raise

    found = closed_loop(ask, concurrency, seconds, failure=ServingError)
    latency_ms = found.percentiles(50, 90, 99, 100)
    return Result(concurrency, len(found.ms), found.failed, found.per_second, *latency_ms)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="127.0.0.1:8500")
    parser.add_argument("--model", default="default")
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--request", metavar="FILE.json", help="in REST's format; else synthetic")
    parser.add_argument("--concurrency", default="1,4,16", help="comma-separated")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each concurrency")
    parser.add_argument("--timeout_s", type=float, default=30.0)
    parser.add_argument("--beam_width", type=int)
    parser.add_argument("--num_items", type=int)
    parser.add_argument("--num_behaviors", type=int, default=32, help="at most, synthetic")
    parser.add_argument("--max_item_id", type=int, default=9999, help="synthetic")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object a line, no table")
    return parser.parse_args()


def main():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    args = parse_args()
    from rich.console import Console
    from rich.table import Table

    from genrecall.query import body_inputs, read_request
    from genrecall.serving.client import Client

    with Client(args.server, args.model, args.timeout_s) as client:
        infos = client.signatures()[args.signature].inputs
        if args.request:
            requests = [body_inputs(read_request(args.request), infos)]
        else:
            requests = synthetic_requests(infos, args)
        for name in ("beam_width", "num_items"):
            if getattr(args, name) is not None:
                for request in requests:
                    request[name] = np.array([getattr(args, name)], np.int32)

        def predict(request):
            return client.predict(request, args.signature)

        for request in requests[:WARM_UP_REQUESTS]:
            predict(request)
        results = []
        for concurrency in map(int, args.concurrency.split(",")):
            results.append(measure(predict, requests, concurrency, args.seconds))
            if args.json:
                print(json.dumps(asdict(results[-1])), flush=True)
    if args.json:
        return
    columns = (
        "clients",
        "answered",
        "failed",
        "requests/s",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "max ms",
    )
    table = Table(box=None)
    for column in columns:
        table.add_column(column, justify="right")
    for r in results:
        values = (r.per_second, r.p50_ms, r.p90_ms, r.p99_ms, r.max_ms)
        counts = (r.concurrency, r.answered, r.failed)
        table.add_row(*map(str, counts), *(f"{value:.1f}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    main()
