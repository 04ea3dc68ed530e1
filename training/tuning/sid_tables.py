"""A decoder's embedding and head in two tables: the rows it had, and the SID tokens' own. Knows no
tokenizer and no training.

While a decoder is trained, the rows of SID tokens are parameters of their own beside the base
table, so that they can be trained while it is frozen, and a level's rows are a slice.
`merged_state` puts both into the one table of an ordinary checkpoint.
"""

import torch
from torch import nn
from torch.nn import functional

from genrecall.training.tuning import lora


class SplitTable(nn.Module):
    """Rows of one vocabulary in two parameters.

    Args:
      base: float [V, H], the table of the checkpoint, its padding rows included.
      sids: float [S, H], the rows of token ids first .. first + S - 1. Rows of `base` with these
        ids, padding till now, are no longer read.
      first: the first SID token's id, <= V.
    """

    def __init__(self, base, sids, first):
        super().__init__()
        if first > len(base):
            raise ValueError(f"first = {first}: expected <= the {len(base)} rows of the table")
        self.base, self.sids, self.first = nn.Parameter(base), nn.Parameter(sids), first

    @property
    def num_rows(self):
        return max(len(self.base), self.first + len(self.sids))

    def look_up(self, ids):
        """ids int64 [...] -> float [..., H]."""
        place = ids - self.first
        is_sid = (place >= 0) & (place < len(self.sids))
        base = functional.embedding(torch.where(is_sid, 0, ids), self.base)
        sids = functional.embedding(place.clamp(0, len(self.sids) - 1), self.sids)
        return torch.where(is_sid[..., None], sids, base)

    def score(self, hidden):
        """hidden float [..., H] -> logits of the whole vocabulary, [..., num_rows]."""
        after = self.first + len(self.sids)
        parts = [hidden @ self.base[: self.first].T, hidden @ self.sids.T]
        if after < len(self.base):
            parts.append(hidden @ self.base[after:].T)
        return torch.cat(parts, dim=-1)

    def merged(self):
        """float [num_rows, H]: the ordinary table."""
        after = self.first + len(self.sids)
        parts = self.base.detach()[: self.first], self.sids.detach(), self.base.detach()[after:]
        return torch.cat(parts)


class SplitEmbedding(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, ids):
        return self.table.look_up(ids)


class SplitHead(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, hidden):
        return self.table.score(hidden)


def split(decoder, rows, first):
    """Gives a decoder's embedding and head a table of SID rows beside their own, in place.

    Args:
      decoder: a causal LM of Transformers with ordinary embedding and head.
      rows: float [S, H] of the embedding, and of the head where it is not tied; (embedding,) or
        (embedding, head).
      first: the first SID token's id.
    """
    embedding, head = decoder.get_input_embeddings(), decoder.get_output_embeddings()
    table = SplitTable(embedding.weight.detach(), rows[0], first)
    if head.weight is embedding.weight:
        head_table = table
    else:
        head_table = SplitTable(head.weight.detach(), rows[1], first)
    decoder.set_input_embeddings(SplitEmbedding(table))
    decoder.set_output_embeddings(SplitHead(head_table))


def tables(decoder):
    """The SplitTables of a split decoder: (embedding,) when the head is tied, else (embedding,
    head).
    """
    embedding, head = decoder.get_input_embeddings().table, decoder.get_output_embeddings().table
    return (embedding,) if head is embedding else (embedding, head)


def sid_rows(decoder, level_sizes):
    """The head's rows of each level: L views [C_l, H], in the order of codes."""
    return decoder.get_output_embeddings().table.sids.split(list(level_sizes))


def merged_state(decoder):
    """The state dict of the ordinary decoder that a split one stands for: one embedding table, one
    head (left out when tied), LoRA adapters added to their weights. Tensors may share memory with
    the decoder.
    """
    embedding, *head = (table.merged() for table in tables(decoder))
    state = {k: v for k, v in decoder.state_dict().items() if ".table." not in k}
    lora.merge_into(state, decoder)
    state["model.embed_tokens.weight"] = embedding
    if head:
        state["lm_head.weight"] = head[0]
    return state
