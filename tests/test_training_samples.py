"""Prompt parts and samples: what a prompt holds, what is asked where, and that nothing is told that
is asked for.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sample_shop import SPACE, make_maker

from genrecall.kernels.prompt_spec import PromptSpec
from genrecall.training.dataset import synth
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.prompting import packing, prompts, samples

SMALL = prompts.PromptOptions(recent_events=2, long_term_events=6, block=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("shop"))
    synth.write_shop(path, 60, 60, 0)
    return read_data(path)


def text_of(tokens):
    """A prompt as text, each SID as '#'."""
    sid = {t: level for level, ids in enumerate(SPACE.token_ids) for t in ids}
    return "".join(chr(t) if t not in sid else "#" if sid[t] == 0 else "" for t in tokens)


def own_tokens(made, s):
    return made.tokens[made.begin[s] : made.begin[s + 1]]


# --- the default spec -----------------------------------------------------------------------------


def prompt_text(data, tmp_path, user_row=None, **options):
    """The longest line's prompt, as text."""
    maker = make_maker(data, prompts.default_spec(data, replace(SMALL, **options)), tmp_path)
    user = int(np.argmax(maker.visible)) if user_row is None else user_row
    tokens, length = maker.prompts(np.array([user]), maker.visible[[user]])
    return text_of(tokens[0, : length[0]])


def test_a_prompt_has_its_parts_in_their_order(data, tmp_path):
    text = prompt_text(data, tmp_path)
    task, rest = text.split("Next item.")
    assert task == ""
    head, recent = rest.split(" price")
    profile, past = head.split("#", 1)
    assert " age " in profile or " city " in profile or " gender " in profile
    assert " likes" in past and " often" in past and past.index(" likes") < past.index(" often")
    assert 2 <= recent.count("#") <= 3 and past.split(" likes")[0].count("#") == 5


def test_each_part_can_be_left_out(data, tmp_path):
    full = prompt_text(data, tmp_path)

    def without(*parts):
        return prompt_text(data, tmp_path, leave_out=parts)

    assert " likes" not in without("interest") and " price" not in without("interest")
    assert without("interest").count("#") == full.count("#")
    assert " bought" in full and without("actions") == full.replace(" bought", "")
    profile = without("profile")
    assert full.endswith(profile.removeprefix("Next item.")) and len(profile) < len(full)
    short = without("long_term")
    assert 2 <= short.count("#") <= 3 and " likes" in short
    ad, content = without("content").count("#"), without("ad").count("#")
    assert ad and content and ad + content == full.count("#")
    assert without("ad", "content", "profile") == "Next item."
    split = prompt_text(data, tmp_path, split_domains=True)
    assert split.index(" ad:") < split.index(" content:") < split.index(" likes")
    assert split.count("#") == full.count("#")


def test_parts_are_those_the_folder_has(data, tmp_path):
    assert prompts.parts_of(data) == prompts.PARTS
    (tmp_path / "items.jsonl").write_text('{"id": 1, "title": "x"}\n')
    (tmp_path / "sequences.txt").write_text("1 1 1 1\n")
    bare = read_data(str(tmp_path))
    assert prompts.parts_of(bare) == ("long_term", "content")
    with pytest.raises(ValueError, match=r"leave_out\[0\] = 'profiles': expected profile\|intere"):
        prompts.PromptOptions(leave_out=("profiles",))


def test_leaving_out_a_domain_keeps_the_line(data, tmp_path):
    """What is asked for must not depend on what the prompt shows."""
    makers = [
        make_maker(data, prompts.default_spec(data, replace(SMALL, leave_out=w)), tmp_path)
        for w in ((), ("ad",), ("content",), ("profile", "interest"))
    ]
    for maker in makers[1:]:
        np.testing.assert_array_equal(maker.lines.item, makers[0].lines.item)


