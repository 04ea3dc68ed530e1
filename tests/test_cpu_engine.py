"""The CPU engine against Hugging Face models; bit-identity; requests in flight; bad input."""

import itertools
import threading
import time

import numpy as np
import pytest
import random_decoder
from genrecall import kernels
from genrecall.trtllm_bridge import Engine, checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SCORE_EPSILON = 1e-4  # float32, against Hugging Face
BF16_LOGITS_EPSILON = 0.06  # of bf16 logits, as a share of the largest float32 logit

MODELS = {
    "qwen2-gqa-tied": dict(architecture="qwen2"),
    "qwen2-mha-untied": dict(
        architecture="qwen2", num_key_value_heads=4, tie_word_embeddings=False
    ),
    "qwen2-mqa-tied": dict(architecture="qwen2", num_key_value_heads=1, num_attention_heads=2),
    "qwen3-gqa-tied": dict(architecture="qwen3"),
    "qwen3-mha-untied": dict(
        architecture="qwen3", num_key_value_heads=4, tie_word_embeddings=False
    ),
}
LEVEL_SIZES = (9, 14, 6, 11)


class Decoder:
    """A random checkpoint, its Hugging Face model and its engine."""

    def __init__(self, folder, dtype="float32", engine_options=None, **config):
        self.model, self.token_ids = random_decoder.make_checkpoint(folder, **config)
        self.path = folder / f"{dtype}.gguf"
        checkpoint.convert(folder, self.path, dtype)
        self.engine = Engine(self.path, **(engine_options or {}))
        self.vocab = self.engine.vocab_size

    def prompt(self, tokens, seed=0):
        return (
            np.random.default_rng([seed, tokens]).integers(0, self.vocab, tokens).astype(np.int32)
        )

    def hf_logits(self, prompt):
        with torch.no_grad():
            return self.model(torch.from_numpy(np.int64(prompt))[None]).logits[0].numpy()


@pytest.fixture(scope="module", params=MODELS, ids=str)
def decoder(request, tmp_path_factory):
    return Decoder(
        tmp_path_factory.mktemp(request.param),
        level_sizes=LEVEL_SIZES,
        seed=7,
        **MODELS[request.param],
    )


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


def decode(engine, prompt, index, **options):
    """One request's arrays, without the batch dimension."""
    out = engine.decode(prompt[None], [len(prompt)], index, **options)
    return {name: value[0] for name, value in out.items()}


def same_bytes(a, b):
    arrays = ("sids", "score", "step_score", "user_state")
    return a["beams"] == b["beams"] and all(a[k].tobytes() == b[k].tobytes() for k in arrays)


_queue_sizes = itertools.count(1000)


def own_engine(decoder, **options):
    """An engine that nobody else holds: engines with the same options are shared."""
    return Engine(decoder.path, **{"max_queue": next(_queue_sizes), **options})


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 150])
def test_logits_equal_hugging_face(decoder, tokens):
    prompt = decoder.prompt(tokens)
    np.testing.assert_allclose(
        decoder.engine.forward(prompt), decoder.hf_logits(prompt), atol=SCORE_EPSILON, rtol=0
    )


@pytest.mark.parametrize("tokens", [1, 65, 150])
def test_user_state_is_the_final_hidden_state(decoder, index, tokens):
    prompt = decoder.prompt(tokens)
    with torch.no_grad():
        states = decoder.model.model(torch.from_numpy(np.int64(prompt))[None]).last_hidden_state
    got = decode(decoder.engine, prompt, index[0], beam_width=2)["user_state"]
    np.testing.assert_allclose(got, states[0, -1].numpy(), atol=SCORE_EPSILON, rtol=0)


