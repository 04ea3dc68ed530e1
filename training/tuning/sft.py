"""`genrecall sft`: the SID tokens enter a decoder's vocabulary, then it learns to say each user's
next item.

Reads a data folder and RUN/semantic_ids; writes
  RUN/checkpoint/         the best checkpoint by validation HR@10, or the last where validation
                          targets are trained on (see tuning.checkpoint)
  RUN/sft.config.json     options, data digest, seed, versions, machine
  RUN/sft.metrics.json    what each validation measured
  RUN/tensorboard/        logs of the loop
  RUN/state/              while it runs: what resumes it when it is killed
Every file is written beside its place and renamed. The same command again after a kill goes on
where the run was; one process and many (`torchrun`) make the same run.
"""

import contextlib
import dataclasses
import os

import torch

from genrecall.training import config, manifest, progress
from genrecall.training.tuning import lora, presets, sid_tables, training_loop
from genrecall.training.tuning.event_log import EventLog
from genrecall.training.tuning.next_sid import NextSid
from genrecall.training.tuning.run import prepare
from genrecall.training.tuning.sft_options import SftOptions
from genrecall.training.tuning.training_state import StateFolder
from genrecall.training.tuning.validation import Validation

VERB = "sft"


class _Hooks:
    """training_loop.Hooks of one stage: ranks, reports, logs, keeps the best checkpoint.

    Entries of the history: stage, epoch, passes, step, fraction, loss, hit rates, score (HR@10;
    with nobody to rank 0, so that the last is the best), kept.
    """

    def __init__(self, run, options, stage, report, earlier):
        self.run, self.options, self.stage = run, options, stage
        self.report, self.earlier = report, earlier
        self.log = EventLog(os.path.join(run.folder, "tensorboard", f"{VERB}.stage_{stage}"))
        self.validation = Validation(run, options.valid_users, options.loop.seed)

    def on_step(self, progress):
        self.report.step(progress)
        self.log.step(progress)

    def validate(self, progress):
        entry = {"stage": self.stage}
        figures = ("epoch", "passes", "step", "fraction", "loss")
        entry |= {n: getattr(progress, n) for n in figures} | self.validation()
        entry["score"] = entry.get("hr@10", 0.0)
        before = [e["score"] for e in (*self.earlier, *progress.history)]
        entry["kept"] = all(entry["score"] >= score for score in before)
        if entry["kept"]:
            self.run.save(os.path.join(self.run.folder, "checkpoint"), self.options.dtype)
        self.report.validation(entry)
        self.log.validation(entry)
        return entry


def stages(options):
    """[(number, LoopOptions)]: stage 1 trains new rows only, stage 2 the rest."""
    share, loop = options.stages.new_rows_share, options.loop
    if not share:
        return [(2, loop)]
    first = dataclasses.replace(
        _part_of(loop, share), learning_rate=options.stages.new_rows_rate, validations=1
    )
    return [(1, first), (2, _part_of(loop, 1 - share))]


def _part_of(loop, share):
    return dataclasses.replace(
        loop,
        epochs=loop.epochs * share,
        minutes=loop.minutes and loop.minutes * share,
        steps=loop.steps and max(1, round(loop.steps * share)),
    )


def choose_trained(decoder, stage, options):
    """Sets which of a decoder's parameters a stage trains; stage 2 with LoRA adds the adapters."""
    two = options.stages
    if stage == 2 and two.lora_rank:
        lora.add_lora(decoder, two.lora_rank, two.lora_alpha, options.loop.seed)
    everything = stage == 2 and not two.lora_rank
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(everything or lora.is_adapter(name))
    for table in sid_tables.tables(decoder):
        table.sids.requires_grad_(True)


def fine_tune(run, options, report, state):
    """Trains `run`'s decoder stage by stage, resuming what was begun.

    Args:
      run: run.SftRun.
      options: SftOptions.
      report: progress.Report, used on the main process.
      state: training_state.StateFolder.

    Returns:
      list of validations (see _Hooks), complete on the main process.
    """
    objective = NextSid(
        run.model, run.space, options.softmax, options.dropout, options.label_smoothing
    )
    history = []
    for stage, loop in stages(options):
        choose_trained(run.model, stage, options)
        hooks = _Hooks(run, options, stage, report, tuple(history))
        file = state.stage(f"stage_{stage}")
        history += training_loop.train(objective, run.epoch, loop, hooks, file).history
        hooks.log.close()
    return history


def identity(run, options):
    """What a run must have in common with the killed one that it resumes: everything but what does
    not change its course.
    """
    kept = config.as_dict(options)
    del kept["threads"], kept["loop"]["save_minutes"]
    return run.identity | {"options": kept}


def configure(parser):
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument("--run", required=True, metavar="RUN", help="run folder with semantic_ids")
    parser.add_argument(
        "--restart", action="store_true", help="forget an unfinished run instead of resuming it"
    )
    config.add_arguments(parser, SftOptions, presets.SFT)


def run_sft(data_folder, run_folder, options, restart=False):
    """Fine-tunes as the command does, resuming what was begun, and writes the run folder.

    Args:
      data_folder, run_folder: paths.
      options: SftOptions.
      restart: forget an unfinished run instead.

    Returns:
      The best validation (see _Hooks) on the main process, None on others.
    """
    torch.set_num_threads(options.threads)
    accelerator = training_loop.make_accelerator(options.loop.mixed_precision)
    run = prepare(data_folder, run_folder, options)
    state = StateFolder(os.path.join(run_folder, "state"), identity(run, options))
    if accelerator.is_main_process:
        state.open(restart)
        _write_manifest(run, options, accelerator.num_processes)
    accelerator.wait_for_everyone()
    report = progress.Report()
    with report if accelerator.is_main_process else contextlib.nullcontext():
        history = fine_tune(run, options, report, state)
    if not accelerator.is_main_process:
        return None
    best = max(history, key=lambda entry: (entry["score"], entry["stage"], entry["step"]))
    manifest.finish(
        run_folder, VERB, {"valid_users": options.valid_users, "best": best, "validations": history}
    )
    state.remove()
    return best


def main(args):
    options = config.from_args(SftOptions, args, presets.SFT, presets.default_sft)
    best = run_sft(args.data, args.run, options, args.restart)
    if best is not None:
        reached = f", validation HR@10 {best['hr@10']:.4f}" if "hr@10" in best else ""
        folder = os.path.join(args.run, "checkpoint")
        print(f"{folder}: epoch {best['epoch']}, loss {best['loss']:.3f}{reached}")


def _write_manifest(run, options, processes):
    extra = {
        "processes": processes,
        "sid_space_digest": run.space.digest,
        "parameters": sum(p.numel() for p in run.model.parameters()),
    }
    manifest.write(run.folder, VERB, options, data=run.data, seed=options.loop.seed, extra=extra)
