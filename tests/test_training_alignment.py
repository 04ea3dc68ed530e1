"""Alignment tasks: what their samples say and ask, how many there are, and their way into sft."""

import json

import numpy as np
import pytest
from prompt_shop import tokenize
from sample_shop import SPACE, semantic_ids
from tiny_run import tokenized

from genrecall import cli
from genrecall.training import config
from genrecall.training.dataset import synth
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.semantic_ids import text
from genrecall.training.tuning import alignment
from genrecall.training.tuning.alignment import TASKS, Alignment
from genrecall.training.tuning.run import prepare
from genrecall.training.tuning.sft_options import SftOptions

END = 9_999


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("shop"))
    synth.write_shop(path, 5, 60, 0)
    return read_data(path).items


def align(items, tasks, end=END):
    codes = semantic_ids(items).codes
    return Alignment(items, codes, SPACE.token_ids, tokenize, end, tasks), codes


def sids_text(codes):
    return "".join(f"<{'-'.join(map(str, c))}>" for c in np.atleast_2d(codes).tolist())


def spoken(tokens):
    """Tokens as text, SIDs as <code-code-code>, the end as $."""
    code_of = [{t: c for c, t in enumerate(ids)} for ids in SPACE.token_ids]
    out = ""
    for t in tokens:
        if t in code_of[0]:
            out += f"<{code_of[0][t]}"
        elif t in code_of[1]:
            out += f"-{code_of[1][t]}"
        elif t in code_of[2]:
            out += f"-{code_of[2][t]}>"
        else:
            out += "$" if t == END else chr(t)
    return out


def each(made):
    """(tokens, SID targets [(at, code)], text targets [(at, token)]) of each sample."""
    for s in range(len(made)):
        own = made.tokens[made.begin[s] : made.begin[s + 1]].tolist()
        sids = slice(made.target_begin[s], made.target_begin[s + 1])
        texts = slice(made.text_begin[s], made.text_begin[s + 1])
        yield (
            own,
            list(zip(made.at[sids].tolist(), made.code[sids].tolist(), strict=True)),
            list(zip(made.text_at[texts].tolist(), made.text_token[texts].tolist(), strict=True)),
        )


def test_text_to_sid(items):
    tasks, codes = align(items, {"text_to_sid": 1.0})
    row_of = {t: row for row, t in enumerate(text.item_texts(items))}
    seen = set()
    for own, sids, texts in each(tasks.epoch(np.random.default_rng(0), 60)):
        prompt = spoken(own[:-2])
        head, said = prompt[: len(TASKS["text_to_sid"])], prompt[len(TASKS["text_to_sid"]) + 1 :]
        whole = [t for t in row_of if t[: alignment.MAX_TEXT_TOKENS - 1] == said]
        assert head == TASKS["text_to_sid"] and whole and not texts
        ((at, code),) = sids
        row = next(row_of[t] for t in whole if codes[row_of[t]].tolist() == code)
        seen.add(row)
        assert at == [len(own) - 3, len(own) - 2, len(own) - 1]
        assert own[-2:] == [SPACE.token_ids[level][codes[row, level]] for level in range(2)]
    assert len(seen) == 60  # each item once


@pytest.mark.parametrize("end", [END, None])
def test_sid_to_text(items, end):
    tasks, codes = align(items, {"sid_to_text": 1.0}, end)
    seen = set()
    for own, sids, texts in each(tasks.epoch(np.random.default_rng(0), 60)):
        assert not sids
        answer = spoken([token for _, token in texts])
        assert [own[at + 1] for at, _ in texts] == [token for _, token in texts]
        assert [at for at, _ in texts] == list(range(len(own) - len(texts) - 1, len(own) - 1))
        title = answer.removesuffix("$").removeprefix(" ")
        assert answer.endswith("$") == (end is not None)
        row = items.titles.index(title)
        seen.add(row)
        asked = own[: len(own) - len(texts)]
        assert spoken(asked) == TASKS["sid_to_text"] + sids_text(codes[row])
    assert len(seen) == 60


def test_category_to_sids(items):
    tasks, codes = align(items, {"category_to_sids": 1.0})
    rows = {c: {r for r in range(60) if items.categories[r] == c} for c in items.categories}
    asked_for = {c: set() for c in rows}
    made = tasks.epoch(np.random.default_rng(0), 200)
    for s, (own, sids, texts) in enumerate(each(made)):
        length = sids[0][0][0] + 1
        head = f"{TASKS['category_to_sids']} "
        assert spoken(own[:length]).startswith(head) and not texts
        category = spoken(own[:length]).removeprefix(head)
        got = [code for _, code in sids]
        assert len(got) == min(alignment.RESPONSES, len(rows[category]))
        members = [tuple(codes[r]) for r in rows[category]]
        for code in got:
            assert tuple(code) in members
        assert len(set(map(tuple, got))) == len(got) or len(set(members)) < len(members)
        asked_for[category] |= {tuple(code) for code in got}
        span = slice(made.begin[s], made.begin[s + 1])
        assert made.anchor[span].tolist()[length + 2 :] == [length] * (2 * len(got) - 2)
    assert all(asked_for[c] == {tuple(codes[r]) for r in rows[c]} for c in rows)


