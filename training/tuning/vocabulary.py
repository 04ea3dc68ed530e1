"""SID tokens in a decoder's vocabulary: appended, counted in one stored table. Knows no prompts
and no training loop.
"""

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from genrecall.kernels.prompt_spec import SidSpace

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
    """Appends the SID tokens to tokenizer and model, in place.

    The new tokens take the ids after the tokenizer's last; a checkpoint whose embedding is padded
    beyond that lends its padding rows, and the embedding grows only for what is left. Rows of the
    tokens the tokenizer had stay bit-identical. A new row starts as the mean of the base rows plus
    its centroid, projected at random and scaled to the spread of the base rows, so that codes that
    mean alike start alike; codes without a centroid (collisions, spares) start as noise of that
    size.

    Args:
      model: a causal LM of Transformers.
      tokenizer: its tokenizer.
      sids: tokenize.SemanticIds.
      codebooks: L arrays [C_l, D].
      seed: of the projection and the noise.

    Returns:
      SidSpace: the stored table (level, code) -> token id, and its digest.
    """
    base = len(tokenizer)
    names = [
        sid_token_name(level, code)
        for level, size in enumerate(sids.level_sizes)
        for code in range(size)
    ]
    known = [n for n in names if n in tokenizer.get_vocab()]
    if known:
        raise ValueError(
            f"the tokenizer already has {known[0]}: expected a checkpoint without SID tokens"
        )
    # Special tokens are never split or normalised, and text never produces them by merging.
    tokenizer.add_tokens(names, special_tokens=True)
    ids = np.array(tokenizer.convert_tokens_to_ids(names))
    rows = model.get_input_embeddings().num_embeddings
    if ids.max() >= rows:
        model.resize_token_embeddings(int(ids.max()) + 1, mean_resizing=False)
    generator = np.random.default_rng(seed)
    for table in _tables(model):
        start = _starting_rows(
            table.detach()[:base],
            sids.level_sizes,
            codebooks,
            np.random.default_rng(generator.integers(2**31)),
        )
        with torch.no_grad():
            table[torch.from_numpy(ids)] = start.to(table.dtype)
    model.config.vocab_size = model.get_input_embeddings().num_embeddings
    first = np.cumsum([0, *sids.level_sizes])
    token_ids = tuple(tuple(ids[a:b].tolist()) for a, b in zip(first[:-1], first[1:], strict=True))
    return SidSpace.build(sids.level_sizes, token_ids, sids.codebook_digest)


def _tables(model):
    """The input embedding and, where it is not the same parameter, the LM head."""
    tables = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings().weight
    return tables if head is tables[0] else [*tables, head]


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
