"""Prompt prefixes that are kept answer as computed ones do, bit for bit; one budget of bytes."""

import threading

import numpy as np
import pytest
import random_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from random_decoder import Decoder, own_engine, same_bytes

from genrecall.trtllm_bridge import Engine

pytest.importorskip("transformers")

LEVEL_SIZES = (9, 14, 6, 11)
PAGE = 64  # tokens: kPageTokens
WIDTH = 20


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def decoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return Decoder(folder, dtype=request.param, level_sizes=LEVEL_SIZES, seed=8)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Decoder(tmp_path_factory.mktemp("small"), level_sizes=LEVEL_SIZES, seed=8)


@pytest.fixture(scope="module")
def index():
    return random_decoder.random_index(LEVEL_SIZES, 700, seed=9)[0]


def ask(engine, prompt, index, stable_prefix=0, **options):
    options = {"beam_width": WIDTH, **options}
    request = engine.submit(prompt, index, stable_prefix=stable_prefix, **options)
    return request.result(timeout_s=60)


def cached(engine, prompt, index, **options):
    return ask(engine, prompt, index, **options)["cached_tokens"]


def page_bytes(engine, decoder, index):
    """Of an engine that keeps nothing yet."""
    assert engine.stats()["kv_cached_bytes"] == 0
    ask(engine, decoder.prompt(PAGE + 1, seed=99), index, stable_prefix=PAGE)
    return engine.stats()["kv_cached_bytes"]


@pytest.fixture(scope="module")
def sizes(small, index):
    """(bytes of a page, bytes of the beams' tails of a request) of the small model in float32."""
    page = page_bytes(own_engine(small), small, index)
    return page, page * (16 + 32 + 32) // PAGE  # tails of 9, WIDTH and WIDTH rows, rounded up


# ------------------------------------------------------------------ token-exact


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(prefill_chunk=7),
        dict(prefill_chunk=64, max_step_rows=37),
        dict(max_step_rows=1000, num_threads=2),
    ],
)
def test_a_hit_answers_as_a_miss(decoder, index, options):
    prompt = decoder.prompt(200)
    for normalize in ("level", "legal", "vocab"):
        engine = own_engine(decoder, **options)
        miss = ask(engine, prompt, index, stable_prefix=150, normalize=normalize)
        hit = ask(engine, prompt, index, stable_prefix=150, normalize=normalize)
        assert (miss["cached_tokens"], hit["cached_tokens"]) == (0, 2 * PAGE)
        assert same_bytes(hit, miss)
        plain = random_decoder.decode(
            decoder.engine, prompt, index, beam_width=WIDTH, normalize=normalize
        )
        assert same_bytes(hit, plain)
        stats = engine.stats()
        assert (stats["prefix_hits"], stats["prefix_misses"]) == (1, 1)
        assert stats["prefix_hit_tokens"] == 2 * PAGE
        assert stats["prefill_tokens"] == 2 * 200 - 2 * PAGE


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 127, 128, 129, 192])
def test_the_last_token_is_always_computed(small, index, tokens):
    """Its hidden state is the user's state, and its logits the first level's."""
    engine = own_engine(small)
    prompt = small.prompt(tokens)
    first = ask(engine, prompt, index, stable_prefix=tokens)
    again = ask(engine, prompt, index, stable_prefix=tokens)
    assert again["cached_tokens"] == (tokens - 1) // PAGE * PAGE
    assert same_bytes(first, again)
    assert engine.stats()["kv_cached_bytes"] % PAGE == 0


