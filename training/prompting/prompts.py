"""The prompt spec a data folder gets when its owner writes none. Knows no tokenizer and no model.

The task sentence stands first and the history last, so that the prompt ends where the next item
begins: what the model learns from the history inside a prompt is then exactly what it is asked at
the end of one.
"""

import numpy as np

MAX_VALUES = 200  # of a string feature or the category facet: the most frequent ones get a text
TASK_TEXT = "Next item."
# Numeric features are cut at these quantiles.
_QUANTILES = (0.2, 0.4, 0.6, 0.8)
_PRICE_BANDS = (" low price", " mid price", " high price")


def default_spec(data, recent_events=24, long_term_events=32, block=8):
    """Prompt spec (JSON object of kernels.prompt_spec) for a data folder.

    Features: every profile feature. Facets: category and price band, where items have them; with
    categories the prompt has an
    interest summary. Behaviours: clicks and conversions; a conversion says so where the folder
    tells clicks and conversions apart.
    """
    features = [_feature(name, _values(data, name)) for name in _feature_names(data)]
    facets = _facets(data.items)
    both = len(set(np.unique(data.events.action).tolist()) & {1, 2}) == 2
    segments = [{"kind": "text", "text": TASK_TEXT}]
    segments += [{"kind": "feature", "name": f["name"]} for f in features]
    if facets and facets[0]["name"] == "category":
        segments.append(
            {
                "kind": "interest",
                "facet": "category",
                "top": 3,
                "prefix": " likes",
                "separator": ",",
            }
        )
    segments += [{"kind": "long_term", "prefix": ""}, {"kind": "recent", "prefix": ""}]
    return {
        "format_version": 1,
        "features": features,
        "facets": facets,
        "segments": segments,
        "behaviors": {
            "long_term_events": long_term_events,
            "recent_events": recent_events,
            "block": block,
            "action_text": {"click": "", "conversion": " bought" if both else ""},
            "separator": "",
            "max_events": long_term_events + recent_events + block,
            "actions": ["click", "conversion"],
            "domains": ["ad", "content"],
            "attribution_window_s": 7 * 86400,
            "repeat_window_s": 86400,
        },
    }


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

    category: the value whose text is the item's category; price_band: the item's place among the
    catalogue's prices, in as many equal shares as the facet has values.

    Returns:
      int16 [N, F]; -1 where an item has no value or one the spec does not know.

    Raises:
      ValueError: a facet that is neither category nor price_band.
    """
    columns = np.full((len(items), len(spec.facets)), -1, np.int16)
    for f, facet in enumerate(spec.facets):
        if facet.name == "category":
            number = {text.strip(): v for v, text in reversed(list(enumerate(facet.values)))}
            columns[:, f] = [number.get(c, -1) for c in items.categories]
        elif facet.name == "price_band":
            priced = np.isfinite(items.price)
            bands = len(facet.values)
            if priced.any():
                cuts = np.quantile(items.price[priced], np.arange(1, bands) / bands)
                columns[priced, f] = np.searchsorted(cuts, items.price[priced], side="right")
        else:
            raise ValueError(f"facet {facet.name!r}: expected category|price_band")
    return columns


def _feature_names(data):
    return sorted({name for profile in data.profiles.values() for name in profile})


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
    categories, counts = np.unique([c for c in items.categories if c], return_counts=True)
    if len(categories):
        frequent = categories[np.argsort(-counts, kind="stable")][:MAX_VALUES]
        facets.append({"name": "category", "values": [f" {c}" for c in frequent]})
    if np.isfinite(items.price).any():
        facets.append({"name": "price_band", "values": list(_PRICE_BANDS)})
    return facets
