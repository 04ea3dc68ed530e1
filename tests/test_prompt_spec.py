"""Prompt spec and SID space: strict JSON in, the same JSON out, and what compiling refuses."""

import copy
import json

import numpy as np
import pytest
from prompt_shop import SPEC, sid_space, tokenize

from genrecall import kernels
from genrecall.kernels.prompt_spec import (
    Behaviors,
    Feature,
    PromptSpec,
    Segment,
    SidSpace,
    compile_prompt,
)


def changed(path, value):
    """SPEC with one place changed; `path` is keys and indices; a value of ... removes the key."""
    spec = copy.deepcopy(SPEC)
    at = spec
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return spec


def test_round_trip(tmp_path):
    spec = PromptSpec.from_json(SPEC)
    assert PromptSpec.from_json(spec.to_json()) == spec
    path = tmp_path / "prompt_spec.json"
    path.write_text(json.dumps(SPEC), encoding="utf-8")
    assert PromptSpec.from_json(path) == PromptSpec.from_json(str(path)) == spec
    assert spec.to_json()["behaviors"]["domains"] == ["ad", "content"]  # a default, written out
    assert hash(spec) == hash(PromptSpec.from_json(SPEC))


def test_defaults():
    spec = PromptSpec.from_json({"format_version": 1, "segments": [{"kind": "text", "text": "x"}]})
    assert spec.behaviors == Behaviors() and spec.features == spec.facets == ()


FEATURE, BUCKET, CITY = ("features", 0), ("features", 1), ("features", 2)
INTEREST = ("segments", 4)


@pytest.mark.parametrize(
    "path,value,message",
    [
        (("extra",), 1, r"prompt spec: unknown key 'extra'"),
        (("format_version",), ..., r"key 'format_version' is missing"),
        (("format_version",), 2, r"format_version = 2: expected 1"),
        (("format_version",), True, r"format_version = True: expected an integer"),
        (("segments",), [], r"segments is empty: expected at least one"),
        (("segments",), "x", r"segments = 'x': expected a list"),
        (("segments", 0), 3, r"segments\[0\] = 3: expected an object"),
        (("segments", 0, "kind"), "tex", r"segments\[0\]: kind = 'tex': expected one of text, fea"),
        (("segments", 0, "prefix"), "x", r"segments\[0\]: unknown key 'prefix'"),
        (("segments", 0, "text"), 3, r"segments\[0\]: text = 3: expected a string"),
        (("segments", 0, "text"), ..., r"segments\[0\]: key 'text' is missing"),
        (("segments", 1, "name"), "sex", r"segments\[1\].name = 'sex': expected one of \['gender'"),
        ((*INTEREST, "facet"), "brand", r"segments\[4\].facet = 'brand': expected one of \['cat"),
        ((*INTEREST, "top"), 0, r"top = 0: expected >= 1"),
        ((*INTEREST, "top"), 1.0, r"top = 1.0: expected an integer"),
        (("segments", 5, "kind"), "recent", r"segments\[6\]: a second 'recent' of domain 'ad'"),
        (("segments", 5, "domains"), ["web"], r"long_term: domains: 'web': expected one of ad, co"),
        (("segments", 5, "domains"), [], r"segment long_term: domains is empty: expected some of"),
        (("behaviors", "merge_levels"), -1, r"behaviors.merge_levels = -1: expected 0.."),
        (("behaviors", "merge_window"), 0, r"behaviors.merge_window = 0: expected 1..65536"),
        ((*FEATURE, "kind"), "float", r"feature 'gender': kind = 'float': expected one of string"),
        ((*FEATURE, "values"), {"F": 1}, r"values\['F'\] = 1: expected a string for a string"),
        ((*FEATURE, "name"), "age", r"features\[1\].name = 'age': expected distinct names"),
        ((*FEATURE, "name"), "", r"features\[0\].name is empty: expected a name"),
        ((*FEATURE, "texts"), [], r"features\[0\]: unknown key 'texts'"),
        ((*BUCKET, "boundaries"), [], r"feature 'age': boundaries is empty: expected at least one"),
        ((*BUCKET, "boundaries"), [2, 2], r"boundaries = \[2.0, 2.0\]: expected finite and asc"),
        ((*BUCKET, "boundaries"), [1, 1 + 1e-9], r"ascending as float32"),
        ((*BUCKET, "boundaries"), [1e300, 1e301], r"expected finite"),
        ((*BUCKET, "boundaries"), ["a"], r"features\[1\]: boundaries\[0\] = 'a': expected a num"),
        ((*BUCKET, "texts"), ["a"], r"feature 'age': 1 texts: expected 3, one more than"),
        ((*CITY, "values"), {"01": "x"}, r"features\[2\]: values\['01'\]: expected an integer as"),
        ((*CITY, "values"), {str(2**63): "x"}, r"feature 'city': value 9223372036854775808: exp"),
        (("facets", 0, "values"), [1], r"facets\[0\]: values\[0\] = 1: expected a string"),
        (("behaviors", "max_events"), 0, r"behaviors.max_events = 0: expected 1..65536"),
        (("behaviors", "block"), 25, r"behaviors.block = 25: expected 1..24"),
        (("behaviors", "long_term_events"), 13, r"= 13: expected a multiple of block = 4"),
        (("behaviors", "recent_events"), -1, r"behaviors.recent_events = -1: expected 0..65536"),
        (("behaviors", "repeat_window_s"), -1, r"behaviors.repeat_window_s = -1: expected 0.."),
        (("behaviors", "actions"), ["buy"], r"behaviors.actions: 'buy': expected one of expos"),
        (("behaviors", "actions"), [], r"behaviors.actions is empty: expected some of"),
        (("behaviors", "domains"), ["ad", "ad"], r"behaviors.domains: 'ad' twice"),
        (("behaviors", "action_text"), {"buy": ""}, r"behaviors.action_text: 'buy': expected"),
        (("behaviors", "seperator"), "", r"behaviors: unknown key 'seperator'"),
    ],
)
def test_a_bad_spec_is_refused_by_place(path, value, message):
    with pytest.raises(ValueError, match=message):
        PromptSpec.from_json(changed(path, value))


