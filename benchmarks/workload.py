"""What every system runs: a random decoder, a catalogue, prompts. Knows no system.

A workload is a folder, so that a system may run in a process, or a virtual environment, of its own:
  checkpoint/    Hugging Face folder of a Qwen2 decoder with random bf16 weights, and sid_space.json
  arrays.npz     prompts int64 [n, T]; sids int32 [S, L], distinct; token_ids int64 [L, C]
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

LEVELS, CODES = 4, 256
_COMMON = {"tie_word_embeddings": True, "max_position_embeddings": 4096}
SHAPES = {
    "0.5b": {
        "vocab_size": 152960,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        **_COMMON,
    },
    "1.5b": {
        "vocab_size": 152960,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        **_COMMON,
    },
    "tiny": {
        "vocab_size": 2048,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **_COMMON,
    },
}


@dataclass(frozen=True)
class Workload:
    """folder: see the module; shape: a name of SHAPES; prompts int64 [n, T]; sids int32 [S, L]."""

    folder: Path
    shape: str
    prompts: np.ndarray
    sids: np.ndarray


def write_workload(folder, shape, items, prompt_tokens, seed=0, prompts=16):
    """Writes a workload of `items` random items (100,000 in the issue's figures); returns it."""
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    sizes = SHAPES[shape]
    vocab = sizes["vocab_size"]
    token_ids = np.arange(vocab - LEVELS * CODES, vocab).reshape(LEVELS, CODES)
    _write_checkpoint(folder / "checkpoint", sizes, token_ids, seed)
    sids = np.unique(rng.integers(0, CODES, (items, LEVELS)).astype(np.int32), axis=0)
    tokens = rng.integers(0, vocab - LEVELS * CODES, (prompts, prompt_tokens))
    np.savez(folder / "arrays.npz", prompts=tokens, sids=sids, token_ids=token_ids)
    return Workload(folder, shape, tokens, sids)


def _write_checkpoint(folder, sizes, token_ids, seed):
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    from genrecall.kernels.prompt_spec import SidSpace

    torch.manual_seed(seed)
    config = transformers.Qwen2Config(**sizes, bos_token_id=None, eos_token_id=0)
    model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    # Converters of other systems ask for a tokenizer, if only for its size.
    words = {f"t{i}": i for i in range(sizes["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="t0", eos_token="t0", pad_token="t0"
    ).save_pretrained(folder)
    space = SidSpace.build([CODES] * LEVELS, token_ids.tolist(), "random")
    space.save(folder / "sid_space.json")


def decoder_parameters(shape):
    """Parameters of the decoder's layers, embeddings and head left out: P of the floor."""
    s = SHAPES[shape]
    hidden, ffn = s["hidden_size"], s["intermediate_size"]
    head = hidden // s["num_attention_heads"]
    kv = s["num_key_value_heads"] * head
    attention = 2 * hidden * hidden + 2 * hidden * kv + hidden + 2 * kv
    return s["num_hidden_layers"] * (attention + 3 * hidden * ffn + 2 * hidden) + hidden


def layer_parameters_behind_attention(shape):
    """Parameters of one layer that come after its attention: the output projection and the FFN."""
    s = SHAPES[shape]
    return s["hidden_size"] * (s["hidden_size"] + 3 * s["intermediate_size"])
