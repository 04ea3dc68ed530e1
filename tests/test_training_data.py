"""The data folder reader and the generated shop."""

import filecmp
import json

import numpy as np
import pytest

from genrecall.training.dataset import data_folder as data_module
from genrecall.training.dataset import synth
from genrecall.training.dataset.data_folder import read_data

ITEMS = [
    {"id": 1, "title": "Röd läppstift 💄", "attributes": ["Ö"]},
    {"id": 2, "title": None},
    {"id": 30},
]
HEADER = "user_id,item_id,action,domain,timestamp\n"


def write_folder(path, items=None, **files):
    """A data folder in `path`; files: name with _ for . -> text."""
    path.mkdir(exist_ok=True)
    items = "".join(json.dumps(i) + "\n" for i in ITEMS) if items is None else items
    (path / "items.jsonl").write_text(items, encoding="utf-8")
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return str(path)


def test_sequences(tmp_path):
    data = read_data(write_folder(tmp_path, sequences_txt="7 1 2 30\n9 30\n"))
    assert data.items.ids.tolist() == [1, 2, 30]
    assert data.items.titles == ["Röd läppstift 💄", "", ""]
    assert data.items.attributes == [("Ö",), (), ()]
    assert np.isnan(data.items.price).all()
    assert data.events.user_id.tolist() == [7, 9]
    assert data.events.begin.tolist() == [0, 3, 4]
    assert data.events.item.tolist() == [1, 2, 30, 30]
    assert (np.diff(data.events.time[:3]) == data_module.SEQUENCE_STEP_S).all()
    assert data.events.time[3] == data_module.SEQUENCE_START_S


def test_event_table_groups_users_and_sorts_by_time(tmp_path):
    rows = "5,2,click,ad,300\n6,1,exposure,content,5\n5,1,2,1,100\n5,30,click,ad,300\n"
    events = read_data(write_folder(tmp_path, events_csv=HEADER + rows)).events
    assert events.user_id.tolist() == [5, 6]
    assert events.begin.tolist() == [0, 3, 4]
    assert events.item.tolist() == [1, 2, 30, 1]  # the tie at 300 keeps the file's order
    assert events.action.tolist() == [2, 1, 1, 0]
    assert events.domain.tolist() == [1, 0, 0, 1]
    assert events.time.tolist() == [100, 300, 300, 5]


def test_columns_by_name_and_profiles(tmp_path):
    text = "timestamp,domain,extra,action,item_id,user_id\n9,ad,x,click,2,4\n"
    users = '{"user_id": 4, "gender": "F", "age": 31, "city": null}\n'
    data = read_data(write_folder(tmp_path, events_csv=text, users_jsonl=users))
    assert (data.events.user_id[0], data.events.item[0], data.events.time[0]) == (4, 2, 9)
    assert data.profiles == {4: {"gender": "F", "age": 31}}


