"""Small random checkpoints and catalogues, and their brute-force answers by Hugging Face models."""

import itertools
import pathlib

import numpy as np

from genrecall import kernels
from genrecall.kernels.prompt_spec import SidSpace
from genrecall.trtllm_bridge import Engine, checkpoint


def make_checkpoint(
    folder,
    *,
    architecture="qwen2",
    level_sizes=(8, 8, 8),
    vocab=160,
    seed=0,
    stored="float32",
    **config,
):
    """Writes a Hugging Face folder of a random Qwen2 / Qwen3 decoder with a sid_space.json.

    Args:
      folder: made if missing.
      architecture: "qwen2" | "qwen3".
      level_sizes: codes of each level; their tokens are drawn at random from the vocabulary.
      vocab: V, at least the sum of level_sizes.
      stored: dtype of the stored tensors, "float32" | "bfloat16".
      **config: transformers' configuration keys over the tiny defaults.

    Returns:
      (the model, float32, in evaluation mode; token_ids, list of int32 arrays [C_l]).
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    settings = dict(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    if architecture == "qwen3":
        settings["head_dim"] = 16
    settings.update(config)
    config_class, model_class = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }[architecture]
    model = model_class(config_class(**settings)).eval()
    with torch.no_grad():  # constant initial values would hide a mixed-up norm or bias
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    if stored == "bfloat16":
        model = model.to(torch.bfloat16)
    folder = pathlib.Path(folder)
    model.save_pretrained(folder)
    model = model.float()

    order = np.random.default_rng(seed).permutation(vocab).astype(np.int32)
    token_ids = np.split(order[: sum(level_sizes)], np.cumsum(level_sizes)[:-1])
    write_sid_space(folder, level_sizes, token_ids)
    return model, token_ids


class Decoder:
    """A random checkpoint, its Hugging Face model and its engine."""

    def __init__(self, folder, dtype="float32", **config):
        self.model, self.token_ids = make_checkpoint(folder, **config)
        self.path = folder / f"{dtype}.gguf"
        checkpoint.convert(folder, self.path, dtype)
        self.engine = Engine(self.path)
        self.vocab = self.engine.vocab_size

    def prompt(self, tokens, seed=0):
        return (
            np.random.default_rng([seed, tokens]).integers(0, self.vocab, tokens).astype(np.int32)
        )

    def hf_logits(self, prompt):
        import torch

        with torch.no_grad():
            return self.model(torch.from_numpy(np.int64(prompt))[None]).logits[0].numpy()


def decode(engine, prompt, index, **options):
    """One request's arrays, without the batch dimension."""
    out = engine.decode(prompt[None], [len(prompt)], index, **options)
    return {name: value[0] for name, value in out.items()}


def same_bytes(a, b):
    arrays = ("sids", "score", "step_score", "user_state")
    return a["beams"] == b["beams"] and all(a[k].tobytes() == b[k].tobytes() for k in arrays)


_queue_sizes = itertools.count(1000)


def own_engine(decoder, **options):
    """An engine that nobody else holds: engines with the same options are shared."""
    return Engine(decoder.path, **{"max_queue": next(_queue_sizes), **options})


def write_sid_space(folder, level_sizes, token_ids):
    """Writes sid_space.json into a checkpoint folder and returns its digest."""
    space = SidSpace.build(level_sizes, [ids.tolist() for ids in token_ids], "test-codebooks")
    space.save(pathlib.Path(folder) / "sid_space.json")
    return space.digest


def random_index(level_sizes, num_items, seed=0, digest=""):
    """A recall index of random SIDs (repetitions included), and its distinct SIDs [S, L]."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, c, num_items) for c in level_sizes], axis=1).astype(np.int32)
    index = kernels.RecallIndex.build(
        list(level_sizes), np.arange(num_items, dtype=np.int64), codes, sid_space_digest=digest
    )
    return index, np.unique(codes, axis=0)


def teacher_forced(model, prompt, sids, token_ids, normalize="level"):
    """Every SID scored by one forward pass of the Hugging Face model over prompt + codes.

    Args:
      model: a causal LM of transformers.
      prompt: int [T].
      sids: int32 [S, L].
      token_ids: the SID tokens, list of [C_l].
      normalize: "level" | "legal" | "vocab".

    Returns:
      step scores, float64 [S, L].
    """
    import torch

    levels = sids.shape[1]
    tokens = np.stack([token_ids[level][sids[:, level]] for level in range(levels)], axis=1)
    rows = np.concatenate([np.tile(np.asarray(prompt), (len(sids), 1)), tokens[:, :-1]], axis=1)
    scores = np.zeros(sids.shape, np.float64)
    with torch.no_grad():
        for begin in range(0, len(sids), 256):
            batch = torch.from_numpy(rows[begin : begin + 256].astype(np.int64))
            logits = model(batch).logits[:, len(prompt) - 1 :].double().numpy()
            for level in range(levels):
                part = sids[begin : begin + 256]
                at = logits[:, level]
                if normalize == "vocab":
                    chosen = at[np.arange(len(part)), tokens[begin : begin + 256, level]]
                    pool = at
                else:
                    at = at[:, token_ids[level]]
                    chosen = at[np.arange(len(part)), part[:, level]]
                    pool = at
                    if normalize == "legal":
                        pool = np.where(_legal(sids, part, level, at.shape[1]), at, -np.inf)
                top = pool.max(axis=1, keepdims=True)
                norm = top[:, 0] + np.log(np.exp(pool - top).sum(axis=1))
                scores[begin : begin + 256, level] = chosen - norm
    return scores


def _legal(sids, part, level, codes):
    """bool [len(part), codes]: which codes of `level` continue the prefix of each row of `part`."""
    allowed = {}
    for sid in sids:
        allowed.setdefault(tuple(sid[:level]), set()).add(int(sid[level]))
    mask = np.zeros((len(part), codes), bool)
    for i, sid in enumerate(part):
        mask[i, list(allowed[tuple(sid[:level])])] = True
    return mask


def rank(sids, step_scores):
    """SIDs and scores, best first, ties by the smaller SID: what an exact search answers."""
    total = step_scores.sum(axis=1)
    order = np.lexsort([sids[:, level] for level in reversed(range(sids.shape[1]))] + [-total])
    return sids[order], total[order]
