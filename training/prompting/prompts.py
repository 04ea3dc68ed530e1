"""The prompt spec a data folder gets when its owner writes none. Knows no tokenizer and no model.

The task sentence stands first and the events in their order, the latest last, so that the prompt
ends where the next item begins: what the model learns from the history inside a prompt is then
exactly what it is asked at the end of one. The interest summary stands between the past events,
which it sums up, and the recent ones: no event is asked for behind a summary that tells it, and a
block of events that becomes past leaves the events before it where they are, so that a prefix cache
keeps them.
"""

from dataclasses import dataclass

import numpy as np

from genrecall.training import config
from genrecall.training.config import option

# What `default_spec` can leave out. ad, content: the behaviours of that domain; long_term: all but
# the recent behaviours; actions: the text that tells a conversion from a click.
PARTS = ("profile", "interest", "long_term", "ad", "content", "actions")
FACETS = ("category", "attribute", "price_band")
MAX_VALUES = 200  # of a string feature or of a facet: the most frequent ones get a text
TASK_TEXT = "Next item."
# Numeric features are cut at these quantiles.
_QUANTILES = (0.2, 0.4, 0.6, 0.8)
_PRICE_BANDS = (" low price", " mid price", " high price")
# facet -> how many of its values an interest summary names, and the text before them
_SUMMARY = {"category": (3, " likes"), "attribute": (3, " often"), "price_band": (1, "")}


@dataclass(frozen=True)
class PromptOptions:
    """What `default_spec` may be told. Of n events the last recent_events to recent_events + block
    - 1 are recent, the others past; the summary reads all of the past, as far as max_events go, of
    which the latest long_term_events are written too.
    """

    leave_out: tuple[str, ...] = option((), "prompt parts to leave out", choices=PARTS)
    recent_events: int = option(1, "events that are never past, and always written", low=0)
    long_term_events: int = option(56, "past events written, in whole blocks", low=0)
    block: int = option(8, "events become past by so many at a time", low=1)
    max_events: int = option(256, "events that cleaning keeps, at most", low=1)
    split_domains: bool = option(
        False, "ad events before content events, instead of one line in the order of time"
    )
    merge_levels: int = option(
        0, "long-term events with so many first codes in common are written once; 0: all", low=0
    )
    merge_window: int = option(1, "how many written events a merged one may be after", low=1)

    def __post_init__(self):
        config.check(self)


def default_spec(data, options=PromptOptions()):
    """Prompt spec (JSON object of kernels.prompt_spec) for a data folder.

    Features: every profile feature. Facets, where items have them: category, leading attribute,
    price band; each has a line in the interest summary. Behaviours: clicks and conversions; a
    conversion says so where the folder tells clicks and conversions apart.

    What is left out is left out of the prompt only: the events that count as a user's line, and
    with them the items that are asked for, stay the same.

    Args:
      data: data_folder.DataSet.
      options: PromptOptions.
    """
    without = options.leave_out
    features = [] if "profile" in without else _features(data)
    facets = [] if "interest" in without else _facets(data.items)
    domains = [d for d in ("ad", "content") if d not in without]
    segments = [{"kind": "text", "text": TASK_TEXT}]
    segments += [{"kind": "feature", "name": f["name"]} for f in features]
    if domains:
        segments += _behavior_segments(domains, facets, options)
    told_apart = "actions" not in without and _has_both(data.events.action, 1, 2)
    return {
        "format_version": 1,
        "features": features,
        "facets": facets,
        "segments": segments,
        "behaviors": {
            "long_term_events": options.long_term_events,
            "recent_events": options.recent_events,
            "block": options.block,
            "action_text": {"click": "", "conversion": " bought" if told_apart else ""},
            "separator": "",
            "max_events": options.max_events,
            "actions": ["click", "conversion"],
            "domains": ["ad", "content"],
            "attribution_window_s": 7 * 86400,
            "repeat_window_s": 86400,
            "merge_levels": options.merge_levels,
            "merge_window": options.merge_window,
        },
    }


def parts_of(data):
    """Those of PARTS that the default spec of a data folder has, and so can do without: tuple."""
    have = {
        "profile": bool(_features(data)),
        "interest": bool(_facets(data.items)),
        "long_term": True,
        "ad": bool((data.events.domain == 0).any()),
        "content": bool((data.events.domain == 1).any()),
        "actions": _has_both(data.events.action, 1, 2),
    }
    return tuple(part for part in PARTS if have[part])


