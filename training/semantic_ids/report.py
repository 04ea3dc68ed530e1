"""How good semantic IDs are, measured without a decoder. Knows no tokenizer's kind and no page.

`measure` makes the dict that report.json holds; `as_text` says it for people.
"""

import numpy as np

from genrecall.training.dataset import splits
from genrecall.training.semantic_ids import labels
from genrecall.training.semantic_ids.collisions import collision_rate

_EXAMPLES = 8
_MATES = 4


def measure(data, tokenized, vectors):
    """The report of a catalogue's semantic IDs.

    Args:
      data: data_folder.DataSet; every item has a semantic ID.
      tokenized: tokenize.Tokenized.
      vectors: float32 [N, D] by row of data.items, what the codes were cut from.

    Returns:
      dict of plain JSON values. Lists have one entry a level, level 0 first; "prefixes" means the
      first 1 .. L codes. NaN is None.
    """
    sids, tokenizer = tokenized.sids, tokenized.tokenizer
    rows = sids.rows_of(data.items)
    codes, base = sids.codes[rows], sids.base_codes[rows]
    base_sizes = tokenizer.base_sizes
    shared = _sizes_of(prefix_groups(base, base.shape[1]))
    levels = range(1, len(base_sizes) + 1)
    groups = [prefix_groups(codes, depth) for depth in levels]
    kinds = labels.item_labels(data.items)
    measured = {
        "items": len(codes),
        "base_sizes": list(base_sizes),
        "level_sizes": list(sids.level_sizes),
        "codebook_digest": sids.codebook_digest,
        "data_digest": data.digest,
        "collision_rate_before": collision_rate(base),
        "collision_rate_after": collision_rate(codes),
        "items_in_collisions": int((shared > 1).sum()),
        "largest_collision": int(shared.max()),
        "extended_items": int((codes[:, -1] >= base_sizes[-1]).sum()),
        "codebook_use": [_use(base[:, i], size) for i, size in enumerate(base_sizes)],
        "codebook_perplexity": [_perplexity(base[:, i]) for i in range(len(base_sizes))],
        "code_counts": [
            np.sort(np.bincount(base[:, i], minlength=size))[::-1].tolist()
            for i, size in enumerate(base_sizes)
        ],
        "reconstruction_error": reconstruction_error(tokenizer, base, vectors),
        "prefixes": [int(g.max()) + 1 for g in groups],
        "items_per_prefix": [len(codes) / (int(g.max()) + 1) for g in groups],
        "largest_prefix": [int(np.bincount(g).max()) for g in groups],
        "alone_under_prefix": [float((_sizes_of(g) == 1).mean()) for g in groups],
        "purity": {
            name: {
                "chance": labels.group_purity(values, np.zeros(len(codes), np.int64)),
                "levels": [labels.group_purity(values, g) for g in groups],
            }
            for name, values in kinds.items()
        },
        "next_item": next_item(data, groups),
        "examples": examples(data, codes, groups),
    }
    return _without_nan(measured)


def prefix_groups(codes, depth):
    """The number of each item's prefix of `depth` codes, int64 [N], counted from 0."""
    return np.unique(codes[:, :depth], axis=0, return_inverse=True)[1].ravel()


def reconstruction_error(tokenizer, codes, vectors):
    """What the first 1 .. L codes leave unsaid: squared error over the vectors' spread around their
    mean; 0 is perfect, 1 what the mean alone would leave.
    """
    spread = max(float(((vectors - vectors.mean(axis=0)) ** 2).sum()), 1e-12)
    return [
        float(((vectors - tokenizer.reconstruct(codes, depth)) ** 2).sum()) / spread
        for depth in range(1, codes.shape[1] + 1)
    ]


def next_item(data, groups):
    """How often a user's next item stands under the same prefix as the last: what a decoder finds
    easy. Asked of the validation targets.

    Returns:
      {"users": n, "levels": [share ...], "chance": [the same for a random user's target ...]}.
    """
    lines = splits.clean_lines(data.events)
    users = lines.evaluated("valid")
    at = lines.begin[users] + lines.visible("valid")[users]
    last, target = data.items.rows(lines.item[at - 1]), data.items.rows(lines.item[at])
    shares, chances = [], []
    for group in groups:
        size = int(group.max()) + 1
        a, b = (np.bincount(group[rows], minlength=size) for rows in (last, target))
        shares.append(float((group[last] == group[target]).mean()) if len(users) else float("nan"))
        chances.append(float((a @ b) / max(len(users), 1) ** 2) if len(users) else float("nan"))
    return {"users": len(users), "levels": shares, "chance": chances}


