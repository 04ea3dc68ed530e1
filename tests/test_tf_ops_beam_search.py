"""The bridge op against the engine's bindings; and a row, a queue or a step that fails."""

import re
import threading
import time

import cc_host_util
import numpy as np
import pytest
import tensorflow as tf
import tiny_model

from genrecall import kernels, tf_ops, trtllm_bridge
from genrecall.trtllm_bridge import checkpoint

HIDDEN = 64
ATTRS = dict(levels=len(tiny_model.LEVEL_SIZES), hidden_size=HIDDEN)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def weights(model):
    path = model.checkpoint / "model.gguf"
    checkpoint.convert(str(model.checkpoint), str(path), dtype="float32")
    return str(path)


@pytest.fixture(scope="module")
def engine(weights):
    return tf_ops.EngineResource(weights, num_threads=1)


@pytest.fixture(scope="module")
def snapshot(model):
    resource = tf_ops.RecallIndexResource(model.index)
    return tf_ops.acquire_index(resource)


def prompts(rows, longest=20, seed=0):
    rng = np.random.default_rng(seed)
    length = rng.integers(1, longest + 1, rows).astype(np.int32)
    tokens = rng.integers(0, 200, (rows, longest)).astype(np.int32)
    tokens[np.arange(longest) >= length[:, None]] = 0
    return tokens, length


def search(engine, snapshot, tokens, length, width, **changes):
    """The op with defaults for what a test does not care about."""
    rows = len(length)
    inputs = dict(
        stable_prefix=np.zeros(rows, np.int32),
        beam_width=np.broadcast_to(np.int32(width), rows),
        deadline_ms=np.zeros(rows, np.int32),
        priority=np.zeros(rows, np.int32),
        seed=np.zeros(rows, np.int32),
    )
    inputs.update(changes)
    return tf_ops.constrained_beam_search(engine, snapshot, tokens, length, **{**ATTRS, **inputs})


@pytest.mark.parametrize("normalize", ["level", "legal", "vocab"])
def test_equals_the_engine(model, weights, engine, snapshot, normalize):
    tokens, length = prompts(5)
    widths = np.array([1, 7, 30, 400, 2], np.int32)
    got = search(engine, snapshot, tokens, length, widths, normalize=normalize, temperature=0.7)
    direct = trtllm_bridge.Engine(weights, num_threads=1)
    index = kernels.RecallIndex.load(str(model.index))
    want = direct.decode(
        tokens, length, index, beam_width=widths, normalize=normalize, temperature=0.7
    )
    assert got.sids.shape == (5, 400, 4) and got.user_state.shape == (5, HIDDEN)
    assert got.status.numpy().tolist() == [0] * 5
    for name in ("sids", "score", "step_score", "user_state"):
        np.testing.assert_array_equal(getattr(got, name), want[name], err_msg=name)
    known = {tuple(c) for c in index.rows()[1]}
    for b, width in enumerate(widths):
        real = [tuple(s) for s in got.sids[b].numpy() if s[0] >= 0]
        assert len(real) == len(set(real)) == min(width, index.num_sids) and set(real) <= known


def test_excluded_items_cost_no_beam(model, engine, snapshot):
    tokens, length = prompts(2)
    index = kernels.RecallIndex.load(str(model.index))
    item_id, codes, _, _ = index.rows()
    everything = search(engine, snapshot, tokens, length, index.num_sids)  # the exact ranking
    best = everything.sids.numpy()[0, :3].tolist()
    gone = [int(i) for i, c in zip(item_id, codes.tolist(), strict=True) if c in best]
    exclude = np.full((2, len(gone) + 1), -1, np.int64)
    exclude[0, : len(gone)] = gone
    inputs = {"exclude_item": exclude, "exclude_length": np.array([len(gone), 0], np.int32)}
    got = search(engine, snapshot, tokens, length, index.num_sids, **inputs)
    np.testing.assert_array_equal(got.sids[0, :-3], everything.sids[0, 3:])
    np.testing.assert_array_equal(got.sids[1], everything.sids[1])
    narrow = search(engine, snapshot, tokens, length, 9, **inputs)
    assert np.all(narrow.sids[0, :, 0].numpy() >= 0), "all nine beams are real ones"
    assert not any(sid in best for sid in narrow.sids.numpy()[0].tolist())


def test_caps_and_seeds_reach_the_search(engine, snapshot):
    tokens, length = prompts(1)
    capped = search(engine, snapshot, tokens, length, 40, prefix_caps=[2]).sids.numpy()[0]
    assert max(np.unique(capped[capped[:, 0] >= 0, 0], return_counts=True)[1]) <= 2
    drawn = {
        seed: search(engine, snapshot, tokens, length, 40, seed=np.array([seed], np.int32))
        for seed in (0, 7, 8)
    }
    again = search(engine, snapshot, tokens, length, 40, seed=np.array([7], np.int32))
    np.testing.assert_array_equal(again.sids, drawn[7].sids)
    assert not np.array_equal(drawn[7].sids, drawn[8].sids)
    assert not np.array_equal(drawn[7].sids, drawn[0].sids)


