"""Records to tables, files and comparisons. Knows no system and measures nothing.

A record is a flat JSON object with "benchmark" and what it measured; a run's file has one a line,
the first one ("machine") saying what the others were taken on.
"""

import json
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

# What two runs are matched by, and which of a record's figures are compared (less is better).
_KEYS = ("benchmark", "shape", "system", "width", "clients", "limit_ms", "items")
_FIGURES = {
    "latency": "median_ms",
    "closed_loop": "p50_ms",
    "replacement": "replaced_slowest_ms",
    "catalogue": "build_s",
}


class Recorder:
    """Appends records to a file that exists whole or not at all, and keeps them."""

    def __init__(self, path):
        self.path, self.records = Path(path), []

    def add(self, benchmark, **figures):
        record = {"benchmark": benchmark, **figures}
        self.records.append(record)
        beside = self.path.with_suffix(".tmp")
        beside.write_text("".join(json.dumps(r) + "\n" for r in self.records), encoding="utf-8")
        os.replace(beside, self.path)
        return record


def read(path):
    """The records of a stored run.

    Raises:
      FileNotFoundError: no such file. ValueError: a line that is no record, with its number.
    """
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: bad JSON: {error.msg}") from None
        if not isinstance(record, dict) or "benchmark" not in record:
            raise ValueError(f'{path}:{number}: expected a record with "benchmark"')
        records.append(record)
    return records


def latency_table(records, shape, console):
    """Median ms and times the own bf16's, a system a row, a width a column."""
    rows = [r for r in records if r["benchmark"] == "latency" and r["shape"] == shape]
    widths = sorted({r["width"] for r in rows})
    names = list(dict.fromkeys(r["system"] for r in rows))
    at = {(r["system"], r["width"]): r for r in rows}
    table = Table(title=f"{shape}: one request, median ms (own: share of the floor)", box=None)
    table.add_column("system")
    for width in widths:
        table.add_column(f"beam {width}", justify="right")
    for name in names:
        table.add_row(name, *(_cell(at, name, width) for width in widths))
    console.print(table)


def _cell(at, name, width):
    record = at.get((name, width))
    if record is None:
        return "–"
    if record["median_ms"] is None:
        return record.get("why") or "not finished"
    text = f"{record['median_ms']:.0f}"
    if "of_floor" in record:
        return f"{text} ({record['of_floor']:.2f})"
    # A baseline is held against the own engine in its own arithmetic: int8 against int8.
    own = at.get(("genrecall int8" if "int8" in name else "genrecall bf16", width))
    if own is None or own["median_ms"] is None:
        return text
    return f"{text} ({record['median_ms'] / own['median_ms']:.1f}x)"


def plain_table(records, benchmark, columns, title, console):
    """One row a record of `benchmark`; columns: {heading: (key, format)}."""
    rows = [r for r in records if r["benchmark"] == benchmark]
    if not rows:
        return
    table = Table(title=title, box=None)
    for heading in columns:
        table.add_column(heading, justify="right")
    for r in rows:
        table.add_row(*(format(r[key], spec) for key, spec in columns.values()))
    console.print(table)


def compare(records, stored, console=None):
    """Prints this run beside a stored one, figure by figure; returns [(key, now, then)]."""
    console = console or Console()
    then = {_key(r): r for r in stored}
    pairs = []
    for record in records:
        figure = _FIGURES.get(record["benchmark"])
        other = then.get(_key(record))
        if figure and other and record.get(figure) and other.get(figure):
            pairs.append((_key(record), record[figure], other[figure]))
    table = Table(title="beside the stored run (below 1: faster now)", box=None)
    for heading in ("what", "now", "then", "now / then"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for key, now, before in pairs:
        what = " ".join(str(part) for part in key if part is not None)
        table.add_row(what, f"{now:.4g}", f"{before:.4g}", f"{now / before:.2f}")
    console.print(table)
    return pairs


def _key(record):
    return tuple(record.get(k) for k in _KEYS)
