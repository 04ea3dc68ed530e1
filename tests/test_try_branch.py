"""TryBranch contains a branch's faults: eagerly, traced, reloaded, and in a plain session."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import fault_library
import numpy as np
import pytest
import tensorflow as tf
from fault_library import BLOCK, ERROR, HANG, NAN, NONE

from genrecall import tf_ops
from genrecall.tf_ops import try_branch

BLOCK_MS = 1500  # long beside DEADLINE_MS, short beside the patience of whoever runs the tests
DEADLINE_MS = 150
STATUS = {NONE: 0, ERROR: 9, BLOCK: 4, NAN: 13, HANG: 4}


def guarded(kind, deadline_ms, branch="test", max_threads=64):
    """Items [5, 6], scores [2, 4], or the fallback -1 and 0: a branch with a fault in it."""
    scale = tf.constant(2.0)

    def f(x, kind):
        scores = fault_library.ops().genrecall_test_fault(x * scale, kind, block_ms=BLOCK_MS)
        return [tf.constant([5, 6]), scores]

    return try_branch(
        f,
        [tf.constant([1.0, 2.0]), kind],
        [tf.constant([-1, -1]), tf.constant([0.0, 0.0])],
        deadline_ms,
        scores=[1],
        branch=branch,
        max_threads=max_threads,
    )


def check(kind, answer, seconds):
    items, scores, status = (np.asarray(x) for x in answer)
    assert status == STATUS[kind]
    assert items.tolist() == ([5, 6] if kind == NONE else [-1, -1])
    assert scores.tolist() == ([2.0, 4.0] if kind == NONE else [0.0, 0.0])
    assert seconds < (DEADLINE_MS + 400) / 1e3


def timed(call, *args, **kwargs):
    start = time.monotonic()
    answer = call(*args, **kwargs)
    return answer, time.monotonic() - start


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "function"])
@pytest.mark.parametrize("kind", STATUS)
def test_contains_every_fault(wrap, kind):
    f = wrap(guarded)
    f(tf.constant(NONE), tf.constant([0]))  # tracing takes longer than the deadline
    check(kind, *timed(f, tf.constant(kind), tf.constant([DEADLINE_MS, 0, 5 * DEADLINE_MS])))


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("saved") / "1")
    root = tf.Module()
    spec = [
        tf.TensorSpec([], tf.int32, name="kind"),
        tf.TensorSpec([None], tf.int32, name="deadline_ms"),
    ]

    @tf.function(input_signature=spec)
    def serve(kind, deadline_ms):
        items, scores, status = guarded(kind, deadline_ms)
        return {"items": items, "scores": scores, "status": status}

    root.serve = serve
    tf.saved_model.save(root, path, signatures={"serving_default": serve})
    return path


def test_contains_every_fault_after_reload(saved_model):
    serve = tf.saved_model.load(saved_model).signatures["serving_default"]
    for kind in STATUS:
        out, took = timed(serve, kind=tf.constant(kind), deadline_ms=tf.constant([DEADLINE_MS]))
        check(kind, (out["items"], out["scores"], out["status"]), took)


@pytest.mark.parametrize("reload", [False, True], ids=["function", "reloaded"])
def test_an_eager_function_goes_while_a_run_of_it_is_late(saved_model, reload):
    """It goes under Python's lock, in whichever thread collects it: a wait there stops them all."""
    gc.collect()
    gc.freeze()  # what the suite has left is not collected while the clock runs
    try:
        if reload:
            call = tf.saved_model.load(saved_model).signatures["serving_default"]
        else:
            call = tf.function(guarded)
        call(kind=tf.constant(NONE), deadline_ms=tf.constant([0]))
        call(kind=tf.constant(BLOCK), deadline_ms=tf.constant([DEADLINE_MS]))
        gone = weakref.ref(call)
        start = time.monotonic()
        del call
        gc.collect()
        took = time.monotonic() - start
    finally:
        gc.unfreeze()
    assert gone() is None
    assert took < (BLOCK_MS - DEADLINE_MS) / 2e3


