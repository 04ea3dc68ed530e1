"""The training objective: the next item's codes at every event. Knows no data folder and no
training loop.
"""

import torch
from torch import nn
from torch.nn import functional

from genrecall.training.tuning import sid_tables


class NextSid(nn.Module):
    """A decoder with the loss of next-item prediction; a training_loop.Objective with a part for
    each level.

    Each code is scored against the codes of its own level (`softmax="level"`), which is how the
    engine scores beams by default and needs the LM head's SID rows only; `softmax="vocab"` scores
    it against the whole vocabulary, for serving with normalize="vocab".

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
        self.parts = tuple(f"level_{level}" for level in range(len(self.level_sizes)))
        if dropout:
            self._add_dropout(dropout)

    def _add_dropout(self, rate):
        # Hooks leave the module tree, and with it the checkpoint, an ordinary one.
        def drop(module, _, output):
            head, *rest = output if isinstance(output, tuple) else (output,)
            head = functional.dropout(head, rate, self.training)
            return (head, *rest) if rest else head if not isinstance(output, tuple) else (head,)

        body = self.decoder.model
        for module in (
            body.embed_tokens,
            *(m for layer in body.layers for m in (layer.self_attn, layer.mlp)),
        ):
            module.register_forward_hook(drop)

    def forward(self, tokens, at, code):
        """Cross-entropy of every level, summed over events.

        Args:
          tokens: int64 [B, T], zero-padded on the right: attention is causal, so no real token sees
            padding.
          at: int64 [L, n], flat position in [0, B * T) of the token that predicts level l of target
            n; -1: not predicted.
          code: int64 [L, n], the codes to predict.

        Returns:
          (float [L] sums over events, float [L] how many they are).
        """
        hidden = self.decoder.model(input_ids=tokens, use_cache=False).last_hidden_state.flatten(
            0, 1
        )
        rows = sid_tables.sid_rows(self.decoder, self.level_sizes)
        losses, counts = [], []
        for level, own_rows in enumerate(rows):
            used = at[level] >= 0
            states, target = hidden[at[level][used]], code[level][used]
            if self.softmax == "level":
                logits = states @ own_rows.T
            else:
                logits = self.decoder.get_output_embeddings()(states)
                target = target + self.first_ids[level]
            losses.append(
                functional.cross_entropy(
                    logits.float(),
                    target,
                    label_smoothing=self.label_smoothing,
                    reduction="sum",
                )
            )
            counts.append(used.sum())
        return torch.stack(losses), torch.stack(counts).float()
