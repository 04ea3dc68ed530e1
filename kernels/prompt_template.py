"""The template of a prompt: checked values, and their JSON. Knows no tokenizer."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from genrecall.kernels.json_fields import Fields, check_version, read_json

ACTIONS = ("exposure", "click", "conversion")
DOMAINS = ("ad", "content")
FEATURE_KINDS = ("string", "int64", "bucket")
SEGMENT_KINDS = ("text", "feature", "interest", "long_term", "recent")
FORMAT_VERSION = 1
MAX_EVENTS = 1 << 16
_INT32_MAX = 2**31 - 1
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Feature:
    """A profile feature and the text of each of its values.

    Attributes:
      name: the input's name.
      kind: "string" or "int64" (values maps a value to its text), or "bucket" (a number falls
        between boundaries).
      values: (value, text) pairs, values distinct; str or int by kind.
      boundaries: ascending; a number x has texts[i], i = how many boundaries are <= x.
      texts: one more than boundaries.
      missing: the text of a value that is unknown or not given.
    """

    name: str
    kind: str
    values: tuple[tuple[str | int, str], ...] = ()
    boundaries: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    missing: str = ""

    def __post_init__(self):
        where = f"feature '{self.name}'"
        if self.kind not in FEATURE_KINDS:
            raise ValueError(
                f"{where}: kind = '{self.kind}': expected one of {', '.join(FEATURE_KINDS)}"
            )
        if self.kind == "bucket":
            if self.values:
                raise ValueError(f"{where}: a bucket has boundaries and texts: expected no values")
            if not self.boundaries:
                raise ValueError(f"{where}: boundaries is empty: expected at least one")
            with np.errstate(over="ignore"):  # becomes inf, refused below
                as_float32 = np.array(self.boundaries, np.float32)
            if not np.isfinite(as_float32).all() or (np.diff(as_float32) <= 0).any():
                raise ValueError(
                    f"{where}: boundaries = {list(self.boundaries)}: "
                    "expected finite and ascending as float32"
                )
            if len(self.texts) != len(self.boundaries) + 1:
                raise ValueError(
                    f"{where}: {len(self.texts)} texts: expected {len(self.boundaries) + 1}, "
                    "one more than boundaries"
                )
            return
        if self.boundaries or self.texts:
            raise ValueError(
                f"{where}: boundaries and texts belong to kind 'bucket': expected values"
            )
        keys = [key for key, _ in self.values]
        for key in keys:
            if self.kind == "int64" and key not in _INT64:
                raise ValueError(f"{where}: value {key}: expected an int64")
        if len(set(keys)) != len(keys):
            twice = next(k for i, k in enumerate(keys) if k in keys[:i])
            raise ValueError(f"{where}: value '{twice}' twice")

    def all_texts(self) -> tuple[str, ...]:
        """Texts by value number, the missing one not among them."""
        return self.texts if self.kind == "bucket" else tuple(text for _, text in self.values)


@dataclass(frozen=True)
class Facet:
    """A column of the recall index's facets and the text of each value index."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Segment:
    """A piece of the prompt.

    Attributes:
      kind: "text" writes `text`; "feature" the text of feature `name`; "interest" `prefix`, then
        the `top` most frequent values of `facet` among the past events, joined by `separator`;
        "long_term" and "recent" `prefix`, then that part of the events. The last three read events
        of `domains` only, and write nothing where they have nothing to say.
    """

    kind: str
    text: str = ""
    name: str = ""
    facet: str = ""
    top: int = 0
    prefix: str = ""
    separator: str = ""
    domains: tuple[str, ...] = DOMAINS

    def __post_init__(self):
        if self.kind not in SEGMENT_KINDS:
            raise ValueError(
                f"segment kind = '{self.kind}': expected one of {', '.join(SEGMENT_KINDS)}"
            )
        if self.kind == "interest" and not 1 <= self.top <= _INT32_MAX:
            raise ValueError(f"segment interest: top = {self.top}: expected >= 1")
        _check_some(f"segment {self.kind}: domains", self.domains, DOMAINS)


