"""`genrecall sft`: the SID tokens enter a decoder's vocabulary, then it learns to say each user's
next item.

Reads a data folder and RUN/semantic_ids; writes
  RUN/checkpoint/   the best checkpoint by validation HR@10 (see tuning.checkpoint)
  RUN/config.json   options, data digest, versions
  RUN/metrics.json  what each validation measured
Every file is written beside its place and renamed, so a killed run leaves the best checkpoint it
had.
"""

import os
import platform
import tempfile
from dataclasses import asdict, dataclass

import numpy as np
import torch
import transformers

from genrecall import kernels
from genrecall.kernels import prompt_spec
from genrecall.training import files, progress
from genrecall.training.dataset import splits
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.evaluation import metrics, ranking
from genrecall.training.prompting import build_index, prompts
from genrecall.training.prompting.samples import SampleMaker
from genrecall.training.semantic_ids import text
from genrecall.training.semantic_ids.tokenize import SemanticIds
from genrecall.training.tuning import checkpoint, training_loop, vocabulary
from genrecall.training.tuning.next_sid import NextSid

_PRETRAINED_RATE = 2e-4  # the learning rate's peak when training starts from a checkpoint


@dataclass(frozen=True)
class SftOptions:
    """What `genrecall sft` does beside the loop's own options.

    checkpoint: Hugging Face folder to start from; None: a decoder of `preset` from scratch.
    prompt_spec: JSON file; None: the folder's default. softmax: "level" or "vocab" (see NextSid).
    history_loss: targets inside the prompt too. valid_users: at
    most this many are ranked at each validation. dtype: of the saved weights.
    """

    checkpoint: str | None = None
    preset: str = "small"
    prompt_spec: str | None = None
    softmax: str = "level"
    history_loss: bool = True
    dropout: float = 0.2
    label_smoothing: float = 0.0
    valid_users: int = 1000
    threads: int = 2
    dtype: str = "float32"

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype = {self.dtype!r}: expected float32|bfloat16")
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected 0 <= {name} < 1")
        for name, low in (("threads", 1), ("valid_users", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} = {getattr(self, name)}: expected >= {low}")


@dataclass
class Run:
    """Everything a fine-tuning run is made of, built once by `prepare`."""

    folder: str
    data: object
    lines: splits.Lines
    model: object
    tokenizer: object
    space: prompt_spec.SidSpace
    spec: prompt_spec.PromptSpec
    maker: SampleMaker
    options: SftOptions

    def save(self):
        checkpoint.save_checkpoint(
            os.path.join(self.folder, "checkpoint"),
            self.model,
            self.tokenizer,
            self.space,
            self.spec,
            getattr(torch, self.options.dtype),
        )


def prepare(data_folder, run_folder, options, seed):
    """Data folder + RUN/semantic_ids -> Run: decoder with SID tokens, compiled prompt, index,
    samples.

    Raises:
      FileNotFoundError, ValueError: what is missing or does not fit, by file.
    """
    data = read_data(data_folder)
    npz = os.path.join(run_folder, "semantic_ids", "semantic_ids.npz")
    if not os.path.exists(npz):
        raise FileNotFoundError(f"{npz}: missing; run `genrecall tokenize` first")
    sids = SemanticIds.load(npz)
    sids.check_items(data.items, npz)
    if options.prompt_spec:
        spec = prompt_spec.PromptSpec.from_json(options.prompt_spec)
    else:
        spec = prompt_spec.PromptSpec.from_json(prompts.default_spec(data))
    model, tokenizer = _decoder(data, spec, options, seed)
    space = vocabulary.expand_vocabulary(model, tokenizer, sids, _codebooks(run_folder, sids), seed)
    lines = splits.clean_lines(data.events, **splits.clean_options(spec))
    weight = splits.popularity(lines, data.items).astype(np.float32)
    index = build_index.build_index(data.items, sids, spec, space.digest, weight)
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "prompt.gguf")
        prompt_spec.compile_prompt(spec, checkpoint.tokenize_with(tokenizer), space, path)
        prompt = kernels.Prompt.load(path, space.digest)
    separator = checkpoint.tokenize_with(tokenizer)(spec.behaviors.separator)
    maker = SampleMaker(
        lines,
        lines.visible("train"),
        prompt,
        index,
        data.profiles,
        spec,
        options.history_loss,
        len(separator),
    )
    return Run(run_folder, data, lines, model, tokenizer, space, spec, maker, options)


def _decoder(data, spec, options, seed):
    if options.checkpoint:
        return checkpoint.load_decoder(options.checkpoint)
    # Prompt texts so often that they become whole tokens, whatever the items say.
    texts = prompts.spec_texts(spec.to_json()) * max(20, len(data.items))
    texts += text.item_texts(data.items)
    tokenizer = vocabulary.train_tokenizer(texts)
    return checkpoint.new_decoder(options.preset, len(tokenizer), seed), tokenizer


def _codebooks(run_folder, sids):
    path = os.path.join(run_folder, "semantic_ids", "codebooks.npz")
    arrays = files.read_npz(path)
    if str(arrays.get("codebook_digest")) != sids.codebook_digest:
        raise ValueError(f"{path}: not the codebooks of semantic_ids.npz beside it")
    return [arrays[f"codebook_{level}"] for level in range(len(sids.level_sizes))]