def test_prompts_share_what_they_have_in_common(small, index):
    engine = own_engine(small)
    head, other = small.prompt(2 * PAGE), small.prompt(PAGE, seed=5)
    tails = [small.prompt(40, seed=s) for s in range(3)]

    def prompt(*parts):
        return np.concatenate(parts)

    assert cached(engine, prompt(head, tails[0]), index, stable_prefix=2 * PAGE) == 0
    assert cached(engine, prompt(head, tails[1]), index, stable_prefix=2 * PAGE) == 2 * PAGE
    assert cached(engine, prompt(head[:PAGE], other, tails[2]), index, stable_prefix=PAGE) == PAGE
    # The second page after another first one is another page, though its tokens are the same.
    assert cached(engine, prompt(other, head[PAGE:], tails[0]), index) == 0
    changed = head.copy()
    changed[PAGE - 1] = (changed[PAGE - 1] + 1) % small.vocab
    assert cached(engine, prompt(changed, tails[0]), index) == 0
    for tail in tails:  # all of them answer as without a cache
        got = ask(engine, prompt(head, tail), index)
        plain = random_decoder.decode(small.engine, prompt(head, tail), index, beam_width=WIDTH)
        assert got["cached_tokens"] == 2 * PAGE and same_bytes(got, plain)


def test_only_whole_pages_of_the_stable_prefix_are_kept(small, index, sizes):
    page, _ = sizes
    for stable, pages in [(0, 0), (63, 0), (64, 1), (191, 2), (200, 3)]:
        engine = own_engine(small)
        ask(engine, small.prompt(200), index, stable_prefix=stable)
        stats = engine.stats()
        assert stats["kv_cached_bytes"] == stats["kv_bytes"] == pages * page, stable
        assert cached(engine, small.prompt(200), index) == pages * PAGE


def test_a_prefix_outlives_the_index(small, index):
    """Keys and values depend on tokens and weights; a replaced index changes neither."""
    other = random_decoder.random_index(LEVEL_SIZES, 300, seed=77)[0]
    engine = own_engine(small)
    prompt = small.prompt(150)
    old = ask(engine, prompt, index, stable_prefix=150)
    new = ask(engine, prompt, other, stable_prefix=150)
    assert new["cached_tokens"] == 2 * PAGE and not same_bytes(old, new)
    plain = random_decoder.decode(small.engine, prompt, other, beam_width=WIDTH)
    assert same_bytes(new, plain)
    assert same_bytes(ask(engine, prompt, index), old), "the old snapshot still answers as it did"


def test_one_that_comes_later_takes_over_what_is_computed_meanwhile(small, index):
    """Pages are others' to read as soon as they are computed, not when their request has ended."""
    prompt = small.prompt(1500)
    plain = random_decoder.decode(small.engine, prompt, index, beam_width=WIDTH)
    for _ in range(20):  # the first may be over before the second comes
        engine = own_engine(small, max_step_rows=64, prefill_chunk=16, num_threads=1)
        first = engine.submit(prompt, index, beam_width=WIDTH, stable_prefix=1500)
        while engine.stats()["prefill_tokens"] < 200:
            pass
        second = engine.submit(prompt, index, beam_width=WIDTH, stable_prefix=1500)
        results = [r.result(timeout_s=60) for r in (first, second)]
        assert all(same_bytes(r, plain) for r in results)
        assert results[0]["cached_tokens"] == 0 and results[1]["cached_tokens"] >= 3 * PAGE
        computed = engine.stats()["prefill_tokens"]
        assert computed == 3000 - results[1]["cached_tokens"]
        if results[1]["cached_tokens"] < 1450:
            return
    pytest.fail("the two never met")


# -------------------------------------------------------------------- the budget


def test_the_least_recently_used_leaf_goes_first(small, index, sizes):
    page, tails = sizes
    engine = own_engine(small, kv_bytes=8 * page + tails)
    a, b = small.prompt(130, seed=1), small.prompt(130, seed=2)
    for prompt in (a, b, a):
        ask(engine, prompt, index, stable_prefix=128)
    assert engine.stats()["kv_cached_bytes"] == 4 * page
    ask(engine, small.prompt(130, seed=3), index, stable_prefix=128)  # 3 more: 7 of 8 are committed
    assert engine.stats()["kv_evicted_pages"] == 0
    ask(engine, small.prompt(130, seed=4), index, stable_prefix=128)  # 6 kept + 3: one must go
    assert engine.stats()["kv_evicted_pages"] == 1
    assert cached(engine, a, index) == 2 * PAGE
    assert cached(engine, b, index) == PAGE, "its leaf went, not its root"
    stats = engine.stats()
    assert stats["kv_resident_bytes"] <= stats["kv_budget_bytes"] == 8 * page + tails


