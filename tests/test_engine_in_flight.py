"""Requests that meet in the CPU engine: batching, overtaking, queue, deadlines, bad input."""

import os
import shutil
import threading
import time

import numpy as np
import pytest
import random_decoder
from random_decoder import Decoder, decode, own_engine, same_bytes

from genrecall import kernels
from genrecall.trtllm_bridge import Engine

pytest.importorskip("transformers")

LEVEL_SIZES = (9, 14, 6, 11)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Decoder(tmp_path_factory.mktemp("small"), level_sizes=LEVEL_SIZES, seed=8)


@pytest.fixture(scope="module")
def index():
    return random_decoder.random_index(LEVEL_SIZES, 700, seed=9)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A model whose requests take long enough to meet each other."""
    return Decoder(
        tmp_path_factory.mktemp("slow"),
        dtype="bfloat16",
        level_sizes=(64, 64, 64, 64),
        vocab=600,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=8,
        seed=10,
    )


@pytest.fixture(scope="module")
def slow_index():
    return random_decoder.random_index((64, 64, 64, 64), 20000, seed=11)[0]


# ------------------------------------------------------------------- in flight


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.0005)


def steps_of(log):
    """{request id: {step: (is it a prompt's rows, rows)}}"""
    steps = {}
    for record in log:
        for r in record["rows"]:
            steps.setdefault(r["request"], {})[record["step"]] = (r["prefill"], r["rows"])
    return steps


def meet(decoder, index, wide, narrow):
    """Steps of a wide request, and of a narrow one that came while the wide one's beams ran.

    The machine may be so busy that the wide one is over before the narrow one comes: then again.
    """
    for _ in range(20):
        engine = own_engine(decoder)
        engine.record_steps(True)
        first = engine.submit(decoder.prompt(150), index, beam_width=wide)
        wait_until(lambda engine=engine: engine.stats()["decode_rows"] > 0)
        second = engine.submit(decoder.prompt(150, seed=1), index, beam_width=narrow)
        for request in (first, second):
            request.result(timeout_s=60)
        steps = steps_of(engine.take_step_log())
        decoding = [s for s, (prefill, _) in steps[first.id].items() if not prefill]
        if min(steps[second.id]) == decoding[0] + 1:
            return steps[first.id], steps[second.id]
    pytest.fail("the two never met")


def test_a_later_request_shares_the_gemms_of_one_that_decodes(slow, slow_index):
    wide, narrow = meet(slow, slow_index, wide=512, narrow=5)
    assert any(narrow[s][0] and not wide[s][0] for s in narrow.keys() & wide.keys())


def test_a_narrow_request_overtakes_a_running_wide_one(slow, slow_index):
    wide, narrow = meet(slow, slow_index, wide=512, narrow=5)
    assert max(narrow) < max(wide)
    shared = narrow.keys() & wide.keys()
    assert shared == narrow.keys(), "the wide one went on meanwhile"
    assert all(wide[s][1] <= 160 for s in shared), "and left the steps short"


def test_eight_narrow_requests_share_their_steps(slow, slow_index):
    """1,200 prompt rows take three steps of 512; beams run beside others' prompts and beams."""
    for _ in range(20):  # the first may be done before the last comes
        engine = own_engine(slow)
        engine.record_steps(True)
        requests = [
            engine.submit(slow.prompt(150, seed=s), slow_index, beam_width=5) for s in range(8)
        ]
        for request in requests:
            request.result(timeout_s=60)
        log = engine.take_step_log()
        if len(log) <= 8:
            break
    else:
        pytest.fail(f"{len(log)} steps")
    beams = [[r["rows"] for r in step["rows"] if not r["prefill"]] for step in log]
    assert sum(map(sum, beams)) == 8 * 3 * 5, "in " + str(beams)
    assert np.mean([len(rows) for rows in beams if rows]) > 3


def submit_big(engine, decoder, index, **options):
    """About a second of work, so that nothing depends on how fast the test itself runs."""
    return engine.submit(decoder.prompt(2000), index, beam_width=4000, **options)


def test_a_full_queue_is_refused_at_once(slow, slow_index):
    engine = own_engine(slow, max_queue=3)
    requests = [submit_big(engine, slow, slow_index) for _ in range(100)]
    refused = [r for r in requests if r.done()]  # nobody has finished yet: answered inside submit
    assert refused and engine.stats()["completed"] == 0
    message = r"RESOURCE_EXHAUSTED: queue full: \d+ requests are waiting"
    with pytest.raises(RuntimeError, match=message):
        refused[0].result()
    for request in requests:
        request.cancel()


def test_cancelling_frees_the_rows(slow, slow_index):
    engine = own_engine(slow)
    request = submit_big(engine, slow, slow_index)
    wait_until(lambda: engine.stats()["kv_bytes"] > 0)
    request.cancel()
    with pytest.raises(RuntimeError, match="CANCELLED"):
        request.result(timeout_s=30)
    stats = engine.stats()
    assert (stats["running"], stats["kv_bytes"]) == (0, 0)
    assert (stats["cancelled"], stats["completed"]) == (1, 0)
    assert decode(engine, slow.prompt(10), slow_index, beam_width=3)["beams"] == 3


def test_a_deadline_ends_a_request(slow, slow_index):
    engine = own_engine(slow)
    request = submit_big(engine, slow, slow_index, deadline_ms=20)
    with pytest.raises(RuntimeError, match="DEADLINE_EXCEEDED"):
        request.result(timeout_s=30)
    assert engine.stats()["deadline_exceeded"] == 1
    done = engine.submit(slow.prompt(20), slow_index, beam_width=2, deadline_ms=60000)
    assert done.result(timeout_s=30)["beams"] == 2


def test_a_deadline_that_cannot_be_met_ends_a_request_before_it(slow, slow_index):
    """About a second of work, a tenth of a second of time: the engine knows from its last steps."""
    engine = own_engine(slow)
    submit_big(engine, slow, slow_index).result(timeout_s=60)
    start = time.monotonic()
    request = submit_big(engine, slow, slow_index, deadline_ms=100)
    with pytest.raises(RuntimeError, match="DEADLINE_EXCEEDED: deadline cannot be met any more"):
        request.result(timeout_s=30)
    assert time.monotonic() - start < 0.1
    assert engine.stats()["deadline_exceeded"] == 1


def test_a_higher_priority_goes_first_though_it_is_wider(slow, slow_index):
    engine = own_engine(slow)
    engine.record_steps(True)
    warmup = engine.submit(slow.prompt(1500), slow_index, beam_width=2000, priority=-1000)
    urgent = engine.submit(slow.prompt(1500, seed=1), slow_index, beam_width=2500, priority=10)
    urgent.result(timeout_s=60)
    warmup.result(timeout_s=60)
    steps = steps_of(engine.take_step_log())
    assert max(steps[urgent.id]) < max(steps[warmup.id])


def test_dropping_a_busy_engine_answers_unavailable(slow, slow_index):
    engine = own_engine(slow)
    requests = [submit_big(engine, slow, slow_index) for _ in range(8)]
    del engine
    for request in requests:
        with pytest.raises(RuntimeError, match="UNAVAILABLE: the engine is shutting down"):
            request.result(timeout_s=30)


def test_result_times_out_without_ending_the_request(slow, slow_index):
    engine = own_engine(slow)
    request = submit_big(engine, slow, slow_index)
    with pytest.raises(TimeoutError, match="not done within 0.001 s"):
        request.result(timeout_s=0.001)
    assert request.result(timeout_s=60)["beams"] == 4000


def test_many_threads_decode_at_once(small, index):
    """The GIL is released while decoding, and every thread gets its own answer."""
    recall_index, _ = index
    prompts = [small.prompt(10 + i) for i in range(8)]
    expected = [decode(small.engine, p, recall_index, beam_width=20) for p in prompts]
    got = [None] * 8

    def work(i):
        for _ in range(5):
            got[i] = decode(small.engine, prompts[i], recall_index, beam_width=20)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(same_bytes(g, e) for g, e in zip(got, expected, strict=True))


# ------------------------------------------------------------ sharing, bad input


def test_engines_of_the_same_weights_and_options_are_one(small, index):
    again = Engine(small.path)
    assert again.shares_with(small.engine)
    assert again.weights_digest == small.engine.weights_digest
    assert not Engine(small.path, prefill_chunk=5).shares_with(small.engine)


def test_weights_in_use_are_not_read_again(slow, tmp_path):
    """A new version that changed only its graph or index brings the same weights along."""
    copy = shutil.copy(slow.path, tmp_path / "copy.gguf")

    def bytes_read():
        with open("/proc/self/io", encoding="ascii") as f:
            return int(f.readline().split()[1])

    before = bytes_read()
    assert Engine(copy).shares_with(slow.engine)
    assert bytes_read() - before < os.path.getsize(copy) / 10


def test_a_nan_fails_its_request_alone(tmp_path, index):
    """One poisoned embedding row: requests that read it fail, their neighbours answer as ever."""
    recall_index, _ = index
    decoder = Decoder(tmp_path, level_sizes=LEVEL_SIZES, seed=16, tie_word_embeddings=False)
    bad_token = next(
        t for t in range(decoder.vocab) if all(t not in ids for ids in decoder.token_ids)
    )
    file = kernels.read_gguf(decoder.path)
    tensors = {name: np.array(value) for name, value in file["tensors"].items()}
    tensors["token_embd.weight"][bad_token] = np.nan
    metadata = {**file["metadata"], "genrecall.weights_digest": "poisoned"}
    kernels.write_gguf(tmp_path / "bad.gguf", metadata, tensors)
    engine = Engine(tmp_path / "bad.gguf")
    good = np.array([t for t in decoder.prompt(80) if t != bad_token], np.int32)
    expected = decode(decoder.engine, good, recall_index, beam_width=30)
    requests = [
        engine.submit(np.append(good, bad_token), recall_index, beam_width=30),
        engine.submit(good, recall_index, beam_width=30),
    ]
    with pytest.raises(RuntimeError, match=r"INTERNAL: logits\[0, 0\] = -?nan at level 0"):
        requests[0].result(timeout_s=30)
    assert same_bytes(requests[1].result(timeout_s=30), expected)
    assert engine.stats()["failed"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(tokens=[]), r"prompt: 0 tokens: expected 1..64"),
        (dict(tokens=[1] * 65), r"prompt: 65 tokens: expected 1..64"),
        (dict(tokens=[1, 160]), r"prompt\[1\] = 160: expected 0..V-1 = 159"),
        (dict(tokens=[-1]), r"prompt\[0\] = -1: expected 0..V-1 = 159"),
        (dict(beam_width=0), r"beam_width = 0: expected 1..4096"),
        (dict(beam_width=4097), r"beam_width = 4097: expected 1..4096"),
        (dict(temperature=0.0), r"temperature = 0: expected > 0 and finite"),
        (dict(temperature=np.nan), r"temperature = -?nan: expected > 0 and finite"),
        (dict(normalize="none"), r"normalize = 'none': expected level\|legal\|vocab"),
        (
            dict(index=random_decoder.random_index(LEVEL_SIZES, 9, digest="other")[0]),
            r"index: sid_space_digest = 'other': expected the weights' '[0-9a-f]{64}'",
        ),
        (
            dict(index=random_decoder.random_index((9, 14, 6), 9)[0]),
            r"index: level_sizes = \[9, 14, 6\]: expected the weights' \[9, 14, 6, 11\]",
        ),
        (dict(tokens=[[1, 2]]), r"tokens: expected rank 1, got shape \[1, 2\]"),
        (dict(tokens=[0.5]), r"tokens: expected integers, got dtype float64"),
    ],
)
def test_bad_requests_are_refused_by_name(small, index, change, message):
    engine = Engine(small.path, max_prompt_tokens=64)
    arguments = dict(tokens=[1, 2, 3], index=index[0], beam_width=4)
    arguments.update(change)
    with pytest.raises(ValueError, match=message):
        engine.submit(**arguments).result(timeout_s=10)


def test_the_limits_themselves_are_accepted(small, index):
    engine = Engine(small.path, max_prompt_tokens=64)
    assert engine.max_prompt_tokens == 64
    out = decode(engine, np.full(64, 159, np.int32), index[0], beam_width=4096)
    assert out["beams"] == len(index[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(tokens=np.zeros((2, 3), int), length=[3]),
            r"length: expected shape \[2\], got \[1\]",
        ),
        (dict(tokens=np.zeros((1, 3), int), length=[4]), r"length\[0\] = 4: expected 1..P = 3"),
        (dict(tokens=np.zeros((1, 3), int), length=[-1]), r"length\[0\] = -1: expected 1..P = 3"),
        (dict(tokens=np.full((2, 2), 999), length=[1, 1]), r"row 0: prompt\[0\] = 999"),
        (
            dict(tokens=np.zeros((2, 3), int), length=[3, 3], beam_width=[1, 2, 3]),
            r"beam_width: expected a number or shape \[2\]",
        ),
    ],
)
def test_bad_batches_are_refused_by_name(small, index, arguments, message):
    with pytest.raises(ValueError, match=message):
        small.engine.decode(index=index[0], **arguments)


def test_an_empty_batch_is_an_empty_answer(small, index):
    out = small.engine.decode(np.zeros((0, 4), np.int32), np.zeros(0, np.int32), index[0])
    assert out["sids"].shape == (0, 0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_queue=0), r"max_queue = 0: expected 1.."),
        (dict(max_step_rows=0), r"max_step_rows = 0: expected 1.."),
        (dict(prefill_chunk=-1), r"prefill_chunk = -1: expected 1.."),
        (dict(num_threads=-1), r"num_threads = -1: expected 0.."),
        (dict(max_prompt_tokens=0), r"max_prompt_tokens = 0: expected 1.."),
    ],
)
def test_bad_options_are_refused_by_name(small, options, message):
    with pytest.raises(ValueError, match=message):
        Engine(small.path, **options)


def test_an_engine_that_is_not_built_in_names_what_is(small):
    with pytest.raises(RuntimeError, match="engine 'remote' is not built in; available: cpu"):
        Engine(small.path, engine="remote")
