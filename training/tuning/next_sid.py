"""The training objective: the next item's codes at every event. Knows no data folder and no
training loop.
"""

import torch
from torch import nn
from torch.nn import functional


class NextSid(nn.Module):
    """A decoder with the loss of next-item prediction.

    Each code is scored against the codes of its own level (`softmax="level"`), which is how the
    engine scores beams by default and needs the LM head's SID rows only; `softmax="vocab"` scores
    it against the whole vocabulary, for serving with normalize="vocab".

    Args:
      decoder: a Qwen2-class causal LM of Transformers.
      token_ids: L sequences: (level, code) -> token id.
      softmax: "level" or "vocab".
      dropout: rate on embeddings and on every attention and MLP output, in training; decoders have
        none of their own.
      label_smoothing: in [0, 1).
    """

    def __init__(self, decoder, token_ids, softmax="level", dropout=0.0, label_smoothing=0.0):
        super().__init__()
        if softmax not in ("level", "vocab"):
            raise ValueError(f"softmax = {softmax!r}: expected level|vocab")
        self.decoder = decoder
        self.softmax = softmax
        self.label_smoothing = label_smoothing
        self.levels = len(token_ids)
        for level, ids in enumerate(token_ids):
            self.register_buffer(f"token_ids_{level}", torch.tensor(ids), persistent=False)
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
        """Mean over events of the sum over levels of the cross-entropy.

        Args:
          tokens: int64 [B, T], zero-padded on the right: attention is causal, so no real token sees
            padding.
          at: int64 [L, n], flat position in [0, B * T) of the token that predicts level l of target
            n; -1: not predicted.
          code: int64 [L, n], the codes to predict.

        Returns:
          (scalar loss, float [L] mean cross-entropy of each level).
        """
        hidden = self.decoder.model(input_ids=tokens, use_cache=False).last_hidden_state.flatten(
            0, 1
        )
        losses = torch.stack(
            [
                self._level_loss(hidden, level, at[level], code[level])
                for level in range(self.levels)
            ]
        )
        return losses.sum(), losses.detach()

    def _level_loss(self, hidden, level, at, code):
        used = at >= 0
        states, code = hidden[at[used]], code[used]
        ids = getattr(self, f"token_ids_{level}")
        head = self.decoder.get_output_embeddings().weight
        if self.softmax == "level":
            logits, target = states @ head[ids].T, code
        else:
            logits, target = states @ head.T, ids[code]
        return functional.cross_entropy(
            logits.float(), target, label_smoothing=self.label_smoothing
        )