def test_requests_wait_for_room(small, index, sizes):
    """Room for one at a time: all are answered, one after the other, as if alone."""
    page, tails = sizes
    engine = own_engine(small, kv_bytes=3 * page + tails)
    prompts = [small.prompt(150, seed=s) for s in range(12)]
    requests = [engine.submit(p, index, beam_width=WIDTH, stable_prefix=128) for p in prompts]
    most = 0
    while not all(r.done() for r in requests):
        stats = engine.stats()
        most = max(most, stats["running"])
        assert stats["kv_resident_bytes"] <= 3 * page + tails
    assert most <= 1
    for prompt, request in zip(prompts, requests, strict=True):
        plain = random_decoder.decode(small.engine, prompt, index, beam_width=WIDTH)
        assert same_bytes(request.result(), plain)
    assert engine.stats()["rejected"] == 0


def test_what_never_fits_is_refused_with_the_numbers(small, index, sizes):
    page, tails = sizes
    engine = own_engine(small, kv_bytes=3 * page + tails - 1)
    needed = 3 * page + tails
    message = (
        rf"prompt of 150 tokens and beam_width = {WIDTH} need {needed} bytes of keys and values: "
        rf"expected at most kv_bytes = {needed - 1}"
    )
    with pytest.raises(ValueError, match=message):
        ask(engine, small.prompt(150), index)
    assert engine.stats()["rejected"] == 1
    assert ask(engine, small.prompt(128), index)["beams"] == WIDTH


def test_engines_of_one_budget_make_room_for_each_other(small, index, sizes):
    """Two model versions alive during a swap hold one budget, not two."""
    page, tails = sizes
    budget = 8 * page + tails
    old, new = (own_engine(small, kv_bytes=budget) for _ in range(2))
    for seed in range(4):
        ask(old, small.prompt(130, seed=seed), index, stable_prefix=128)
    assert old.stats()["kv_cached_bytes"] == 7 * page  # 8 at most, less one for the fourth's own
    for seed in range(4):
        ask(new, small.prompt(130, seed=seed), index, stable_prefix=128)
        held = [e.stats()["kv_resident_bytes"] for e in (old, new)]
        assert sum(held) <= budget
    assert old.stats()["kv_evicted_pages"] > 0 and old.stats()["kv_cached_bytes"] < 2 * page
    del old
    assert new.stats()["kv_cached_bytes"] >= 5 * page
    assert cached(new, small.prompt(130, seed=3), index) == 2 * PAGE


def test_one_waits_for_another_engines_request(small, index, sizes):
    page, tails = sizes
    budget = 12 * page + tails + 64  # nobody else's
    engines = [own_engine(small, kv_bytes=budget) for _ in range(2)]
    prompts = [small.prompt(700, seed=s) for s in range(6)]
    requests = [
        engines[i % 2].submit(p, index, beam_width=WIDTH, stable_prefix=640)
        for i, p in enumerate(prompts)
    ]
    for prompt, request in zip(prompts, requests, strict=True):
        plain = random_decoder.decode(small.engine, prompt, index, beam_width=WIDTH)
        assert same_bytes(request.result(timeout_s=60), plain)


# ------------------------------------------------------------------- concurrency


