"""The body of a Qwen2 or Qwen3 decoder for training: the function that Transformers computes, in
fewer and larger operations, with dropout. Knows no loss, and no vocabulary but the embedding.

Small decoders on a CPU spend as much time between the matrix products as in them. Here q, k, v and
gate, up are one product each, a norm's weight is folded into the matrix behind it, short attention
is two batched products, and dropout takes 16 random bits a number. Measured in
docs/decisions.md.
"""

import torch
from torch.nn import functional

from genrecall.training.tuning.fused_ops import Heads, RmsNorm, SwiGlu

# Up to this many tokens a row, attention by batched products beats the fused kernel of a CPU.
_SHORT = 96


def hidden_states(decoder, tokens, position=None, visible=None, dropout=0.0):
    """The last hidden states, as decoder.model(...) returns them.

    Args:
      decoder: a Qwen2 or Qwen3 causal LM of Transformers without rope scaling and sliding window
        (checkpoint.load_decoder refuses those), maybe with LoRA adapters.
      tokens: int64 [B, T].
      position: int64 [B, T]; None: 0 .. T - 1.
      visible: bool [B, 1, T, T], [b, 0, q, k]: token q sees token k; None: every token sees those
        up to itself.
      dropout: rate on embeddings and on every attention and MLP output; random.

    Returns:
      float [B, T, H].
    """
    body = decoder.model
    if position is None:
        position = torch.arange(tokens.shape[1], device=tokens.device)[None]
    angles = position[..., None].float() * body.rotary_emb.inv_freq.float()
    turn = angles.cos(), angles.sin()
    x = _drop(body.embed_tokens(tokens), dropout)
    for layer in body.layers:
        x = _add(x, _attention(layer, x, turn, visible), dropout)
        x = _add(x, _mlp(layer, x), dropout)
    return RmsNorm.apply(x, body.norm.variance_epsilon) * body.norm.weight


def dropout_mask(shape, rate, device=None):
    """float32 of `shape`: 0 with probability `rate` (to the nearest 1 / 65536), else what keeps the
    mean at 1. Six times as fast on a CPU as a Bernoulli draw of floats.
    """
    numbers = torch.Size(shape).numel()
    bits = torch.empty((numbers + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    dropped = round(rate * 65536)
    kept = bits.view(torch.int16)[:numbers].view(shape) >= dropped - 32768
    return kept.to(torch.float32).mul_(65536 / (65536 - dropped))


def _drop(x, rate):
    return x * dropout_mask(x.shape, rate, x.device) if rate else x


def _add(x, y, rate):
    return torch.addcmul(x, y, dropout_mask(y.shape, rate, y.device)) if rate else x + y


def _after_norm(x, norm, matrices):
    """The outputs of `matrices` (nn.Linear or adapters on one) on norm(x), side by side."""
    x = RmsNorm.apply(x, norm.variance_epsilon)
    rows = sum(m.out_features for m in matrices)
    plain = all(type(m) is torch.nn.Linear for m in matrices)
    if not plain or rows > x.shape[:-1].numel():  # joined, they are larger than x is
        x = x * norm.weight
        return torch.cat([m(x) for m in matrices], -1)
    weight = torch.cat([m.weight for m in matrices]) * norm.weight
    biases = [m.bias for m in matrices]
    bias = None if biases[0] is None else torch.cat(biases)
    return functional.linear(x, weight, bias)


def _attention(layer, x, turn, visible):
    attention, width = layer.self_attn, layer.self_attn.head_dim
    matrices = attention.q_proj, attention.k_proj, attention.v_proj
    queries, keys = (m.out_features // width for m in matrices[:2])
    qkv = _after_norm(x, layer.input_layernorm, matrices)
    if hasattr(attention, "q_norm"):
        qkv = _normed_heads(qkv, attention, queries, keys)
    heads = Heads.apply(qkv, *turn, width, queries + keys)
    out = _attended(*heads.split([queries, keys, keys], 1), visible)
    return attention.o_proj(out.transpose(1, 2).flatten(2))


def _normed_heads(qkv, attention, queries, keys):
    """Qwen3: queries and keys are normed head by head."""
    q, k, v = qkv.unflatten(-1, (-1, attention.head_dim)).split([queries, keys, keys], 2)
    q = RmsNorm.apply(q, attention.q_norm.variance_epsilon) * attention.q_norm.weight
    k = RmsNorm.apply(k, attention.k_norm.variance_epsilon) * attention.k_norm.weight
    return torch.cat([q, k, v], 2).flatten(2)


def _attended(q, k, v, visible):
    """[B, heads, T, width] queries, keys and values -> outputs."""
    (batch, heads, length, width), kv_heads = q.shape, k.shape[1]
    if length > _SHORT or kv_heads != heads or q.device.type != "cpu":
        return functional.scaled_dot_product_attention(
            q, k, v, visible, is_causal=visible is None, enable_gqa=kv_heads != heads
        )
    if visible is None:
        visible = torch.ones(1, 1, length, length, dtype=torch.bool, device=q.device).tril()
    hidden = torch.zeros(visible.shape, dtype=q.dtype, device=q.device)
    hidden = hidden.masked_fill_(~visible, float("-inf"))
    if len(visible) > 1:
        hidden = hidden.expand(-1, heads, -1, -1)
    hidden = hidden.reshape(-1, length, length)
    q, k, v = (y.reshape(batch * heads, length, width) for y in (q, k, v))
    weight = torch.baddbmm(hidden, q, k.mT, alpha=width**-0.5).softmax(-1)
    return torch.bmm(weight, v).view(batch, heads, length, width)


def _mlp(layer, x):
    mlp = layer.mlp
    both = _after_norm(x, layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj))
    return mlp.down_proj(SwiGlu.apply(both))
