"""`genrecall prompts`: what a data folder's prompts say and how long they are, as a run writes them
and as they would be with other options. Knows no model.

For every user the prompt of the validation target: tokens (mean, median, 95th percentile, the
longest), the share of them that is the stable prefix, events written, and events that the layout
could write but merges or hides. So an option's effect is known before anything is trained with it.
"""

import os
import tempfile
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from genrecall.kernels import prompt_spec
from genrecall.training import config, files
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.prompting import prompts, samples
from genrecall.training.semantic_ids.sid_table import SemanticIds


@dataclass(frozen=True)
class Usage:
    """How much the prompts of n users take, int64 [n] each: tokens; stable, those of the stable
    prefix; written, events; left_out, events that are asked for in the prompt without being written
    (merged, or of a domain that is left out).
    """

    tokens: np.ndarray
    stable: np.ndarray
    written: np.ndarray
    left_out: np.ndarray

    def summary(self):
        """dict of figures, plain JSON."""
        return {
            "users": len(self.tokens),
            "tokens_mean": float(self.tokens.mean()),
            "tokens_median": float(np.median(self.tokens)),
            "tokens_p95": float(np.percentile(self.tokens, 95)),
            "tokens_max": int(self.tokens.max()),
            "stable_share": float(self.stable.sum() / self.tokens.sum()),
            "events_written": float(self.written.mean()),
            "events_left_out": float(self.left_out.mean()),
        }


def usage(maker, split="valid"):
    """Usage of the prompts that `split` is evaluated with: those of users that have a target."""
    users = maker.lines.evaluated(split)
    ends = maker.lines.visible(split)[users]
    parts = []
    for block in samples.row_blocks(ends):
        made = maker.prompt.assemble_events(*maker.requests(users[block], ends[block]))
        _, length, stable, asked, begin, _ = made
        left_out = ((asked >= 0) & (begin < 0)).sum(axis=1)
        parts.append((length, stable, (begin >= 0).sum(axis=1), left_out))
    return Usage(*(np.concatenate(p).astype(np.int64) for p in zip(*parts, strict=True)))


class Run:
    """What a finished run has for writing prompts: tokenizer, SID tokens, semantic IDs.

    Raises:
      FileNotFoundError: no checkpoint, or no semantic IDs.
      ValueError: they are damaged, or not of this data folder.
    """

    def __init__(self, data, folder):
        checkpoint = os.path.join(folder, "checkpoint")
        npz = os.path.join(folder, "semantic_ids", "semantic_ids.npz")
        if not os.path.exists(os.path.join(checkpoint, "sid_space.json")):
            raise FileNotFoundError(f"{checkpoint}: no sid_space.json; run `genrecall sft` first")
        self.data, self.sids = data, SemanticIds.load(npz)
        self.sids.check_items(data.items, npz)
        self.space = prompt_spec.SidSpace.load(os.path.join(checkpoint, "sid_space.json"))
        self.spec = prompt_spec.PromptSpec.from_json(os.path.join(checkpoint, "prompt_spec.json"))
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)

    def maker(self, spec):
        """The SampleMaker of a PromptSpec."""
        with tempfile.TemporaryDirectory() as work:
            path = os.path.join(work, "prompt.gguf")
            prompt = prompt_spec.compile_prompt(spec, self._tokenize, self.space, path)
        return samples.make_maker(self.data, self.sids, spec, prompt)

    def _tokenize(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def written(self, maker, user):
        """[(segment kind, its text)] of the prompt of user number `user`, empty segments left
        out.
        """
        users = np.array([user], np.int64)
        ends = maker.lines.visible("valid")[users]
        (segments,) = maker.prompt.segments(*maker.requests(users, ends))
        return [(kind, self.tokenizer.decode(tokens)) for kind, tokens in segments if len(tokens)]


def report(run, options):
    """{"run": figures, "options": figures}, see Usage.summary; `options` only where they make
    another spec than the run's.

    Args:
      run: Run.
      options: prompts.PromptOptions.

    Raises:
      ValueError: nobody has a validation target.
    """
    specs = {"run": run.spec}
    other = prompt_spec.PromptSpec.from_json(prompts.default_spec(run.data, options))
    if other != run.spec:
        specs["options"] = other
    makers = {name: run.maker(spec) for name, spec in specs.items()}
    if not len(makers["run"].lines.evaluated("valid")):
        raise ValueError(f"{run.data.path}: no user has the three events that a target takes")
    return {name: usage(maker).summary() for name, maker in makers.items()}


def table(figures):
    """The report as a rich Table, a spec a row."""
    first = next(iter(figures.values()))
    out = Table(title=f"prompts of {first['users']} users")
    for head in ("", "tokens", "median", "p95", "longest", "stable", "events", "left out"):
        out.add_column(head, justify="right" if head else "left")
    for name, f in figures.items():
        out.add_row(
            name,
            f"{f['tokens_mean']:.1f}",
            f"{f['tokens_median']:.0f}",
            f"{f['tokens_p95']:.0f}",
            f"{f['tokens_max']}",
            f"{f['stable_share']:.1%}",
            f"{f['events_written']:.1f}",
            f"{f['events_left_out']:.1f}",
        )
    return out


def configure(parser):
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument("--run", required=True, metavar="RUN", help="run folder of `genrecall sft`")
    parser.add_argument("--show", type=int, default=1, help="prompts shown in full (default 1)")
    parser.add_argument("--output", metavar="JSON", help="write the figures here, too")
    config.add_arguments(parser, prompts.PromptOptions)


def main(args):
    options = config.from_args(prompts.PromptOptions, args)
    run = Run(read_data(args.data), args.run)
    console = Console()
    figures = report(run, options)
    maker = run.maker(run.spec)
    for user in maker.lines.evaluated("valid")[: max(args.show, 0)]:
        console.print(f"user {maker.lines.user_id[user]}", style="bold", highlight=False)
        for kind, text in run.written(maker, user):
            console.print(f"  {kind:9} {text}", highlight=False, markup=False)
    console.print(table(figures))
    if args.output:
        files.write_json(args.output, figures)
