"""Request counters and latency histograms as Prometheus text.

Names, labels and buckets are tensorflow_model_server's own, so that its dashboards fit. The
process's TensorFlow metrics are not in here: `genrecall.tf_ops.metrics_text` has them.
"""

import bisect
import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

from genrecall.serving.errors import Code, ServingError

CONTENT_TYPE = "text/plain; version=0.0.4"

# Microseconds, as in tensorflow_model_server: scale 10, power 1.8, ~20 minutes at the top.
_BOUNDS_US = [10 * 1.8**i for i in range(33)]


class RequestMetrics:
    """Counts requests by model and status, and their wall time by model, API and entry point."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._buckets: dict[tuple[str, str, str], list[int]] = {}
        self._sums_us: dict[tuple[str, str, str], float] = defaultdict(float)

    @contextlib.contextmanager
    def measure(self, model: str, api: str, entry_point: str) -> Iterator[None]:
        """Counts the `with` block as one request.

        A request for a model that is not served (NOT_FOUND) counts under model "": clients must
        not be able to make time series without end.
        """
        start = time.perf_counter()
        status = "OK"
        try:
            yield
        except ServingError as error:
            status = error.code.name
            model = "" if error.code is Code.NOT_FOUND else model
            raise
        except Exception:
            status = Code.INTERNAL.name
            raise
        finally:
            self._record(model, api, entry_point, status, (time.perf_counter() - start) * 1e6)

    def text(self) -> str:
        """The Prometheus page of all requests so far."""
        with self._lock:
            counts = dict(self._counts)
            histograms = {
                key: (list(buckets), self._sums_us[key]) for key, buckets in self._buckets.items()
            }
        lines = ["# TYPE :tensorflow:serving:request_count counter"]
        for (model, status), count in sorted(counts.items()):
            labels = _labels(model_name=model, status=status)
            lines.append(f":tensorflow:serving:request_count{{{labels}}} {count}")
        lines.append("# TYPE :tensorflow:serving:request_latency histogram")
        for (model, api, entry_point), (buckets, total_us) in sorted(histograms.items()):
            labels = _labels(model_name=model, API=api, entrypoint=entry_point)
            cumulative = 0
            for bound, count in zip([*_BOUNDS_US, float("inf")], buckets, strict=True):
                cumulative += count
                le = "+Inf" if bound == float("inf") else f"{bound:g}"
                lines.append(
                    f':tensorflow:serving:request_latency_bucket{{{labels},le="{le}"}} {cumulative}'
                )
            lines.append(f":tensorflow:serving:request_latency_sum{{{labels}}} {total_us:.0f}")
            lines.append(f":tensorflow:serving:request_latency_count{{{labels}}} {cumulative}")
        return "\n".join(lines) + "\n"

    def _record(self, model: str, api: str, entry_point: str, status: str, micros: float) -> None:
        key = (model, api, entry_point)
        bucket = bisect.bisect_left(_BOUNDS_US, micros)
        with self._lock:
            self._counts[model, status] += 1
            self._buckets.setdefault(key, [0] * (len(_BOUNDS_US) + 1))[bucket] += 1
            self._sums_us[key] += micros


def _labels(**labels: str) -> str:
    def escape(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return ",".join(f'{name}="{escape(value)}"' for name, value in labels.items())
