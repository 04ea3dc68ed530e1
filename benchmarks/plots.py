"""Records to pictures: latency over beam, throughput over concurrency, cost over catalogue size."""

from pathlib import Path


def draw(records, folder):
    """Writes the plots that the records allow as PNG files; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    folder, written = Path(folder), []
    shapes = list(dict.fromkeys(r["shape"] for r in records if r["benchmark"] == "latency"))
    for shape in shapes:
        written.append(_latency(records, shape, folder / f"latency_{shape}.png"))
    if any(r["benchmark"] == "closed_loop" for r in records):
        written.append(_throughput(records, folder / "throughput.png"))
    if any(r["benchmark"] == "catalogue" for r in records):
        written.append(_catalogue(records, folder / "catalogue.png"))
    return written


def _figure(width=7, height=4.2):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _name_ticks(axes, values):
    """Ticks of a logarithmic axis at what was measured, named as numbers."""
    values = sorted(set(values))
    axes.set_xticks(values, [f"{v:,d}" for v in values])
    axes.minorticks_off()


def _latency(records, shape, path):
    figure, axes = _figure(width=9)
    rows = [r for r in records if r["benchmark"] == "latency" and r["shape"] == shape]
    for name in dict.fromkeys(r["system"] for r in rows):
        mine = [r for r in rows if r["system"] == name and r["median_ms"] is not None]
        style = "-o" if name.startswith("genrecall") else "--."
        axes.plot([r["width"] for r in mine], [r["median_ms"] for r in mine], style, label=name)
    for dtype, style in (("bf16", "k:"), ("int8", "k-.")):
        own = [r for r in rows if r["system"] == f"genrecall {dtype}" and "floor_ms" in r]
        widths, floors = [r["width"] for r in own], [r["floor_ms"] for r in own]
        axes.plot(widths, floors, style, linewidth=1, label=f"floor, {dtype}")
    axes.set(xscale="log", yscale="log", xlabel="beam width", ylabel="ms, median")
    _name_ticks(axes, [r["width"] for r in rows])
    axes.set_title(f"Qwen2-{shape} shape, one request")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
    return path


def _throughput(records, path):
    figure, axes = _figure()
    rows = [r for r in records if r["benchmark"] == "closed_loop"]
    for name in dict.fromkeys(r["system"] for r in rows):
        mine = [r for r in rows if r["system"] == name]
        axes.plot([r["clients"] for r in mine], [r["per_second"] for r in mine], "-o", label=name)
    axes.set(xscale="log", xlabel="requests in flight", ylabel="requests a second", ylim=(0, None))
    _name_ticks(axes, [r["clients"] for r in rows])
    axes.set_title(f"beam {rows[0]['width']}")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return path


def _catalogue(records, path):
    figure, axes = _figure()
    rows = [r for r in records if r["benchmark"] == "catalogue"]
    items = [r["items"] for r in rows]
    axes.plot(items, [max(r["step_ms"]) for r in rows], "-o", label="constraint + top-k, ms a step")
    axes.plot(items, [r["build_s"] for r in rows], "-o", label="build, s")
    axes.plot(items, [r["load_s"] for r in rows], "-o", label="load and check, s")
    axes.set(xscale="log", yscale="log", xlabel="items on air")
    axes.set_title(f"cost over the catalogue, beam {rows[0]['width']}")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return path
