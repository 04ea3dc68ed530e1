"""The training objective: codes at the places that samples name, and text tokens at others. Knows
no data folder and no training loop.
"""

import torch
from torch import nn
from torch.nn import functional

from genrecall.training.prompting import packing
from genrecall.training.tuning import decoder_body, sid_tables


class NextSid(nn.Module):
    """A decoder with the loss of next-item prediction; a training_loop.Objective with a part for
    each level, and one for text.

    Each code is scored against the codes of its own level (`softmax="level"`), which is how the
    engine scores beams by default and needs the LM head's SID rows only; `softmax="vocab"` scores
    it against the whole vocabulary, for serving with normalize="vocab". Text tokens, which
    alignment tasks ask for, compete with the whole vocabulary.

    Args:
      decoder: a Qwen2-class causal LM of Transformers with SID tables (see sid_tables.split).
      space: SidSpace.
      softmax: "level" or "vocab".
      dropout: rate on embeddings and on every attention and MLP output, in training; decoders have
        none of their own.
      label_smoothing: in [0, 1).
    """

    def __init__(self, decoder, space, softmax="level", dropout=0.0, label_smoothing=0.0):
        super().__init__()
        if softmax not in ("level", "vocab"):
            raise ValueError(f"softmax = {softmax!r}: expected level|vocab")
        self.decoder = decoder
        self.softmax = softmax
        self.label_smoothing = label_smoothing
        self.level_sizes = space.level_sizes
        self.first_ids = [ids[0] for ids in space.token_ids]
        self.parts = (*(f"level_{level}" for level in range(len(self.level_sizes))), "text")
        self.dropout = dropout

    def forward(self, tokens, at, code, own=None, anchor=None, text_at=None, text_token=None):
        """Cross-entropy of every level and of the text tokens, summed.

        Args: the fields of packing.Batch.

        Returns:
          (float [L + 1] sums over targets, float [L + 1] what to divide them by): levels and text
          are divided by one number, that of events plus that of text tokens / L, so that a code and
          a text token weigh alike in a batch that has both.
        """
        hidden = self.states(tokens, own, anchor)
        return self.losses(hidden, at, code, text_at, text_token)

    def states(self, tokens, own=None, anchor=None):
        """Last hidden states, float [B * T, H], for fields of packing.Batch."""
        seen = () if own is None else packing.layout(own, anchor)
        rate = self.dropout if self.training else 0.0
        return decoder_body.hidden_states(self.decoder, tokens, *seen, dropout=rate).flatten(0, 1)

    def losses(self, hidden, at, code, text_at=None, text_token=None):
        """What forward returns, from the states."""
        losses = [
            self._cross_entropy(*self._logits(hidden[at[level]], level, code[level]))
            for level in range(len(self.level_sizes))
        ]
        count = at.shape[1]
        if text_at is None:
            losses.append(torch.zeros_like(losses[0]))
        else:
            logits = self.decoder.get_output_embeddings()(hidden[text_at])
            losses.append(self._cross_entropy(logits, text_token))
            count += len(text_at) / len(self.level_sizes)
        return torch.stack(losses), losses[0].new_full((len(losses),), count)

    def log_probs(self, hidden, at, code):
        """Log-probability of every code, float32 [L, n]; at and code int64 [L, n] as in
        packing.Batch.
        """
        rows = []
        for level in range(len(self.level_sizes)):
            logits, target = self._logits(hidden[at[level]], level, code[level])
            rows.append(-functional.cross_entropy(logits.float(), target, reduction="none"))
        return torch.stack(rows)

    def _logits(self, states, level, code):
        """(logits [n, candidates], int64 [n], which of them is `code`)."""
        if self.softmax == "level":
            rows = sid_tables.sid_rows(self.decoder, self.level_sizes)[level]
            return states @ rows.T, code
        return self.decoder.get_output_embeddings()(states), code + self.first_ids[level]

    def _cross_entropy(self, logits, target):
        return functional.cross_entropy(
            logits.float(), target, label_smoothing=self.label_smoothing, reduction="sum"
        )
