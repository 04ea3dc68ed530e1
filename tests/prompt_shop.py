"""A prompt spec, a catalogue, users, and the oracle that assembles from the JSON of the spec."""

from collections import Counter

import numpy as np
from behaviors_oracle import NOW, clean_oracle

from genrecall import kernels
from genrecall.kernels.prompt_spec import SidSpace

ACTIONS, DOMAINS = ("exposure", "click", "conversion"), ("ad", "content")


def tokenize(text):
    return [ord(c) for c in text]


def sid_space(level_sizes, seed=0):
    """Token ids scattered over 10,000.., as a vocabulary that was not laid out by code has them."""
    ids = np.random.default_rng(seed).permutation(sum(level_sizes)) + 10_000
    return SidSpace.build(
        level_sizes, np.split(ids, np.cumsum(level_sizes)[:-1]), "codebooks of the test"
    )


def catalogue(space, num_items, num_facets, seed=0):
    """An index of items 0, 2, 4, ... (so that odd ids are unknown)."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, c, num_items) for c in space.level_sizes], axis=1)
    facets = rng.integers(-1, 6, (num_items, num_facets)).astype(np.int16)
    ids = np.arange(num_items) * 2
    return kernels.RecallIndex.build(space.level_sizes, ids, codes, None, facets, space.digest)


SPEC = {
    "format_version": 1,
    "features": [
        {"name": "gender", "kind": "string", "values": {"F": " female", "M": " männlich"}},
        {
            "name": "age",
            "kind": "bucket",
            "boundaries": [18, 25.5],
            "texts": [" young", " 18-25", " old"],
            "missing": " ageless",
        },
        {"name": "city", "kind": "int64", "values": {"1": " Berlin", "-5": " Ur"}, "missing": "?"},
    ],
    "facets": [{"name": "category", "values": [" Makeup", " Skin Care", " Hair", ""]}],
    "segments": [
        {"kind": "text", "text": "User:"},
        {"kind": "feature", "name": "gender"},
        {"kind": "feature", "name": "age"},
        {"kind": "feature", "name": "city"},
        {"kind": "interest", "facet": "category", "top": 2, "prefix": " likes", "separator": ","},
        {"kind": "long_term", "prefix": " history:"},
        {"kind": "recent", "prefix": " recent:"},
        {"kind": "text", "text": " next:"},
    ],
    "behaviors": {
        "long_term_events": 12,
        "recent_events": 3,
        "block": 4,
        "action_text": {"click": "", "conversion": " bought"},
        "separator": ";",
        "max_events": 24,
        "attribution_window_s": 5000,
        "repeat_window_s": 100,
    },
}


def changed_spec(segments=(), **behaviors):
    """SPEC with other behaviours, and with `segments` instead of its own from the summary on."""
    kept = SPEC["segments"][:4] + list(segments) if segments else SPEC["segments"]
    return SPEC | {"segments": kept, "behaviors": SPEC["behaviors"] | behaviors}


# Similar events merged, domains apart, a summary of ads behind the past events.
MERGED_SPEC = changed_spec(
    [
        {"kind": "long_term", "prefix": " ads:", "domains": ["ad"]},
        {"kind": "long_term", "prefix": " content:", "domains": ["content"]},
        SPEC["segments"][4] | {"domains": ["ad"]},
        {"kind": "recent", "prefix": " recent:"},
    ],
    merge_levels=1,
    merge_window=3,
)


def assemble_oracle(spec, space, index, events, request_time, features):
    """(tokens, stable prefix) of one user, from the spec's JSON."""
    return places_oracle(spec, space, index, events, request_time, features)[:2]