def _behavior_segments(domains, facets, options):
    """The segments that read behaviours of `domains`, in the order of the prompt."""
    if options.split_domains:
        groups = [{"prefix": f" {d}:", "domains": [d]} for d in domains]
    else:
        groups = [{"prefix": "", "domains": domains}]
    segments = []
    if "long_term" not in options.leave_out:
        segments += [{"kind": "long_term", **g} for g in groups]
    for facet in facets:
        top, prefix = _SUMMARY[facet["name"]]
        summary = {"facet": facet["name"], "top": top, "prefix": prefix, "separator": ","}
        segments.append({"kind": "interest", **summary, "domains": domains})
    return segments + [{"kind": "recent", **g} for g in groups]


def _has_both(column, a, b):
    return bool((column == a).any() and (column == b).any())


def spec_texts(spec):
    """Every text a prompt of this spec may write: list[str]. A tokenizer made from scratch learns
    them.
    """
    texts = []
    for feature in spec["features"]:
        values = feature["values"].values() if "values" in feature else feature["texts"]
        texts += [*values, feature["missing"]]
    for facet in spec["facets"]:
        texts += facet["values"]
    for segment in spec["segments"]:
        texts += [segment.get("text", ""), segment.get("prefix", ""), segment.get("separator", "")]
    texts += [*spec["behaviors"]["action_text"].values(), spec["behaviors"]["separator"]]
    return [t for t in texts if t]


def item_facets(spec, items):
    """The facet columns of a catalogue, in the order of the PromptSpec.

    category and attribute: the value whose text is the item's category, or its leading attribute;
    price_band: the item's place among the catalogue's prices, in as many equal shares as the facet
    has values.

    Returns:
      int16 [N, F]; -1 where an item has no value or one the spec does not know.

    Raises:
      ValueError: a facet that is none of FACETS.
    """
    columns = np.full((len(items), len(spec.facets)), -1, np.int16)
    for f, facet in enumerate(spec.facets):
        if facet.name in ("category", "attribute"):
            number = {text.strip(): v for v, text in reversed(list(enumerate(facet.values)))}
            values = items.categories if facet.name == "category" else leading_attributes(items)
            columns[:, f] = [number.get(v, -1) for v in values]
        elif facet.name == "price_band":
            priced = np.isfinite(items.price)
            bands = len(facet.values)
            if priced.any():
                cuts = np.quantile(items.price[priced], np.arange(1, bands) / bands)
                columns[priced, f] = np.searchsorted(cuts, items.price[priced], side="right")
        else:
            raise ValueError(f"facet {facet.name!r}: expected one of {', '.join(FACETS)}")
    return columns


def leading_attributes(items):
    """Each item's first attribute that says more than its category does, "" without one: list[str]
    [N].
    """
    return [
        next((a for a in attributes if a != category and a.lower() != "unknown"), "")
        for attributes, category in zip(items.attributes, items.categories, strict=True)
    ]


def _features(data):
    names = sorted({name for profile in data.profiles.values() for name in profile})
    return [_feature(name, _values(data, name)) for name in names]


def _values(data, name):
    return [profile[name] for profile in data.profiles.values() if name in profile]


def _feature(name, values):
    """A string feature gets a text for each frequent value, a numeric one for each range between
    its quantiles.
    """
    label = name.replace("_", " ")
    if any(isinstance(v, str) for v in values):
        distinct, counts = np.unique([str(v) for v in values], return_counts=True)
        frequent = distinct[np.argsort(-counts, kind="stable")][:MAX_VALUES]
        texts = {str(v): f" {label} {v}" for v in frequent}
        return {"name": name, "kind": "string", "values": texts, "missing": ""}
    cuts = sorted(
        {float(np.round(c)) if abs(c) >= 10 else float(c) for c in np.quantile(values, _QUANTILES)}
    )
    texts = [f" {label} under {cuts[0]:g}"]
    texts += [
        f" {label} {low:g} to {high:g}" for low, high in zip(cuts[:-1], cuts[1:], strict=True)
    ]
    texts.append(f" {label} over {cuts[-1]:g}")
    return {"name": name, "kind": "bucket", "boundaries": cuts, "texts": texts, "missing": ""}


def _facets(items):
    facets = []
    for name, values in (("category", items.categories), ("attribute", leading_attributes(items))):
        distinct, counts = np.unique([v for v in values if v], return_counts=True)
        if len(distinct):
            frequent = distinct[np.argsort(-counts, kind="stable")][:MAX_VALUES]
            facets.append({"name": name, "values": [f" {v}" for v in frequent]})
    if np.isfinite(items.price).any():
        facets.append({"name": "price_band", "values": list(_PRICE_BANDS)})
    return facets
