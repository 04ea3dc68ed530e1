"""`genrecall ablate`: what each prompt part and each alignment task is worth.

Fine-tunes with everything, then again with one prompt part or alignment task left out, or with one
response instead of several, each time on the same semantic IDs, with the same options and seeds;
ranks the same validation users each time, and prints what leaving each one out costs. Reads a data
folder and RUN/semantic_ids; writes
  RUN/ablation/<variant>.seed_<s>/   a run folder of `genrecall sft`, and ranks.npz
  RUN/ablation.json                  the table
A finished variant is kept: the same command again trains what is missing and goes on where it was
killed.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace

import numpy as np
from rich import box
from rich.table import Table

from genrecall.training import config, files, manifest
from genrecall.training.config import nested, option
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.evaluation import evaluate, intervals, metrics, ranking
from genrecall.training.prompting import prompts
from genrecall.training.tuning import presets, sft
from genrecall.training.tuning.sft_options import SftOptions

VERB = "ablate"
FULL = "full"
CUTOFF = 10
METRICS = (f"hr@{CUTOFF}", f"ndcg@{CUTOFF}")


@dataclass(frozen=True)
class AblateOptions:
    """What `genrecall ablate` does."""

    without: tuple[str, ...] = option(
        (), "prompt parts and tasks to leave out, one at a time (default: all there are)"
    )
    seeds: tuple[int, ...] = option((0,), "each variant is trained with each of these", low=0)
    ranked_users: int = option(0, "validation users ranked in the end; 0: all", low=0)
    beam_width: int = option(50, "ranks beyond it are misses", low=1, high=4096)
    sft: SftOptions = nested(SftOptions)

    def __post_init__(self):
        config.check(self)
        if not self.seeds:
            raise ValueError("seeds = (): expected at least one")
        if self.sft.prompt_spec:
            raise ValueError(
                f"prompt_spec = {self.sft.prompt_spec!r}: ablate leaves out parts of the default "
                "prompt, and needs its options instead"
            )
        if self.sft.hold_out != "valid":
            raise ValueError(
                f"hold_out = {self.sft.hold_out!r}: expected 'valid': ablate ranks validation users"
            )


def variants(data, options):
    """{name: SftOptions}: FULL, then without each prompt part of the data folder, each task and the
    several responses that FULL has. All rank the same users: what a prompt leaves out still counts
    as a user's line.

    Args:
      data: data_folder.DataSet.
      options: AblateOptions.

    Raises:
      ValueError: options.without names what FULL does not have.
    """
    full = options.sft
    out = {}
    for part in prompts.parts_of(data):
        if part not in full.prompt.leave_out:
            less = replace(full.prompt, leave_out=(*full.prompt.leave_out, part))
            out[part] = replace(full, prompt=less)
    for task in (name for name, share in full.tasks.items() if share > 0):
        rest = {name: share for name, share in full.tasks.items() if name != task}
        out[task] = replace(full, tasks=rest)
    if full.responses > 1:
        out["responses"] = replace(full, responses=1)
    for name in options.without:
        if name not in out:
            raise ValueError(f"without: {name!r}: expected some of {', '.join(out)}")
    return {FULL: full} | {name: out[name] for name in options.without or out}


class Trial:
    """One variant with one seed: a run folder of its own.

    Args:
      data: data_folder.DataSet.
      run_folder: RUN, which has the semantic IDs.
      name: of the variant.
      sft_options: SftOptions, seed included.
      options: AblateOptions.
    """

    def __init__(self, data, run_folder, name, sft_options, options):
        self.data, self.sft, self.options = data, sft_options, options
        seed = sft_options.loop.seed
        self.folder = os.path.join(run_folder, "ablation", f"{name}.seed_{seed}")
        self.semantic_ids = os.path.join(run_folder, "semantic_ids")

    @property
    def identity(self):
        """All that the ranks depend on, as JSON."""
        trained = config.as_dict(self.sft)
        del trained["threads"]
        sids = files.read_npz(os.path.join(self.semantic_ids, "semantic_ids.npz"))
        return json.dumps(
            {
                "data_digest": self.data.digest,
                "codebook_digest": str(sids["codebook_digest"]),
                "sft": trained,
                "ranked_users": self.options.ranked_users,
                "beam_width": self.options.beam_width,
            },
            sort_keys=True,
        )

    def result(self):
        """What `run` wrote, a dict of arrays, or None when there is none of this identity."""
        path = os.path.join(self.folder, "ranks.npz")
        if not os.path.exists(path):
            return None
        arrays = files.read_npz(path)
        return arrays if str(arrays["identity"]) == self.identity else None

    def run(self):
        """Trains and ranks; writes and returns ranks int64 [n], prompt_tokens float [], minutes
        float [].
        """
        if os.path.exists(self.folder) and self._of_another_identity():
            shutil.rmtree(self.folder)
        os.makedirs(self.folder, exist_ok=True)
        files.write_json(os.path.join(self.folder, "identity.json"), self.identity)
        shutil.copytree(
            self.semantic_ids, os.path.join(self.folder, "semantic_ids"), dirs_exist_ok=True
        )
        sft.run_sft(self.data.path, self.folder, self.sft)
        with open(manifest.metrics_path(self.folder, sft.VERB), encoding="utf-8") as f:
            minutes = json.load(f)["seconds"] / 60
        arrays = {**self._rank(), "minutes": np.array(minutes), "identity": self.identity}
        files.write_npz(os.path.join(self.folder, "ranks.npz"), **arrays)
        return arrays

    def _of_another_identity(self):
        path = os.path.join(self.folder, "identity.json")
        if not os.path.exists(path):
            return True
        with open(path, encoding="utf-8") as f:
            return json.load(f) != self.identity

    def _rank(self):
        maker = evaluate.load_maker(self.data, self.folder)
        users = evaluate.sample_users(maker.lines, "valid", self.options.ranked_users, seed=0)
        with tempfile.TemporaryDirectory() as work:
            checkpoint = os.path.join(self.folder, "checkpoint")
            engine = ranking.open_engine(checkpoint, work)
            options = ranking.RankOptions(self.options.beam_width)
            ranked = ranking.rank_users(engine, maker, "valid", users, options)
        some = users[:: max(1, len(users) // 1000)]
        _, length = maker.prompts(some, maker.lines.visible("valid")[some])
        return {
            "ranks": ranked.ranks,
            "prompt_tokens": np.array(length.mean()),
        }


def gains(results):
    """The table of gains.

    Args:
      results: {variant name: [arrays of Trial.run, one a seed]}, FULL among them.

    Returns:
      list of dicts, a variant each: without (None: FULL), hr@10, ndcg@10 (means over users and
      seeds), spread (largest less smallest HR@10 over seeds), prompt_tokens, minutes; and gain:
      {metric: {"mean", "low", "high"}}, FULL less the variant over the same users, seeds averaged,
      with the paired 95 % bootstrap interval over users (None for FULL).
    """
    values = {
        name: [metrics.by_user(a["ranks"], CUTOFF) for a in own] for name, own in results.items()
    }
    rows = []
    for name, arrays in results.items():
        hits = [float(own[f"hr@{CUTOFF}"].mean()) for own in values[name]]
        rows.append(
            {
                "without": None if name == FULL else name,
                **{m: float(np.mean([own[m].mean() for own in values[name]])) for m in METRICS},
                "spread": max(hits) - min(hits),
                "prompt_tokens": float(np.mean([a["prompt_tokens"] for a in arrays])),
                "minutes": float(np.mean([a["minutes"] for a in arrays])),
                "gain": None if name == FULL else _gain(values[FULL], values[name]),
            }
        )
    return rows


def _gain(full, own):
    """{metric: {"mean", "low", "high"}}; full, own: a dict of float64 [n] for each seed."""
    out = {}
    for metric in METRICS:
        ahead = np.mean([v[metric] for v in full], axis=0) - np.mean(
            [v[metric] for v in own], axis=0
        )
        samples = intervals.bootstrap_means(ahead[:, None])[:, 0]
        low, high = intervals.percentile_interval(samples)
        out[metric] = {"mean": float(ahead.mean()), "low": low, "high": high}
    return out


def table(result):
    """RUN/ablation.json as a rich Table, a variant a row."""
    seeds = ", ".join(map(str, result["seeds"]))
    title = f"what each is worth: {result['users']} validation users, seed {seeds}"
    out = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1))
    for head in ("without", "HR@10", "NDCG@10", "gain HR@10", "gain NDCG@10", "tokens", "min"):
        out.add_column(head, justify="left" if head == "without" else "right")
    for row in result["variants"]:
        gain = ["", ""]
        if row["gain"]:
            gain = [
                f"{g['mean']:+.4f} [{g['low']:+.4f}, {g['high']:+.4f}]"
                for g in (row["gain"][m] for m in METRICS)
            ]
        scores = [f"{row[m]:.4f}" for m in METRICS]
        last = [f"{row['prompt_tokens']:.0f}", f"{row['minutes']:.1f}"]
        out.add_row(row["without"] or "(nothing)", *scores, *gain, *last)
    return out


def note(result):
    """What the intervals hold, and what they do not."""
    text = "gain: with it less without it; [..]: 95 %, over users, paired. "
    if len(result["seeds"]) == 1:
        return text + "One seed: what training varies by from seed to seed comes on top"
    spread = max(row["spread"] for row in result["variants"])
    return text + f"Between seeds a variant's HR@10 differed by at most {spread:.4f}"


def ablate(data, run_folder, options, report=print):
    """Runs every trial that is not there yet and writes RUN/ablation.json.

    Args:
      data: data_folder.DataSet.
      run_folder: RUN with semantic IDs.
      options: AblateOptions.
      report: called with a line before each trial.

    Returns:
      dict: users, seeds, options, data_digest, variants (see `gains`).
    """
    results = {}
    for name, own in variants(data, options).items():
        for seed in options.seeds:
            seeded = replace(own, loop=replace(own.loop, seed=seed))
            trial = Trial(data, run_folder, name, seeded, options)
            arrays = trial.result()
            what = "everything" if name == FULL else f"without {name}"
            report(f"{what}, seed {seed}: " + ("finished before" if arrays else trial.folder))
            results.setdefault(name, []).append(arrays or trial.run())
    result = {
        "users": len(results[FULL][0]["ranks"]),
        "seeds": list(options.seeds),
        "options": config.as_dict(options),
        "data_digest": data.digest,
        "variants": gains(results),
    }
    files.write_json(os.path.join(run_folder, "ablation.json"), result)
    return result


def _presets():
    return {name: {"sft": preset} for name, preset in presets.SFT.items()}


def configure(parser):
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument("--run", required=True, metavar="RUN", help="run folder with semantic_ids")
    config.add_arguments(parser, AblateOptions, _presets(), skip=("prompt_spec", "seed"))


def main(args):
    options = config.from_args(AblateOptions, args, _presets(), lambda given: "small")
    result = ablate(read_data(args.data), args.run, options)
    evaluate.wide_console().print(table(result))
    print(note(result))
    print(os.path.join(args.run, "ablation.json"))
