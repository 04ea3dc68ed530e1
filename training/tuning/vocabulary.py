"""SID tokens in a decoder's vocabulary: appended, counted in one stored table. Knows no prompts
and no training loop.
"""

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from genrecall.kernels.prompt_spec import SidSpace
from genrecall.training.tuning import sid_tables

END_OF_TEXT = "<|endoftext|>"


def sid_token_name(level, code):
    """`<a_0>` for level 0, code 0; the names are for people, programs read the stored table."""
    return f"<{chr(ord('a') + level)}_{code}>"


def train_tokenizer(texts, vocab_size=1000):
    """A byte-level BPE tokenizer (any text tokenizes, nothing is unknown) for a decoder made from
    scratch.

    Args:
      texts: what prompts will say: their texts, and item texts.
      vocab_size: upper bound; at least the 256 bytes and the end-of-text token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def expand_vocabulary(model, tokenizer, sids, codebooks, seed=0):
    """Appends the SID tokens to the tokenizer and gives the model tables for their rows (see
    sid_tables), in place.

    The new tokens take the ids after the tokenizer's last; a checkpoint whose embedding is padded
    beyond that lends them the ids of its padding rows. The base table itself is not touched. A new
    row starts as the mean of the base rows plus its centroid, projected at random and scaled to the
    spread of the base rows, so that codes that mean alike start alike; codes without a centroid
    (collisions, spares) start as noise of that size.

    Args:
      model: a causal LM of Transformers.
      tokenizer: its tokenizer.
      sids: sid_table.SemanticIds.
      codebooks: L arrays [C_l, D].
      seed: of the projection and the noise.

    Returns:
      SidSpace: the stored table (level, code) -> token id, and its digest.

    Raises:
      ValueError: a checkpoint that has SID tokens already; a tokenizer longer than the embedding.
    """
    base = len(tokenizer)
    names = [
        sid_token_name(level, code)
        for level, size in enumerate(sids.level_sizes)
        for code in range(size)
    ]
    vocabulary = tokenizer.get_vocab()
    known = [n for n in names if n in vocabulary]
    if known:
        raise ValueError(
            f"the tokenizer already has {known[0]}: expected a checkpoint without SID tokens"
        )
    # Special tokens are never split or normalised, and text never produces them by merging.
    tokenizer.add_tokens(names, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(names)
    if ids != list(range(base, base + len(names))):
        raise ValueError(
            f"the tokenizer gave {names[0]} the id {ids[0]}: expected {base} and the ids after it"
        )
    weights = _weights(model)
    generator = np.random.default_rng(seed)
    starts = []
    for weight in weights:
        if base > len(weight):
            raise ValueError(
                f"the tokenizer has {base} tokens: expected <= the {len(weight)} rows of the table"
            )
        rng = np.random.default_rng(generator.integers(2**31))
        start = _starting_rows(weight.detach()[:base], sids.level_sizes, codebooks, rng)
        starts.append(start.to(weight.dtype))
    sid_tables.split(model, starts, base)
    first = np.cumsum([0, *sids.level_sizes])
    token_ids = tuple(tuple(ids[a:b]) for a, b in zip(first[:-1], first[1:], strict=True))
    return SidSpace.build(sids.level_sizes, token_ids, sids.codebook_digest)


def reopen_vocabulary(model, space):
    """Gives a model whose checkpoint has SID tokens tables for their rows, in place.

    Args:
      model: a causal LM of Transformers, as checkpoint.load_decoder reads it.
      space: the SidSpace stored beside it.

    Raises:
      ValueError: SID tokens whose ids do not follow each other.
    """
    ids = [i for level in space.token_ids for i in level]
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise ValueError(f"SID tokens from {ids[0]} on: expected ids that follow each other")
    rows = [weight.detach()[ids].clone() for weight in _weights(model)]
    sid_tables.split(model, rows, ids[0])


def _weights(model):
    """The input embedding and, where it is not the same parameter, the LM head."""
    weights = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings().weight
    return weights if head is weights[0] else [*weights, head]


def _starting_rows(base, level_sizes, codebooks, generator):
    """float32 [sum level_sizes, hidden]: see expand_vocabulary."""
    mean, spread, hidden = base.float().mean(0), float(base.float().std()), base.shape[1]
    rows = []
    for size, book in zip(level_sizes, codebooks, strict=True):
        noise = generator.standard_normal((size, hidden))
        centred = book[:size] - book.mean(0)
        projected = centred @ generator.standard_normal((book.shape[1], hidden))
        noise[: len(projected)] = projected / max(projected.std(), 1e-12)
        rows.append(noise * spread)
    return mean + torch.from_numpy(np.concatenate(rows)).float()