@dataclass(frozen=True)
class Behaviors:
    """Which events are kept, how they fall into long-term and recent, and how one is written.

    Of n kept events the first floor(max(0, n - recent_events) / block) * block are past, the rest
    recent; the long-term part is the latest long_term_events of the past. An event writes the text
    of its action, its SID tokens, the separator. Cleaning is described in kernels/behaviors.h.

    With merge_levels = m > 0, similar long-term events are merged: one whose action and first m
    codes are those of one of the last merge_window written ones is not written.
    """

    long_term_events: int = 32
    recent_events: int = 8
    block: int = 8
    action_text: tuple[tuple[str, str], ...] = ()
    separator: str = ""
    max_events: int = 64
    actions: tuple[str, ...] = ("click", "conversion")
    domains: tuple[str, ...] = DOMAINS
    attribution_window_s: int = 7 * 24 * 3600
    repeat_window_s: int = 24 * 3600
    merge_levels: int = 0
    merge_window: int = 1

    def __post_init__(self):
        def in_range(name, low, high):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"behaviors.{name} = {value}: expected {low}..{high}")

        in_range("max_events", 1, MAX_EVENTS)
        in_range("block", 1, self.max_events)
        in_range("recent_events", 0, MAX_EVENTS)
        in_range("long_term_events", 0, MAX_EVENTS)
        in_range("attribution_window_s", 0, _INT64[-1])
        in_range("repeat_window_s", 0, _INT64[-1])
        in_range("merge_levels", 0, _INT32_MAX)  # compile_prompt knows the number of levels
        in_range("merge_window", 1, MAX_EVENTS)
        if self.long_term_events % self.block:
            raise ValueError(
                f"behaviors.long_term_events = {self.long_term_events}: "
                f"expected a multiple of block = {self.block}"
            )
        for name, allowed in (("actions", ACTIONS), ("domains", DOMAINS)):
            _check_some(f"behaviors.{name}", getattr(self, name), allowed)
        _check_names("behaviors.action_text", [a for a, _ in self.action_text], ACTIONS)


@dataclass(frozen=True)
class PromptSpec:
    """The template of a prompt.

    A user's prompt is its segments, one after the other. What comes before the `recent` segment is
    the stable prefix: it changes only when the profile does or when the long-term part moves, a
    whole block at a time.

    Example (JSON):
      {"format_version": 1,
       "features": [{"name": "gender", "kind": "string", "values": {"F": " female"}}],
       "facets": [{"name": "category", "values": [" Makeup", " Skin Care"]}],
       "segments": [{"kind": "text", "text": "User:"}, {"kind": "feature", "name": "gender"},
                    {"kind": "interest", "facet": "category", "top": 3, "prefix": " likes"},
                    {"kind": "long_term", "prefix": " history:"},
                    {"kind": "recent", "prefix": " recent:"}, {"kind": "text", "text": " next:"}],
       "behaviors": {"long_term_events": 32, "recent_events": 8, "block": 8,
                     "action_text": {"conversion": " bought"}}}
    """

    segments: tuple[Segment, ...]
    features: tuple[Feature, ...] = ()
    facets: tuple[Facet, ...] = ()
    behaviors: Behaviors = field(default_factory=Behaviors)

    def __post_init__(self):
        features = [f.name for f in self.features]
        facets = [f.name for f in self.facets]
        for what, names in (("features", features), ("facets", facets)):
            for i, name in enumerate(names):
                if not name:
                    raise ValueError(f"{what}[{i}].name is empty: expected a name")
                if name in names[:i]:
                    raise ValueError(f"{what}[{i}].name = '{name}': expected distinct names")
        if not self.segments:
            raise ValueError("segments is empty: expected at least one")
        for i, segment in enumerate(self.segments):
            if segment.kind == "feature" and segment.name not in features:
                raise ValueError(
                    f"segments[{i}].name = '{segment.name}': expected one of {features}"
                )
            if segment.kind == "interest" and segment.facet not in facets:
                raise ValueError(
                    f"segments[{i}].facet = '{segment.facet}': expected one of {facets}"
                )
        written = set()
        for i, segment in enumerate(self.segments):
            reads = {(segment.kind, domain) for domain in segment.domains}
            if segment.kind in ("long_term", "recent") and reads & written:
                _, domain = sorted(reads & written)[0]
                raise ValueError(
                    f"segments[{i}]: a second '{segment.kind}' of domain '{domain}': "
                    "expected at most one"
                )
            written |= reads

    @classmethod
    def from_json(cls, source: Mapping | str | os.PathLike) -> "PromptSpec":
        """A spec from parsed JSON or from a file.

        Raises:
          ValueError: a key that is unknown or missing, a value of another type or out of bounds;
            named by its place.
        """
        if isinstance(source, Mapping):
            top = Fields(source, "prompt spec")
        else:
            top = Fields(read_json(source), str(source))
        check_version(top, FORMAT_VERSION)
        spec = cls(
            features=tuple(_feature(f) for f in top.objects("features")),
            facets=tuple(_facet(f) for f in top.objects("facets")),
            segments=tuple(_segment(s) for s in top.objects("segments")),
            behaviors=_behaviors(top.object("behaviors")),
        )
        top.finish()
        return spec

    def to_json(self) -> dict:
        """The spec as JSON values: from_json(spec.to_json()) == spec."""
        b = self.behaviors
        return {
            "format_version": FORMAT_VERSION,
            "features": [_feature_json(f) for f in self.features],
            "facets": [{"name": f.name, "values": list(f.values)} for f in self.facets],
            "segments": [_segment_json(s) for s in self.segments],
            "behaviors": {
                "long_term_events": b.long_term_events,
                "recent_events": b.recent_events,
                "block": b.block,
                "action_text": dict(b.action_text),
                "separator": b.separator,
                "max_events": b.max_events,
                "actions": list(b.actions),
                "domains": list(b.domains),
                "attribution_window_s": b.attribution_window_s,
                "repeat_window_s": b.repeat_window_s,
                "merge_levels": b.merge_levels,
                "merge_window": b.merge_window,
            },
        }


