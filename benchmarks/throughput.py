"""Many requests at once: the engine under an open stream of them. Knows no other system.

Closed loop: a number of clients, each sending its next request when the last is answered. Open
loop: requests arrive as a Poisson process whatever the engine does, so waiting shows in the
latency; the highest rate with p99 under a limit is what a server can promise.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
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


def keep_asking(ask, clients, goes_on):
    """Runs threads that each keep one request in flight, until none of them goes on.

    Args:
      ask: ask(i) sends request i and waits for its answer; every i is asked once. What it raises is
        raised here when the others have ended.
      clients: how many threads.
      goes_on: called before each request; False ends the client.
    """

    def client(number):
        i = number
        while goes_on():
            ask(i)
            i += clients

    with ThreadPoolExecutor(clients) as pool:
        for ended in [pool.submit(client, number) for number in range(clients)]:
            ended.result()


def closed_loop(ask, clients, seconds, failure=RuntimeError):
    """Latencies of `clients` that keep one request each in flight for `seconds`.

    Args:
      ask: ask(i) sends request i and waits for its answer.
      failure: what a request that was refused or failed raises.
    """
    took, failures, start = [], [], time.monotonic()

    def timed(i):
        sent = time.perf_counter()
        try:
            ask(i)
            took.append((time.perf_counter() - sent) * 1e3)
        except failure as error:
            failures.append(error)

    keep_asking(timed, clients, lambda: time.monotonic() < start + seconds)
    return Latencies(np.array(took), len(failures), time.monotonic() - start)


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
