"""`genrecall evaluate`: full-ranking evaluation by protocol A, through the engine that serves.

Every item is a candidate; items of the user's history are masked; the target's rank counts ties
against it; one target a user. Beside the model, over the same users: popularity, Markov-1,
item-to-item cosine, and SASRec where it has been trained (see --sasrec). Writes
RUN/evaluation_<split>.json, with --widths also RUN/widths_<split>.json and .png, and a line into
RUN/test_uses.jsonl each time the test split is used.
"""

import os
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import Progress

from genrecall import kernels
from genrecall.kernels import prompt_spec
from genrecall.training import config, files
from genrecall.training.config import option
from genrecall.training.dataset import splits, training_part
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.evaluation import (
    baselines,
    comparison,
    held_out_log,
    metrics,
    protocol,
    ranking,
    sasrec_cache,
    widths,
)
from genrecall.training.prompting.samples import make_maker
from genrecall.training.semantic_ids.sid_table import SemanticIds

MODEL = "genrecall"


@dataclass(frozen=True)
class EvaluateOptions:
    """What `genrecall evaluate` does."""

    split: str = option("valid", "targets: of validation or of test", choices=("valid", "test"))
    beam_width: int = option(50, "ranks beyond it are misses", low=1, high=4096)
    normalize: str = option(
        "level", "what a code's probability is over", choices=("level", "legal", "vocab")
    )
    users: int = option(0, "at most this many users, sampled; 0: all", low=0)
    dtype: str = option(
        "float32", "of the engine's weights", choices=("float32", "bfloat16"), metavar="DTYPE"
    )
    sasrec: str = option(
        "auto",
        "SASRec in the table: auto where it was trained on this data before, train it first "
        "(minutes), or off",
        choices=("auto", "train", "off"),
    )
    widths: tuple[int, ...] = option(
        (), "beam widths to draw HR@K and latency against, e.g. 5 10 50 200 1000", low=1, high=4096
    )
    threads: int = option(2, "of PyTorch, for SASRec", low=1)
    seed: int = option(0, "of the sample of users and the bootstrap", low=0)

    def __post_init__(self):
        config.check(self)

    @property
    def ranking(self):
        return ranking.RankOptions(self.beam_width, self.normalize)


def load_maker(data, run_folder):
    """The SampleMaker of a finished run: its prompt, its semantic IDs and the whole catalogue, the
    training part as it was trained on.

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
    return make_maker(data, sids, spec, prompt, training_part.read(folder))


def sample_users(lines, split, number, seed):
    """At most `number` of the users that have a target in `split`, a fixed random sample; all for
    0. int64 [n], ascending.

    Raises:
      ValueError: nobody has one.
    """
    users = lines.evaluated(split)
    if not len(users):
        raise ValueError("no user has the three events that protocol A needs")
    if number:
        users = np.sort(np.random.default_rng(seed).permutation(users)[:number])
    return users


def evaluate(data, run_folder, options):
    """Evaluates a run's checkpoint and the baselines.

    Args:
      data: data_folder.DataSet.
      run_folder: RUN of `genrecall sft`.
      options: EvaluateOptions.

    Returns:
      (dict, as evaluation_<split>.json: what comparison.compare gives, and what it was taken from;
      list of widths.Point, empty without options.widths).

    Raises:
      ValueError: the run was trained on the split's targets.
    """
    checkpoint = os.path.join(run_folder, "checkpoint")
    maker = load_maker(data, run_folder)
    training_part.check_unseen(maker.hold_out, options.split, checkpoint)
    users = sample_users(maker.lines, options.split, options.users, options.seed)
    cases = protocol.cases_of(maker.lines, data.items, options.split, users)
    with tempfile.TemporaryDirectory() as work:
        engine = ranking.open_engine(checkpoint, work, options.dtype)
        if options.split == "test":
            held_out_log.record(run_folder, checkpoint, config.as_dict(options), len(users))
        started = time.monotonic()
        with _bar(len(users)) as advance:
            ranked = ranking.rank_users(
                engine, maker, options.split, users, options.ranking, advance
            )
        seconds = time.monotonic() - started
        points = widths.measure(
            engine, maker, options.split, users, options.widths, options.ranking
        )
    rankings = {MODEL: ranked}
    scorers = baselines.fit_baselines(maker.lines, data.items, options.split)
    scorers |= sasrec_cache.scorers(
        data, maker.lines, run_folder, options.sasrec, options.threads, maker.hold_out
    )
    shown = ranked.top.shape[1]
    for name, scorer in scorers.items():
        rankings[name] = protocol.rank_by_scores(scorer, cases, data.items.ids, shown)
    catalogue = metrics.Catalogue.of(data.items, splits.popularity(maker.lines, data.items))
    result = comparison.compare(rankings, cases.target, catalogue, MODEL, options.seed)
    about = {
        "split": options.split,
        "users": len(users),
        "users_skipped_target_in_history": int(
            (maker.lines.lengths >= 3).sum() - len(maker.lines.evaluated(options.split))
        ),
        "items": len(data.items),
        "hot_items": int(catalogue.hot.sum()),
        "hot_items_share_of_interactions": catalogue.hot_share,
        "targets_with_ecpm": float(np.isfinite(data.items.ecpm[cases.target]).mean()),
        "seconds": seconds,
        "hold_out": maker.hold_out,
        "options": config.as_dict(options),
        "data_digest": data.digest,
    }
    return about | result, points


def print_result(result, console):
    """The table, a method a row, and what it leaves open."""
    title = f"{result['split']}: {result['users']} users, {result['items']} items, all ranked"
    console.print(comparison.table(result, title))
    options = result["options"]
    notes = [
        comparison.NOTE,
        comparison.difference_line(result, MODEL),
        f"beam {options['beam_width']} (ranks beyond it are misses), normalize "
        f"{options['normalize']}, {result['seconds']:.0f} s; hot: the {result['hot_items']} most "
        f"popular items, {result['hot_items_share_of_interactions']:.1%} of the interactions",
    ]
    for note in filter(None, notes):
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def wide_console():
    """The terminal, or, where output goes to a file, one that is wide enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=110)


@contextmanager
def _bar(total):
    """A progress bar over users, on a terminal; yields what to call with the number done."""
    with Progress(disable=not Console().is_terminal) as progress:
        task = progress.add_task("ranking users", total=total)
        yield lambda done: progress.update(task, completed=done)


def configure(parser):
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument(
        "--run", required=True, metavar="RUN", help="run folder with checkpoint and semantic_ids"
    )
    config.add_arguments(parser, EvaluateOptions)
    parser.add_argument(
        "--output", metavar="JSON", help="result file (default RUN/evaluation_<split>.json)"
    )


def main(args):
    options = config.from_args(EvaluateOptions, args)
    if options.split == "test":
        print(held_out_log.warning(args.run), file=sys.stderr)
    result, points = evaluate(read_data(args.data), args.run, options)
    path = args.output or os.path.join(args.run, f"evaluation_{options.split}.json")
    files.write_json(path, result)
    print_result(result, wide_console())
    print(path)
    if points:
        for path in widths.write(os.path.join(args.run, f"widths_{options.split}"), points):
            print(path)
