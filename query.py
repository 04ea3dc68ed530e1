"""The `genrecall query` command: asks a server for one user's items and prints them with titles.

It stands beside cli.py, above serving/ and training/: the client knows no data folder, and the data
folder's reader no server. TensorFlow is imported when the query runs, not for --help.
"""

import argparse
import json
import sys
from dataclasses import dataclass

import numpy as np

OPTIONS = ("beam_width", "num_items", "deadline_ms", "priority", "seed")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `genrecall query`."""
    parser.add_argument("--server", default="127.0.0.1:8500", help="gRPC address (%(default)s)")
    parser.add_argument("--model", default="default", help="name of the model (%(default)s)")
    parser.add_argument("--version", type=int, help="version to ask; the newest if not given")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", type=int, metavar="ID", help="a user of the data folder")
    who.add_argument(
        "--request",
        metavar="FILE.json",
        help="a request in REST's format: {'inputs': {..}}; -: stdin",
    )
    parser.add_argument("--data", metavar="DIR", help="data folder: behaviours, profiles, titles")
    for name in OPTIONS:
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"the request's {name}")
    parser.add_argument(
        "--request_time", type=int, metavar="S", help="Unix seconds; just after the last behaviour"
    )
    parser.add_argument(
        "--branches", default="generative,popular", help="names by bit of branch_mask (%(default)s)"
    )
    parser.add_argument("--explain", action="store_true", help="also the prompt and the beams")
    parser.add_argument("--timeout_s", type=float, default=10.0, help="deadline (%(default)s)")


def main(args: argparse.Namespace) -> int:
    """Prints the answer to one request; 1 if the server refused it. Bad files are ValueError."""
    if args.user is not None and not args.data:
        raise ValueError("--user needs --data: the folder that has the user's behaviours")
    from genrecall.serving.quiet import quiet_stderr

    with quiet_stderr():
        from genrecall.serving.client import Client
    from genrecall.serving.errors import ServingError
    from genrecall.training.dataset.data_folder import read_data

    data = read_data(args.data) if args.data else None
    body = None if args.request is None else read_request(args.request)
    signature = (body or {}).get("signature_name") or "serving_default"
    signature = "explain" if args.explain else signature
    try:
        with Client(args.server, args.model, args.timeout_s) as client:
            infos = client.signatures(args.version)[signature].inputs
            if body is None:
                inputs = user_inputs(data, args.user, infos, args.request_time)
            else:
                inputs = body_inputs(body, infos)
            rows = max(
                (np.shape(value)[0] for value in inputs.values() if np.shape(value)), default=1
            )
            for name in OPTIONS:
                if getattr(args, name) is not None:
                    inputs[name] = [getattr(args, name)] * rows  # refused if it does not fit
            outputs = client.predict(inputs, signature, args.version)
    except ServingError as error:
        reason = error.message.split("\n\t [[", 1)[0]  # without the graph's node
        print(f"genrecall query: {error.code.name}: {reason}", file=sys.stderr)
        return 1
    titles = dict(zip(data.items.ids.tolist(), data.items.titles, strict=True)) if data else {}
    Printer(titles, args.branches.split(",")).show(outputs)
    return 0


def user_inputs(data, user: int, infos, request_time: int | None = None) -> dict[str, object]:
    """The request of one user: behaviours, and the profile features that the signature takes.

    Args:
      data: data_folder.DataSet.
      user: user id.
      infos: the signature's inputs, name -> TensorInfo.
      request_time: Unix seconds; None: one second after the last behaviour.

    Raises:
      ValueError: the folder does not know the user.
    """
    events, profile = data.events, data.profiles.get(user)
    found = np.flatnonzero(events.user_id == user)
    if not len(found) and profile is None:
        raise ValueError(f"user {user} is not in {data.path}")
    own = events.of(found[0]) if len(found) else slice(0, 0)
    length = own.stop - own.start
    if request_time is None and length:
        request_time = int(events.time[own].max()) + 1
    inputs = {
        "user_id": np.array([user], np.int64),
        "behavior_length": np.array([length], np.int32),
        "request_time": [request_time or 0],
    }
    if length:
        inputs["behavior_item"] = events.item[own][None].astype(np.int64)
        inputs["behavior_action"] = events.action[own][None].astype(np.int32)
        inputs["behavior_domain"] = events.domain[own][None].astype(np.int32)
        inputs["behavior_time"] = events.time[own][None].astype(np.int64)
    for name, value in (profile or {}).items():
        if name in infos and value is not None:
            inputs[name] = [value]
    return inputs


def read_request(path: str) -> dict:
    """A request file in REST's format; a bare object of inputs becomes {"inputs": object}."""
    try:
        if path == "-":
            body = json.load(sys.stdin)
        else:
            with open(path, encoding="utf-8") as file:
                body = json.load(file)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(body, dict):
        raise ValueError(f"{path}: expected a JSON object, {{'inputs': {{..}}}}")
    return body if {"inputs", "instances"} & set(body) else {"inputs": body}


