"""The report of semantic IDs as files: JSON, text, and one HTML page that needs nothing beside it.
Knows no data folder and measures nothing.
"""

import html
import os

from genrecall.training import files
from genrecall.training.semantic_ids import charts, report

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: #1d2733;
  background: #f4f6f8; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 40px 0 12px; }
p { margin: 0 0 12px; max-width: 75ch; }
.quiet { color: #5b6875; }
.scroll + p { margin-top: 10px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 12px;
  margin: 24px 0; }
.tile, .card { background: #fff; border: 1px solid #dde3e9; border-radius: 8px;
  padding: 14px 16px; }
.tile b { display: block; font-size: 20px; font-weight: 600; }
.tile span { color: #5b6875; font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: #fff; border: 1px solid #dde3e9; }
th, td { padding: 7px 12px; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; border-bottom: 1px solid #eef1f4; }
th { font-weight: 600; font-size: 13px; color: #45525f; background: #fafbfc; }
th:first-child, td:first-child { text-align: left; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 16px; }
.charts svg { width: 100%; height: auto; display: block; }
.card { margin-bottom: 14px; }
.card h3 { font-size: 15px; margin: 0 0 8px; overflow-wrap: anywhere; }
.mate { display: grid; grid-template-columns: 170px 1fr; gap: 12px; padding: 2px 0; }
.mate div { overflow-wrap: anywhere; }
code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; color: #8b97a3; }
code b { color: #1d5fa8; font-weight: 600; }
"""


def write(folder, measured):
    """Writes report.json, report.txt and report.html of report.measure's dict."""
    os.makedirs(folder, exist_ok=True)
    files.write_json(os.path.join(folder, "report.json"), measured)
    files.write_text(os.path.join(folder, "report.txt"), report.as_text(measured))
    files.write_text(os.path.join(folder, "report.html"), as_html(measured))


def as_html(measured):
    """The page, UTF-8 HTML with its style and its charts inline."""
    body = "\n".join(
        (
            "<h1>Semantic IDs</h1>",
            f'<p class="quiet">{html.escape(report.summary(measured))}.</p>',
            _tiles(measured),
            "<h2>Levels</h2>",
            _levels(measured),
            "<h2>Charts</h2>",
            f'<div class="charts">{"".join(_chart(c) for c in charts.all_charts(measured))}</div>',
            "<h2>Who shares a prefix</h2>",
            '<p class="quiet">Items from popular to rare, and those that begin with the same codes '
            "(in blue), closest first.</p>",
            "".join(_example(e) for e in measured["examples"])
            or '<p class="quiet">There is one item: none to share with.</p>',
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Semantic IDs</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _tiles(measured):
    next_item = measured["next_item"]
    tiles = [
        (f"{measured['items']:,}", "items"),
        ("×".join(map(str, measured["level_sizes"])), "codes per level"),
        (f"{measured['collision_rate_before']:.2%}", "collisions before resolution"),
        (f"{measured['collision_rate_after']:.2%}", "collisions after resolution"),
        (f"{min(measured['codebook_use']):.1%}", "least codebook use of a level"),
        (f"{min(measured['codebook_perplexity']):.1f}", "least perplexity of a level"),
        (f"{measured['reconstruction_error'][-1]:.1%}", "of the vectors' spread left unsaid"),
        (_percent(next_item["levels"][0]), "next items under the last one's first code"),
    ]
    if "extension" in measured:
        tiles.insert(1, (f"{measured['extension']['new_items']:,}", "new items among them"))
    said = "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles)
    return f'<div class="tiles">{said}</div>'


def _levels(measured):
    columns = ("Level", "Codes", "In use", "Perplexity", "Unsaid", "Prefixes", "Items each")
    columns += ("Largest", "Alone", "Next item", "By chance")
    rows = []
    for level, size in enumerate(measured["base_sizes"]):
        cells = (
            f"{level + 1}",
            f"{size}",
            f"{measured['codebook_use'][level]:.1%}",
            f"{measured['codebook_perplexity'][level]:.1f}",
            f"{measured['reconstruction_error'][level]:.1%}",
            f"{measured['prefixes'][level]:,}",
            f"{measured['items_per_prefix'][level]:.2f}",
            f"{measured['largest_prefix'][level]:,}",
            f"{measured['alone_under_prefix'][level]:.1%}",
            _percent(measured["next_item"]["levels"][level]),
            _percent(measured["next_item"]["chance"][level]),
        )
        rows.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    head = "".join(f"<th>{c}</th>" for c in columns)
    return (
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
        '<p class="quiet">Use and perplexity are of the base codes. Prefixes are the first codes '
        "up to the level; <em>alone</em> is the share of items that have theirs to themselves; "
        f"<em>next item</em> the share of {measured['next_item']['users']:,} users whose "
        "validation target begins as their last item does.</p>"
    )


def _chart(svg):
    return f'<div class="card">{svg}</div>'


def _example(example):
    mates = "".join(
        f'<div class="mate"><div>{_sid(m["sid"], m["shared"])}</div>'
        f"<div>{html.escape(m['title'])}</div></div>"
        for m in example["mates"]
    )
    return (
        f'<div class="card"><h3>{html.escape(example["title"])} '
        f"{_sid(example['sid'], 99)}</h3>{mates}</div>"
    )


def _sid(sid, shared):
    codes = sid.split(" ")
    same, rest = " ".join(codes[:shared]), " ".join(codes[shared:])
    return f"<code><b>{same}</b> {rest}</code>"


def _percent(share):
    return "–" if share is None else f"{share:.1%}"
