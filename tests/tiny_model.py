"""A random tiny model with everything an export needs, made in a second: what tests run on.

Its SID space is uneven, several items share a SID, its tokenizer is shorter than its embeddings and
its prompt spec uses every kind of feature and segment, because real ones do.

    model = tiny_model.make(tmp_path)          # files
    user = tiny_model.random_users(model, 8)   # a Predict request
"""

import dataclasses
import json
import pathlib

import numpy as np

LEVEL_SIZES = (6, 5, 7, 4)
NUM_ITEMS = 300
NUM_FACETS = 2
FIRST_ITEM = 1000  # item ids are not positions
REQUEST_TIME = 1_750_000_000
MAX_EVENTS = 16
OPTIONS = {"num_items": 20, "beam_width": 8, "max_beam_width": 64, "deadline_ms": 0}

SPEC = {
    "format_version": 1,
    "features": [
        {
            "name": "gender",
            "kind": "string",
            "values": {"F": " female", "M": " male"},
            "missing": "",
        },
        {
            "name": "age",
            "kind": "bucket",
            "boundaries": [18, 25, 35],
            "texts": [" u18", " 18-24", " 25-34", " 35+"],
            "missing": " ageless",
        },
        {
            "name": "city",
            "kind": "int64",
            "values": {"1": " Berlin", "7": " Rome"},
            "missing": " x",
        },
    ],
    "facets": [
        {"name": "category", "values": [" Makeup", " Skin", " Hair"]},
        {"name": "price_band", "values": [" cheap", " mid", " high"]},
    ],
    "segments": [
        {"kind": "text", "text": "User:"},
        {"kind": "feature", "name": "gender"},
        {"kind": "feature", "name": "age"},
        {"kind": "feature", "name": "city"},
        {"kind": "interest", "facet": "category", "top": 2, "prefix": " likes", "separator": ","},
        {"kind": "long_term", "prefix": " history:"},
        {"kind": "recent", "prefix": " recent:"},
        {"kind": "text", "text": " next:"},
    ],
    "behaviors": {
        "long_term_events": 8,
        "recent_events": 4,
        "block": 4,
        "action_text": {"click": "", "conversion": " bought"},
        "separator": ";",
        "max_events": MAX_EVENTS,
        "actions": ["click", "conversion"],
        "domains": ["ad", "content"],
        "attribution_window_s": 604800,
        "repeat_window_s": 86400,
    },
}


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """Where the files are, and the rows of the index: item_id [N], codes [N, L], weight [N]."""

    checkpoint: pathlib.Path
    index: pathlib.Path
    level_sizes: tuple
    item_id: np.ndarray
    codes: np.ndarray
    weight: np.ndarray


def make(
    folder,
    *,
    seed=0,
    level_sizes=LEVEL_SIZES,
    num_items=NUM_ITEMS,
    num_layers=2,
    tie=True,
    spec=None,
) -> TinyModel:
    """Writes folder/checkpoint (weights, tokenizer, SIDs, prompt) and folder/recall_index.gguf."""
    from genrecall import kernels
    from genrecall.kernels import prompt_spec

    folder = pathlib.Path(folder)
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    tokenizer, token_ids = _tokenizer(level_sizes)
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    _weights(checkpoint, tokenizer.get_vocab_size(), seed, num_layers, tie)
    space = prompt_spec.SidSpace.build(level_sizes, token_ids, f"tiny-{seed}")
    space.save(checkpoint / "sid_space.json")
    spec = SPEC if spec is None else spec
    (checkpoint / "prompt_spec.json").write_text(json.dumps(spec))
    prompt_spec.compile_prompt(
        prompt_spec.PromptSpec.from_json(spec),
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        space,
        str(checkpoint / "prompt.gguf"),
    )
    rng = np.random.default_rng(seed)
    item_id = FIRST_ITEM + 3 * rng.permutation(num_items).astype(np.int64)
    codes = np.stack([rng.integers(0, c, num_items) for c in level_sizes], 1).astype(np.int32)
    codes[1::10] = codes[0::10][: len(codes[1::10])]  # every tenth item shares a SID
    weight = rng.gamma(1.0, 1.0, num_items).astype(np.float32)
    facets = rng.integers(-1, 3, (num_items, NUM_FACETS)).astype(np.int16)
    index = kernels.RecallIndex.build(
        list(level_sizes),
        item_id,
        codes,
        weight=weight,
        facets=facets,
        sid_space_digest=space.digest,
    )
    path = folder / "recall_index.gguf"
    index.save(str(path))
    return TinyModel(checkpoint, path, tuple(level_sizes), item_id, codes, weight)


def random_users(model, count, *, seed=0, max_behaviors=24, max_exclude=4):
    """A Predict request of `count` users: name -> array, behaviours padded; some items unknown."""
    rng = np.random.default_rng(seed)
    shape = (count, max_behaviors)
    item = rng.choice(model.item_id, shape)
    item[rng.random(shape) < 0.05] = 5  # not in the catalogue
    return {
        "user_id": rng.integers(0, 2**40, count),
        "gender": rng.choice(np.array([b"F", b"M", b"", b"?"], object), count),
        "age": rng.choice(np.array([12, 18, 24.5, 40, 99], np.float32), count),
        "city": rng.integers(-1, 9, count),
        "behavior_item": item,
        "behavior_action": rng.integers(0, 3, shape, dtype=np.int32),
        "behavior_domain": rng.integers(0, 2, shape, dtype=np.int32),
        "behavior_time": REQUEST_TIME - rng.integers(-86400, 60 * 86400, shape),
        "behavior_length": rng.integers(0, max_behaviors + 1, count, dtype=np.int32),
        "request_time": np.full(count, REQUEST_TIME),
        "exclude_item": rng.choice(model.item_id, (count, max_exclude)),
        "exclude_length": rng.integers(0, max_exclude + 1, count, dtype=np.int32),
    }


def _tokenizer(level_sizes):
    """A byte-level tokenizer with the SID tokens added; and the token id of each (level, code)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    names = [[f"<{chr(97 + lv)}_{c}>" for c in range(n)] for lv, n in enumerate(level_sizes)]
    tokenizer.add_tokens([AddedToken(n, normalized=False) for level in names for n in level])
    return tokenizer, tuple(tuple(tokenizer.token_to_id(n) for n in level) for level in names)


def _weights(checkpoint, vocab, seed, num_layers, tie):
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    config = transformers.Qwen2Config(
        vocab_size=(vocab + 1 + 15) // 16 * 16,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=tie,
        initializer_range=0.15,  # logits far enough apart that scores tell beams apart
    )
    torch.manual_seed(seed)
    transformers.Qwen2ForCausalLM(config).to(torch.float32).save_pretrained(str(checkpoint))
