"""The CPU engine against Hugging Face models; bit-identity; nearly the same across ISAs."""

import os
import subprocess
import sys

import numpy as np
import pytest
import random_decoder
from random_decoder import Decoder, decode, same_bytes

from genrecall.trtllm_bridge import Engine

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


# ------------------------------------------------------------------- across ISAs

# Between two ISAs: scores, sums of 4 log-probabilities of a model whose logits reach 8.
ISA_EPSILON = {"float32": 1e-4, "bfloat16": 0.05}

DECODE_TO_FILE = """
import sys
import numpy as np
import random_decoder
from genrecall.trtllm_bridge import Engine

path, out = sys.argv[1:]
index, _ = random_decoder.random_index((9, 14, 6, 11), 700, seed=9)
engine = Engine(path)
prompt = np.random.default_rng(17).integers(0, 160, 150)
answers = random_decoder.decode(engine, prompt, index, beam_width=1000)
np.savez(out, isa=engine.isa, **answers)
"""


def decode_under(isa, path, out):
    """The answer of a fresh process under a forced ISA; None when this machine lacks it."""
    tests = os.path.dirname(random_decoder.__file__)
    done = subprocess.run(
        [sys.executable, "-c", DECODE_TO_FILE, str(path), str(out)],
        env={
            **os.environ,
            "GENRECALL_CPU_ISA": isa,
            "PYTHONPATH": os.pathsep.join([tests, *filter(None, sys.path)]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return dict(np.load(out))
    if "this machine has" in done.stderr or "no kernels for" in done.stderr:
        return None
    raise AssertionError(done.stderr)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_isas_agree_within_epsilon(tmp_path, dtype):
    """Beams swap only where their scores are closer than the epsilon."""
    decoder = Decoder(tmp_path, dtype=dtype, level_sizes=LEVEL_SIZES, seed=17)
    reference = decode_under("scalar", decoder.path, tmp_path / "scalar.npz")
    assert reference["isa"] == "scalar"
    for isa in ("avx2", "avx512", "avx512_bf16", "amx"):
        got = decode_under(isa, decoder.path, tmp_path / f"{isa}.npz")
        if got is None:
            continue
        assert got["isa"] == isa
        n = int(reference["beams"])
        assert got["beams"] == n
        by_sid = [np.lexsort(a["sids"][:n].T[::-1]) for a in (reference, got)]
        np.testing.assert_array_equal(reference["sids"][:n][by_sid[0]], got["sids"][:n][by_sid[1]])
        apart = np.abs(reference["score"][:n][by_sid[0]] - got["score"][:n][by_sid[1]])
        assert apart.max() <= ISA_EPSILON[dtype], isa
        # Where another SID took a place, the two are that close in the reference's own scores.
        moved = (reference["sids"][:n] != got["sids"][:n]).any(axis=1)
        score_of = dict(zip(map(tuple, reference["sids"][:n]), reference["score"][:n], strict=True))
        taken = np.array([score_of[tuple(s)] for s in got["sids"][:n][moved]])
        assert (np.abs(taken - reference["score"][:n][moved]) <= 2 * ISA_EPSILON[dtype]).all()


def test_an_unknown_isa_is_refused(tmp_path):
    decoder = Decoder(tmp_path, level_sizes=LEVEL_SIZES, seed=17)
    with pytest.raises(
        AssertionError,
        match=r"GENRECALL_CPU_ISA='avx3': expected scalar\|avx2\|avx512\|avx512_bf16\|amx",
    ):
        decode_under("avx3", decoder.path, tmp_path / "x.npz")
