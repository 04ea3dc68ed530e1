"""`genrecall quantize`: int8 weights, activations and KV cache for a run's decoder, calibrated and
measured on its own data. Knows no arithmetic of its own: trtllm_bridge.quantize has it.

Calibration runs training prompts with their next semantic ID through the float engine and keeps the
largest magnitude of every channel that enters a gemm (SmoothQuant). Then the quantised engine
answers validation prompts beside the float ones, and what differs is printed and written beside the
output: OUTPUT.accuracy.json.
"""

import os
import tempfile
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from genrecall.training import config, files
from genrecall.training.config import option
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.evaluation import agreement
from genrecall.training.evaluation.evaluate import load_maker, sample_users
from genrecall.trtllm_bridge import Engine, checkpoint, quantize


@dataclass(frozen=True)
class QuantizeOptions:
    """What `genrecall quantize` does."""

    mode: str = option(
        "w8a8",
        "w8a8: int8 weights and activations; w8: int8 weights only; none: with --kv int8",
        choices=("none", *quantize.MODES),
    )
    kv: str = option("float", "keys and values: as activations, or int8", choices=("float", "int8"))
    alpha: float = option(
        0.5, "SmoothQuant: how much of the activations' size moves to the weights", low=0, high=1
    )
    dtype: str = option(
        "bfloat16", "of what is not int8", choices=("bfloat16", "float32"), metavar="DTYPE"
    )
    prompts: int = option(128, "training prompts to calibrate on", low=1)
    users: int = option(200, "validation users to measure the accuracy on; 0: skip it", low=0)
    beam_width: int = option(50, "of the accuracy's beams", low=1, high=4096)
    seed: int = option(0, "of the samples of users", low=0)

    def __post_init__(self):
        config.check(self)


def calibrate(engine, maker, prompts, seed=0):
    """The largest magnitudes of what enters the layers' gemms, over training samples.

    Args:
      engine: Engine of the float model.
      maker: samples.SampleMaker.
      prompts: how many samples, at most.
      seed: of their choice.

    Returns:
      dict of quantize.INPUTS to float32 [layers, channels].
    """
    samples = maker.epoch()
    chosen = np.random.default_rng(seed).permutation(len(samples))[:prompts]
    largest = {}
    for sample in chosen:
        tokens = samples.tokens[samples.begin[sample] : samples.begin[sample + 1]]
        for name, found in engine.input_maxima(tokens[-engine.max_prompt_tokens :]).items():
            largest[name] = np.maximum(largest.get(name, 0), found)
    return largest


def run(data, run_folder, output, options, report=print):
    """Quantises RUN/checkpoint, measures the result and writes both.

    Args:
      data: data_folder.DataSet.
      run_folder: RUN of `genrecall sft`.
      output: the model.gguf to write.
      options: QuantizeOptions.
      report: function of a line of text.

    Returns:
      dict: model (the card of the output), options, hold_out (of the run's training part), and,
      with options.users, accuracy: name of the reference to what agreement.compare gives.
    """
    maker = load_maker(data, run_folder)
    folder = os.path.join(run_folder, "checkpoint")
    with tempfile.TemporaryDirectory() as work:
        paths = {name: os.path.join(work, name + ".gguf") for name in ("bfloat16", "float32")}
        for dtype, path in paths.items():
            checkpoint.convert(folder, path, dtype)
        maxima = None
        if options.mode == "w8a8":
            report(f"calibrate on {options.prompts} training prompts")
            maxima = calibrate(Engine(paths["float32"]), maker, options.prompts, options.seed)
        model = paths[options.dtype]
        kv_dtype = None if options.kv == "float" else options.kv
        card = quantize.quantize(model, output, options.mode, maxima, options.alpha, kv_dtype)
        result = {"model": card, "options": config.as_dict(options), "data_digest": data.digest}
        result["hold_out"] = maker.hold_out
        if options.users:
            users = sample_users(maker.lines, "valid", options.users, options.seed)
            report(f"measure on {len(users)} users")
            found = {
                name: agreement.answers(Engine(path), maker, "valid", users, options.beam_width)
                for name, path in {**paths, "int8": output}.items()
            }
            result["accuracy"] = {
                f"{other} / {reference}": agreement.compare(found[reference], found[other])
                for reference, other in (
                    ("float32", "bfloat16"),
                    ("float32", "int8"),
                    ("bfloat16", "int8"),
                )
            }
    return result


def accuracy_table(accuracy, hold_out="valid"):
    """A rich table, a comparison "of / against" a row: mean and least share of the beams that
    are kept, how often the best one is, the logits' error as a share of their spread, HR@10.

    Args:
      accuracy: as `run` gives it.
      hold_out: what the run's training part left out: the title says it where HR@10 is of targets
        that were trained on.
    """
    first = next(iter(accuracy.values()))
    users = "validation users" if hold_out == "valid" else "validation users (trained on)"
    table = Table(title=f"{first['users']} {users}, beam {first['beam_width']}")
    table.add_column("", no_wrap=True)
    for column in ("beams kept", "least", "best kept", "logits", "HR@10", "before"):
        table.add_column(column, justify="right")
    for name, found in accuracy.items():
        before, after = found["hr@10"]
        table.add_row(
            name,
            f"{found['overlap']:.4f}",
            f"{found['overlap_min']:.2f}",
            f"{found['top1']:.3f}",
            f"{found['logit_error'] / found['logit_spread']:.2%}",
            f"{after:.4f}",
            f"{before:.4f}",
        )
    return table


def configure(parser):
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument(
        "--run", required=True, metavar="RUN", help="run folder with checkpoint and semantic_ids"
    )
    config.add_arguments(parser, QuantizeOptions)
    parser.add_argument(
        "--output",
        metavar="GGUF",
        help="weights file (default RUN/model_<mode>.gguf, or model_<mode>_kvint8.gguf)",
    )


def main(args):
    options = config.from_args(QuantizeOptions, args)
    suffix = options.mode if options.kv == "float" else f"{options.mode}_kv{options.kv}"
    output = args.output or os.path.join(args.run, f"model_{suffix}.gguf")
    result = run(read_data(args.data), args.run, output, options)
    files.write_json(f"{output}.accuracy.json", result)
    if "accuracy" in result:
        Console().print(accuracy_table(result["accuracy"], result["hold_out"]))
    print(output)
