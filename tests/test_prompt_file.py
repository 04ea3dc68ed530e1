"""A compiled prompt that is damaged, foreign or contradicts itself is refused, never a crash."""

import random

import numpy as np
import pytest
from prompt_shop import SPEC, assemble, catalogue, random_features, random_user, sid_space, tokenize

from genrecall import kernels
from genrecall.kernels.prompt_spec import PromptSpec, compile_prompt

SPACE = sid_space([3, 4])


@pytest.fixture
def path(tmp_path):
    compile_prompt(PromptSpec.from_json(SPEC), tokenize, SPACE, tmp_path / "p.gguf")
    return tmp_path / "p.gguf"


def rewrite(path, change):
    """Applies change(metadata, tensors) and writes the file again, with a checksum that fits."""
    file = kernels.read_gguf(path)
    metadata, tensors = file["metadata"], {k: v.copy() for k, v in file["tensors"].items()}
    change(metadata, tensors)
    kernels.write_gguf(path, metadata, tensors)


def test_a_sound_file(path):
    before = kernels.Prompt.load(path, SPACE.digest)
    rewrite(path, lambda metadata, tensors: None)
    assert kernels.Prompt.load(str(path)).max_tokens == before.max_tokens


def test_missing_and_foreign_files(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.gguf"):
        kernels.Prompt.load(tmp_path / "none.gguf")
    with pytest.raises(
        kernels.FailedPreconditionError, match=r"sid_space_digest = '.*': expected 'x'"
    ):
        kernels.Prompt.load(path, "x")
    catalogue(SPACE, 5, 0).save(tmp_path / "index.gguf")
    with pytest.raises(kernels.DataLossError, match=r"index.gguf: not a compiled prompt"):
        kernels.Prompt.load(tmp_path / "index.gguf")


def test_another_version_is_refused(path):
    rewrite(path, lambda m, t: m.update({"genrecall.prompt.format_version": 3}))
    with pytest.raises(kernels.FailedPreconditionError, match=r"format version 3: expected 2"):
        kernels.Prompt.load(path)


def test_every_truncation_is_refused(path):
    data = path.read_bytes()
    for size in [*range(0, len(data), 61), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(kernels.DataLossError):
            kernels.Prompt.load(path)


def test_every_flipped_bit_is_refused(path):
    data = path.read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        at = rng.randrange(len(data))
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(kernels.DataLossError):
            kernels.Prompt.load(path)


def put(name, index, value):
    """A change of one element of a tensor."""

    def change(metadata, tensors):
        tensors[name][index] = value

    return change


def meta(name, value):
    """A change of one metadata value; ... removes it."""

    def change(metadata, tensors):
        key = name if name.startswith("genrecall.") else f"genrecall.prompt.{name}"
        assert key in metadata
        metadata[key] = value
        if value is ...:
            del metadata[key]

    return change


def shape(name, function):
    def change(metadata, tensors):
        tensors[name] = function(tensors[name])

    return change


@pytest.mark.parametrize(
    "change,message",
    [
        (meta("format_version", "1"), r"'genrecall.prompt.format_version' has another type"),
        (meta("genrecall.sid_space_digest", ...), r"'genrecall.sid_space_digest' is missing"),
        (meta("genrecall.level_sizes", []), r"level_sizes: 0 levels: expected 1..8"),
        (meta("genrecall.level_sizes", [3, 0]), r"level_sizes\[1\] = 0: expected 1..65535"),
        (meta("genrecall.level_sizes", [3, 5]), r"sid_token_ids: 7 values: expected 8"),
        (put("sid_token_ids", 2, -1), r"sid_token_ids\[2\] = -1: expected >= 0"),
        (shape("sid_token_ids", lambda t: t[None]), r"'sid_token_ids' has rank 2: expected 1"),
        (shape("sid_token_ids", lambda t: t.astype(np.float32)), r"'sid_token_ids' has type F32"),
        (meta("spec", 3), r"'genrecall.prompt.spec' has another type"),
        (put("text_tokens", 0, -7), r"text_tokens\[0\] = -7: expected >= 0"),
        (put("text_begin", 0, 1), r"text_begin: expected ascending offsets from 0"),
        (put("text_begin", 1, 10**6), r"text_begin: expected ascending offsets from 0"),
        (put("text_begin", -1, 10**6), r"text_begin: expected ascending offsets from 0"),
        (shape("text_begin", lambda t: t[:0]), r"text_begin: expected ascending offsets"),
        (meta("feature.kinds", [0, 2]), r"feature.kinds: 2 values: expected 3"),
        (meta("feature.kinds", [0, 2, 3]), r"feature.kinds\[2\] = 3: expected 0..2"),
        (meta("feature.first_text", [0, 99, 0]), r"feature.first_text\[1\] = 99: expected 0.."),
        (meta("feature.num_values", [2, 3, 24]), r"feature 'city': texts \d+..\d+: expected <"),
        (meta("feature.num_values", [1, 3, 2]), r"feature.0.values: 2 values: expected 1"),
        (meta("feature.num_values", [2, 2, 2]), r"'feature.1.boundaries': expected shape \[1\]"),
        (meta("feature.missing_text", [-1, 0, 0]), r"missing_text\[0\] = -1: expected 0.."),
        (meta("feature.0.values", ["F", "F"]), r"feature.0.values: 'F' twice"),
        (meta("feature.2.values", ["a", "b"]), r"'genrecall.prompt.feature.2.values' has another"),
        (put("feature.1.boundaries", 1, 18), r"boundaries\[1\] = 18: expected finite and asc"),
        (put("feature.1.boundaries", 0, np.nan), r"boundaries\[0\] = nan: expected finite"),
        (meta("facet.num_values", [77]), r"facet.num_values\[0\] = 77: expected 0.."),
        (meta("facet.first_text", []), r"facet.first_text: 0 values: expected 1"),
        (meta("max_events", 0), r"max_events = 0: expected 1..65536"),
        (meta("block", 25), r"block = 25: expected 1..24"),
        (meta("block", 0), r"block = 0: expected 1..24"),
        (meta("recent_events", -1), r"recent_events = -1: expected 0..65536"),
        (meta("long_term_events", 13), r"long_term_events = 13: expected a multiple of the block"),
        (meta("actions", 8), r"actions = 8: expected 0..7"),
        (meta("domains", 4), r"domains = 4: expected 0..3"),
        (meta("repeat_window_s", -1), r"repeat_window_s = -1: expected 0.."),
        (meta("action_text", [0, 0]), r"action_text: 2 values: expected 3"),
        (meta("separator_text", 10**6), r"separator_text = 1000000: expected 0.."),
        (put("segments", (0, 0), 5), r"segments\[0, 0\] = 5: expected 0..4"),
        (put("segments", (0, 1), 10**6), r"segments\[0, 1\] = 1000000: expected 0.."),
        (put("segments", (1, 1), 3), r"segments\[1, 1\] = 3: expected 0..2"),
        (put("segments", (4, 1), 1), r"segments\[4, 1\] = 1: expected 0..0"),
        (put("segments", (4, 2), -1), r"segments\[4, 2\] = -1: expected >= 0"),
        (put("segments", (5, 3), -2), r"segments\[5, 3\] = -2: expected -1.."),
        (put("segments", (4, 4), 10**6), r"segments\[4, 4\] = 1000000: expected -1.."),
        (shape("segments", lambda t: t[:, :5]), r"'segments': expected shape \[n, 6\]"),
        (put("segments", (4, 5), 4), r"segments\[4, 5\] = 4: expected 0\.\.3"),
        (put("segments", (5, 0), 4), r"segments\[6, 5\] = 3: expected domains that no segment of"),
        (shape("segments", lambda t: np.repeat(t[:1], 300_000, 0)), r"more than 1048576 tokens"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_by_place(path, change, message):
    rewrite(path, change)
    with pytest.raises(kernels.DataLossError, match=rf"p.gguf: .*{message}"):
        kernels.Prompt.load(path)


def random_change(rng, metadata, tensors):
    """One random change of a number, or of the length of an array."""
    wild = [-(2**31), -2, -1, 0, 1, 2, 5, 100, 2**31 - 1]
    if rng.random() < 0.5:
        tensor = tensors[rng.choice(sorted(tensors))]
        if tensor.size:
            tensor.flat[rng.randrange(tensor.size)] = rng.choice(wild)
        return
    key = rng.choice(sorted(k for k in metadata if not isinstance(metadata[k], str)))
    value = metadata[key]
    if isinstance(value, int):
        metadata[key] = rng.choice([*wild, value + 1, value - 1])
    elif value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        value[i] = str(value[i]) + "x" if isinstance(value[i], str) else rng.choice(wild)
    else:
        metadata[key] = value[:-1] if rng.random() < 0.5 else value + value[:1]


def test_what_loads_can_be_used(path):
    """Random wrong contents under a right checksum: refused, or prompts within max_tokens."""
    original = path.read_bytes()
    rng = random.Random(0)
    index = catalogue(SPACE, 50, 1)
    users = [random_user(rng, 50) for _ in range(10)]
    features = random_features(rng, 10)
    loaded = 0
    for _ in range(400):
        path.write_bytes(original)
        rewrite(path, lambda metadata, tensors: random_change(rng, metadata, tensors))
        try:
            prompt = kernels.Prompt.load(path)
        except (kernels.DataLossError, kernels.FailedPreconditionError) as error:
            assert str(path) in str(error)
            continue
        loaded += 1
        if [f for f, _ in prompt.features] != list(features) or len(prompt.facets) != 1:
            continue
        try:
            rows = assemble(prompt, index, users, features)
        except ValueError:  # kinds changed, or another SID space
            continue
        assert all(len(tokens) <= prompt.max_tokens for tokens, _ in rows)
    assert 40 < loaded < 360
