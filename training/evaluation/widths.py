"""HR@K and latency against beam width: what wide beams are for, as figures and as a plot. Knows no
data folder.
"""

import time
from dataclasses import asdict, dataclass, replace

import numpy as np

from genrecall.training import files
from genrecall.training.evaluation import intervals, ranking

CUTOFFS = (5, 10, 20, 50, 100, 200, 500, 1000)
_TIMED_USERS = 30


@dataclass(frozen=True)
class Point:
    """One beam width W. hr: K -> HR@K of the K <= W; intervals: K -> its Wilson interval;
    latency_ms: median of one request alone; users_per_s: in batches.
    """

    beam_width: int
    users: int
    hr: dict
    intervals: dict
    latency_ms: float
    users_per_s: float


def measure(engine, maker, split, users, beam_widths, options):
    """One Point per beam width, ascending.

    Args:
      engine, maker, split, users: as for ranking.rank_users.
      beam_widths: ints; may be empty.
      options: ranking.RankOptions; its beam_width is replaced.
    """
    points = []
    for width in sorted(set(beam_widths)):
        own = replace(options, beam_width=width)
        started = time.monotonic()
        ranks = ranking.rank_users(engine, maker, split, users, own).ranks
        seconds = time.monotonic() - started
        hits = {k: int((ranks <= k).sum()) for k in CUTOFFS if k <= width}
        points.append(
            Point(
                width,
                len(users),
                {k: h / len(users) for k, h in hits.items()},
                {k: list(intervals.wilson(h, len(users))) for k, h in hits.items()},
                _latency_ms(engine, maker, split, users, own),
                len(users) / seconds,
            )
        )
    return points


def _latency_ms(engine, maker, split, users, options):
    """Median milliseconds of single requests, over users spread evenly."""
    chosen = users[np.unique(np.linspace(0, len(users) - 1, _TIMED_USERS).astype(np.int64))]
    ends = maker.lines.visible(split)[chosen]
    took = []
    for i in range(len(chosen)):
        tokens, length = maker.prompts(chosen[i : i + 1], ends[i : i + 1])
        started = time.perf_counter()
        engine.decode(
            tokens,
            length,
            maker.index,
            beam_width=options.beam_width,
            normalize=options.normalize,
        )
        took.append(1e3 * (time.perf_counter() - started))
    return float(np.median(took))


def write(stem, points):
    """Writes `stem`.json and `stem`.png; returns their paths."""
    files.write_json(f"{stem}.json", {"points": [asdict(p) for p in points]})
    with files.replacing(f"{stem}.png") as beside:
        plot(points).savefig(beside, format="png", dpi=120)
    return f"{stem}.json", f"{stem}.png"


def plot(points):
    """A matplotlib Figure: HR@K, and below it latency, against beam width."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(7, 7), layout="constrained")
    hits, latency = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for k in CUTOFFS:
        own = [p for p in points if k in p.hr]
        if own:
            x, y = [p.beam_width for p in own], [p.hr[k] for p in own]
            (line,) = hits.plot(x, y, marker="o", label=f"HR@{k}")
            low, high = zip(*(p.intervals[k] for p in own), strict=True)
            hits.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    hits.set_ylabel(f"HR@K, {points[0].users} users, 95 % interval")
    hits.set_ylim(bottom=0)
    hits.legend(fontsize="small")
    x = [p.beam_width for p in points]
    latency.plot(x, [p.latency_ms for p in points], marker="o", color="black")
    latency.set_ylabel("median ms, one request")
    latency.set_ylim(bottom=0)
    latency.set_xlabel("beam width")
    latency.set_xscale("log")
    latency.set_xticks(x, labels=[str(v) for v in x])
    latency.minorticks_off()
    for axes in (hits, latency):
        axes.grid(alpha=0.3)
    return figure
