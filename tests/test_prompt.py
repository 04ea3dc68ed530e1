"""Prompt assembly against an oracle that reads the spec's JSON, and what holds for every prompt."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from behaviors_oracle import CLICK, CONVERSION, NOW, clean_oracle
from prompt_shop import (
    ACTIONS,
    DOMAINS,
    SPEC,
    assemble,
    assemble_oracle,
    batch,
    catalogue,
    changed_spec,
    places_oracle,
    random_features,
    random_user,
    sid_space,
    tokenize,
)

from genrecall import kernels
from genrecall.kernels.prompt_spec import PromptSpec, compile_prompt, share_retokenized


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """(spec, SID space, compiled prompt, index) of SPEC."""
    spec, space = PromptSpec.from_json(SPEC), sid_space([7, 5, 9])
    prompt = compile_prompt(spec, tokenize, space, tmp_path_factory.mktemp("prompt") / "p.gguf")
    return spec, space, prompt, catalogue(space, 400, 1)


def test_random_users_equal_the_oracle(shop):
    spec, space, prompt, index = shop
    rng = random.Random(0)
    users = [random_user(rng, rng.choice([3, 30, 500])) for _ in range(400)]
    features = random_features(rng, len(users))
    times = [NOW + rng.choice([-2000, 0, 10**7]) for _ in users]
    got = assemble(prompt, index, users, features, times)
    for b, (events, time) in enumerate(zip(users, times, strict=True)):
        row_features = {name: column[b] for name, column in features.items()}
        want = assemble_oracle(spec, space, index, events, time, row_features)
        assert got[b] == want
        assert 0 < len(want[0]) <= prompt.max_tokens


@pytest.mark.parametrize("seed", range(60))
def test_random_specs_equal_the_oracle(seed, tmp_path):
    rng = random.Random(seed)
    text = lambda low=0: "".join(rng.choices("abcde ", k=rng.randrange(low, 5)))  # noqa: E731
    facets = [
        {"name": f"f{i}", "values": [text() for _ in range(rng.randrange(6))]}
        for i in range(rng.randrange(3))
    ]
    block = rng.randrange(1, 6)
    segments = [{"kind": "text", "text": text(1)}]
    segments += [{"kind": "text", "text": text()} for _ in range(rng.randrange(3))]
    split = [["ad"], ["content"]]
    for kind in ("long_term", "recent"):
        for domains in rng.choice([[], [DOMAINS], [["content"]], split, split[::-1]]):
            segments.append({"kind": kind, "prefix": text(), "domains": domains})
    segments += [
        {
            "kind": "interest",
            "facet": f["name"],
            "top": rng.randrange(1, 4),
            "prefix": text(),
            "separator": text(),
            "domains": rng.choice([DOMAINS, ["ad"]]),
        }
        for f in facets
    ]
    rng.shuffle(segments)
    spec = PromptSpec.from_json(
        {
            "format_version": 1,
            "facets": facets,
            "segments": segments,
            "behaviors": {
                "long_term_events": block * rng.randrange(5),
                "recent_events": rng.randrange(10),
                "block": block,
                "action_text": {a: text() for a in ACTIONS if rng.random() < 0.5},
                "separator": text(),
                "max_events": rng.randrange(block, 40),
                "actions": rng.sample(ACTIONS, rng.randrange(1, 4)),
                "domains": rng.sample(DOMAINS, rng.randrange(1, 3)),
                "attribution_window_s": rng.choice([0, 10, 10**6]),
                "repeat_window_s": rng.choice([0, 10, 10**6]),
                "merge_levels": rng.choice([0, 0, 1]),
                "merge_window": rng.randrange(1, 5),
            },
        }
    )
    space = sid_space([rng.randrange(1, 12) for _ in range(rng.randrange(1, 7))])
    prompt = compile_prompt(spec, tokenize, space, tmp_path / "p.gguf")
    index = catalogue(space, 60, len(facets))
    users = [random_user(rng, 60) for _ in range(25)]
    asked, begin, codes = prompt.assemble_events(index, *batch(users), [NOW] * len(users))[3:]
    for b, (events, got) in enumerate(zip(users, assemble(prompt, index, users), strict=True)):
        *want, places = places_oracle(spec, space, index, events, NOW, {})
        assert got == tuple(want)
        assert len(got[0]) <= prompt.max_tokens
        n = len(places)
        of_row = (x[b, :n].tolist() for x in (asked, begin, codes))
        assert list(zip(*of_row, strict=True)) == places
        assert (asked[b, n:] == -1).all() and (begin[b, n:] == -1).all()
    by_segment = prompt.segments(index, *batch(users), [NOW] * len(users))
    for (tokens, _), pieces in zip(assemble(prompt, index, users), by_segment, strict=True):
        assert [kind for kind, _ in pieces] == [s["kind"] for s in segments]
        assert [t for _, piece in pieces for t in piece] == tokens


def test_max_tokens_is_reached(shop):
    _, _, prompt, index = shop
    item, _, _, facets = index.rows()
    # 12 long-term and 3 + 4 - 1 recent conversions, liking the two longest categories.
    liked = [i for v in (1, 0) for i in item[facets[:, 0] == v][:6]]
    others = [i for i in item if i not in liked][:6]
    users = [[(i, CONVERSION, 0, NOW - 20 + t) for t, i in enumerate([*liked, *others])]]
    features = {"gender": ["M"], "age": [None], "city": [1]}
    assert len(assemble(prompt, index, users, features)[0][0]) == prompt.max_tokens


# Prefixes must repeat.


def stable_prefixes(prompt, index, history):
    """The stable prefix after each event of a history, oldest first."""
    users = [history[:n] for n in range(len(history) + 1)]
    return [tokens[:stable] for tokens, stable in assemble(prompt, index, users)]


def test_the_stable_prefix_moves_once_a_block(shop):
    """Clicks on distinct known items, also far beyond max_events: one move every `block` events."""
    _, _, prompt, index = shop
    history = [(2 * i, CLICK, 0, 1000 * (i + 1)) for i in range(200)]
    prefixes = stable_prefixes(prompt, index, history)
    moves = [n for n in range(1, 201) if prefixes[n] != prefixes[n - 1]]
    assert moves == list(range(3 + 4, 201, 4))


@pytest.mark.parametrize("window", [1, 3, 12])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_merging_only_ever_adds_to_what_is_written(tmp_path, levels, window):
    """The prefix moves at the same events as without merging; while the past is not longer than the
    long-term part, a move leaves every event in place that was written; and tokens are saved.
    """
    space = sid_space([3, 3, 4])
    index = catalogue(space, 400, 1)
    rng = random.Random(levels)
    history = [(2 * rng.randrange(400), CLICK, 0, 1000 * (i + 1)) for i in range(120)]
    written = {}
    for merged in (0, levels):
        spec = changed_spec(
            [{"kind": "long_term", "prefix": " past:"}, {"kind": "recent"}],
            merge_levels=merged,
            merge_window=window,
            long_term_events=40,
            max_events=60,
            repeat_window_s=0,
        )
        prompt = compile_prompt(PromptSpec.from_json(spec), tokenize, space, tmp_path / "p.gguf")
        written[merged] = stable_prefixes(prompt, index, history)
    moves = {
        merged: {n for n in range(1, 121) if prefixes[n] != prefixes[n - 1]}
        for merged, prefixes in written.items()
    }
    assert moves[levels] <= moves[0] and len(moves[levels]) > 10
    for n in range(1, 44):
        assert written[levels][n][: len(written[levels][n - 1])] == written[levels][n - 1]
    assert len(written[levels][-1]) < len(written[0][-1])


def test_unknown_items_and_repeats_leave_the_stable_prefix_alone(shop):
    _, _, prompt, index = shop
    history = [(2 * i, CLICK, 0, NOW - 1000 + 10 * i) for i in range(10)]
    (before, stable), *after = assemble(
        prompt,
        index,
        [history, [*history, (3, CLICK, 0, NOW)], [*history, (18, CLICK, 0, NOW - 890)]],
    )
    assert stable < len(before)
    assert after == [(before, stable)] * 2


def test_a_conversion_rewrites_the_prefix_only_where_it_absorbs_a_long_term_click(shop):
    _, _, prompt, index = shop
    history = [(2 * i, CLICK, 0, NOW - 1000 + 10 * i) for i in range(9)]  # 4 long-term, 5 recent
    old, fresh, unseen = ((i, CONVERSION, 1, NOW) for i in (2, 14, 100))
    (before, stable), *after = assemble(
        prompt, index, [history, *([*history, e] for e in (fresh, unseen, old))]
    )
    for tokens, s in after[:2]:
        assert tokens[:s] == before[:stable]
    assert after[2][0][: after[2][1]] != before[:stable]


@pytest.mark.parametrize("seed", range(5))
def test_a_random_event_moves_the_prefix_only_for_a_stated_reason(shop, seed):
    """Only absorbing a click, filling a block or dropping one may change the stable prefix."""
    spec, _, prompt, index = shop
    b = spec.behaviors
    rng = random.Random(seed)
    history = sorted(
        (
            (
                2 * rng.randrange(40),
                rng.choice([CLICK, CLICK, CONVERSION]),
                0,
                NOW - rng.randrange(9000),
            )
            for _ in range(120)
        ),
        key=lambda e: e[3],
    )
    prefixes = stable_prefixes(prompt, index, history)
    lines = [
        clean_oracle(
            history[:n],
            NOW,
            b.max_events,
            b.block,
            attribution_window_s=b.attribution_window_s,
            repeat_window_s=b.repeat_window_s,
        )
        for n in range(121)
    ]
    kept_still = 0
    for n in range(1, 121):
        before, after = lines[n - 1], lines[n]
        appended = after[: len(before)] == before  # nothing absorbed, nothing dropped
        past = [max(0, len(x) - b.recent_events) // b.block for x in (before, after)]
        if appended and past[0] == past[1]:
            assert prefixes[n] == prefixes[n - 1]
            kept_still += 1
    assert kept_still > 40


# The batch.


def test_rows_do_not_know_each_other(shop):
    _, _, prompt, index = shop
    rng = random.Random(3)
    users = [random_user(rng, 100) for _ in range(30)]
    features = random_features(rng, 30)
    together = assemble(prompt, index, users, features, width=100)
    for b, events in enumerate(users):
        alone = {name: [column[b]] for name, column in features.items()}
        assert assemble(prompt, index, [events], alone) == [together[b]]


def test_threads_agree(shop):
    _, _, prompt, index = shop
    rng = random.Random(4)
    users = [random_user(rng, 100) for _ in range(200)]
    want = assemble(prompt, index, users)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: assemble(prompt, index, users), range(8)):
            assert got == want


def test_empty_users_and_empty_batches(shop):
    _, _, prompt, index = shop
    (tokens, stable), future = assemble(prompt, index, [[], [(2, CLICK, 0, NOW + 1)]])
    assert "".join(map(chr, tokens)) == "User: ageless? next:"
    assert future == (tokens, stable) and stable == len("User: ageless?")
    none = prompt.assemble(
        index, *(np.zeros((0, 0), int) for _ in range(4)), np.zeros(0, int), np.zeros(0, int)
    )
    assert [x.shape for x in none] == [(0, 0), (0,), (0,)]


def test_feature_values(shop):
    _, _, prompt, index = shop

    def text(name, *values):
        users = [[]] * len(values)
        got = assemble(prompt, index, users, {name: values})
        return ["".join(map(chr, t)).removeprefix("User:").removesuffix(" next:") for t, _ in got]

    assert text("gender", "F", b"M", "f", "", None, np.str_("M")) == [
        g + " ageless?" for g in (" female", " männlich", "", "", "", " männlich")
    ]
    ages = [-1e30, 17.999, 18, 25.49, np.float32(25.5), np.inf, -np.inf, None]
    assert text("age", *ages) == [
        a + "?"
        for a in (" young", " young", " 18-25", " 18-25", " old", " old", " ageless", " ageless")
    ]
    assert text("city", 1, -5, np.int64(1), 2, -(2**63), None) == [
        " ageless" + c for c in (" Berlin", " Ur", " Berlin", "?", "?", "?")
    ]
    columns = {"age": np.array([20], np.float32), "city": np.array([1], np.int32)}
    assert (
        "".join(map(chr, assemble(prompt, index, [[]], columns)[0][0]))
        == "User: 18-25 Berlin next:"
    )


def test_properties(shop):
    _, space, prompt, _ = shop
    assert prompt.level_sizes == space.level_sizes == (7, 5, 9)
    assert prompt.sid_space_digest == space.digest
    assert prompt.features == [("gender", "string"), ("age", "bucket"), ("city", "int64")]
    assert prompt.facets == ["category"]
    assert tuple(tuple(t.tolist()) for t in prompt.token_ids) == space.token_ids
    assert prompt.clean_options == {
        "max_events": 24,
        "block": 4,
        "actions": 0b110,
        "domains": 0b11,
        "attribution_window_s": 5000,
        "repeat_window_s": 100,
    }
    events = np.array([(2, CLICK, 0, 5)]).T
    assert kernels.clean_behaviors(*events, NOW, **prompt.clean_options)["item"].tolist() == [2]


def test_errors_of_assemble_name_the_input(shop):
    _, _, prompt, index = shop
    good = dict(zip(("item", "action", "domain", "time", "length"), batch([[]], 3), strict=True))
    good |= {"request_time": [NOW], "index": index}

    def refuse(message, **changes):
        for door in (prompt.assemble, prompt.segments):
            with pytest.raises(ValueError, match=message):
                door(**{**good, **changes})

    refuse(r"length\[0\] = 4: expected 0\.\.T = 3", length=[4])
    refuse(r"length\[0\] = -1: expected 0\.\.T = 3", length=[-1])
    refuse(r"length has shape \[2\]: expected \[1\]", length=[1, 1])
    refuse(r"action has shape \[1, 2\]: expected \[1, 3\]", action=[[1, 1]])
    refuse(r"item: expected rank 2, got shape \[3\]", item=[1, 2, 3])
    refuse(r"time: expected integers, got dtype float64", time=[[1.5, 1.0, 1.0]])
    refuse(r"request_time has shape \[2\]: expected \[1\]", request_time=[1, 1])
    refuse(r"features\['sex'\]: the prompt spec has no such feature", features={"sex": ["F"]})
    refuse(r"features\['age'\] has 2 values: expected B = 1", features={"age": [1, 2]})
    refuse(r"features\['age'\]\[0\] = nan: expected a number", features={"age": [float("nan")]})
    refuse(r"features\['age'\]\[0\] = 'x': expected a bucket value", features={"age": ["x"]})
    refuse(r"features\['city'\]\[0\] = 1.0: expected a int64 value", features={"city": [1.0]})
    refuse(r"features\['city'\]\[0\] = 9{30}: expected a int64", features={"city": [int("9" * 30)]})
    refuse(r"features\['gender'\]\[0\] = 3: expected a string value", features={"gender": [3]})
    refuse(
        r"level sizes \[7, 5\]: expected the prompt spec's \[7, 5, 9\]",
        index=catalogue(sid_space([7, 5]), 5, 1),
    )
    refuse(r"sid_space_digest = '.*': expected", index=catalogue(sid_space([7, 5, 9], 1), 5, 1))
    refuse(r"recall index: 2 facets: expected the prompt spec's 1", index=catalogue(shop[1], 5, 2))


def test_share_retokenized():
    merges = lambda text: [1] if text == "ab" else tokenize(text)  # noqa: E731
    text = lambda tokens: "".join("ab" if t == 1 else chr(t) for t in tokens)  # noqa: E731
    prompts = [tokenize("ab"), tokenize("ac"), [1], tokenize("xyz")]
    assert share_retokenized(prompts, merges, text) == 0.25
    assert share_retokenized([], merges, text) == 0.0
