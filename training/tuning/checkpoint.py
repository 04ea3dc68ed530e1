"""Checkpoint folders: where a decoder comes from and what is left behind. Knows no data and no
training loop.

A checkpoint folder is an ordinary Hugging Face one (config.json, model.safetensors, tokenizer.json)
with four files more: sid_space.json, prompt_spec.json, prompt.gguf (the spec compiled for serving),
and training_part.json (which events it was trained on).
"""

import os

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from genrecall.kernels import prompt_spec
from genrecall.kernels.json_fields import read_json
from genrecall.training import files
from genrecall.training.dataset import training_part
from genrecall.training.tuning import sid_tables
from genrecall.trtllm_bridge import checkpoint as converter

transformers.utils.logging.disable_progress_bar()  # of files that are written in a moment

ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")


def new_decoder(shape, vocab_size, seed):
    """A Qwen2 decoder with random weights, float32, head tied to the embedding.

    Args:
      shape: DecoderOptions.
      vocab_size: rows of the embedding.
      seed: of the weights.
    """
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    return Qwen2ForCausalLM(config)


def load_decoder(folder):
    """(model in float32, tokenizer) of a Hugging Face folder; nothing is downloaded.

    Raises:
      FileNotFoundError: no config.json there.
      ValueError: another architecture than ARCHITECTURES; what the engine cannot serve; a damaged
        file.
    """
    if not os.path.exists(os.path.join(folder, "config.json")):
        raise FileNotFoundError(
            f"{folder}: no config.json; expected a Hugging Face checkpoint folder"
        )
    config = read_json(os.path.join(folder, "config.json"))
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{folder}: architecture {architecture}: expected one of {', '.join(ARCHITECTURES)}"
        )
    try:
        converter.read_shape(config)  # what the engine would not run is not worth training
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    options = {"local_files_only": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        return model, AutoTokenizer.from_pretrained(folder, **options)
    except (ValueError, SafetensorError) as error:  # JSON errors are ValueErrors
        raise ValueError(f"{folder}: not a readable checkpoint: {error}") from error


def tokenize_with(tokenizer):
    """The callable that kernels.prompt_spec.compile_prompt takes: text -> token ids, no special
    tokens added.
    """
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def save_checkpoint(folder, model, tokenizer, sid_space, spec, hold_out, dtype=torch.float32):
    """Writes a whole checkpoint folder beside `folder` and puts it in its place.

    Args:
      folder: path; an older checkpoint there is replaced.
      model, tokenizer: with the SID tokens in (vocabulary.expand_vocabulary).
      sid_space: SidSpace.
      spec: PromptSpec.
      hold_out: what the training part left out, of splits.HOLD_OUT.
      dtype: of the weights in model.safetensors, torch.float32 or torch.bfloat16.
    """
    with files.replacing_folder(folder) as beside:
        state = {
            name: tensor.detach().to("cpu", dtype).contiguous()
            for name, tensor in sid_tables.merged_state(model).items()
        }
        save_file(state, os.path.join(beside, "model.safetensors"), metadata={"format": "pt"})
        config = model.config.to_dict()
        config["vocab_size"] = sid_tables.tables(model)[0].num_rows
        config["architectures"] = [type(model).__name__]
        config["dtype"] = str(dtype).removeprefix("torch.")
        files.write_json(os.path.join(beside, "config.json"), config)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        training_part.write(beside, hold_out)
        sid_space.save(os.path.join(beside, "sid_space.json"))
        files.write_json(os.path.join(beside, "prompt_spec.json"), spec.to_json())
        prompt_spec.compile_prompt(
            spec, tokenize_with(tokenizer), sid_space, os.path.join(beside, "prompt.gguf")
        )