def test_facets_are_categories_leading_attributes_and_price_bands(data):
    spec = PromptSpec.from_json(prompts.default_spec(data))
    assert [f.name for f in spec.facets] == list(prompts.FACETS)
    columns = prompts.item_facets(spec, data.items)
    for row in (0, 7, 31):
        texts = [f.values[v] for f, v in zip(spec.facets, columns[row], strict=True)]
        assert texts[0].strip() == data.items.categories[row]
        assert texts[1].strip() == data.items.attributes[row][0]
    bands = columns[:, 2]
    price = data.items.price
    assert price[bands == 0].max() < price[bands == 1].min() <= price[bands == 2].min()
    assert np.bincount(bands).tolist() == [20, 20, 20]
    other = json.loads(json.dumps(spec.to_json()))
    other["facets"][0]["name"] = "colour"
    other["segments"] = [{"kind": "text", "text": "x"}]
    with pytest.raises(ValueError, match=r"facet 'colour': expected one of category, attribute,"):
        prompts.item_facets(PromptSpec.from_json(other), data.items)


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["", ";"])
def test_labels_are_the_codes_that_follow_in_the_prompt(data, tmp_path, separator):
    spec = prompts.default_spec(data, prompts.PromptOptions(leave_out=("interest",)))
    spec["behaviors"]["separator"] = separator
    maker = make_maker(data, spec, tmp_path)
    made = maker.make(np.array([0, 3, 5]), np.array([4, 2, 1]))
    for s, (user, end) in enumerate([(0, 4), (3, 2), (5, 1)]):
        own = own_tokens(made, s)
        line = maker.lines.items_of(user)[: end + 1]
        codes = np.asarray(maker.index.lookup(line)[0]).tolist()
        assert own[-2:].tolist() == [SPACE.token_ids[i][codes[-1][i]] for i in range(2)]
        prompt, length = maker.prompts(np.array([user]), np.array([end]))
        np.testing.assert_array_equal(own[:-2], prompt[0, : length[0]])
        targets = slice(made.target_begin[s], made.target_begin[s + 1])
        assert made.code[targets].tolist() == codes
        at = made.at[targets]
        for code, position in zip(made.code[targets], at, strict=True):
            for level in range(1, 3):
                assert own[position[level]] == SPACE.token_ids[level - 1][code[level - 1]]
        # The response is asked where the prompt ends, and so is each event before it: after the
        # one before, never after its own action's text, which stands before some of them.
        assert at[-1].tolist() == [len(own) - 3, len(own) - 2, len(own) - 1]
        assert (at[1:, 0] == at[:-1, 2] + 1 + len(separator)).all()
    assert not made.own.any()


def test_without_history_loss_only_the_response_is_a_target(data, tmp_path):
    maker = make_maker(data, prompts.default_spec(data), tmp_path, history_loss=False)
    made = maker.epoch()
    assert len(made.at) == len(made) == (maker.visible >= 2).sum()


def layouts(data):
    """Specs whose prompts differ in what they show and in which order."""

    def moved(spec, front):
        """The segments of kind `front` right after the profile."""
        first = [s for s in spec["segments"] if s["kind"] == front]
        rest = [s for s in spec["segments"] if s["kind"] != front]
        at = next(i for i, s in enumerate(rest) if s["kind"] in ("long_term", "recent", "interest"))
        return spec | {"segments": rest[:at] + first + rest[at:]}

    def options(**changes):
        return prompts.default_spec(data, replace(SMALL, **changes))

    plain = options()
    return {
        "default": plain,
        "summary first": moved(plain, "interest"),
        "recent first": moved(plain, "recent"),
        "no long term": options(leave_out=("long_term",)),
        "content only": options(leave_out=("ad",)),
        "nothing": options(leave_out=("ad", "content")),
        "by domain": options(split_domains=True),
        "merged": options(merge_levels=1, merge_window=3),
        "few events": options(max_events=9),
    }


LAYOUTS = (
    "default",
    "summary first",
    "recent first",
    "no long term",
    "content only",
    "nothing",
    "by domain",
    "merged",
    "few events",
)


def seen_by(made, s, position):
    """Tokens of sample s that the token at `position` sees, itself included."""
    span = slice(made.begin[s], made.begin[s + 1])
    own, anchor = made.own[span], made.anchor[span]
    return [
        int(t)
        for k, t in enumerate(made.tokens[span][: position + 1])
        if k >= own[position] or k < anchor[position]
    ]


