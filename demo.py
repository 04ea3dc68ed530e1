"""The whole line on one machine: data folder -> semantic IDs -> decoder -> index -> SavedModel ->
server -> items.

Every station is the `genrecall` verb a user would run; this module strings them together and shows
what came out.
"""

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

MODEL = "recall"
# The generated shop is small and quickly learned; a real folder gets the time that the 30-minute
# demo leaves.
SHOP_MINUTES, DATA_MINUTES = 2.0, 13.0
OUTCOME_METRICS = ("hr@5", "ndcg@5", "hr@10", "ndcg@10", "hr@50", "ndcg@50")
SHOP_USERS, SHOP_ITEMS = 2000, 1000
SERVER_START_S = 120
LATENCY_REQUESTS = 200
RECENT_SHOWN, ITEMS_SHOWN = 5, 8
# A verb's lines come when it writes them, and TensorFlow does not mention the GPUs it did not find.
VERB_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Case:
    """One user as of the validation cut: what a client would send, and the item taken next."""

    user_id: int
    item: np.ndarray  # int64 [n], oldest first
    action: np.ndarray  # int32 [n]
    domain: np.ndarray  # int32 [n]
    time: np.ndarray  # int64 [n]
    profile: dict
    target: int

    def request(self, inputs):
        """Predict inputs of a batch of one; `inputs` are the signature's input names."""
        request = {
            "user_id": np.array([self.user_id], np.int64),
            "behavior_item": self.item[None],
            "behavior_action": self.action[None],
            "behavior_domain": self.domain[None],
            "behavior_time": self.time[None],
            "behavior_length": np.array([len(self.item)], np.int32),
            "request_time": np.array([self.time[-1] + 1], np.int64),
            # What the user already has is not to be recommended again (and protocol A masks it).
            "exclude_item": np.unique(self.item)[None],
            "exclude_length": np.array([len(np.unique(self.item))], np.int32),
        }
        request.update({name: [value] for name, value in self.profile.items() if name in inputs})
        return request


class Stations:
    """Runs the verbs one after another, each under a numbered heading with its time."""

    def __init__(self, console, count):
        self.console = console
        self.count = count
        self.done = 0
        self.started = time.monotonic()

    def heading(self, text):
        self.done += 1
        self.console.rule(f"[bold]{self.done}/{self.count}  {text}", align="left")

    def run(self, text, *arguments):
        """One verb as its own process. Raises RuntimeError if it fails; its own output has said
        why.
        """
        self.heading(text)
        self.console.print(
            f"$ genrecall {shlex.join(arguments)}", style="dim", highlight=False, soft_wrap=True
        )
        started = time.monotonic()
        status = subprocess.run(verb(*arguments), env=VERB_ENVIRONMENT, check=False).returncode
        if status != 0:
            raise RuntimeError(f"`genrecall {arguments[0]}` ended with status {status}")
        self.console.print(f"{time.monotonic() - started:.0f} s", style="dim", highlight=False)


def verb(*arguments):
    """The command line of a genrecall verb in this Python."""
    return [sys.executable, "-m", "genrecall.cli", *arguments]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def running_server(models, log_path):
    """A server on free ports, its output in a file; yields a connected Client.

    Raises:
      RuntimeError: it ended, or was not ready within SERVER_START_S; names the log.
    """
    from genrecall.serving.quiet import quiet_stderr

    with quiet_stderr():
        from genrecall.serving.client import Client
        from genrecall.serving.errors import ServingError

    grpc_port, rest_port = free_port(), free_port()
    arguments = ["serve", "--model_base_path", models, "--model_name", MODEL]
    arguments += ["--port", str(grpc_port), "--rest_api_port", str(rest_port)]
    with open(log_path, "w", encoding="utf-8") as log:
        server = subprocess.Popen(
            verb(*arguments), env=VERB_ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        client = Client(f"127.0.0.1:{grpc_port}", MODEL)
        give_up = time.monotonic() + SERVER_START_S
        while True:
            if server.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"the server did not come up: see {log_path}")
            with contextlib.suppress(ServingError):
                if any(state == "AVAILABLE" for state, _ in client.status().values()):
                    break
            time.sleep(0.2)
        yield client
        client.close()
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()


