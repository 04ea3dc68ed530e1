"""Several methods' rankings of the same users, compared: metrics, intervals, paired differences,
one table. Knows no method.
"""

import numpy as np
from rich import box
from rich.table import Table

from genrecall.training.evaluation import intervals, metrics

DIFFERENCES = ("hr@10", "ndcg@10", "ecpm@10")


def compare(rankings, target, catalogue, main, seed=0):
    """The figures of several methods.

    Args:
      rankings: name -> protocol.Ranking, of the same n users.
      target: int64 [n], rows of the items.
      catalogue: metrics.Catalogue.
      main: the name that the others are baselines of; it may be the only one.
      seed: of the bootstrap.

    Returns:
      {"methods": {name: {metric: mean}},
       "intervals": {name: {metric: [low, high]}}: 95 %, Wilson's for hr@K, else bootstrap,
       "difference": None without a baseline, else {"from": the baseline of the best HR@10,
         metric: {"mean", "low", "high"}} of `main` less it, over the same users},
      plain values as JSON takes them.
    """
    values = {
        name: metrics.user_values(ranking, target, catalogue) for name, ranking in rankings.items()
    }
    means = {
        name: metrics.means(values[name]) | metrics.coverage(ranking, len(catalogue.items))
        for name, ranking in rankings.items()
    }
    names = list(values[main])
    columns = np.stack([v for own in values.values() for v in own.values()], axis=1)
    samples = intervals.bootstrap_means(columns, seed=seed)
    samples = dict(zip(values, np.split(samples, len(values), axis=1), strict=True))
    return {
        "methods": means,
        "intervals": {
            name: {
                metric: _interval(metric, values[name][metric], samples[name][:, at])
                for at, metric in enumerate(names)
            }
            for name in values
        },
        "difference": _difference(means, samples, names, main),
    }


def _interval(metric, values, samples):
    if metric.startswith("hr@"):
        return list(intervals.wilson(values.sum(), len(values)))
    low, high = intervals.percentile_interval(samples)
    return [low, high] if low == low else [0.0, 0.0]


def _difference(means, samples, names, main):
    others = [name for name in means if name != main]
    if not others:
        return None
    best = max(others, key=lambda name: means[name]["hr@10"])
    out = {"from": best}
    for metric in DIFFERENCES:
        if metric in names:
            at = names.index(metric)
            low, high = intervals.percentile_interval(samples[main][:, at] - samples[best][:, at])
            difference = means[main][metric] - means[best][metric]
            out[metric] = {"mean": difference, "low": low, "high": high}
    return out


# Metric -> head of its column, and whether half its interval's width is shown below the value.
_COLUMNS = {
    "hr@5": ("HR@5", False),
    "ndcg@5": ("NDCG@5", False),
    "hr@10": ("HR@10", True),
    "ndcg@10": ("NDCG@10", True),
    "hr@50": ("HR@50", False),
    "ecpm@10": ("eCPM@10", True),
    "ecpm_hit@10": ("hit eCPM", True),
    "coverage@10": ("cover", False),
    "hot@10": ("hot", False),
}
NOTE = "+-: 95 % confidence over users; hit eCPM, cover and hot: of ten items"


def table(result, title):
    """What `compare` gave as a rich Table, a method a row."""
    out = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1))
    out.add_column("method")
    first = next(iter(result["methods"].values()))
    shown = {metric: c for metric, c in _COLUMNS.items() if metric in first}
    for head, _ in shown.values():
        out.add_column(head, justify="right")
    for method, values in result["methods"].items():
        between = result["intervals"][method]
        cells = [
            _cell(metric, values[metric], between.get(metric) if with_interval else None)
            for metric, (_, with_interval) in shown.items()
        ]
        out.add_row(method, *cells)
    return out


def _cell(metric, value, between):
    if metric.startswith(("coverage", "hot")):
        return f"{value:.1%}"
    digits = 2 if metric.startswith("ecpm@") else 4
    text = f"{value:.{digits}f}"
    if between is None:
        return text
    return f"{text}\n+-{max(value - between[0], between[1] - value):.{digits}f}"


def difference_line(result, main):
    """`genrecall - item-to-item: HR@10 +0.0012 [-0.0020, +0.0044], ...`; "" without a baseline."""
    difference = result["difference"]
    if difference is None:
        return ""
    parts = [
        f"{_COLUMNS[metric][0]} {d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"
        for metric, d in difference.items()
        if metric != "from"
    ]
    return f"{main} - {difference['from']}: {', '.join(parts)}"