@pytest.mark.parametrize("responses", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_event_is_asked_for_and_never_told(data, tmp_path, layout, responses):
    """Completeness: in one pass every visible event is a target. Soundness: what the asking token
    sees holds events before the target only, each item once in a line.
    """
    maker = make_maker(data, layouts(data)[layout], tmp_path, responses=responses)
    codes = np.arange(len(data.items))  # every item its own SID, so that tokens name items
    codes = np.stack([codes % 7, codes // 7 % 5, codes // 35], axis=1)
    item_id, *_, facets = maker.index.rows()
    order = np.argsort(item_id)
    maker.index = type(maker.index).build(
        SPACE.level_sizes, item_id[order], codes, None, facets[order], SPACE.digest
    )
    item_of = {tuple(c): int(i) for c, i in zip(codes.tolist(), item_id[order], strict=True)}
    level_0 = set(SPACE.token_ids[0])
    code_of = [{t: c for c, t in enumerate(ids)} for ids in SPACE.token_ids]
    lines = [maker.lines.items_of(u)[:n].tolist() for u, n in enumerate(maker.visible)]
    line = max((x for x in lines if len(set(x)) == len(x)), key=len)
    assert len(line) > 15
    user = lines.index(line)
    maker.visible = np.where(np.arange(len(maker.visible)) == user, maker.visible, 0)
    for generator in (None, np.random.default_rng(0)):
        made = maker.epoch(generator)
        asked_for = set()
        for s in range(len(made)):
            for t in range(made.target_begin[s], made.target_begin[s + 1]):
                target = line.index(item_of[tuple(made.code[t].tolist())])
                asked_for.add(target)
                seen = seen_by(made, s, made.at[t, 0])
                told = [
                    item_of[tuple(code_of[level][seen[i + level]] for level in range(3))]
                    for i, token in enumerate(seen)
                    if token in level_0
                ]
                assert all(line.index(item) < target for item in told)
                deeper = seen_by(made, s, made.at[t, 2])
                assert deeper[: len(seen)] == seen
                want = [SPACE.token_ids[level][made.code[t, level]] for level in range(2)]
                assert deeper[-2:] == want
        assert asked_for >= set(range(1, len(line)))


def test_several_responses_share_their_prompt(data, tmp_path):
    spec = prompts.default_spec(data, SMALL)
    maker = make_maker(data, spec, tmp_path, history_loss=False, responses=3)
    user = int(np.argmax(maker.visible))
    end = int(maker.visible[user]) - 5
    made = maker.make(np.array([user]), np.array([end]))
    codes = np.asarray(maker.index.lookup(maker.lines.items_of(user)[end : end + 3])[0])
    np.testing.assert_array_equal(made.code, codes)
    _, length = maker.prompts(np.array([user]), np.array([end]))
    start = int(length[0])
    assert made.at.tolist() == [[start - 1, b, b + 1] for b in (start, start + 2, start + 4)]
    assert made.own.tolist() == [0] * (start + 2) + [start + 2] * 2 + [start + 4] * 2
    assert made.anchor.tolist() == [0] * (start + 2) + [start] * 4
    tail = [SPACE.token_ids[level][c[level]] for c in codes for level in range(2)]
    assert made.tokens[start:].tolist() == tail
    with pytest.raises(ValueError, match=r"responses = 0: expected >= 1"):
        make_maker(data, spec, tmp_path, responses=0)


def test_responses_are_drawn_and_no_more_than_there_are_events(data, tmp_path):
    spec = prompts.default_spec(data, SMALL)
    maker = make_maker(data, spec, tmp_path, history_loss=False, responses=3)
    made = maker.epoch()
    wanted = np.minimum(maker.visible[maker.visible >= 2] - 1, 3)
    assert sorted(np.diff(made.target_begin)) == sorted(wanted)
    drawn = np.diff(maker.epoch(np.random.default_rng(0)).target_begin)
    assert set(drawn.tolist()) == {1, 2, 3}


def test_nobody_to_learn_from(data, tmp_path):
    maker = make_maker(data, prompts.default_spec(data), tmp_path)
    maker.visible = np.minimum(maker.visible, 1)
    with pytest.raises(ValueError, match="no user has two events in the training part"):
        maker.epoch()


# --- packing --------------------------------------------------------------------------------------


def test_layout_is_what_it_says():
    own = np.array([[0, 0, 0, 3, 3, 5, 5]])
    anchor = np.array([[0, 0, 0, 3, 3, 2, 2]])
    position, visible = packing.layout(torch.from_numpy(own), torch.from_numpy(anchor))
    assert position.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    rows = ["".join(map(str, row)) for row in visible[0, 0].int().tolist()]
    assert rows == [
        "1000000",
        "1100000",
        "1110000",
        "1111000",
        "1111100",
        "1100010",
        "1100011",
    ]


def test_batches_of_packed_samples_are_the_samples(data, tmp_path):
    maker = make_maker(data, prompts.default_spec(data, SMALL), tmp_path, responses=3)
    made = maker.epoch()
    chosen = np.array([5, 0, len(made) - 1])
    batch = made.batch(chosen)
    assert batch.tokens.shape == (3, made.lengths[chosen].max())
    targets = 0
    for row, s in enumerate(chosen):
        n = made.lengths[s]
        assert batch.tokens[row, :n].tolist() == own_tokens(made, s).tolist()
        assert not batch.tokens[row, n:].any()
        assert batch.own[row, :n].tolist() == made.own[made.begin[s] : made.begin[s + 1]].tolist()
        for t in range(made.target_begin[s], made.target_begin[s + 1]):
            width = batch.tokens.shape[1]
            assert batch.at[:, targets].tolist() == (made.at[t] + row * width).tolist()
            assert batch.code[:, targets].tolist() == made.code[t].tolist()
            targets += 1
    assert batch.at.shape == (3, targets) and batch.text_at is None


def test_concatenated_samples_stay_what_they_are(data, tmp_path):
    maker = make_maker(data, prompts.default_spec(data, SMALL), tmp_path, responses=2)
    users = np.flatnonzero(maker.visible >= 4)[:4]
    ends = np.array([1, 2, 3, 1])
    together = maker.make(users, ends)
    parts = [maker.make(users[i : i + 1], ends[i : i + 1]) for i in range(4)]
    joined = packing.concatenate(parts)
    for name in ("tokens", "own", "anchor", "begin", "at", "code", "target_begin", "text_begin"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(together, name))


def test_row_blocks_partition_and_stay_within_their_cells():
    widths = np.array([3, 5, 2, 2000, 1, 1, 7])
    blocks = list(samples.row_blocks(widths, cells=16))
    assert np.concatenate([np.arange(7)[b] for b in blocks]).tolist() == list(range(7))
    assert all(len(widths[b]) == 1 or len(widths[b]) * widths[b].max() <= 16 for b in blocks)
    assert [b.stop - b.start for b in blocks] == [3, 1, 2, 1]
    assert list(samples.row_blocks(widths[:0])) == []
