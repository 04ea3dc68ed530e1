"""The data folder: items, behaviours, users. Knows no split, no tokenizer and no model.

    items.jsonl     one object a line: id, title, attributes [..]; optional category, price, ecpm
    sequences.txt   `user item item ...`, oldest first; or
    events.csv      user_id,item_id,action,domain,timestamp (names or numbers; Unix seconds)
    users.jsonl     optional; one object a line: user_id and any profile features

Whatever is wrong with a folder is a ValueError that starts with `file:line:`.
"""

import csv
import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

ACTIONS = {"exposure": 0, "click": 1, "conversion": 2}
DOMAINS = {"ad": 0, "content": 1}
EVENT_COLUMNS = ("user_id", "item_id", "action", "domain", "timestamp")

MAX_NUMBER = float(np.finfo(np.float32).max)

# sequences.txt has order but no times. Its events get times further apart than any sensible repeat
# window, so that behaviour cleaning keeps every one of them.
SEQUENCE_START_S = 1_577_836_800  # 2020-01-01
SEQUENCE_STEP_S = 2 * 86400


@dataclass(frozen=True)
class Items:
    """The catalogue, in the order of items.jsonl.

    ids int64 [N], distinct, >= 0; titles and categories list[str] [N], "" where missing; attributes
    list of tuples of str [N]; price, ecpm float32 [N], NaN where missing.
    """

    ids: np.ndarray
    titles: list
    attributes: list
    categories: list
    price: np.ndarray
    ecpm: np.ndarray
    row_of: dict = field(repr=False)  # item id -> row

    def __len__(self):
        return len(self.ids)

    def take(self, rows):
        """The Items of some rows, in their order."""
        ids = self.ids[rows]
        return Items(
            ids,
            [self.titles[r] for r in rows],
            [self.attributes[r] for r in rows],
            [self.categories[r] for r in rows],
            self.price[rows],
            self.ecpm[rows],
            {int(i): r for r, i in enumerate(ids)},
        )

    @cached_property
    def _by_id(self):
        order = np.argsort(self.ids)
        return order, self.ids[order]

    def rows(self, item_ids):
        """Rows of items, int64 like `item_ids` (int64, any shape).

        Raises:
          ValueError: an item that is not in the catalogue, by its id.
        """
        order, ids = self._by_id
        item_ids = np.asarray(item_ids, np.int64)
        at = np.minimum(np.searchsorted(ids, item_ids), len(ids) - 1)
        unknown = item_ids[ids[at] != item_ids]
        if unknown.size:
            raise ValueError(f"item {unknown.flat[0]}: not in items.jsonl")
        return order[at]


@dataclass(frozen=True)
class Events:
    """The behaviours of all users: user u has events begin[u]:begin[u + 1], in the order of the
    file.

    user_id int64 [U], begin int64 [U + 1]; item int64 [E], action and domain int32 [E], time int64
    [E] (Unix seconds).
    """

    user_id: np.ndarray
    begin: np.ndarray
    item: np.ndarray
    action: np.ndarray
    domain: np.ndarray
    time: np.ndarray

    def __len__(self):
        return len(self.item)

    @property
    def num_users(self):
        return len(self.user_id)

    def of(self, u):
        """The slice of user number u."""
        return slice(self.begin[u], self.begin[u + 1])


@dataclass(frozen=True)
class DataSet:
    """A data folder, read and checked. profiles: user id -> {feature: value}; digest: sha256 hex
    of the files read.
    """

    path: str
    items: Items
    events: Events
    profiles: dict
    digest: str