@pytest.mark.parametrize("width", [1, 5, 9])
def test_vocab_normalization_equals_hugging_face_generate(decoder, index, width):
    """9 is the smallest number of legal prefixes of any step, that of the first."""
    recall_index, sids = index
    prompt = decoder.prompt(70)
    level_of = [{int(t): c for c, t in enumerate(tokens)} for tokens in decoder.token_ids]
    legal = {}
    for sid in sids:
        for level in range(len(LEVEL_SIZES)):
            legal.setdefault(tuple(sid[:level]), set()).add(
                int(decoder.token_ids[level][sid[level]])
            )

    def allowed(_, tokens):
        generated = tokens[len(prompt) :].tolist()
        return sorted(legal[tuple(level_of[i][t] for i, t in enumerate(generated))])

    out = decoder.model.generate(
        torch.from_numpy(np.int64(prompt))[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=width,
        num_return_sequences=width,
        prefix_allowed_tokens_fn=allowed,
        length_penalty=0.0,
        max_new_tokens=len(LEVEL_SIZES),
        min_new_tokens=len(LEVEL_SIZES),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    got = decode(decoder.engine, prompt, recall_index, beam_width=width, normalize="vocab")
    tokens = np.stack(
        [decoder.token_ids[i][got["sids"][:, i]] for i in range(len(LEVEL_SIZES))], axis=1
    )
    if width == 1:  # greedy: generate gives no sequence score
        assert tokens.tolist() == out.sequences[:, len(prompt) :].tolist()
        return
    np.testing.assert_array_equal(tokens, out.sequences[:, len(prompt) :].numpy())
    np.testing.assert_allclose(
        got["score"], out.sequences_scores.numpy(), atol=SCORE_EPSILON, rtol=0
    )


@pytest.mark.parametrize("normalize", ["level", "legal", "vocab"])
def test_a_wide_enough_search_is_the_exact_ranking(decoder, index, normalize):
    recall_index, sids = index
    prompt = decoder.prompt(33)
    steps = random_decoder.teacher_forced(decoder.model, prompt, sids, decoder.token_ids, normalize)
    got = decode(decoder.engine, prompt, recall_index, beam_width=1000, normalize=normalize)
    assert_exact_ranking(got, sids, steps)


# (level sizes, items): depth 1 to 6, sizes 2 to 300, one item.
TRIES = [
    ((2,), 2),
    ((300,), 280),
    ((2, 300), 500),
    ((17, 5, 3), 100),
    ((4, 4, 4, 4), 180),
    ((5, 2, 7, 3, 4), 1),
    ((3, 2, 4, 2, 3, 2), 90),
]


@pytest.mark.parametrize("trie", TRIES, ids=str)
def test_exact_on_tries_of_many_shapes(tmp_path, trie):
    level_sizes, items = trie
    config = dict(level_sizes=level_sizes, vocab=320, num_hidden_layers=1, seed=12)
    decoder = Decoder(tmp_path, **config)
    recall_index, sids = random_decoder.random_index(level_sizes, items, seed=13)
    prompt = decoder.prompt(20)
    steps = random_decoder.teacher_forced(decoder.model, prompt, sids, decoder.token_ids)
    full = decode(decoder.engine, prompt, recall_index, beam_width=1000)
    assert_exact_ranking(full, sids, steps)
    exact = decode(decoder.engine, prompt, recall_index, beam_width=len(sids))
    assert exact["sids"].tobytes() == full["sids"][: len(sids)].tobytes()


def assert_exact_ranking(got, sids, steps):
    """The same SIDs and scores; two are swapped only if their scores are within the epsilon."""
    n = len(sids)
    assert got["beams"] == n
    order = np.lexsort(got["sids"][:n].T[::-1])
    np.testing.assert_array_equal(got["sids"][:n][order], sids)
    np.testing.assert_allclose(got["step_score"][:n][order], steps, atol=SCORE_EPSILON, rtol=0)
    _, expected = random_decoder.rank(sids, steps)
    np.testing.assert_allclose(got["score"][:n], expected, atol=SCORE_EPSILON, rtol=0)
    assert (got["sids"][n:] == -1).all() and (got["score"][n:] == -np.inf).all()


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_bfloat16_is_near_float32(tmp_path, architecture):
    config = dict(architecture=architecture, level_sizes=LEVEL_SIZES, seed=14, stored="bfloat16")
    exact = Decoder(tmp_path, dtype="float32", **config)
    rounded = Decoder(tmp_path, dtype="bfloat16", **config)
    assert (exact.engine.dtype, rounded.engine.dtype) == ("float32", "bfloat16")
    prompt = exact.prompt(100)
    reference = exact.engine.forward(prompt)
    error = np.abs(rounded.engine.forward(prompt) - reference).max()
    assert error <= BF16_LOGITS_EPSILON * np.abs(reference).max()


# ------------------------------------------------- the same bits, whatever else runs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_answer_does_not_depend_on_the_company(tmp_path, dtype, index):
    recall_index, _ = index
    config = dict(level_sizes=LEVEL_SIZES, seed=15, architecture="qwen3")
    alone = Decoder(tmp_path, dtype=dtype, **config)
    prompts = [alone.prompt(n) for n in (150, 1, 64, 90)]
    widths = [40, 300, 7, 128]
    reference = [
        decode(alone.engine, p, recall_index, beam_width=w, normalize="vocab")
        for p, w in zip(prompts, widths, strict=True)
    ]
    for prefill_chunk in (1, 7, 64, 1000):
        for threads in (1, 2):
            engine = Engine(
                alone.path, num_threads=threads, prefill_chunk=prefill_chunk, max_step_rows=257
            )
            crowd = [
                engine.submit(p, recall_index, beam_width=w, normalize="vocab")
                for _ in range(2)
                for p, w in zip(prompts, widths, strict=True)
            ]
            for i, request in enumerate(crowd):
                got = request.result(timeout_s=60)
                assert same_bytes(got, reference[i % len(prompts)]), (prefill_chunk, threads, i)


def test_a_batch_equals_its_rows(small, index):
    recall_index, _ = index
    lengths = [3, 80, 41]
    tokens = np.zeros((3, 80), np.int32)
    for b, n in enumerate(lengths):
        tokens[b, :n] = small.prompt(n)
    batch = small.engine.decode(tokens, lengths, recall_index, beam_width=[4, 30, 9])
    assert batch["sids"].shape == (3, 30, 4) and batch["user_state"].shape == (3, 32)
    for b, (n, width) in enumerate(zip(lengths, [4, 30, 9], strict=True)):
        row = decode(small.engine, tokens[b, :n], recall_index, beam_width=width)
        assert batch["sids"][b, :width].tobytes() == row["sids"].tobytes()
        assert batch["score"][b, :width].tobytes() == row["score"].tobytes()
        assert (batch["sids"][b, width:] == -1).all()


def test_a_batch_larger_than_the_queue_is_answered(small, index):
    engine = Engine(small.path, max_queue=2)
    tokens = np.tile(small.prompt(5), (150, 1))
    out = engine.decode(tokens, [5] * 150, index[0], beam_width=3)
    assert (out["sids"] == out["sids"][0]).all() and (out["beams"] == 3).all()


# ------------------------------------------------------------------- in flight


def test_a_later_request_shares_the_gemms_of_one_that_decodes(slow, slow_index):
    engine = own_engine(slow)
    engine.record_steps(True)
    first = engine.submit(slow.prompt(200), slow_index, beam_width=256)
    wait_until(lambda: engine.stats()["decode_rows"] > 0)
    second = engine.submit(slow.prompt(100), slow_index, beam_width=5)
    first.result(timeout_s=60)
    second.result(timeout_s=60)
    shared = [
        {r["request"]: r for r in step["rows"]}
        for step in engine.take_step_log()
        if len(step["rows"]) == 2
    ]
    assert any(not s[first.id]["prefill"] and s[second.id]["prefill"] for s in shared)


def test_a_narrow_request_overtakes_a_running_wide_one(slow, slow_index):
    engine = own_engine(slow)
    engine.record_steps(True)
    wide = engine.submit(slow.prompt(150), slow_index, beam_width=512)
    wait_until(lambda: engine.stats()["decode_rows"] > 0)
    narrow = engine.submit(slow.prompt(150, seed=1), slow_index, beam_width=5)
    narrow.result(timeout_s=60)
    assert not wide.done()
    wide.result(timeout_s=60)
    log = engine.take_step_log()
    last = {r["request"]: step["step"] for step in log for r in step["rows"]}
    assert last[narrow.id] < last[wide.id]


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.0005)


def test_a_full_queue_is_refused_at_once(slow, slow_index):
    engine = own_engine(slow, max_queue=3)
    requests = [engine.submit(slow.prompt(100), slow_index, beam_width=64) for _ in range(100)]
    refused = [r for r in requests if r.done()]  # nobody has finished yet: answered inside submit
    assert refused and engine.stats()["completed"] == 0
    with pytest.raises(
        RuntimeError, match=r"RESOURCE_EXHAUSTED: queue full: \d+ requests are waiting"
    ):
        refused[0].result()
    for request in requests:
        request.cancel()


def test_cancelling_frees_the_rows(slow, slow_index):
    engine = own_engine(slow)
    request = engine.submit(slow.prompt(200), slow_index, beam_width=1000)
    wait_until(lambda: engine.stats()["kv_bytes"] > 0)
    request.cancel()
    with pytest.raises(RuntimeError, match="CANCELLED"):
        request.result(timeout_s=30)
    wait_until(lambda: engine.stats()["running"] == 0)
    stats = engine.stats()
    assert (stats["kv_bytes"], stats["cancelled"], stats["completed"]) == (0, 1, 0)
    assert decode(engine, slow.prompt(10), slow_index, beam_width=3)["beams"] == 3


def test_a_deadline_ends_a_request(slow, slow_index):
    engine = own_engine(slow)
    request = engine.submit(slow.prompt(200), slow_index, beam_width=4000, deadline_ms=20)
    with pytest.raises(RuntimeError, match="DEADLINE_EXCEEDED"):
        request.result(timeout_s=30)
    assert engine.stats()["deadline_exceeded"] == 1
    done = engine.submit(slow.prompt(20), slow_index, beam_width=2, deadline_ms=60000)
    assert done.result(timeout_s=30)["beams"] == 2


def test_a_higher_priority_is_admitted_first(slow, slow_index):
    engine = own_engine(slow)
    engine.record_steps(True)
    engine.submit(slow.prompt(200), slow_index, beam_width=100)
    warmup = engine.submit(slow.prompt(600), slow_index, beam_width=5, priority=-1000)
    urgent = engine.submit(slow.prompt(600, seed=1), slow_index, beam_width=5, priority=10)
    urgent.result(timeout_s=60)
    warmup.result(timeout_s=60)
    last = {r["request"]: s["step"] for s in engine.take_step_log() for r in s["rows"]}
    assert last[urgent.id] <= last[warmup.id]


def test_dropping_a_busy_engine_answers_unavailable(slow, slow_index):
    engine = own_engine(slow)
    requests = [engine.submit(slow.prompt(300), slow_index, beam_width=500) for _ in range(8)]
    del engine
    for request in requests:
        with pytest.raises(RuntimeError, match="UNAVAILABLE: the engine is shutting down"):
            request.result(timeout_s=30)


def test_result_times_out_without_ending_the_request(slow, slow_index):
    engine = own_engine(slow)
    request = engine.submit(slow.prompt(300), slow_index, beam_width=300)
    with pytest.raises(TimeoutError, match="not done within 0.001 s"):
        request.result(timeout_s=0.001)
    assert request.result(timeout_s=60)["beams"] == 300


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
        (dict(normalize="none"), r"normalize = 'none': expected level|legal|vocab"),
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
