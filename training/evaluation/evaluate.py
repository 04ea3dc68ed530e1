"""`genrecall evaluate`: full-ranking evaluation by protocol A, through the engine that serves.

Every item is a candidate; items of the user's history are masked; the target's rank counts ties
against it; one target a user.
Beside the model: popularity, and Markov-1. Writes RUN/evaluation_<split>.json.
"""

import contextlib
import os
import tempfile
import time

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from genrecall import kernels
from genrecall.kernels import prompt_spec
from genrecall.training import files
from genrecall.training.dataset import splits
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.evaluation import baselines, metrics, ranking
from genrecall.training.prompting import build_index
from genrecall.training.prompting.samples import SampleMaker
from genrecall.training.semantic_ids.tokenize import SemanticIds


def load_maker(data, run_folder):
    """The SampleMaker of a finished run: its prompt, its semantic IDs and the whole catalogue.

    Raises:
      FileNotFoundError, ValueError: what is missing or does not fit, by file.
    """
    folder = os.path.join(run_folder, "checkpoint")
    npz = os.path.join(run_folder, "semantic_ids", "semantic_ids.npz")
    if not os.path.exists(os.path.join(folder, "sid_space.json")):
        raise FileNotFoundError(f"{folder}: no sid_space.json; run `genrecall sft` first")
    sids = SemanticIds.load(npz)
    sids.check_items(data.items, npz)
    space = prompt_spec.SidSpace.load(os.path.join(folder, "sid_space.json"))
    spec = prompt_spec.PromptSpec.from_json(os.path.join(folder, "prompt_spec.json"))
    prompt = kernels.Prompt.load(os.path.join(folder, "prompt.gguf"), space.digest)
    lines = splits.clean_lines(data.events, **splits.clean_options(spec))
    weight = splits.popularity(lines, data.items).astype(np.float32)
    index = build_index.build_index(data.items, sids, spec, space.digest, weight)
    return SampleMaker(lines, lines.visible("train"), prompt, index, data.profiles, spec)


def evaluate(data, run_folder, split, num_users, options, dtype="float32", seed=0):
    """Evaluates a run's checkpoint.

    Args:
      data: data_folder.DataSet.
      run_folder: RUN of `genrecall sft`.
      split: "valid" or "test".
      num_users: at most this many, a fixed random sample; 0: all.
      options: ranking.RankOptions.
      dtype: of the engine's weights, "float32" or "bfloat16".

    Returns:
      dict, as evaluation_<split>.json: {"methods": {name: metrics}, ...}.
    """
    maker = load_maker(data, run_folder)
    if num_users < 0:
        raise ValueError(f"users = {num_users}: expected >= 0")
    users = maker.lines.evaluated(split)
    if num_users:
        users = np.sort(np.random.default_rng(seed).permutation(users)[:num_users])
    if not len(users):
        raise ValueError(f"{data.path}: no user has the three events that protocol A needs")
    with tempfile.TemporaryDirectory() as work:
        engine = ranking.open_engine(os.path.join(run_folder, "checkpoint"), work, dtype)
        started = time.monotonic()
        with _bar(len(users)) as advance:
            ranked = ranking.rank_users(engine, maker, split, users, options, advance)
        seconds = time.monotonic() - started
    methods = {"genrecall": metrics.hit_rates(ranked.ranks)}
    for name, ranks in baselines.baseline_ranks(maker.lines, data.items, users, split).items():
        methods[name] = metrics.hit_rates(ranks)
    return {
        "split": split,
        "users": len(users),
        "users_skipped_target_in_history": int(
            (maker.lines.lengths >= 3).sum() - len(maker.lines.evaluated(split))
        ),
        "items": len(data.items),
        "coverage@10": len(np.setdiff1d(ranked.top, [-1])) / len(data.items),
        "seconds": seconds,
        "options": {
            "beam_width": options.beam_width,
            "normalize": options.normalize,
            "dtype": dtype,
            "seed": seed,
        },
        "data_digest": data.digest,
        "methods": methods,
    }


def print_table(result, console):
    """The result as a table, a method a row."""
    table = Table(
        title=f"{result['split']}: {result['users']} users, {result['items']} items, all ranked"
    )
    names = list(next(iter(result["methods"].values())))
    table.add_column("method")
    for name in names:
        table.add_column(name.upper(), justify="right")
    for method, values in result["methods"].items():
        table.add_row(method, *(f"{values[name]:.4f}" for name in names))
    console.print(table)
    options = result["options"]
    console.print(
        f"beam {options['beam_width']} (ranks beyond it are misses), normalize "
        f"{options['normalize']}; coverage@10 {result['coverage@10']:.1%}; "
        f"{result['seconds']:.0f} s",
        highlight=False,
    )


@contextlib.contextmanager
def _bar(total):
    """A progress bar over users, on a terminal; yields what to call with the number done."""
    with Progress(disable=not Console().is_terminal) as progress:
        task = progress.add_task("ranking users", total=total)
        yield lambda done: progress.update(task, completed=done)


def configure(parser):
    d = ranking.RankOptions()
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument(
        "--run", required=True, metavar="RUN", help="run folder with checkpoint and semantic_ids"
    )
    parser.add_argument("--split", choices=("valid", "test"), default="valid")
    parser.add_argument(
        "--beam_width", type=int, default=d.beam_width, help=f"default {d.beam_width}"
    )
    parser.add_argument("--normalize", choices=("level", "legal", "vocab"), default=d.normalize)
    parser.add_argument(
        "--users", type=int, default=0, help="at most this many, sampled (default: all)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the engine's weights",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample of users")
    parser.add_argument(
        "--output", metavar="JSON", help="result file (default RUN/evaluation_<split>.json)"
    )


def main(args):
    options = ranking.RankOptions(args.beam_width, args.normalize)
    result = evaluate(
        read_data(args.data), args.run, args.split, args.users, options, args.dtype, args.seed
    )
    path = args.output or os.path.join(args.run, f"evaluation_{args.split}.json")
    files.write_json(path, result)
    print_table(result, Console())
    print(path)