def read_data(path):
    """Reads a data folder.

    Raises:
      FileNotFoundError: the folder, items.jsonl, or both sequences.txt and events.csv are missing.
      ValueError: `file:line: what is wrong`; two behaviour files; an empty file.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{path}: no such data folder")
    items_file = os.path.join(path, "items.jsonl")
    sequences_file = os.path.join(path, "sequences.txt")
    events_file = os.path.join(path, "events.csv")
    users_file = os.path.join(path, "users.jsonl")
    if not os.path.exists(items_file):
        raise FileNotFoundError(f"{items_file}: missing; a data folder has items.jsonl")
    have = [f for f in (sequences_file, events_file) if os.path.exists(f)]
    if not have:
        raise FileNotFoundError(f"{path}: expected sequences.txt or events.csv, found neither")
    if len(have) == 2:
        raise ValueError(f"{path}: expected sequences.txt or events.csv, found both")
    items = read_items(items_file)
    read_events = read_sequences if have[0] == sequences_file else read_event_table
    events = read_events(have[0], items)
    profiles = read_users(users_file) if os.path.exists(users_file) else {}
    read = [items_file, have[0]] + ([users_file] if profiles else [])
    return DataSet(os.path.abspath(path), items, events, profiles, _digest(read))


def read_items(path):
    """items.jsonl -> Items. A missing or null title is ""; unknown keys are ignored."""
    ids, titles, attributes, categories, price, ecpm, row_of = [], [], [], [], [], [], {}
    for where, row in _json_lines(path):
        item = _integer(where, "id", row.get("id"))
        if item in row_of:
            raise ValueError(f"{where}: duplicate item id {item}, first in item {row_of[item] + 1}")
        row_of[item] = len(ids)
        ids.append(item)
        titles.append(_text(where, "title", row.get("title")))
        categories.append(_text(where, "category", row.get("category")))
        values = row.get("attributes") or []
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise ValueError(f"{where}: attributes = {values!r}: expected a list of strings")
        attributes.append(tuple(v.strip() for v in values if v.strip()))
        price.append(_number(where, "price", row.get("price")))
        ecpm.append(_number(where, "ecpm", row.get("ecpm")))
    return Items(
        np.array(ids, np.int64),
        titles,
        attributes,
        categories,
        np.array(price, np.float32),
        np.array(ecpm, np.float32),
        row_of,
    )


def read_sequences(path, items):
    """sequences.txt -> Events: clicks in the content domain, SEQUENCE_STEP_S apart."""
    users, begin, item = {}, [0], []
    for where, line in _lines(path):
        fields = line.split()
        user, *sequence = (_integer(where, "user or item", f) for f in fields)
        if user in users:
            raise ValueError(f"{where}: duplicate user {user}, first in sequence {users[user] + 1}")
        if not sequence:
            raise ValueError(f"{where}: user {user} has no items")
        for i in sequence:
            if i not in items.row_of:
                raise ValueError(f"{where}: unknown item {i}: not in items.jsonl")
        users[user] = len(users)
        item.extend(sequence)
        begin.append(len(item))
    begin = np.array(begin, np.int64)
    position = np.arange(len(item)) - np.repeat(begin[:-1], np.diff(begin))
    return Events(
        np.array(list(users), np.int64),
        begin,
        np.array(item, np.int64),
        np.full(len(item), ACTIONS["click"], np.int32),
        np.full(len(item), DOMAINS["content"], np.int32),
        SEQUENCE_START_S + SEQUENCE_STEP_S * position,
    )


def read_event_table(path, items):
    """events.csv -> Events: users in order of first appearance, each user's events by time (ties
    in file order).
    """
    users, columns = {}, ([], [], [], [], [])
    user_column, item_column, action_column, domain_column, time_column = columns
    rows = _csv_rows(path)
    _, header = next(rows, (path, None))
    if header is None:
        raise ValueError(f"{path}: empty file")
    missing = [c for c in EVENT_COLUMNS if c not in header]
    if missing:
        raise ValueError(f"{path}:1: missing column {missing[0]!r}; found {','.join(header)}")
    at = [header.index(c) for c in EVENT_COLUMNS]
    for where, row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(f"{where}: {len(row)} fields: expected {len(header)}")
        user, item, action, domain, time = (row[i] for i in at)
        item = _integer(where, "item_id", item)
        if item not in items.row_of:
            raise ValueError(f"{where}: unknown item {item}: not in items.jsonl")
        user_column.append(users.setdefault(_integer(where, "user_id", user), len(users)))
        item_column.append(item)
        action_column.append(_name(where, "action", action, ACTIONS))
        domain_column.append(_name(where, "domain", domain, DOMAINS))
        time_column.append(_integer(where, "timestamp", time))
    if not user_column:
        raise ValueError(f"{path}: no events, only a header")
    user, time = np.array(user_column, np.int64), np.array(time_column, np.int64)
    order = np.lexsort((time, user))  # stable: ties keep the file's order
    begin = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users)))])
    return Events(
        np.array(list(users), np.int64),
        begin.astype(np.int64),
        np.array(item_column, np.int64)[order],
        np.array(action_column, np.int32)[order],
        np.array(domain_column, np.int32)[order],
        time[order],
    )


def read_users(path):
    """users.jsonl -> {user id: {feature: str | int | float}}. Null values are left out."""
    profiles = {}
    for where, row in _json_lines(path):
        user = _integer(where, "user_id", row.pop("user_id", None))
        if user in profiles:
            raise ValueError(f"{where}: duplicate user_id {user}")
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
                raise ValueError(f"{where}: {name} = {value!r}: expected a string or a number")
        profiles[user] = {n: v for n, v in row.items() if v is not None}
    return profiles


def _lines(path):
    """Yields (`file:line`, line) of the lines that are not blank; an empty file is an error."""
    empty = True
    with open(path, "rb") as f:
        for number, raw in enumerate(f, 1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8: {error.reason}") from None
            if line.strip():
                empty = False
                yield where, line
    if empty:
        raise ValueError(f"{path}: empty file")


def _csv_rows(path):
    """Yields (`file:line`, fields) of a table; the fields of a blank line are []."""
    with open(path, encoding="utf-8-sig", newline="") as f:
        reader = csv.reader(f)
        try:
            for row in reader:
                yield f"{path}:{reader.line_num}", row
        except UnicodeDecodeError as error:  # of a block: the line is not known
            raise ValueError(f"{path}: not UTF-8: {error.reason}") from None
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: bad CSV: {error}") from None


def _json_lines(path):
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: bad JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:  # thousands of digits, of brackets
            raise ValueError(f"{where}: bad JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
        yield where, row


def _integer(where, name, value):
    """A non-negative int64 from an int or its decimal string."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{where}: {name} = {value!r}: expected an integer in 0..2^63-1")
    return value


def _number(where, name, value):
    if value is None:
        return float("nan")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not abs(value) <= MAX_NUMBER:  # not: of NaN too
        raise ValueError(f"{where}: {name} = {value!r:.40}: expected a finite float32")
    return float(value)


def _text(where, name, value):
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} = {value!r}: expected a string")
    return value.strip()


def _name(where, name, value, table):
    """An action or domain by its name or its number."""
    value = value.strip().lower()
    if value in table:
        return table[value]
    if value.isdecimal() and int(value) in table.values():
        return int(value)
    raise ValueError(f"{where}: {name} = {value!r}: expected one of {', '.join(table)}")


def _digest(paths):
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.path.basename(path).encode() + b"\0")
        with open(path, "rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
