"""`genrecall refit`: fine-tunes again by the recipe that validation chose, on the events that
validation held out too. Nothing is chosen any more, so nothing is validated.

Reads a data folder, RUN/sft.config.json, RUN/sft.metrics.json and RUN/semantic_ids; writes a run
folder, RUN/refit unless told otherwise, as `genrecall sft` does. The decoder starts anew, with
RUN's options and as many passes as RUN's best checkpoint had seen. The semantic IDs stay as they
are.

With --hold_out test (the default) its figures on the test split stand beside those of methods that
are counted on all events before it; with --hold_out none it is for serving, and has none.
"""

import dataclasses
import os

from genrecall.kernels.json_fields import read_json
from genrecall.training import config, manifest
from genrecall.training.dataset import splits
from genrecall.training.tuning import sft, training_loop
from genrecall.training.tuning.run import copy_semantic_ids, output_folder
from genrecall.training.tuning.sft_options import SftOptions

HOLD_OUT = splits.HOLD_OUT[1:]  # not "valid": there is nothing left to validate


def recipe(run_folder, hold_out):
    """What to fine-tune by.

    Args:
      run_folder: RUN of `genrecall sft`, finished, that held out validation targets.
      hold_out: of HOLD_OUT.

    Returns:
      SftOptions: RUN's, with the passes of its best checkpoint in place of any other limit.

    Raises:
      FileNotFoundError: RUN is not there, or not finished.
      ValueError: RUN ranked nobody, or its best checkpoint is of stage 1.
    """
    path = manifest.config_path(run_folder, sft.VERB)
    measured = manifest.metrics_path(run_folder, sft.VERB)
    for needed in (path, measured):
        if not os.path.exists(needed):
            raise FileNotFoundError(f"{needed}: missing; run `genrecall sft` to its end first")
    options = config.load(SftOptions, path=path)
    best = read_json(measured).get("metrics", {}).get("best", {})
    missing = sorted({"hr@10", "passes", "stage"} - set(best))
    if missing:
        raise ValueError(
            f"{measured}: the best checkpoint has no {missing[0]!r}: expected a run that ranked "
            "validation users"
        )
    if best["stage"] != 2:
        raise ValueError(f"{measured}: the best checkpoint is of stage 1: expected one of stage 2")
    epochs = best["passes"] / (1 - options.stages.new_rows_share)
    loop = dataclasses.replace(options.loop, epochs=epochs, minutes=None, steps=None, validations=1)
    return dataclasses.replace(options, loop=loop, hold_out=hold_out)


def configure(parser):
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument("--run", required=True, metavar="RUN", help="run folder of `genrecall sft`")
    parser.add_argument("--output", metavar="DIR", help="run folder to write (default RUN/refit)")
    parser.add_argument(
        "--hold_out", choices=HOLD_OUT, default="test", help="what it still may not see"
    )
    parser.add_argument("--threads", type=int, help="of PyTorch (default: as RUN)")
    parser.add_argument(
        "--restart", action="store_true", help="forget an unfinished refit instead of resuming it"
    )


def main(args):
    options = recipe(args.run, args.hold_out)
    if args.threads is not None:
        options = dataclasses.replace(options, threads=args.threads)
    output = output_folder(args.run, args.output, "refit")
    accelerator = training_loop.make_accelerator(options.loop.mixed_precision)
    copy_semantic_ids(args.run, output, accelerator)
    done = sft.run_sft(args.data, output, options, args.restart)
    if done is not None:
        folder = os.path.join(output, "checkpoint")
        print(f"{folder}: {done['passes']:.1f} passes, loss {done['loss']:.3f}")