def test_bad_files(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"spec.json: not JSON"):
        PromptSpec.from_json(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"spec.json: expected an object, got list"):
        PromptSpec.from_json(path)
    with pytest.raises(FileNotFoundError):
        PromptSpec.from_json(tmp_path / "none.json")


def test_types_check_themselves():
    with pytest.raises(ValueError, match="value 'F' twice"):
        Feature("gender", "string", (("F", "a"), ("F", "b")))
    with pytest.raises(ValueError, match="expected no values"):
        Feature("age", "bucket", (("F", "a"),), (1.0,), ("a", "b"))
    with pytest.raises(ValueError, match="belong to kind 'bucket'"):
        Feature("age", "string", (), (1.0,), ("a", "b"))
    with pytest.raises(ValueError, match="segment kind = 'x'"):
        Segment("x")


# The SID space.


def test_sid_space_is_named_by_its_contents(tmp_path):
    space = SidSpace.build([2, 3], [[7, 8], np.array([9, 1, 0])], "books")
    assert space.level_sizes == (2, 3) and space.token_ids == ((7, 8), (9, 1, 0))
    space.save(tmp_path / "sid_space.json")
    assert SidSpace.load(tmp_path / "sid_space.json") == space
    stored = json.loads((tmp_path / "sid_space.json").read_text())
    assert set(stored) == {
        "format_version",
        "level_sizes",
        "token_ids",
        "codebook_digest",
        "digest",
    }
    others = [
        SidSpace.build([2, 3], [[7, 8], [9, 1, 2]], "books"),
        SidSpace.build([2, 3], [[8, 7], [9, 1, 0]], "books"),
        SidSpace.build([2, 3], [[7, 8], [9, 1, 0]], "other books"),
        SidSpace.build([3, 2], [[7, 8, 9], [1, 0]], "books"),
    ]
    assert len({space.digest, *(s.digest for s in others)}) == 5
    assert len(space.digest) == 64


def test_a_changed_sid_space_file_is_refused(tmp_path):
    path = tmp_path / "sid_space.json"
    SidSpace.build([2], [[7, 8]], "books").save(path)
    stored = json.loads(path.read_text())

    def refuse(message, **changes):
        path.write_text(json.dumps({k: v for k, v in (stored | changes).items() if v is not None}))
        with pytest.raises(ValueError, match=message):
            SidSpace.load(path)

    refuse(r"digest = '.*': expected '.*' for its contents", token_ids=[[7, 9]])
    refuse(r"unknown key 'more'", more=1)
    refuse(r"key 'digest' is missing", digest=None)
    refuse(r"format_version = 0: expected 1", format_version=0)
    refuse(r"token_ids\[0\]\[1\] = 1.5: expected an integer", token_ids=[[7, 1.5]])
    refuse(r"token_ids\[0\] = 3: expected a list", token_ids=[3])