def test_the_process_ends_while_a_run_is_late():
    script = """
import tensorflow as tf
import test_try_branch as t
call = tf.function(t.guarded)
call(tf.constant(t.NONE), tf.constant([0]))
assert int(call(tf.constant(t.BLOCK), tf.constant([t.DEADLINE_MS]))[-1]) == 4
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr


class _Session:
    """A SavedModel in a plain session, as TF Serving runs it."""

    def __init__(self, path, **config):
        self.session = tf.compat.v1.Session(
            graph=tf.Graph(), config=tf.compat.v1.ConfigProto(**config)
        )
        with self.session.graph.as_default():
            meta = tf.compat.v1.saved_model.load(self.session, ["serve"], path)
        signature = meta.signature_def["serving_default"]
        self.inputs = {k: v.name for k, v in signature.inputs.items()}
        self.outputs = [signature.outputs[k].name for k in ("items", "scores", "status")]

    def __call__(self, kind, deadline_ms, **options):
        feed = {self.inputs["kind"]: kind, self.inputs["deadline_ms"]: [deadline_ms]}
        return self.session.run(self.outputs, feed, options=tf.compat.v1.RunOptions(**options))


def test_blocked_branches_block_nobody_else(saved_model):
    """More blocked runs than the session has threads, and a healthy request in their midst."""
    run = _Session(saved_model, inter_op_parallelism_threads=2, intra_op_parallelism_threads=1)
    run(NONE, 0)
    answers = []
    start = time.monotonic()
    threads = [
        threading.Thread(target=lambda: answers.append(timed(run, BLOCK, DEADLINE_MS)))
        for _ in range(16)
    ]
    for t in threads:
        t.start()
    time.sleep(0.05)
    check(NONE, *timed(run, NONE, DEADLINE_MS))
    for t in threads:
        t.join()
    for answer, took in answers:
        check(BLOCK, answer, took)
    check(NONE, *timed(run, NONE, DEADLINE_MS))
    assert time.monotonic() - start < BLOCK_MS / 1e3, "nothing waited for a blocked run"
    _, took = timed(
        run.session.close
    )  # waits for the runs that are still blocked: they read what it owns
    assert time.monotonic() - start >= BLOCK_MS / 1e3


def test_cancelled_step_cancels_the_branch(saved_model):
    run = _Session(saved_model)
    run(NONE, 0)
    start = time.monotonic()
    for kind in (HANG, BLOCK):
        with pytest.raises(tf.errors.DeadlineExceededError):
            run(kind, 0, timeout_in_ms=100)
    assert time.monotonic() - start < BLOCK_MS / 1e3
    check(NONE, *timed(run, NONE, DEADLINE_MS))


def test_late_runs_are_bounded():
    """While as many runs as threads are late, the branch is not called."""
    call = tf.function(lambda kind: guarded(kind, 50, branch="bounded", max_threads=2))
    call(tf.constant(NONE))
    assert [int(call(tf.constant(BLOCK))[-1]) for _ in range(2)] == [4, 4]
    answer, took = timed(call, tf.constant(NONE))
    assert int(answer[-1]) == 8 and took < 0.05
    time.sleep(BLOCK_MS / 1e3)
    assert int(call(tf.constant(NONE))[-1]) == 0


def test_unusable_outputs_are_a_failure_of_the_branch():
    def answer(f, fallback, **options):
        return [np.asarray(x) for x in try_branch(f, [tf.constant(3)], fallback, 0, **options)]

    fallback = [tf.zeros([2, 4])]
    unknown = [tf.TensorShape([None, None])]
    assert answer(lambda n: [tf.ones([n, 4])], fallback)[-1] == 13, (
        "rows differ from the fallback's"
    )
    assert answer(lambda n: [tf.ones([2, n])], fallback)[-1] == 13, (
        "columns differ from the static shape"
    )
    assert answer(lambda n: [tf.ones([2, n, 1])], fallback, output_shapes=unknown)[-1] == 13
    got = answer(lambda n: [tf.ones([2, n])], fallback, output_shapes=unknown)
    assert got[0].shape == (2, 3) and got[-1] == 0
    infinite = [tf.constant([[-np.inf, np.inf]])]
    assert answer(lambda n: infinite, [tf.zeros([1, 2])], scores=[0])[-1] == 0, (
        "padding scores are -inf"
    )
    nan = [tf.constant([np.nan])]
    assert answer(lambda n: nan, [tf.zeros([1])], scores=[0])[-1] == 13
    assert answer(lambda n: nan, [tf.zeros([1])])[-1] == 0, "only scores are checked"


def test_other_dtypes_are_refused_while_tracing():
    with pytest.raises(ValueError, match=r"branch 'b' returns \['int32'\]: expected \['float32'\]"):
        try_branch(lambda: [tf.constant(1)], [], [tf.constant(1.0)], 0, branch="b")


def test_static_shapes():
    @tf.function(
        input_signature=[tf.TensorSpec([None, 7], tf.int64), tf.TensorSpec([None], tf.int32)]
    )
    def graph(x, deadline_ms):
        return try_branch(
            lambda x: [x], [x], [x], deadline_ms, output_shapes=[tf.TensorShape([None, None])]
        ) + try_branch(lambda x: [x], [x], [x], deadline_ms)

    shapes = [t.shape.as_list() for t in graph.get_concrete_function().outputs]
    assert shapes == [[None, None], [], [None, 7], []]


def test_captured_state_is_read_at_each_run():
    table = tf.Variable([1.0, 2.0])
    call = tf.function(lambda: try_branch(lambda: [table.read_value()], [], [tf.zeros([2])], 0))
    assert np.asarray(call()[0]).tolist() == [1.0, 2.0]
    table.assign([3.0, 4.0])
    assert np.asarray(call()[0]).tolist() == [3.0, 4.0]


def test_a_branch_calls_functions():
    double = tf.function(lambda y: tf.cond(y[0] > 0, lambda: 2.0 * y, lambda: y))

    def f(x):
        return [tf.while_loop(lambda n, y: n < 2, lambda n, y: (n + 1, double(y)), (0, x))[1]]

    scores, status = try_branch(f, [tf.constant([1.0, 2.0])], [tf.zeros([2])], 0)
    assert np.asarray(scores).tolist() == [4.0, 8.0] and int(status) == 0


def test_answers_are_counted():
    try_branch(lambda: [tf.constant(1)], [], [tf.constant(0)], 0, branch="counted")
    text = tf_ops.metrics_text().numpy().decode()
    assert ':genrecall:branch_answers{branch="counted",code="0"} 1' in text
    assert ':genrecall:branch_latency_ms_count{branch="counted"} 1' in text
