"""Every training command on data folders that nobody prepared for it, whole and broken."""

import json
import resource
import time

import numpy as np
import pytest
import strange_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrecall import cli
from genrecall.training.dataset import splits
from genrecall.training.dataset.data_folder import read_data

QUICK = "--preset tiny --validations 1 --valid_users 20 --threads 1".split()


def run_all(shop, run, sft, evaluate=()):
    """The commands of the line, in their order; each must end with status 0."""
    data = ["--data", shop]
    npz, index = f"{run}/semantic_ids/semantic_ids.npz", f"{run}/recall_index.gguf"
    catalogue = ["--checkpoint", f"{run}/checkpoint", "--semantic_ids", npz, "--output", index]
    for command in (
        ["tokenize", *data, "--output", run],
        ["sft", *data, "--run", run, *QUICK, *sft],
        ["index", *data, *catalogue],
        ["evaluate", *data, "--run", run, *evaluate],
    ):
        assert cli.main(command) == 0, command[0]


def test_every_command_runs_on_a_strange_folder(tmp_path):
    """Missing titles, any unicode, users with one event, a user with 2,000."""
    shop, run = strange_folder.write(tmp_path / "shop", 250, 150), str(tmp_path / "run")
    data = read_data(shop)
    lengths = np.diff(data.events.begin)
    assert (lengths == 1).sum() > 30 and lengths.max() == 2000
    assert sum(not title for title in data.items.titles) > 30
    run_all(shop, run, ["--steps", "8"])
    result = json.load(open(f"{run}/evaluation_valid.json"))
    lines = splits.clean_lines(data.events)
    assert result["users"] == len(lines.evaluated("valid")) > 50
    # An item is often followed by its neighbour: what counts that must find it.
    assert result["methods"]["markov-1"]["hr@10"] > 0.3
    assert all(0 <= m["hr@10"] <= 1 for m in result["methods"].values())


@pytest.mark.slow
def test_every_command_runs_at_50000_users_and_20000_items(tmp_path):
    shop, run = strange_folder.write(tmp_path / "shop", 50_000, 20_000), str(tmp_path / "run")
    started = time.process_time()
    lines = splits.clean_lines(read_data(shop).events)
    lines.evaluated("valid")
    assert time.process_time() - started < 30  # 2 s of an idle core
    run_all(shop, run, ["--steps", "30"], ["--users", "5000", "--beam_width", "20"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6  # KB


BROKEN = {
    "unknown item": ("sequences.txt", "1 10 20\n2 30 99 10\n", r"sequences.txt:2: unknown item 99"),
    "duplicate item": (
        "items.jsonl",
        '{"id": 10}\n{"id": 20}\n{"id": 10}\n',
        "items.jsonl:3: duplicate item id 10",
    ),
    "duplicate user": ("sequences.txt", "1 10\n2 20\n1 30\n", "sequences.txt:3: duplicate user 1"),
    "bad JSON": ("items.jsonl", '{"id": 10}\n{"id": 20,,}\n', "items.jsonl:2: bad JSON"),
    "empty items": ("items.jsonl", "", "items.jsonl: empty file"),
    "empty sequences": ("sequences.txt", "\n\n", "sequences.txt: empty file"),
}
COMMANDS = {
    "tokenize": lambda shop, run: ["tokenize", "--data", shop, "--output", run],
    "sft": lambda shop, run: ["sft", "--data", shop, "--run", run],
    "evaluate": lambda shop, run: ["evaluate", "--data", shop, "--run", run],
    "ablate": lambda shop, run: ["ablate", "--data", shop, "--run", run],
    "index": lambda shop, run: (
        ["index", "--data", shop, "--checkpoint", run, "--semantic_ids", run, "--output", run]
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(tmp_path, capsys, how, command):
    name, content, message = BROKEN[how]
    (tmp_path / "items.jsonl").write_text("".join(f'{{"id": {i}}}\n' for i in (10, 20, 30)))
    (tmp_path / "sequences.txt").write_text("1 10 20 30\n")
    (tmp_path / name).write_text(content)
    run = tmp_path / "run"
    assert cli.main(COMMANDS[command](str(tmp_path), str(run))) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not run.exists()


# Any text JSON can carry, lone surrogates apart: those are not UTF-8.
titles = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(titles, min_size=1, max_size=12), st.lists(st.integers(1, 40), min_size=1))
def test_any_title_and_any_lengths_can_be_read(tmp_path, titles, lengths):
    rows = [{"id": i, "title": title} for i, title in enumerate(titles)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "items.jsonl").write_bytes(lines.encode())
    users = [f"{u} " + " ".join(["0"] * n) for u, n in enumerate(lengths)]
    (tmp_path / "sequences.txt").write_text("\n".join(users))
    data = read_data(str(tmp_path))
    assert data.items.titles == [(title or "").strip() for title in titles]
    assert np.diff(data.events.begin).tolist() == lengths
    assert not len(splits.clean_lines(data.events).evaluated("valid"))  # every target repeats