def test_empty_batch(engine, snapshot):
    got = search(engine, snapshot, np.zeros((0, 3), np.int32), np.zeros(0, np.int32), 5)
    assert [t.shape.as_list() for t in got] == [[0, 1, 4], [0, 1], [0, 1, 4], [0, HIDDEN], [0]]


def test_bad_rows_do_not_touch_their_neighbours(engine, snapshot):
    tokens, length = prompts(4)
    tokens[1, 0] = 10**6
    status = np.array([0, 0, 3, 0], np.int32)
    length[2] = 99  # of a refused row: not looked at
    got = search(engine, snapshot, tokens, length, [5, 5, 4000, 6], row_status=status)
    assert got.status.numpy().tolist() == [0, 3, 3, 0]
    assert got.sids.shape == (4, 6, 4)
    for b in (1, 2):
        assert np.all(got.sids[b].numpy() == -1) and np.all(np.isneginf(got.score[b]))
        assert np.all(got.user_state[b].numpy() == 0)
    alone = search(engine, snapshot, tokens[3:], length[3:], 6)
    np.testing.assert_array_equal(got.score[3], alone.score[0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="1000000"):
        search(engine, snapshot, tokens[1:2], length[1:2], 5)


def test_names_what_is_wrong(engine, snapshot, model):
    tokens, length = prompts(2)
    zeros = np.zeros(2, np.int32)
    cases = [
        (dict(length=zeros + 21), r"length\[0\] = 21: expected 0..P = 20"),
        (dict(stable_prefix=zeros + 50), r"stable_prefix\[0\] = 50: expected 0..length"),
        (dict(beam_width=zeros), r"beam_width\[0\] = 0: expected 1..max_beam_width = 4096"),
        (dict(beam_width=zeros + 5000), r"beam_width\[0\] = 5000: expected 1..max_beam_width"),
        (dict(seed=np.zeros(3, np.int32)), r"seed: expected shape \[B = 2\], got \[3\]"),
        (dict(levels=3), "index has 4 levels: expected levels = 3|expected levels = 3"),
        (dict(hidden_size=65), "hidden size 64: expected levels = 4, hidden_size = 65"),
        (dict(temperature=0.0), "temperature = 0: expected > 0"),
        (dict(prefix_caps=[1, -1]), r"prefix_caps\[1\] = -1: expected >= 0"),
        (dict(prefix_caps=[1] * 4), "prefix_caps has 4 entries: expected at most L - 1 = 3"),
        (
            dict(exclude_item=np.zeros((2, 1), np.int64), exclude_length=zeros + 2),
            r"exclude_length\[0\] = 2: expected 0..E = 1",
        ),
    ]
    for changes, message in cases:
        changes = {"length": length, **changes}
        with pytest.raises(
            (tf.errors.InvalidArgumentError, tf.errors.FailedPreconditionError), match=message
        ):
            search(engine, snapshot, tokens, width=5, **changes)


def test_deadlines_end_single_rows(engine, snapshot):
    tokens, length = prompts(3, longest=600, seed=4)
    length[:] = 600
    deadline = np.array([0, 1, -5], np.int32)
    got = search(engine, snapshot, tokens, length, 200, deadline_ms=deadline)
    assert got.status.numpy().tolist() == [0, 4, 0]
    with pytest.raises(tf.errors.DeadlineExceededError):
        search(engine, snapshot, tokens[1:2], length[1:2], 200, deadline_ms=deadline[1:2])


def test_full_queue_is_refused_at_once(weights, snapshot):
    engine = tf_ops.EngineResource(weights, num_threads=1, max_queue=2)
    tokens, length = prompts(60, longest=300)
    length[:] = 300
    got = search(engine, snapshot, tokens, length, 20)
    status = got.status.numpy()
    assert set(status) == {0, 8}
    answered = got.sids.numpy()[status == 0]
    assert len(answered) >= 2 and np.all(answered[:, 0, 0] >= 0)


def test_cancelling_the_step_cancels_its_rows(engine, snapshot):
    from tensorflow.python.eager import cancellation

    tokens, length = prompts(40, longest=600)
    length[:] = 600
    run = tf.function(lambda: search(engine, snapshot, tokens, length, 100))
    manager = cancellation.CancellationManager()
    step = manager.get_cancelable_function(run.get_concrete_function())
    failure = []

    def work():
        try:
            step()
        except tf.errors.OpError as error:
            failure.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.05)
    start = time.monotonic()
    manager.start_cancel()
    thread.join(10)
    assert isinstance(failure[0], tf.errors.CancelledError)
    assert time.monotonic() - start < 5, "rows are freed at the next step"