# Reading and writing the JSON.


def _check_some(where: str, names: Sequence[str], allowed: Sequence[str]):
    if not names:
        raise ValueError(f"{where} is empty: expected some of {', '.join(allowed)}")
    _check_names(where, names, allowed)


def _check_names(where: str, names: Sequence[str], allowed: Sequence[str]):
    for i, name in enumerate(names):
        if name not in allowed:
            raise ValueError(f"{where}: '{name}': expected one of {', '.join(allowed)}")
        if name in names[:i]:
            raise ValueError(f"{where}: '{name}' twice")


def _feature(f: Fields) -> Feature:
    name, kind, missing = f.text("name"), f.text("kind"), f.text("missing", "")
    if kind == "bucket":
        boundaries, texts = tuple(map(float, f.numbers("boundaries"))), tuple(f.texts("texts"))
        f.finish()
        return Feature(name, kind, (), boundaries, texts, missing)
    values = f.text_map("values")
    f.finish()
    if kind == "int64":
        values = {_int_key(key, f.where): text for key, text in values.items()}
    return Feature(name, kind, tuple(values.items()), missing=missing)


def _int_key(key: str, where: str) -> int:
    try:
        number = int(key)
    except ValueError:
        number = None
    if number is None or str(number) != key:  # "01" and "1" would be one value under two names
        raise ValueError(f"{where}: values['{key}']: expected an integer as key")
    return number


def _facet(f: Fields) -> Facet:
    facet = Facet(f.text("name"), tuple(f.texts("values")))
    f.finish()
    return facet


def _segment(f: Fields) -> Segment:
    kind = f.text("kind")
    if kind == "text":
        segment = Segment(kind, text=f.text("text"))
    elif kind == "feature":
        segment = Segment(kind, name=f.text("name"))
    elif kind == "interest":
        segment = Segment(
            kind,
            facet=f.text("facet"),
            top=f.integer("top"),
            prefix=f.text("prefix", ""),
            separator=f.text("separator", ""),
            domains=tuple(f.texts("domains", DOMAINS)),
        )
    elif kind in ("long_term", "recent"):
        segment = Segment(
            kind, prefix=f.text("prefix", ""), domains=tuple(f.texts("domains", DOMAINS))
        )
    else:
        raise ValueError(f"{f.where}: kind = '{kind}': expected one of {', '.join(SEGMENT_KINDS)}")
    f.finish()
    return segment


def _behaviors(f: Fields) -> Behaviors:
    d = Behaviors()
    behaviors = Behaviors(
        long_term_events=f.integer("long_term_events", d.long_term_events),
        recent_events=f.integer("recent_events", d.recent_events),
        block=f.integer("block", d.block),
        action_text=tuple(f.text_map("action_text", {}).items()),
        separator=f.text("separator", d.separator),
        max_events=f.integer("max_events", d.max_events),
        actions=tuple(f.texts("actions", d.actions)),
        domains=tuple(f.texts("domains", d.domains)),
        attribution_window_s=f.integer("attribution_window_s", d.attribution_window_s),
        repeat_window_s=f.integer("repeat_window_s", d.repeat_window_s),
        merge_levels=f.integer("merge_levels", d.merge_levels),
        merge_window=f.integer("merge_window", d.merge_window),
    )
    f.finish()
    return behaviors


def _feature_json(f: Feature) -> dict:
    out = {"name": f.name, "kind": f.kind, "missing": f.missing}
    if f.kind == "bucket":
        return out | {"boundaries": list(f.boundaries), "texts": list(f.texts)}
    return out | {"values": {str(value): text for value, text in f.values}}


def _segment_json(s: Segment) -> dict:
    keys = {
        "text": ("text",),
        "feature": ("name",),
        "interest": ("facet", "top", "prefix", "separator", "domains"),
        "long_term": ("prefix", "domains"),
        "recent": ("prefix", "domains"),
    }[s.kind]
    values = {key: getattr(s, key) for key in keys}
    return {"kind": s.kind} | {k: list(v) if k == "domains" else v for k, v in values.items()}