def test_title_completion(items):
    tasks, _ = align(items, {"title_completion": 1.0})
    lengths = set()
    for own, sids, texts in each(tasks.epoch(np.random.default_rng(0), 60)):
        assert not sids
        title = spoken(own).removeprefix(TASKS["title_completion"] + " ")
        assert title.removesuffix("$") in items.titles and title.endswith("$")
        assert [own[at + 1] for at, _ in texts] == [token for _, token in texts]
        assert texts[-1][0] == len(own) - 2
        assert 1 <= len(texts) <= len(title)  # at least the first token is given
        lengths.add(len(texts))
    assert len(lengths) > 10


def test_long_titles_are_cut_and_do_not_end(items):
    titles = [t * 9 for t in items.titles]
    longer = type(items)(**{**vars(items), "titles": titles})
    tasks, _ = align(longer, {"sid_to_text": 1.0})
    for _, _, texts in each(tasks.epoch(np.random.default_rng(0), 10)):
        assert len(texts) == alignment.MAX_TEXT_TOKENS and texts[-1][1] != END


def test_shares_are_of_the_samples_of_users(items):
    shares = {"text_to_sid": 0.5, "sid_to_text": 1.5, "title_completion": 0.0}
    tasks, _ = align(items, shares)
    assert "title_completion" not in tasks.tasks
    made = tasks.epoch(np.random.default_rng(0), 100)
    assert len(made) == 50 + 150 and (np.diff(made.text_begin) > 0).sum() == 150
    assert tasks.epoch(np.random.default_rng(0), 0) is None
    assert align(items, {})[0].epoch(np.random.default_rng(0), 100) is None
    again = tasks.epoch(np.random.default_rng(0), 100)
    np.testing.assert_array_equal(made.tokens, again.tokens)


def bare(items, **columns):
    empty = {"titles": [""] * len(items), "categories": [""] * len(items)}
    return type(items)(**{**vars(items), **empty, **columns})


def test_attributes_stand_in_for_categories(items):
    tasks, _ = align(bare(items), {"category_to_sids": 1.0})
    assert set(tasks.groups) == {
        a
        for attributes in items.attributes
        for a in attributes
        if 1 < sum(a in other for other in items.attributes) <= 30
    }


def test_items_without_a_title_are_left_out(items):
    titles = ["", "x", "pump"] + [""] * (len(items) - 3)
    few = bare(items, titles=titles)
    for name, rows in (("sid_to_text", [1, 2]), ("title_completion", [1, 2])):
        assert align(few, {name: 1.0})[0]._subjects(name).tolist() == rows


def test_errors_name_the_task(items):
    with pytest.raises(ValueError, match=r"tasks\['title'\]: expected one of text_to_sid, sid_to"):
        align(items, {"title": 1.0})
    with pytest.raises(ValueError, match=r"tasks\['sid_to_text'\]: no item has the text that it"):
        align(bare(items), {"sid_to_text": 1.0})
    nothing = bare(items, attributes=[()] * len(items))
    with pytest.raises(ValueError, match=r"tasks\['category_to_sids'\]: no item has the text"):
        align(nothing, {"category_to_sids": 1.0})
    with pytest.raises(ValueError, match=r"tasks\['titles'\]: expected one of text_to_sid"):
        config.load(SftOptions, overrides={"tasks": {"titles": 0.1}})
    with pytest.raises(ValueError, match=r"tasks\['text_to_sid'\] = -1.0: expected 0..100"):
        config.load(SftOptions, overrides={"tasks": {"text_to_sid": -1.0}})


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """(data folder, run folder with semantic IDs)."""
    return tokenized(tmp_path_factory, users=30, items=40)


def test_sft_mixes_tasks_in(run_folder):
    shop, run = run_folder
    options = "--preset tiny --epochs 1 --validations 1 --valid_users 5 --threads 1 --responses 2"
    tasks = "--tasks text_to_sid=0.5 sid_to_text=0.2 --leave_out profile actions".split()
    assert cli.main(["sft", "--data", shop, "--run", run, *options.split(), *tasks]) == 0
    with open(f"{run}/checkpoint/prompt_spec.json", encoding="utf-8") as f:
        spec = json.load(f)
    assert not spec["features"] and not spec["behaviors"]["action_text"]["conversion"]


def test_one_pass_holds_users_and_tasks(run_folder):
    shop, run = run_folder
    options = config.load(SftOptions, {"tasks": {"text_to_sid": 0.5}, "responses": 2})
    prepared = prepare(shop, run, options)
    made = prepared.epoch(np.random.default_rng(1))
    users = prepared.maker.epoch(np.random.default_rng(1))
    assert len(made) == len(users) + round(0.5 * len(users))
    np.testing.assert_array_equal(made.tokens[: len(users.tokens)], users.tokens)
    plain = prepare(shop, run, config.load(SftOptions, {"responses": 2}))
    assert len(plain.epoch(np.random.default_rng(1))) == len(users)


def test_a_spec_of_ones_own_takes_no_options_of_the_default_one():
    given = {"prompt_spec": "spec.json", "prompt": {"leave_out": ["profile"]}}
    with pytest.raises(ValueError, match=r"prompt_spec = 'spec.json': expected no options of the"):
        config.load(SftOptions, overrides=given)