def test_many_threads(engine, snapshot):
    want = {s: search(engine, snapshot, *prompts(2, seed=s), 9).score.numpy() for s in range(4)}
    wrong = []

    def work(seed):
        for _ in range(10):
            got = search(engine, snapshot, *prompts(2, seed=seed), 9)
            if not np.array_equal(got.score, want[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_shape_function(engine):
    got = []
    rows = ("stable_prefix", "beam_width", "deadline_ms", "priority", "seed", "row_status")

    @tf.function
    def trace(index, tokens, length):
        got.extend(search(engine, index, tokens, length, 3, **{n: length for n in rows}))
        return got[0]

    specs = [tf.TensorSpec([], tf.variant), tf.TensorSpec([None, 9], tf.int32)]
    search_shapes = trace.get_concrete_function(*specs, tf.TensorSpec([6], tf.int32))
    assert search_shapes is not None
    assert [t.shape.as_list() for t in got] == [[6, None, 4], [6, None], [6, None, 4], [6, 64], [6]]


def test_metrics_show_what_was_decoded(engine, snapshot):
    search(engine, snapshot, *prompts(2), 3)
    page = tf_ops.metrics_text().numpy().decode()
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert int(values[':genrecall:decode:finished{status="OK"}']) >= 2
    assert int(values[":genrecall:decode:latency_ms_count{}"]) >= 2
    buckets = [
        int(v) for k, v in values.items() if k.startswith(":genrecall:decode:latency_ms_bucket")
    ]
    assert buckets == sorted(buckets) and len(buckets) > 20
    assert any('le="+Inf"' in k for k in values if "latency_ms_bucket" in k)
    assert values[':genrecall:engine:queued{engine="cpu"}'] == "0", "read now, not when last busy"
    assert int(values[':genrecall:engine:weight_bytes{engine="cpu"}']) > 0
    assert "# TYPE :genrecall:decode:latency_ms histogram" in page
    assert "# TYPE :genrecall:engine:running gauge" in page
    label = r'[a-zA-Z_][a-zA-Z0-9_]*="([^"\\\\]|\\\\.)*"'
    sample = rf"[a-zA-Z_:][a-zA-Z0-9_:]*\{{({label}(,{label})*)?\}} -?[0-9.e+-]+(inf|nan)?"
    bad = [x for x in page.splitlines() if not (x.startswith("# TYPE ") or re.fullmatch(sample, x))]
    assert not bad


def metric_values():
    page = tf_ops.metrics_text().numpy().decode()
    return dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))


def test_a_kept_prefix_answers_the_same_and_is_counted(weights, snapshot):
    engine = tf_ops.EngineResource(weights, num_threads=1, kv_bytes=(1 << 30) + 1)
    tokens, length = prompts(1, longest=150, seed=3)
    length[:] = 150
    stable = dict(stable_prefix=np.array([140], np.int32))
    before = metric_values()
    miss, hit = (search(engine, snapshot, tokens, length, 9, **stable) for _ in range(2))
    for a, b in zip(miss, hit, strict=True):
        np.testing.assert_array_equal(a, b)
    after = metric_values()

    def growth(name):
        return int(after[name]) - int(before.get(name, 0))

    assert growth(':genrecall:prefix_cache:rows{outcome="hit"}') == 1
    assert growth(':genrecall:prefix_cache:rows{outcome="miss"}') == 1
    assert growth(':genrecall:prefix_cache:tokens{source="cached"}') == 128
    assert growth(':genrecall:prefix_cache:tokens{source="computed"}') == 300 - 128
    assert growth(':genrecall:engine:kv_cached_bytes{engine="cpu"}') > 0
    assert int(after[':genrecall:engine:kv_resident_bytes{engine="cpu"}']) > 0
    assert int(after[':genrecall:engine:kv_evicted_pages{engine="cpu"}']) == 0


def test_resources_survive_a_saved_model(model, weights, tmp_path):
    class Search(tf.Module):
        def __init__(self):
            super().__init__()
            self.engine = tf_ops.EngineResource(weights, num_threads=1)
            self.index = tf_ops.RecallIndexResource(model.index)

        @tf.function(
            input_signature=[tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)]
        )
        def serve(self, tokens, length):
            zeros = tf.zeros_like(length)
            found = tf_ops.constrained_beam_search(
                self.engine,
                tf_ops.acquire_index(self.index),
                tokens,
                length,
                zeros,
                zeros + 6,
                zeros,
                zeros,
                zeros,
                **ATTRS,
            )
            return found._asdict()

    module = Search()
    tokens, length = prompts(3)
    want = module.serve(tokens, length)
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.serve)
    del module
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    got = loaded.signatures["serving_default"](
        tokens=tf.constant(tokens), length=tf.constant(length)
    )
    in_cc, _ = cc_host_util.run(tmp_path / "model", {"tokens": tokens, "length": length})
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value)
        np.testing.assert_array_equal(in_cc[name], value)