BROKEN = {
    "bad JSON": (
        dict(items='{"id": 1}\n{"id": 2,}\n', sequences_txt="1 1\n"),
        r"items\.jsonl:2: bad JSON",
    ),
    "not an object": (
        dict(items="[1]\n", sequences_txt="1 1\n"),
        r"items\.jsonl:1: expected a JSON object, got list",
    ),
    "duplicate item": (
        dict(items='{"id": 1}\n\n{"id": 1}\n', sequences_txt="1 1\n"),
        r"items\.jsonl:3: duplicate item id 1",
    ),
    "negative id": (
        dict(items='{"id": -1}\n', sequences_txt="1 1\n"),
        r"items\.jsonl:1: id = -1: expected an integer",
    ),
    "no id": (dict(items='{"title": "x"}\n', sequences_txt="1 1\n"), r"items\.jsonl:1: id = None"),
    "bad attributes": (
        dict(items='{"id": 1, "attributes": "x"}\n', sequences_txt="1 1\n"),
        r":1: attributes = 'x'",
    ),
    "bad price": (
        dict(items='{"id": 1, "price": NaN}\n', sequences_txt="1 1\n"),
        r":1: price = nan: expected a finite",
    ),
    "price beyond float32": (
        dict(items='{"id": 1, "price": 1e39}\n', sequences_txt="1 1\n"),
        r":1: price = 1e\+39: expected a finite",
    ),
    "price of 400 digits": (
        dict(items='{"id": 1, "price": ' + "9" * 400 + "}\n", sequences_txt="1 1\n"),
        r"items\.jsonl:1: price = 9{40}: expected a finite",
    ),
    "id of 5000 digits": (
        dict(items='{"id": ' + "9" * 5000 + "}\n", sequences_txt="1 1\n"),
        r"items\.jsonl:1: bad JSON: Exceeds the limit",
    ),
    "deep JSON": (
        dict(items='{"id": ' + "[" * 100_000 + "\n", sequences_txt="1 1\n"),
        r"items\.jsonl:1: bad JSON: maximum recursion",
    ),
    "long field": (
        dict(events_csv=HEADER + '1,2,click,ad,"' + "5" * 200_000 + '"\n'),
        r"events\.csv:2: bad CSV: field larger",
    ),
    "empty items": (dict(items="", sequences_txt="1 1\n"), r"items\.jsonl: empty file"),
    "empty sequences": (dict(sequences_txt=""), r"sequences\.txt: empty file"),
    "unknown item": (dict(sequences_txt="1 1 2\n2 1 99\n"), r"sequences\.txt:2: unknown item 99"),
    "duplicate user": (dict(sequences_txt="1 1\n1 2\n"), r"sequences\.txt:2: duplicate user 1"),
    "user without items": (
        dict(sequences_txt="1 1\n2\n"),
        r"sequences\.txt:2: user 2 has no items",
    ),
    "word in a sequence": (
        dict(sequences_txt="1 one\n"),
        r"sequences\.txt:1: user or item = 'one'",
    ),
    "missing column": (
        dict(events_csv="user_id,item_id,action,timestamp\n"),
        r"events\.csv:1: missing column 'domain'",
    ),
    "empty events": (dict(events_csv=""), r"events\.csv: empty file"),
    "only a header": (dict(events_csv=HEADER), r"events\.csv: no events"),
    "short row": (dict(events_csv=HEADER + "1,2,click\n"), r"events\.csv:2: 3 fields: expected 5"),
    "unknown action": (
        dict(events_csv=HEADER + "1,2,like,ad,5\n"),
        r"events\.csv:2: action = 'like': expected one of exposure",
    ),
    "unknown domain": (dict(events_csv=HEADER + "1,2,click,7,5\n"), r"events\.csv:2: domain = '7'"),
    "unknown item in events": (
        dict(events_csv=HEADER + "1,2,click,ad,5\n1,77,click,ad,6\n"),
        r"events\.csv:3: unknown item 77",
    ),
    "duplicate profile": (
        dict(sequences_txt="1 1\n", users_jsonl='{"user_id": 1}\n{"user_id": 1}\n'),
        r"users\.jsonl:2: duplicate user_id 1",
    ),
    "two behaviour files": (dict(sequences_txt="1 1\n", events_csv=HEADER), r"found both"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_refused_with_file_and_line(tmp_path, case):
    files, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        read_data(write_folder(tmp_path, **files))


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data folder"):
        read_data(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="expected sequences.txt or events.csv"):
        read_data(write_folder(tmp_path))


def test_bytes_that_are_not_utf8(tmp_path):
    folder = write_folder(tmp_path, sequences_txt="1 1\n")
    (tmp_path / "items.jsonl").write_bytes(b'{"id": 1}\n{"id": 2, "title": "\xff"}\n')
    with pytest.raises(ValueError, match=r"items\.jsonl:2: not UTF-8"):
        read_data(folder)
    folder = write_folder(tmp_path / "table")
    (tmp_path / "table" / "events.csv").write_bytes((HEADER + "1,1,click,ad,5\n").encode("utf-16"))
    with pytest.raises(ValueError, match=r"events\.csv: not UTF-8"):
        read_data(folder)


def test_shop_is_deterministic_and_readable(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        synth.write_shop(str(tmp_path / name), 60, 40, seed)
    names = ["items.jsonl", "users.jsonl", "events.csv"]
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False)[0] == names
    assert not filecmp.cmp(
        tmp_path / "a" / "events.csv", tmp_path / "c" / "events.csv", shallow=False
    )
    data = read_data(str(tmp_path / "a"))
    assert len(data.items) == 40 and data.events.num_users == 60
    assert set(np.unique(data.events.action)) == {0, 1, 2} and set(
        np.unique(data.events.domain)
    ) == {0, 1}
    assert np.isfinite(data.items.price).all() and np.isfinite(data.items.ecpm).all()
    assert {"gender", "age", "city"} == {name for p in data.profiles.values() for name in p}
    assert data.digest != read_data(str(tmp_path / "c")).digest


def test_the_next_item_is_often_of_the_same_collection(tmp_path):
    rng = np.random.default_rng(0)
    shop = synth.make_shop(300, rng)
    lines = [
        synth.make_line(shop, synth.Taste(synth.make_user(1, rng), shop, rng), 15, rng)
        for _ in range(50)
    ]
    pairs = [(a, b) for line in lines for a, b in zip(line[:-1], line[1:], strict=True)]
    same = np.mean([shop.collection_of[a] == shop.collection_of[b] for a, b in pairs])
    assert same > 0.35
    assert all(len(set(line)) == len(line) for line in lines)


@pytest.mark.parametrize("num_items", [1, 2, 5])
def test_tiny_shops(tmp_path, num_items):
    synth.write_shop(str(tmp_path / "shop"), 3, num_items, 0)
    assert len(read_data(str(tmp_path / "shop")).items) == num_items