@pytest.mark.parametrize(
    "level_sizes,token_ids,message",
    [
        ([], [], r"level_sizes has 0 levels: expected 1..8"),
        ([1] * 9, [[i] for i in range(9)], r"level_sizes has 9 levels"),
        ([0], [[]], r"level_sizes\[0\] = 0: expected 1..65535"),
        ([65536], [range(65536)], r"level_sizes\[0\] = 65536: expected 1..65535"),
        ([2], [[1, 2], [3]], r"token_ids has 2 levels: expected 1"),
        ([2], [[1]], r"token_ids\[0\] has 1 ids: expected 2"),
        ([2], [[1, -1]], r"token_ids\[0\]\[1\] = -1: expected 0..2147483647"),
        ([1, 2], [[5], [4, 5]], r"token_ids\[1\]\[1\] = 5: .* but token_ids\[0\]\[0\] is the same"),
    ],
)
def test_a_bad_sid_space_is_refused(level_sizes, token_ids, message):
    with pytest.raises(ValueError, match=message):
        SidSpace.build(level_sizes, token_ids, "")


# Compiling.


def test_every_text_is_tokenized_once_and_the_empty_one_never(tmp_path):
    seen = []

    def count(text):
        seen.append(text)
        return [0, *tokenize(text)]  # a tokenizer that adds a token: it must not show in ""

    prompt = compile_prompt(
        PromptSpec.from_json(SPEC), count, sid_space([2, 2]), tmp_path / "p.gguf"
    )
    spec = SPEC
    texts = [s.get(k, "") for s in spec["segments"] for k in ("text", "prefix", "separator")]
    texts += [t for f in spec["features"] for t in f.get("texts", f.get("values", {}).values())]
    texts += [f.get("missing", "") for f in spec["features"]] + spec["facets"][0]["values"]
    texts += [*spec["behaviors"]["action_text"].values(), spec["behaviors"]["separator"]]
    assert sorted(seen) == sorted(t for t in texts if t)
    assert json.loads(prompt.spec_json) == PromptSpec.from_json(SPEC).to_json()


def test_the_file_is_an_ordinary_gguf(tmp_path):
    """Read by the gguf package, which knows nothing of this project."""
    from gguf import GGUFReader

    space = sid_space([3, 2])
    compile_prompt(PromptSpec.from_json(SPEC), tokenize, space, tmp_path / "p.gguf")
    reader = GGUFReader(tmp_path / "p.gguf")
    assert reader.get_field("genrecall.sid_space_digest").contents() == space.digest
    tensors = {t.name: t.data for t in reader.tensors}
    assert tensors["sid_token_ids"].tolist() == [t for level in space.token_ids for t in level]
    assert not [p for p in tmp_path.iterdir() if p.name != "p.gguf"]


@pytest.mark.parametrize(
    "segments,ok",
    [
        ([{"kind": "recent", "prefix": "x"}, {"kind": "long_term"}], False),
        ([{"kind": "feature", "name": "gender"}], False),  # its missing text is empty
        ([{"kind": "text", "text": ""}], False),
        ([{"kind": "interest", "facet": "category", "top": 1, "prefix": "x"}], False),
        ([{"kind": "feature", "name": "age"}], True),  # all its texts have tokens
        ([{"kind": "recent"}, {"kind": "text", "text": "x"}], True),
    ],
)
def test_a_spec_that_could_give_an_empty_prompt_is_refused(segments, ok, tmp_path):
    spec = PromptSpec.from_json(changed(("segments",), segments))
    path = tmp_path / "p.gguf"
    if ok:
        assert compile_prompt(spec, tokenize, sid_space([2]), path).max_tokens > 0
        return
    with pytest.raises(
        ValueError, match=r"could be empty: expected a text segment of at least one"
    ):
        compile_prompt(spec, tokenize, sid_space([2]), path)
    assert not path.exists()


def test_compile_refuses_bad_tokens_and_endless_prompts(tmp_path):
    spec, path = PromptSpec.from_json(SPEC), tmp_path / "p.gguf"
    with pytest.raises(
        ValueError, match=r"tokenize\('.*'\) gave -1: expected token ids in 0..2\^31-1"
    ):
        compile_prompt(spec, lambda text: [-1], sid_space([2]), path)
    with pytest.raises(TypeError):
        compile_prompt(spec, lambda text: [0.5], sid_space([2]), path)
    compile_prompt(spec, tokenize, sid_space([2]), path)
    before = path.read_bytes()
    endless = PromptSpec.from_json(changed(("behaviors", "separator"), "x" * 100_000))
    with pytest.raises(ValueError, match=r"a prompt may have more than 1048576 tokens"):
        compile_prompt(endless, tokenize, sid_space([2]), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        compile_prompt(spec, tokenize, sid_space([2]), tmp_path / "none" / "p.gguf")
    assert kernels.Prompt.load(path).level_sizes == (2,)