def body_inputs(body: dict, infos) -> dict[str, np.ndarray]:
    """The arrays of a request in REST's format; what it leaves out is the server's to judge."""
    from genrecall.serving import json_request, tensors

    inputs = json_request.Inputs(infos, optional=frozenset(infos))
    request, _ = json_request.parse_predict(json.dumps(body).encode(), lambda _: inputs)
    return {name: tensors.to_numpy(name, proto) for name, proto in request.inputs.items()}


@dataclass(frozen=True)
class Printer:
    """Prints a recall graph's outputs as tables; titles are by item id."""

    titles: dict
    branches: list

    def show(self, outputs) -> None:
        from rich.console import Console

        console = Console()
        if "item_id" not in outputs:  # some other model
            for name, value in sorted(outputs.items()):
                console.print(f"{name} {list(value.shape)}: {value.tolist()}", markup=False)
            return
        for row in range(len(outputs["item_id"])):
            self._items(console, outputs, row)
            if "beam_semantic_id" in outputs:
                self._explanation(console, outputs, row)

    def _items(self, console, outputs, row) -> None:
        from rich.table import Table
        from rich.text import Text

        from genrecall.serving import client
        from genrecall.serving.errors import code_of_number

        status = int(outputs["request_status"][row])
        if status:
            console.print(f"row {row} was refused: {code_of_number(status).name}", style="red")
            return
        table = Table(*("#", "item", "title", "branch", "semantic ID"), box=None, pad_edge=False)
        table.add_column("score", justify="right")
        for rank, item in enumerate(client.recalled_items(outputs, row, self.branches), 1):
            table.add_row(
                str(rank),
                str(item.item_id),
                Text(self.titles.get(item.item_id, ""), overflow="ellipsis", no_wrap=True),
                "+".join(item.branches),
                Text(client.semantic_id_text(item.semantic_id), no_wrap=True),
                f"{item.score:.3f}",
            )
        console.print(table)
        for name, code in client.failed_branches(outputs, row, self.branches).items():
            console.print(f"branch {name} gave nothing: {code}", style="yellow")

    def _explanation(self, console, outputs, row) -> None:
        from rich.table import Table
        from rich.text import Text

        from genrecall.serving import client

        length = int(outputs["prompt_length"][row])
        tokens = outputs["prompt_token"][row, :length].tolist()
        stable = int(outputs["prompt_stable_prefix"][row])
        console.print(
            f"\nprompt: {length} tokens, the first {stable} stable: {tokens}", markup=False
        )
        table = Table("beam", "semantic ID", box=None, pad_edge=False)
        table.add_column("score", justify="right")
        table.add_column("by level", justify="right")
        for beam, codes in enumerate(outputs["beam_semantic_id"][row].tolist()):
            if codes[0] < 0:
                break
            steps = outputs["beam_step_score"][row, beam].tolist()
            table.add_row(
                str(beam),
                Text(client.semantic_id_text(codes), no_wrap=True),
                f"{outputs['beam_score'][row, beam]:.3f}",
                " ".join(f"{step:.2f}" for step in steps),
            )
        console.print(table)
