"""`genrecall dpo`: a fine-tuned decoder learns which of its answers are the better ones: those that
earn more, that users went further with, that followed indeed.

Reads a data folder, RUN/checkpoint and RUN/semantic_ids; writes a run folder, RUN/dpo unless told
otherwise:
  checkpoint/         the best by validation, or the one it started from (see `judge`)
  semantic_ids/       RUN's
  dpo.config.json     options, data digest, seed, versions, machine
  dpo.metrics.json    what the start and each validation measured
  tensorboard/        logs of the loop
  cache/              preferences, reference scores: computed once for a checkpoint and its pairs
  state/              while it runs: what resumes it when it is killed
"""

import contextlib
import dataclasses
import os
import shutil

import torch

from genrecall.training import config, files, manifest, progress
from genrecall.training.tuning import dpo_run, preference_pairs, training_loop
from genrecall.training.tuning.dpo_objective import DpoObjective
from genrecall.training.tuning.dpo_options import DpoOptions
from genrecall.training.tuning.event_log import EventLog
from genrecall.training.tuning.next_sid import NextSid
from genrecall.training.tuning.run import copy_semantic_ids, output_folder
from genrecall.training.tuning.training_state import StateFolder
from genrecall.training.tuning.validation import Validation

VERB = "dpo"


def judge(entry, history, start, options):
    """Whether a validation's checkpoint is to be kept.

    The best is the one of the highest eCPM@10 where eCPM is a preference, else of the highest
    HR@10, among those whose HR@10 is at least (1 - max_hr_loss) x the start's; and it must be
    better than the start. With nobody to rank, the lowest loss is the best.

    Args:
      entry: dict of this validation's figures; gets `score` and `kept`.
      history: earlier entries.
      start: figures of the reference model; {} with nobody to rank.
      options: DpoOptions.
    """
    name = "ecpm@10" if "ecpm" in options.pairs.kinds else "hr@10"
    entry["score"] = entry.get(name, -entry["loss"])
    best = max([e["score"] for e in history if e["kept"]], default=start.get(name))
    enough = entry.get("hr@10", 0.0) >= (1 - options.max_hr_loss) * start.get("hr@10", 0.0)
    entry["kept"] = enough and (best is None or entry["score"] > best)


class _Hooks:
    """training_loop.Hooks: ranks, judges, reports, logs, keeps the best checkpoint."""

    def __init__(self, run, objective, options, report):
        self.run, self.objective, self.options, self.report = run, objective, options, report
        self.log = EventLog(os.path.join(run.folder, "tensorboard", VERB))
        self.validation = Validation(run, options.valid_users, options.loop.seed)
        self.start = dpo_run.start_figures(run, self.validation, options)
        report.validation({"epoch": 0, **self.start})

    def on_step(self, progress):
        self.report.step(progress)
        parts = progress.parts | self.objective.figures
        self.log.step(dataclasses.replace(progress, parts=parts))

    def validate(self, progress):
        entry = {n: getattr(progress, n) for n in ("epoch", "step", "fraction", "loss")}
        entry |= self.validation() | self.objective.figures
        judge(entry, progress.history, self.start, self.options)
        if entry["kept"]:
            self.run.save(os.path.join(self.run.folder, "checkpoint"), self.options.dtype)
        self.report.validation(entry)
        self.log.validation(entry)
        return entry


def optimise(run, run_folder, options, accelerator, report, state):
    """Trains `run`'s decoder by its preferences, resuming what was begun.

    Args:
      run: run.Run, as dpo_run.reopen gives it.
      run_folder: path of the run it was opened from.
      options: DpoOptions.
      accelerator: accelerate.Accelerator.
      report: progress.Report, used on the main process.
      state: training_state.StateFolder.

    Returns:
      (start figures, list of validations) on the main process; elsewhere the first is {}.
    """
    model = NextSid(run.model, run.space, options.softmax, options.dropout)
    objective = DpoObjective(model, options.loss).to(accelerator.device)
    hooks = None
    # The main process computes what is computed once; then the others find it.
    with accelerator.main_process_first():
        say = report.console.print if accelerator.is_main_process else lambda _: None
        preferences = dpo_run.preferences_of(run, run_folder, options, say)
        samples = dpo_run.samples_of(run, preferences, objective, options, accelerator.device, say)
        if accelerator.is_main_process:
            hooks = _Hooks(run, objective, options, report)
    file = state.stage(VERB)
    done = training_loop.train(objective, lambda _: samples, options.loop, hooks, file)
    if hooks is None:
        return {}, done.history
    hooks.log.close()
    if not any(entry["kept"] for entry in done.history):
        with files.replacing_folder(os.path.join(run.folder, "checkpoint")) as beside:
            shutil.copytree(os.path.join(run_folder, "checkpoint"), beside, dirs_exist_ok=True)
    return hooks.start, done.history


def configure(parser):
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument("--run", required=True, metavar="RUN", help="run folder of `genrecall sft`")
    parser.add_argument("--output", metavar="DIR", help="run folder to write (default RUN/dpo)")
    parser.add_argument(
        "--restart", action="store_true", help="forget an unfinished run instead of resuming it"
    )
    config.add_arguments(parser, DpoOptions)


def main(args):
    options = config.from_args(DpoOptions, args)
    torch.set_num_threads(options.threads)
    output = output_folder(args.run, args.output, VERB)
    accelerator = training_loop.make_accelerator(options.loop.mixed_precision)
    run = dpo_run.reopen(args.data, args.run, output)
    preference_pairs.check_kinds(run.data, options.pairs.kinds)
    state = StateFolder(os.path.join(output, "state"), identity(run, options))
    if accelerator.is_main_process:
        state.open(args.restart)
        extra = run.identity | {"start": os.path.abspath(args.run)}
        manifest.write(output, VERB, options, data=run.data, seed=options.loop.seed, extra=extra)
    copy_semantic_ids(args.run, output, accelerator)  # where the others wait for the state too
    report = progress.Report()
    with report if accelerator.is_main_process else contextlib.nullcontext():
        start, history = optimise(run, args.run, options, accelerator, report, state)
    if not accelerator.is_main_process:
        return
    kept = [entry for entry in history if entry["kept"]]
    manifest.finish(
        output,
        VERB,
        {
            "valid_users": options.valid_users,
            "start": start,
            "best": kept[-1] if kept else None,
            "validations": history,
        },
    )
    state.remove()
    print(outcome(os.path.join(output, "checkpoint"), start, kept, options))


def identity(run, options):
    """What a run must have in common with the killed one that it resumes."""
    same = config.as_dict(options)
    del same["threads"], same["loop"]["save_minutes"]
    return run.identity | {"options": same}


def outcome(folder, start, kept, options):
    """The run's last line."""
    if not kept:
        return (
            f"{folder}: as it was: no validation was better with HR@10 within "
            f"{options.max_hr_loss:.1%} of the start's {start.get('hr@10', 0.0):.4f}; try a lower "
            "--learning_rate or --beta, or a higher --nll_weight"
        )
    changes = [
        f"{name.upper()} {start[name]:.4f} -> {kept[-1][name]:.4f} "
        f"({kept[-1][name] / start[name] - 1:+.1%})"
        for name in ("hr@10", "ecpm@10")
        if start.get(name) and name in kept[-1]
    ]
    return f"{folder}: epoch {kept[-1]['epoch']}, {', '.join(changes) or 'nobody to rank'}"
