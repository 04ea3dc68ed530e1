"""Charts of semantic IDs and of vectors, as SVG text or a file. Knows no data folder and measures
nothing.
"""

import io

_COLOURS = ("#2f6fb2", "#d9822b", "#3a8f5c", "#a4508b", "#b23a48", "#5c6bc0", "#00897b", "#7a7a7a")
_TEXT = "#2b3742"


def all_charts(measured):
    """SVG texts of report.measure's dict: code use, reconstruction, next items, purity."""
    levels = list(range(1, len(measured["base_sizes"]) + 1))
    out = [_svg(_code_use(measured)), _svg(_reconstruction(measured, levels))]
    if measured["next_item"]["users"]:
        out.append(_svg(_next_item(measured, levels)))
    if measured["purity"]:
        out.append(_svg(_purity(measured, levels)))
    return out


def comparison(table, measures, k):
    """A Figure of genrecall embed's comparison: bars of every encoder for each measure.

    Args:
      table: encoder name -> {measure: share in 0..1 or None}.
      measures: names, in order.
      k: how many neighbours were counted.
    """
    figure, axes = _figure("Same kind among the nearest neighbours", f"share of {k} nearest")
    figure.set_size_inches(max(6.0, 1.2 + 0.42 * len(measures) * (len(table) + 1)), 3.8)
    width = 0.8 / len(table)
    for place, (name, shares) in enumerate(table.items()):
        at = [m + (place - (len(table) - 1) / 2) * width for m in range(len(measures))]
        heights = [shares[m] or 0.0 for m in measures]
        bars = axes.bar(at, heights, width * 0.92, label=name, color=_COLOURS[place % 8])
        axes.bar_label(bars, [f"{h:.0%}" for h in heights], fontsize=8, color=_TEXT, padding=1)
    axes.set_xticks(range(len(measures)), measures)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_ylim(0, min(1.08, axes.get_ylim()[1] * 1.1))
    return figure


def _code_use(measured):
    figure, axes = _figure("How often each code is used", "items", "code, most used first")
    for level, counts in enumerate(measured["code_counts"]):
        used = [max(c, 0.5) for c in counts]
        axes.plot(
            range(1, len(used) + 1), used, color=_COLOURS[level % 8], label=f"level {level + 1}"
        )
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8.5)
    return figure


def _reconstruction(measured, levels):
    figure, axes = _figure("What the codes leave unsaid", "of the vectors' spread", "levels read")
    values = measured["reconstruction_error"]
    bars = axes.bar(levels, values, 0.6, color=_COLOURS[0])
    axes.bar_label(bars, [f"{v:.0%}" for v in values], fontsize=9, color=_TEXT, padding=2)
    axes.set_xticks(levels)
    _as_percent(axes)
    return figure


def _next_item(measured, levels):
    title = "Next items that begin as the last one does"
    figure, axes = _figure(title, "of validation targets", "codes shared, at least")
    shares = measured["next_item"]
    for place, (name, values) in enumerate((("users", "levels"), ("by chance", "chance"))):
        at = [level + (place - 0.5) * 0.38 for level in levels]
        heights = shares[values]
        bars = axes.bar(at, heights, 0.36, label=name, color=(_COLOURS[0], "#c3ccd5")[place])
        axes.bar_label(bars, [f"{h:.1%}" for h in heights], fontsize=8, color=_TEXT, padding=2)
    axes.set_xticks(levels)
    axes.legend(frameon=False, fontsize=8.5)
    _as_percent(axes)
    return figure


def _purity(measured, levels):
    title = "Items of one kind under a prefix"
    figure, axes = _figure(title, "of prefix mates", "codes of the prefix")
    for place, (name, purity) in enumerate(measured["purity"].items()):
        colour = _COLOURS[place % 8]
        values = [float("nan") if v is None else v for v in purity["levels"]]
        axes.plot(levels, values, color=colour, marker="o", markersize=4, label=f"same {name}")
        axes.axhline(purity["chance"], color=colour, linestyle=":", linewidth=1)
    axes.set_xticks(levels)
    axes.set_ylim(0, 1.02)
    axes.plot([], [], color="#7a7a7a", linestyle=":", linewidth=1, label="by chance")
    axes.legend(frameon=False, fontsize=8.5)
    _as_percent(axes)
    return figure


def _figure(title, y, x=""):
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(5.6, 3.3), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, color=_TEXT, loc="left")
    axes.set_xlabel(x, fontsize=9, color=_TEXT)
    axes.set_ylabel(y, fontsize=9, color=_TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5, colors=_TEXT)
    axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(y=0.12)  # room for what stands on the bars
    return figure, axes


def _as_percent(axes):
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def _svg(figure):
    """The figure as an <svg> element; the same figure is the same text."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "genrecall"}):
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    text = out.getvalue()
    return text[text.index("<svg") :]