def test_many_threads_share_and_evict(small, index, sizes):
    page, tails = sizes
    engine = own_engine(small, kv_bytes=14 * page + 3 * tails, prefill_chunk=48)
    heads = [small.prompt(2 * PAGE, seed=s) for s in range(4)]
    prompts = [np.concatenate([heads[i % 4], small.prompt(30, seed=i)]) for i in range(8)]
    expected = [random_decoder.decode(small.engine, p, index, beam_width=WIDTH) for p in prompts]
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(12):
            i = rng.integers(8)
            request = engine.submit(
                prompts[i], index, beam_width=WIDTH, stable_prefix=int(rng.integers(0, 150))
            )
            if rng.random() < 0.25:
                request.cancel()
            try:
                if not same_bytes(request.result(timeout_s=60), expected[i]):
                    wrong.append(i)
            except RuntimeError as e:
                if "CANCELLED" not in str(e):
                    wrong.append(e)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    stats = engine.stats()
    assert stats["kv_bytes"] == stats["kv_cached_bytes"], "nothing else is in use any more"
    assert stats["kv_resident_bytes"] <= stats["kv_budget_bytes"]


@pytest.fixture(scope="module")
def reference(small, index):
    """Answers without a cache, each computed once."""
    known = {}

    def answer(pages, tail):
        if (pages, tail) not in known:
            parts = [small.prompt(PAGE, seed=p) for p in pages] + [small.prompt(tail, seed=50)]
            prompt = np.concatenate(parts)
            plain = random_decoder.decode(small.engine, prompt, index, beam_width=WIDTH)
            known[pages, tail] = prompt, plain
        return known[pages, tail]

    return answer


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    requests=st.lists(
        st.tuples(
            st.lists(st.integers(0, 1), max_size=3).map(tuple),
            st.sampled_from([1, 30]),
            st.integers(0, 200),
            st.booleans(),
        ),
        min_size=1,
        max_size=10,
    ),
    spare_pages=st.integers(0, 6),
    chunk=st.sampled_from([5, 64, 100]),
)
def test_any_series_of_requests_is_exact(
    small, index, sizes, reference, requests, spare_pages, chunk
):
    """One at a time or overlapping, whatever is kept, shared and evicted in between."""
    page, tails = sizes
    engine = own_engine(small, kv_bytes=(4 + spare_pages) * page + tails, prefill_chunk=chunk)
    waiting = []
    for pages, tail, stable, wait in requests:
        prompt, plain = reference(pages, tail)
        stable = min(stable, len(prompt))
        request = engine.submit(prompt, index, beam_width=WIDTH, stable_prefix=stable)
        waiting.append((request, plain))
        if wait:
            request.result(timeout_s=60)
    for request, plain in waiting:
        assert same_bytes(request.result(timeout_s=60), plain)
    stats = engine.stats()
    assert stats["kv_bytes"] == stats["kv_cached_bytes"]
    assert stats["prefix_hits"] + stats["prefix_misses"] == len(requests)


# --------------------------------------------------------------------- bad input


def test_bad_values_are_refused_by_name(small, index, monkeypatch):
    engine = own_engine(small)
    with pytest.raises(ValueError, match=r"stable_prefix = 11: expected 0..10"):
        ask(engine, small.prompt(10), index, stable_prefix=11)
    with pytest.raises(ValueError, match=r"stable_prefix = -1: expected 0..10"):
        ask(engine, small.prompt(10), index, stable_prefix=-1)
    with pytest.raises(ValueError, match=r"kv_bytes = -1: expected 0.."):
        Engine(small.path, kv_bytes=-1)
    for text in ("much", "", "0", "-5", "1e9", "9" * 30):
        monkeypatch.setenv("GENRECALL_KV_BYTES", text)
        with pytest.raises(
            ValueError, match=r"GENRECALL_KV_BYTES='.*': expected a positive number"
        ):
            own_engine(small)


def test_the_environment_sets_the_budget(small, monkeypatch):
    monkeypatch.delenv("GENRECALL_KV_BYTES", raising=False)
    assert own_engine(small).stats()["kv_budget_bytes"] == 1 << 30
    monkeypatch.setenv("GENRECALL_KV_BYTES", "123456789")
    assert own_engine(small).stats()["kv_budget_bytes"] == 123456789
