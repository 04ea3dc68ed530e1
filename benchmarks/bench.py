"""`make bench`: the engine beside its peers and beside the machine's floor, in one run.

    python benchmarks/bench.py [--shapes 0.5b 1.5b] [--systems genrecall torch] [--compare FILE]

Measures the machine's peaks, then: latency of one request over beam widths for every system, the
engine under many requests, requests while the recall index is replaced, the index over catalogue
sizes. Prints tables, writes OUTPUT/results.jsonl (see report.py) and plots. A benchmark, not a
test: nothing else should run.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import catalogue
import floor
import machine as machines
import numpy as np
import plots
import replacement
import report
import systems
import throughput
import workload
from rich.console import Console

SECTIONS = ("latency", "throughput", "replacement", "catalogue")
OF_SHAPES = {"latency", "throughput", "replacement"}  # sections that need a decoder


def prepare(folder, shape, args):
    """Workload of `shape` with the weights the own engine runs, one file a dtype."""
    from transformers.utils import logging

    from genrecall.trtllm_bridge import Engine, checkpoint, quantize

    logging.disable_progress_bar()  # of one file, written in a moment
    made = workload.write_workload(folder, shape, args.items, args.prompt_tokens, args.seed)
    model = folder / "model-bfloat16.gguf"
    checkpoint.convert(folder / "checkpoint", model, "bfloat16")
    maxima = Engine(model).input_maxima(made.prompts[0].astype(np.int32))
    quantize.quantize(model, folder / "model-int8.gguf", "w8a8", maxima)
    return made


def measure_latency(machine, shape, folder, args, recorder, console):
    """One latency record for each (system, width)."""
    with open(args.output / "runners.log", "a", encoding="utf-8") as log:
        for system in chosen_systems(args):
            answer = systems.run(system, folder, args.widths, args, log)
            for width in args.widths:
                times = answer.get("ms", {}).get(width)
                record = {
                    "shape": shape,
                    "system": system.name,
                    "width": width,
                    "median_ms": statistics.median(times) if times else None,
                    "ms": times,
                    "about": answer.get("about", {}),
                }
                if "error" in answer:
                    record["why"] = answer["error"]
                if system.own and times:
                    record["floor_ms"] = floor.floor_ms(
                        machine,
                        shape,
                        answer["about"]["isa"],
                        system.dtype,
                        width,
                        args.prompt_tokens,
                    )
                    record["of_floor"] = record["floor_ms"] / record["median_ms"]
                recorder.add("latency", **record)
            said = answer.get("error", "done")
            console.print(f"  {shape} {system.name}: {said}", highlight=False)


def measure_throughput(machine, shape, made, args, recorder):
    """Closed loop over the number of clients, then the highest rates under each limit."""
    from genrecall import kernels
    from genrecall.trtllm_bridge import Engine

    items = np.arange(len(made.sids), dtype=np.int64)
    index = kernels.RecallIndex.build([workload.CODES] * workload.LEVELS, items, made.sids)
    prompts, width = made.prompts.astype(np.int32), args.widths[0]
    for system in chosen_systems(args):
        path = made.folder / f"model-{system.dtype}.gguf"
        if not system.own or not path.exists():
            continue
        engine = Engine(str(path), num_threads=args.threads)
        best = 0.0

        def ask(i, engine=engine):
            engine.submit(prompts[i % len(prompts)], index, beam_width=width).result()

        for clients in args.clients:
            found = throughput.closed_loop(ask, clients, args.seconds)
            together = floor.floor_ms(
                machine, shape, engine.isa, system.dtype, width, args.prompt_tokens, clients
            )
            row = found.row()
            best = max(best, row["per_second"])
            recorder.add(
                "closed_loop",
                shape=shape,
                system=system.name,
                width=width,
                clients=clients,
                floor_ms=together,
                of_floor=row["per_second"] / clients * together / 1e3,
                **row,
            )
        for limit in args.limits_ms:
            rate = throughput.highest_rate(engine, index, prompts, width, limit, best, args.seconds)
            recorder.add(
                "highest_rate",
                shape=shape,
                system=system.name,
                width=width,
                limit_ms=limit,
                per_second=rate,
            )


def measure_replacement(shape, folder, args, recorder):
    """Slowest request while an index of the largest size is replaced, for the own systems."""
    for system in chosen_systems(args):
        path = folder / f"model-{system.dtype}.gguf"
        if system.own and path.exists():
            found = replacement.run(path, shape, args)
            recorder.add("replacement", shape=shape, system=system.name, **found)


def chosen_systems(args):
    return [s for s in systems.SYSTEMS if any(s.name.startswith(name) for name in args.systems)]


def print_report(recorder, args, console):
    records = recorder.records
    for shape in args.shapes if "latency" in args.sections else ():
        report.latency_table(records, shape, console)
    report.plain_table(
        records,
        "closed_loop",
        {
            "system": ("system", ""),
            "clients": ("clients", ""),
            "requests/s": ("per_second", ".1f"),
            "p50 ms": ("p50_ms", ".0f"),
            "p99 ms": ("p99_ms", ".0f"),
            "of the floor": ("of_floor", ".2f"),
        },
        "many requests at once, each client sending its next when answered",
        console,
    )
    report.plain_table(
        records,
        "highest_rate",
        {
            "system": ("system", ""),
            "p99 within ms": ("limit_ms", ""),
            "requests/s": ("per_second", ".1f"),
        },
        "highest rate of a Poisson stream",
        console,
    )
    report.plain_table(
        records,
        "replacement",
        {
            "system": ("system", ""),
            "items": ("items", ",d"),
            "clients": ("clients", ""),
            "p50 ms": ("p50_ms", ".0f"),
            "p99 ms": ("p99_ms", ".0f"),
            "slowest ms": ("slowest_ms", ".0f"),
            "slowest while replaced": ("replaced_slowest_ms", ".0f"),
            "of the median": ("replaced_over_p50", ".2f"),
            "new one answers after s": ("first_answer_max_s", ".1f"),
        },
        "the recall index replaced under load",
        console,
    )
    report.plain_table(
        records,
        "catalogue",
        {
            "items": ("items", ",d"),
            "build s": ("build_s", ".2f"),
            "load s": ("load_s", ".3f"),
            "bytes/item beside ids": ("bytes_beside_ids", ".1f"),
            "slowest step ms": ("slowest_step_ms", ".3f"),
        },
        "the recall index over catalogue sizes; a step is constraint + top-k",
        console,
    )


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--shapes", nargs="+", choices=workload.SHAPES, default=["0.5b", "1.5b"])
    names = [s.name for s in systems.SYSTEMS]
    parser.add_argument(
        "--systems", nargs="+", default=names, help=f"beginnings of names: {', '.join(names)}"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[5, 32, 128, 512])
    parser.add_argument("--prompt_tokens", type=int, default=150)
    parser.add_argument("--items", type=int, default=100_000, help="in the trie")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--limits_ms", type=float, nargs="+", default=[100, 200, 500])
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--replacements", type=int, default=5, help="of the recall index")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit_s", type=float, default=60, help="of one width of one system")
    parser.add_argument("--threads", type=int, default=machines.describe()["cpus"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("bench"))
    parser.add_argument("--compare", metavar="FILE", help="results.jsonl of another run")
    args = parser.parse_args(argv)
    unknown = [n for n in args.systems if not any(name.startswith(n) for name in names)]
    if unknown:
        parser.error(f"--systems {unknown[0]}: expected the beginning of one of {', '.join(names)}")
    return args


def main(argv=None):
    args = parse_args(argv)
    stored = report.read(args.compare) if args.compare else None  # before hours of measuring
    console = Console(width=None if sys.stdout.isatty() else 120)
    args.output.mkdir(parents=True, exist_ok=True)
    recorder = report.Recorder(args.output / "results.jsonl")
    machine = machines.measure(args.threads)
    doubts = machine.doubts()
    recorder.add("machine", **machines.describe(), **asdict(machine), doubts=doubts)
    for doubt in doubts:
        console.print(f"[bold]{doubt}[/bold]", highlight=False)
    for shape in args.shapes if OF_SHAPES & set(args.sections) else ():
        with tempfile.TemporaryDirectory(dir=args.output) as folder:
            made = prepare(Path(folder), shape, args)
            if "latency" in args.sections:
                measure_latency(machine, shape, made.folder, args, recorder, console)
            if "throughput" in args.sections:
                measure_throughput(machine, shape, made, args, recorder)
            if "replacement" in args.sections:
                measure_replacement(shape, made.folder, args, recorder)
    if "catalogue" in args.sections:
        for figures in catalogue.over_sizes(args.sizes, width=128):
            recorder.add("catalogue", slowest_step_ms=max(figures["step_ms"]), **figures)
    print_report(recorder, args, console)
    if stored is not None:
        report.compare(recorder.records, stored, console)
    for path in [recorder.path, *plots.draw(recorder.records, args.output)]:
        console.print(str(path), highlight=False)


if __name__ == "__main__":
    main()