class Validation:
    """Ranks a fixed sample of users through the engine and keeps the best checkpoint."""

    def __init__(self, run, report, seed):
        self.run, self.report = run, report
        users = run.lines.evaluated("valid")
        chosen = np.random.default_rng(seed).permutation(len(users))[: run.options.valid_users]
        self.users = users[np.sort(chosen)]
        self.history, self.best = [], -1.0

    def __call__(self, state):
        entry = {
            "epoch": state.epoch,
            "step": state.step,
            "fraction": state.fraction,
            "loss": state.loss,
        }
        if len(self.users):
            entry |= metrics.hit_rates(self._rank().ranks)
        score = entry.get(
            "hr@10", -state.loss
        )  # nobody to rank (all lines too short): the loss decides
        if not self.history or score >= self.best:
            self.best = score
            self.run.save()
            entry["kept"] = True
        self.history.append(entry)
        files.write_json(
            os.path.join(self.run.folder, "metrics.json"),
            {"valid_users": len(self.users), "beam_width": 50, "validations": self.history},
        )
        self.report.validation(entry)

    def _rank(self):
        run = self.run
        with tempfile.TemporaryDirectory() as work:
            folder = os.path.join(work, "checkpoint")
            checkpoint.save_checkpoint(folder, run.model, run.tokenizer, run.space, run.spec)
            engine = ranking.open_engine(folder, work)
            return ranking.rank_users(engine, run.maker, "valid", self.users)


def fine_tune(run, loop, report):
    """Trains `run`'s decoder; returns the list of validations, as in metrics.json."""
    model = NextSid(
        run.model,
        run.space.token_ids,
        run.options.softmax,
        run.options.dropout,
        run.options.label_smoothing,
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    validation = Validation(run, report, loop.seed)
    with report:
        training_loop.train(model, run.maker.epoch, loop, validation, report.step)
    return validation.history


def write_config(run, loop):
    """RUN/config.json: what was run, on what, with what."""
    files.write_json(
        os.path.join(run.folder, "config.json"),
        {
            "sft": asdict(run.options),
            "loop": asdict(loop),
            "data": run.data.path,
            "data_digest": run.data.digest,
            "sid_space_digest": run.space.digest,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "numpy": np.__version__,
            },
        },
    )


def configure(parser):
    sft, loop = SftOptions(), training_loop.LoopOptions()
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument("--run", required=True, metavar="RUN", help="run folder with semantic_ids")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--checkpoint", metavar="HF_DIR", help="Qwen2-class Hugging Face folder to start from"
    )
    start.add_argument(
        "--preset", choices=checkpoint.PRESETS, default=sft.preset, help="decoder from scratch"
    )
    parser.add_argument(
        "--prompt_spec", metavar="JSON", help="prompt spec (default: made from the data folder)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=loop.minutes,
        help="wall-clock budget; the schedule fits it",
    )
    parser.add_argument(
        "--epochs", type=int, default=loop.epochs, help=f"at most (default {loop.epochs})"
    )
    parser.add_argument("--batch_tokens", type=int, default=loop.batch_tokens)
    parser.add_argument(
        "--learning_rate",
        type=float,
        help=f"of the peak (default {loop.learning_rate}, from a checkpoint {_PRETRAINED_RATE})",
    )
    parser.add_argument("--weight_decay", type=float, default=loop.weight_decay)
    parser.add_argument("--dropout", type=float, help=f"default {sft.dropout}, from a checkpoint 0")
    parser.add_argument("--label_smoothing", type=float, default=sft.label_smoothing)
    parser.add_argument(
        "--softmax", choices=("level", "vocab"), default=sft.softmax, help="what codes compete with"
    )
    parser.add_argument(
        "--no_history_loss",
        dest="history_loss",
        action="store_false",
        help="learn last events only",
    )
    parser.add_argument(
        "--validations", type=int, default=loop.validations, help="how often to validate"
    )
    parser.add_argument(
        "--valid_users", type=int, default=sft.valid_users, help="users ranked at each validation"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=sft.dtype, help="of the saved weights"
    )
    parser.add_argument(
        "--threads", type=int, default=sft.threads, help=f"of PyTorch (default {sft.threads})"
    )
    parser.add_argument("--seed", type=int, default=loop.seed)


def main(args):
    given = dict(vars(args))
    # What a decoder has learned before is neither overrun by large steps nor dropped out.
    from_scratch = SftOptions.dropout, training_loop.LoopOptions.learning_rate
    defaults = (0.0, _PRETRAINED_RATE) if args.checkpoint else from_scratch
    for name, default in zip(("dropout", "learning_rate"), defaults, strict=True):
        given[name] = default if given[name] is None else given[name]
    options = SftOptions(**{name: given[name] for name in asdict(SftOptions())})
    loop = training_loop.LoopOptions(
        **{name: given[name] for name in asdict(training_loop.LoopOptions()) if name in given}
    )
    torch.set_num_threads(options.threads)
    torch.manual_seed(loop.seed)
    run = prepare(args.data, args.run, options, loop.seed)
    write_config(run, loop)
    history = fine_tune(run, loop, progress.Report())
    best = max(history, key=lambda entry: entry.get("hr@10", -entry["loss"]))
    reached = f", validation HR@10 {best['hr@10']:.4f}" if "hr@10" in best else ""
    folder = os.path.join(args.run, "checkpoint")
    print(f"{folder}: epoch {best['epoch']}, loss {best['loss']:.3f}{reached}")
