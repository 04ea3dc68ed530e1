"""Pieces of a decoder layer as single steps of differentiation: fewer passes over memory than what
autograd makes of their formulas. Knows no model.

Each is tested against its formula, forward and backward.
"""

import torch


class RmsNorm(torch.autograd.Function):
    """x float [..., H], eps -> x / sqrt(mean(x^2) + eps), without a weight."""

    @staticmethod
    def forward(ctx, x, eps):
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        out = x * scale
        ctx.save_for_backward(out, scale)
        return out

    @staticmethod
    def backward(ctx, grad):
        out, scale = ctx.saved_tensors
        along = (grad * out).mean(-1, keepdim=True).neg_()
        return torch.addcmul(grad, out, along).mul_(scale), None


class SwiGlu(torch.autograd.Function):
    """float [..., 2 F], gates then values -> silu(gate) * value, float [..., F]."""

    @staticmethod
    def forward(ctx, both):
        gate, value = both.chunk(2, -1)
        active = torch.nn.functional.silu(gate)
        ctx.save_for_backward(both, active)
        return active * value

    @staticmethod
    def backward(ctx, grad):
        both, active = ctx.saved_tensors
        gate, value = both.chunk(2, -1)
        out = torch.empty_like(both)
        to_gate, to_value = out.chunk(2, -1)
        torch.mul(grad, active, out=to_value)
        torch.ops.aten.silu_backward.grad_input(grad * value, gate, grad_input=to_gate)
        return out


class Heads(torch.autograd.Function):
    """Splits projections into heads and turns the first `turned` of them by rotary positions.

    x float [B, T, heads * width], cos and sin float [B or 1, T, width / 2], width, turned ->
    float [B, heads, T, width].
    """

    @staticmethod
    def forward(ctx, x, cos, sin, width, turned):
        ctx.save_for_backward(cos, sin)
        ctx.turned = turned
        heads = x.unflatten(-1, (-1, width)).transpose(1, 2)
        out = torch.empty(heads.shape, dtype=x.dtype, device=x.device)
        out[:, turned:] = heads[:, turned:]
        _turn(heads[:, :turned], cos[:, None], sin[:, None], out[:, :turned])
        return out

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        batch, heads, length, width = grad.shape
        out = torch.empty(batch, length, heads, width, dtype=grad.dtype, device=grad.device)
        by_head, turned = out.transpose(1, 2), ctx.turned
        by_head[:, turned:] = grad[:, turned:]
        _turn(grad[:, :turned], cos[:, None], -sin[:, None], by_head[:, :turned])
        return out.flatten(2), None, None, None, None


def _turn(x, cos, sin, out):
    """Writes the pairs (x[i], x[i + width / 2]), turned by their angles, to `out`."""
    (a, b), (c, d) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(a, cos, out=c)
    c.addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=d)
    d.addcmul_(a, sin)