def places_oracle(spec, space, index, events, request_time, features):
    """(tokens, stable prefix, [(asked, begin, codes)] of the cleaned events) of one user."""
    spec = spec.to_json()
    b = spec["behaviors"]
    cleaned = clean_oracle(
        events,
        request_time,
        b["max_events"],
        b["block"],
        sum(1 << ACTIONS.index(a) for a in b["actions"]),
        sum(1 << DOMAINS.index(d) for d in b["domains"]),
        b["attribution_window_s"],
        b["repeat_window_s"],
    )
    known = {}
    for item, codes, facets in zip(*(index.rows()[i].tolist() for i in (0, 1, 3)), strict=True):
        known[item] = codes, facets
    line = [
        (i, known[item], ACTIONS[action], DOMAINS[domain])
        for i, (item, action, domain, _) in enumerate(c for c in cleaned if c[0] in known)
    ]
    blocks = max(0, len(line) - b["recent_events"]) // b["block"]
    past, recent = line[: blocks * b["block"]], line[blocks * b["block"] :]
    long_term = past[max(0, len(past) - b["long_term_events"]) :]
    kept = max(0, b["max_events"] - b["block"] + 1 - b["recent_events"]) // b["block"] * b["block"]
    summed = past[max(0, len(past) - max(kept, b["long_term_events"])) :]

    begins, ends = {}, {}  # of the events written so far
    told = set()  # events that what is written tells of
    asked = {}

    def look_alike(event, other):
        return (
            event[2] == other[2]
            and event[1][0][: b["merge_levels"]] == other[1][0][: b["merge_levels"]]
        )

    def write(segment, part, merge):
        out, written, first = [], [], len(tokens)
        for event in part:
            i, (codes, _), action, domain = event
            mine = domain in segment["domains"]
            if not any(j >= i for j in told) and (mine or i not in asked):
                asked[i] = max(ends.values(), default=first)
            last = written[max(0, len(written) - b["merge_window"]) :]
            if not mine or (merge and any(look_alike(event, other) for other in last)):
                continue
            out += tokenize(segment["prefix"]) if not written else []
            out += tokenize(b["action_text"].get(action, ""))
            begins[i] = len(tokens) + len(out)
            out += [space.token_ids[level][code] for level, code in enumerate(codes)]
            out += tokenize(b["separator"])
            ends[i] = len(tokens) + len(out)
            told.add(i)
            written.append(event)
        return out

    def feature_text(name):
        f = next(f for f in spec["features"] if f["name"] == name)
        value = features.get(name)
        if f["kind"] == "bucket" and value is not None:
            return f["texts"][sum(x <= value for x in f["boundaries"])]
        return f.get("values", {}).get(str(value), f["missing"])

    def interest(segment):
        column = [f["name"] for f in spec["facets"]].index(segment["facet"])
        texts = spec["facets"][column]["values"]
        seen = [facets[column] for _, (_, facets), _, d in summed if d in segment["domains"]]
        count = Counter(v for v in seen if 0 <= v < len(texts))  # keeps first-seen order
        best = sorted(count, key=lambda v: -count[v])[: segment["top"]]
        text = segment["separator"].join(texts[v] for v in best)
        told.update(i for i, *_ in past if best)
        return tokenize(segment["prefix"] + text) if best else []

    tokens, stable = [], None
    for s in spec["segments"]:
        if s["kind"] == "recent" and stable is None:
            stable = len(tokens)
        tokens += {
            "text": lambda s: tokenize(s["text"]),
            "feature": lambda s: tokenize(feature_text(s["name"])),
            "interest": interest,
            "long_term": lambda s: write(s, long_term, b["merge_levels"] > 0),
            "recent": lambda s: write(s, recent, False),
        }[s["kind"]](s)
    places = [(asked.get(i, -1), begins.get(i, -1), codes) for i, (codes, _), _, _ in line]
    return tokens, len(tokens) if stable is None else stable, places


def random_user(rng, num_items):
    length = rng.choice([0, 1, rng.randrange(10), rng.randrange(80)])
    span = rng.choice([30, 3000, 10**6])
    return [
        (
            rng.randrange(-1, 2 * num_items),
            rng.randrange(-1, 4),
            rng.randrange(-1, 3),
            NOW + rng.randrange(-span, 1 if rng.random() < 0.9 else span),
        )
        for _ in range(length)
    ]


def batch(users, width=None):
    """(item, action, domain, time, length) of lists of events, filled up with garbage."""
    width = max([width or 0, *map(len, users)])
    columns = np.full((4, len(users), width), 7, np.int64)
    for b, events in enumerate(users):
        columns[:, b, : len(events)] = np.array(events, np.int64).reshape(-1, 4).T
    return *columns, np.array([len(u) for u in users], np.int32)


def rows(assembled):
    tokens, length, stable = assembled
    assert tokens.shape == (len(length), max([0, *length]))
    for row, n in zip(tokens, length, strict=True):
        assert (row[n:] == 0).all()
    return [(row[:n].tolist(), int(s)) for row, n, s in zip(tokens, length, stable, strict=True)]


def assemble(prompt, index, users, features=None, request_time=None, width=None):
    times = [NOW] * len(users) if request_time is None else request_time
    return rows(prompt.assemble(index, *batch(users, width), times, features))


def random_features(rng, n):
    return {
        "gender": [rng.choice(["F", "M", "", "X", None]) for _ in range(n)],
        "age": [rng.choice([None, -1.0, 17.99, 18, 25.4, 25.5, 1e30]) for _ in range(n)],
        "city": [rng.choice([None, 1, -5, 0, 2**63 - 1]) for _ in range(n)],
    }
