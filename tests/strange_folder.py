"""Data folders as nobody would design them, and as they come: missing titles, any unicode, users
with one event, one user with thousands, ids with holes, items without attributes, price or eCPM.
"""

import json

import numpy as np

# Titles that break what assumes ASCII, one word, no markup, no quotes, or left to right.
TITLES = (
    "Öl für die Füße № 5",
    "香水 保湿 面霜 50ml",
    "مزيل العرق للرجال",
    'He said "buy", she said \\ no',
    "💄💅🏽 set 👩‍👩‍👧",
    "e\u0301clair Zalgo̷͓͝ text",
    "<a_1><b_2> [PAD] <|endoftext|>",
    "tab\tand\u2028line separator\u00a0and nbsp",
    "  spaced   out  ",
    "A" * 900,
    "0",
)
BRANDS = ("Ünïcode", "Unknown", "ООО Ромашка", "a, b; c", "日本", "x")


def items(num_items, rng):
    """Rows of items.jsonl; ids are distinct, not dense and not in order."""
    ids = rng.permutation(10 * num_items)[:num_items]
    rows = []
    for number, item in enumerate(ids.tolist()):
        row = {"id": item}
        if number % 7:
            row["title"] = f"{TITLES[number % len(TITLES)]} {number % 977}" if number % 3 else None
        if number % 5:
            row["attributes"] = [BRANDS[number % len(BRANDS)], f"kind {number % 31}"]
        if number % 4:
            row["price"], row["ecpm"] = number % 50 / 2, 1.0 + number % 13
        if number % 2:
            row["category"] = f"Größe {number % 17}" if number % 9 else ""
        rows.append(row)
    return rows


def sequences(num_users, ids, rng, longest=2000):
    """Lines of item ids: a third have one or two events, one has `longest`, the rest a few; what
    follows an item is often its neighbour in `ids`, so that there is something to learn.
    """
    lengths = rng.geometric(0.15, num_users)
    lengths[rng.random(num_users) < 0.2] = 1
    lengths[num_users // 2] = longest
    for n in lengths:
        steps = np.where(rng.random(n) < 0.6, 1, rng.integers(0, len(ids), n))
        yield ids[(int(rng.integers(len(ids))) + np.cumsum(steps)) % len(ids)]


def write(path, num_users, num_items, seed=0, longest=2000):
    """Writes items.jsonl and sequences.txt into the folder `path`; returns it as a string."""
    rng = np.random.default_rng(seed)
    rows = items(num_items, rng)
    path.mkdir(parents=True, exist_ok=True)
    with open(path / "items.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps(row, ensure_ascii=bool(row["id"] % 2)) + "\n" for row in rows)
    ids = np.array([row["id"] for row in rows])
    users = rng.permutation(3 * num_users)[:num_users]
    with open(path / "sequences.txt", "w", encoding="utf-8") as f:
        for user, line in zip(users, sequences(num_users, ids, rng, longest), strict=True):
            f.write(f"{user} {' '.join(map(str, line.tolist()))}\n")
    return str(path)
