"""Which engines and weights a process shares, and what a slow load holds up."""

import os
import threading

import pytest
from random_decoder import Decoder, own_engine

from genrecall.kernels import DataLossError
from genrecall.trtllm_bridge import Engine

pytest.importorskip("transformers")

SMALL = dict(level_sizes=(8, 8, 8), vocab=64)


def bytes_read():
    with open("/proc/self/io", encoding="ascii") as f:
        return int(f.readline().split()[1])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Decoder(tmp_path_factory.mktemp("small"), seed=1, **SMALL)


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """A weights file of 15 MB that no engine holds."""
    folder = tmp_path_factory.mktemp("large")
    decoder = Decoder(
        folder, seed=2, level_sizes=(8, 8, 8), vocab=8000, hidden_size=256, intermediate_size=1024
    )
    path = decoder.path
    del decoder
    return path


def in_threads(count, work):
    """Results of work(i), all started together."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(i):
        barrier.wait()
        results[i] = work(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return results


def test_concurrent_loads_of_one_model_are_one_load(large_file):
    before = bytes_read()
    engines = in_threads(4, lambda i: Engine(large_file))
    assert all(e.shares_with(engines[0]) for e in engines)
    assert bytes_read() - before < 1.5 * os.path.getsize(large_file)


def test_engines_of_other_options_share_the_weights(large_file):
    before = bytes_read()
    engines = in_threads(3, lambda i: Engine(large_file, prefill_chunk=10 + i))
    assert bytes_read() - before < 1.5 * os.path.getsize(large_file)
    assert not engines[1].shares_with(engines[0])
    assert all(e.shares_weights_with(engines[0]) for e in engines)


def test_weights_go_with_their_last_engine(large_file):
    engine = Engine(large_file)
    del engine
    before = bytes_read()
    Engine(large_file)
    assert bytes_read() - before > 0.9 * os.path.getsize(large_file)


def test_a_slow_load_holds_up_nobody_else(small, tmp_path):
    """The slow one reads 400 MB of a file that turns out to be no model."""
    slow = tmp_path / "slow.gguf"
    for _ in range(10):  # on a busy machine the slow one may be over before the other is asked for
        slow.write_bytes(b"")
        os.truncate(slow, 400 << 20)
        before, failures = bytes_read(), []

        def load(failures=failures):
            with pytest.raises(DataLossError, match="not a GGUF file"):
                Engine(slow)
            failures.append(1)

        thread = threading.Thread(target=load)
        thread.start()
        while bytes_read() - before < 4 << 20:
            pass
        engine = own_engine(small)
        overtook = not failures
        thread.join()
        assert failures and engine.vocab_size == 64
        if overtook:
            return
    pytest.fail("the other model was never there before the slow one had ended")


def test_a_failed_load_is_tried_again(small, tmp_path):
    path = tmp_path / "model.gguf"
    data = small.path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for _ in range(2):
        with pytest.raises(DataLossError):
            Engine(path)
    path.write_bytes(data)
    assert Engine(path).shares_weights_with(small.engine)