def examples(data, codes, groups):
    """Some items, from the most popular to the least, with items that share prefixes with them.

    Returns:
      [{"title", "sid", "mates": [{"shared": codes in common, "title", "sid"}]}], the mates that
      share most first, at most _MATES of each number of shared codes.
    """
    popular = np.argsort(
        -splits.popularity(splits.clean_lines(data.events), data.items), kind="stable"
    )
    shared_depth = np.zeros(len(codes), np.int64)  # how deep each item still has a mate
    for depth, group in enumerate(groups[:-1], 1):
        shared_depth[_sizes_of(group) > 1] = depth
    deep = popular[shared_depth[popular] == shared_depth.max()]
    chosen = deep[np.linspace(0, len(deep) - 1, min(_EXAMPLES, len(deep))).astype(int)]
    place = np.argsort(popular)
    out = []
    for row in chosen:
        mates, seen = [], {row}
        for depth in range(len(groups), 0, -1):
            found = np.flatnonzero(groups[depth - 1] == groups[depth - 1][row])
            found = [r for r in found[np.argsort(place[found])] if r not in seen]
            seen.update(found)
            mates += [{"shared": depth, **_shown(data.items, codes, r)} for r in found[:_MATES]]
        out.append({**_shown(data.items, codes, row), "mates": mates})
    return out


def summary(report):
    """The report in a line."""
    sizes = " x ".join(map(str, report["level_sizes"]))
    return (
        f"{report['items']} items, levels {sizes}, collisions "
        f"{report['collision_rate_before']:.2%} before and {report['collision_rate_after']:.2%} "
        f"after resolution, codebook use {min(report['codebook_use']):.1%} or more"
    )


def as_text(report):
    """The report as lines for a terminal."""
    lines = [
        summary(report),
        f"{report['items_in_collisions']} items had codes that others had too, "
        f"{report['largest_collision']} at most the same; {report['extended_items']} got a last "
        "code beyond the base codes",
        "",
        "level  codes  in use  perplexity  unsaid  prefixes  items each  largest  next item shares",
    ]
    for level, size in enumerate(report["base_sizes"]):
        lines.append(
            f"{level + 1:5}  {size:5}  {report['codebook_use'][level]:6.1%}  "
            f"{report['codebook_perplexity'][level]:10.1f}  "
            f"{report['reconstruction_error'][level]:6.1%}  {report['prefixes'][level]:8}  "
            f"{report['items_per_prefix'][level]:10.2f}  {report['largest_prefix'][level]:7}  "
            f"{_percent(report['next_item']['levels'][level])} "
            f"(chance {_percent(report['next_item']['chance'][level])})"
        )
    for name, purity in report["purity"].items():
        levels = "  ".join(_percent(p) for p in purity["levels"])
        lines.append(f"same {name} under a prefix: {levels} (chance {_percent(purity['chance'])})")
    for example in report["examples"]:
        lines += ["", f"{example['sid']}  {example['title']}"]
        lines += [f"  {m['shared']} shared  {m['sid']}  {m['title']}" for m in example["mates"]]
    return "\n".join(lines) + "\n"


def sid_text(codes):
    """`a12 b3 c250 d7`."""
    return " ".join(f"{chr(ord('a') + level)}{code}" for level, code in enumerate(codes))


def _shown(items, codes, row):
    return {"title": items.titles[row] or f"item {items.ids[row]}", "sid": sid_text(codes[row])}


def _use(codes, size):
    return len(np.unique(codes)) / size


def _perplexity(codes):
    share = np.unique(codes, return_counts=True)[1] / len(codes)
    return float(np.exp(-(share * np.log(share)).sum()))


def _sizes_of(group):
    """The size of each item's group, int64 [N]."""
    return np.bincount(group)[group]


def _percent(share):
    return "-" if share is None else f"{share:.1%}"


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and np.isnan(value) else value
