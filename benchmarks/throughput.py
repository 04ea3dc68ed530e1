"""Many requests at once: the engine under an open stream of them. Knows no other system.

Closed loop: a number of clients, each sending its next request when the last is answered. Open
loop: requests arrive as a Poisson process whatever the engine does, so waiting shows in the
latency; the highest rate with p99 under a limit is what a server can promise.
"""

import threading
import time
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of the answered requests, and how many were refused or failed."""

    ms: np.ndarray
    failed: int
    seconds: float

    @property
    def per_second(self):
        return len(self.ms) / self.seconds

    def percentiles(self, *ranks):
        """One number for each of `ranks`, 0..100: NaN where nothing was answered."""
        return np.percentile(self.ms, ranks) if len(self.ms) else np.full(len(ranks), np.nan)

    def row(self):
        p50, p99 = self.percentiles(50, 99)
        return {"per_second": self.per_second, "p50_ms": p50, "p99_ms": p99, "failed": self.failed}


def closed_loop(engine, index, prompts, width, clients, seconds):
    """Latencies of `clients` that keep one request each in flight for `seconds`."""
    took, failed, end = [[] for _ in range(clients)], [0] * clients, time.monotonic() + seconds

    def client(number):
        i = number
        while time.monotonic() < end:
            start = time.perf_counter()
            try:
                engine.submit(prompts[i % len(prompts)], index, beam_width=width).result()
                took[number].append((time.perf_counter() - start) * 1e3)
            except RuntimeError:
                failed[number] += 1
            i += clients

    start = time.monotonic()
    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Latencies(np.concatenate(took), sum(failed), time.monotonic() - start)


def open_loop(engine, index, prompts, width, rate, seconds, seed=0):
    """Latencies of requests that arrive `rate` a second, one thread waiting for each."""
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds)))
    took, failed, lock = [], [0], threading.Lock()

    def wait_for(request, due):
        try:
            request.result()
            with lock:
                took.append((time.monotonic() - due) * 1e3)
        except RuntimeError:
            with lock:
                failed[0] += 1

    start, waiting = time.monotonic(), []
    for i, at in enumerate(arrivals):
        time.sleep(max(0.0, start + at - time.monotonic()))
        try:
            request = engine.submit(prompts[i % len(prompts)], index, beam_width=width)
        except RuntimeError:  # the queue is full
            failed[0] += 1
            continue
        waiting.append(threading.Thread(target=wait_for, args=(request, start + at)))
        waiting[-1].start()
    for thread in waiting:
        thread.join()
    return Latencies(np.array(took), failed[0], time.monotonic() - start)


def highest_rate(engine, index, prompts, width, limit_ms, capacity, seconds):
    """The highest rate, to about 5 %, at which p99 stays under `limit_ms` and nothing fails.

    Args:
      capacity: requests a second of the closed loop, where the search starts.

    Returns:
      requests a second, 0 if not even a tenth of the capacity holds the limit.
    """
    low, high = 0.0, 1.0  # shares of the capacity; beyond it the queue grows without end
    for _ in range(5):
        middle = (low + high) / 2
        found = open_loop(engine, index, prompts, width, middle * capacity, seconds)
        held = not found.failed and found.percentiles(99)[0] <= limit_ms
        low, high = (middle, high) if held else (low, middle)
    return low * capacity