def validation_cases(data, count, seed=0):
    """`count` users with a validation target and at least RECENT_SHOWN events before it."""
    from genrecall.training.dataset import splits

    lines = splits.clean_lines(data.events)
    seen = lines.visible("valid")
    users = [u for u in lines.evaluated("valid") if seen[u] >= RECENT_SHOWN]
    chosen = np.random.default_rng(seed).permutation(users)[:count]
    cases = []
    for u in chosen:
        line = slice(lines.begin[u], lines.begin[u] + seen[u])
        user_id = int(lines.user_id[u])
        columns = (getattr(lines, name)[line] for name in ("item", "action", "domain", "time"))
        target = int(lines.items_of(u)[seen[u]])
        cases.append(Case(user_id, *columns, data.profiles.get(user_id, {}), target))
    return cases


def show_case(console, data, case, outputs, branches):
    """One user: what was seen, what is recommended, what came next."""
    from genrecall.serving.client import recalled_items

    def title(item):
        row = data.items.row_of.get(item)
        return (data.items.titles[row] if row is not None else "") or f"item {item}"

    items = recalled_items(outputs, branches=branches)
    table = Table(
        title=f"user {case.user_id}",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    for name, options in (
        ("", {}),
        ("item", {"max_width": 62, "no_wrap": True}),
        ("branch", {}),
        ("SID", {}),
        ("score", {"justify": "right"}),
    ):
        table.add_column(name, **options)
    for item in case.item[-RECENT_SHOWN:]:
        table.add_row("seen", title(int(item)), style="dim")
    for rank, item in enumerate(items[:ITEMS_SHOWN], 1):
        hit = item.item_id == case.target
        sid = "-".join(map(str, item.semantic_id))
        generated = f"{item.score:.2f}" if "generative" in item.branches else "-"
        table.add_row(
            f"{rank:2d}",
            title(item.item_id),
            "+".join(item.branches),
            sid,
            generated,
            style="bold green" if hit else "",
        )
    ranks = [i.item_id for i in items]
    where = (
        f"recommended at rank {ranks.index(case.target) + 1}"
        if case.target in ranks
        else f"not among {len(ranks)}"
    )
    table.add_row("next", title(case.target), where, style="bold")
    console.print(table)
    console.print()


def measure_latency(client, requests):
    """Milliseconds of each request sent alone, one after another, float64 [len(requests)]."""
    took = []
    for request in requests:
        started = time.perf_counter()
        client.predict(request)
        took.append((time.perf_counter() - started) * 1e3)
    return np.array(took)


def show_outcome(console, latency_ms, evaluation, beam_width):
    """The two results people ask for first: how good, and how fast."""
    methods = evaluation["methods"]
    table = Table(
        title="outcome", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    table.add_column("validation, all items ranked")
    for name in OUTCOME_METRICS:
        table.add_column(name.upper(), justify="right")
    for method, values in methods.items():
        table.add_row(
            method,
            *(f"{values[name]:.4f}" for name in OUTCOME_METRICS),
            style="bold" if method == "genrecall" else "",
        )
    console.print(table)
    p50, p99 = np.percentile(latency_ms, [50, 99])
    console.print(
        f"latency over gRPC, one client, beam {beam_width}: p50 {p50:.1f} ms, p99 {p99:.1f} ms "
        f"({len(latency_ms)} requests)",
        highlight=False,
    )


def train(stations, data_folder, run, minutes, valid_users):
    """Data folder -> semantic IDs, checkpoint, index, evaluation in the run folder."""
    stations.run("semantic IDs", "tokenize", "--data", data_folder, "--output", run)
    stations.run(
        "fine-tune the decoder",
        "sft",
        "--data",
        data_folder,
        "--run",
        run,
        "--minutes",
        f"{minutes:g}",
        "--epochs",  # by the clock alone
        "1000",
    )
    checkpoint, index = os.path.join(run, "checkpoint"), os.path.join(run, "recall_index.gguf")
    sids = os.path.join(run, "semantic_ids", "semantic_ids.npz")
    stations.run(
        "recall index",
        "index",
        "--data",
        data_folder,
        "--checkpoint",
        checkpoint,
        "--semantic_ids",
        sids,
        "--output",
        index,
    )
    stations.run(
        "evaluate on validation",
        "evaluate",
        "--data",
        data_folder,
        "--run",
        run,
        "--users",
        str(valid_users),
    )
    return checkpoint, index


def serve_and_show(console, stations, data_folder, output, cases_shown):
    """Serves the exported model, asks it, prints users, quality and latency."""
    from genrecall.training.dataset.data_folder import read_data

    stations.heading("serve and ask over gRPC")
    models, log = os.path.join(output, "models"), os.path.join(output, "server.log")
    data = read_data(data_folder)
    with open(os.path.join(output, "run", "evaluation_valid.json"), encoding="utf-8") as f:
        evaluation = json.load(f)
    with open(os.path.join(models, "1", "assets.extra", "model_card.json"), encoding="utf-8") as f:
        card = json.load(f)
    cases = validation_cases(data, LATENCY_REQUESTS)
    with running_server(models, log) as client:
        inputs = client.signatures()["serving_default"].inputs
        requests = [case.request(inputs) for case in cases]
        latency_ms = measure_latency(client, requests)
        console.print()
        for case, request in list(zip(cases, requests, strict=True))[:cases_shown]:
            show_case(console, data, case, client.predict(request), card["branches"])
    show_outcome(console, latency_ms, evaluation, card["options"]["beam_width"])


def configure(parser):
    parser.add_argument("--data", metavar="DIR", help="data folder (default: a generated shop)")
    parser.add_argument(
        "--output", default="demo", metavar="DIR", help="made anew by every run (default demo)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"of fine-tuning (default {SHOP_MINUTES:g}, {DATA_MINUTES:g} with --data)",
    )
    parser.add_argument("--users", type=int, default=3, help="users shown (default 3)")
    parser.add_argument("--valid_users", type=int, default=0, help="users evaluated (default: all)")


def main(args):
    console = Console(width=None if sys.stdout.isatty() else 120)
    if args.data and not os.path.isdir(args.data):
        raise ValueError(f"--data {args.data}: no such folder")
    if os.path.isdir(args.output):
        marker = os.path.join(args.output, ".genrecall-demo")
        if os.listdir(args.output) and not os.path.exists(marker):
            raise ValueError(
                f"--output {args.output}: holds files that no demo wrote; name another folder"
            )
        shutil.rmtree(args.output)
    os.makedirs(args.output)
    open(os.path.join(args.output, ".genrecall-demo"), "w").close()
    run, models = os.path.join(args.output, "run"), os.path.join(args.output, "models")
    minutes = args.minutes
    if minutes is None:
        minutes = DATA_MINUTES if args.data else SHOP_MINUTES
    stations = Stations(console, 6 if args.data else 7)
    data_folder = args.data or os.path.join(args.output, "shop")
    try:
        if not args.data:
            size = ("--users", str(SHOP_USERS), "--items", str(SHOP_ITEMS))
            stations.run("a generated shop", "synth", "--output", data_folder, *size)
        checkpoint, index = train(stations, data_folder, run, minutes, args.valid_users)
        stations.run(
            "export the recall graph",
            "export",
            "--checkpoint",
            checkpoint,
            "--index",
            index,
            "--output",
            models,
        )
        serve_and_show(console, stations, data_folder, args.output, args.users)
    except RuntimeError as error:
        print(f"genrecall demo: {error}", file=sys.stderr)
        return 1
    console.print(
        f"\ndone in {(time.monotonic() - stations.started) / 60:.1f} minutes. Serve it again:",
        highlight=False,
    )
    console.print(
        f"$ genrecall serve --model_base_path {os.path.abspath(models)} --model_name {MODEL}",
        highlight=False,
        soft_wrap=True,
    )
    return 0
