"""A fine-tuning run: data, semantic IDs, decoder, prompt and samples, put together. Knows no
objective and no training loop.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass

import torch

from genrecall.kernels import prompt_spec
from genrecall.training import files
from genrecall.training.dataset import splits
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.prompting import build_index, packing, prompts
from genrecall.training.prompting.samples import SampleMaker, make_maker
from genrecall.training.semantic_ids import text
from genrecall.training.semantic_ids.sid_table import SemanticIds
from genrecall.training.semantic_ids.sid_tokenizer import SidTokenizer
from genrecall.training.tuning import checkpoint, vocabulary
from genrecall.training.tuning.alignment import TASKS, Alignment


@dataclass
class Run:
    """A decoder with its SID tokens in, and all that belongs to it.

    folder: of the run; model: decoder with SID tables; identity: what a resumed run must have in
    common with the one that was killed (see training_state).
    """

    folder: str
    data: object
    lines: splits.Lines
    model: object
    tokenizer: object
    space: prompt_spec.SidSpace
    spec: prompt_spec.PromptSpec
    maker: SampleMaker
    identity: dict

    def save(self, folder, dtype="float32"):
        """Writes the decoder as it is now as a checkpoint folder."""
        checkpoint.save_checkpoint(
            folder,
            self.model,
            self.tokenizer,
            self.space,
            self.spec,
            self.maker.hold_out,
            getattr(torch, dtype),
        )


@dataclass
class SftRun(Run):
    """Everything a fine-tuning run is made of, built once by `prepare`."""

    alignment: Alignment

    def epoch(self, generator):
        """One pass' samples, of users and of alignment tasks: packing.Samples."""
        users = self.maker.epoch(generator)
        tasks = self.alignment.epoch(generator, len(users))
        return users if tasks is None else packing.concatenate([users, tasks])


def prepare(data_folder, run_folder, options):
    """Data folder + RUN/semantic_ids -> SftRun: decoder with SID tokens, compiled prompt, index,
    samples.

    Args:
      data_folder, run_folder: paths.
      options: SftOptions.

    Raises:
      FileNotFoundError, ValueError: what is missing or does not fit, by file.
    """
    seed = options.loop.seed
    data = read_data(data_folder)
    npz = os.path.join(run_folder, "semantic_ids", "semantic_ids.npz")
    if not os.path.exists(npz):
        raise FileNotFoundError(f"{npz}: missing; run `genrecall tokenize` first")
    sids = SemanticIds.load(npz)
    sids.check_items(data.items, npz)
    if options.prompt_spec:
        spec = prompt_spec.PromptSpec.from_json(options.prompt_spec)
    else:
        default = prompts.default_spec(data, options.prompt)
        spec = prompt_spec.PromptSpec.from_json(default)
    model, tokenizer = _decoder(data, spec, options)
    space = vocabulary.expand_vocabulary(model, tokenizer, sids, _codebooks(run_folder, sids), seed)
    tokenize = checkpoint.tokenize_with(tokenizer)
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "prompt.gguf")
        prompt = prompt_spec.compile_prompt(spec, tokenize, space, path)
    samples = {"history_loss": options.history_loss, "responses": options.responses}
    maker = make_maker(data, sids, spec, prompt, options.hold_out, **samples)
    codes = build_index.item_codes(data.items, sids)
    alignment = Alignment(
        data.items, codes, space.token_ids, tokenize, tokenizer.eos_token_id, options.tasks
    )
    identity = {
        "data_digest": data.digest,
        "semantic_ids_digest": _digest(npz),
        "sid_space_digest": space.digest,
        "prompt_spec": spec.to_json(),
        "checkpoint_digest": _weights_digest(options.checkpoint),
    }
    return SftRun(
        run_folder,
        data,
        maker.lines,
        model,
        tokenizer,
        space,
        spec,
        maker,
        identity,
        alignment,
    )


def output_folder(run_folder, output, verb):
    """The run folder that a verb writes which starts from RUN: --output, or RUN/<verb>.

    Raises:
      ValueError: it is RUN itself.
    """
    output = output or os.path.join(run_folder, verb)
    if os.path.abspath(output) == os.path.abspath(run_folder):
        raise ValueError(f"--output {output}: expected another folder than --run's")
    return output


def copy_semantic_ids(run_folder, output, accelerator):
    """RUN/semantic_ids to OUTPUT/semantic_ids, whole or not at all. The main process copies, the
    others wait for it.

    Args:
      run_folder, output: paths.
      accelerator: accelerate.Accelerator.
    """
    if accelerator.is_main_process:
        source = os.path.join(run_folder, "semantic_ids")
        with files.replacing_folder(os.path.join(output, "semantic_ids")) as beside:
            shutil.copytree(source, beside, dirs_exist_ok=True)
    accelerator.wait_for_everyone()


def _decoder(data, spec, options):
    if options.checkpoint:
        return checkpoint.load_decoder(options.checkpoint)
    # Prompt texts so often that they become whole tokens, whatever the items say.
    texts = prompts.spec_texts(spec.to_json()) + [TASKS[name] for name in options.tasks]
    texts *= max(20, len(data.items))
    texts += text.item_texts(data.items)
    tokenizer = vocabulary.train_tokenizer(texts)
    model = checkpoint.new_decoder(options.decoder, len(tokenizer), options.loop.seed)
    return model, tokenizer


def _codebooks(run_folder, sids):
    path = os.path.join(run_folder, "semantic_ids", "codebooks.npz")
    tokenizer, digest = SidTokenizer.load(path)
    if digest != sids.codebook_digest:
        raise ValueError(f"{path}: not the codebooks of semantic_ids.npz beside it")
    return tokenizer.codebooks


def _weights_digest(folder):
    """sha256 hex over the weights files of a Hugging Face folder; None for none."""
    if not folder:
        return None
    names = sorted(n for n in os.listdir(folder) if n.endswith(".safetensors"))
    joined = "".join(_digest(os.path.join(folder, n)) for n in names)
    return hashlib.sha256(joined.encode()).hexdigest()


def _digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
