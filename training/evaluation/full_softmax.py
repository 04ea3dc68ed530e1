"""Cross-entropy over a whole catalogue without holding its logits. Knows no model."""

import torch


class FullSoftmax(torch.autograd.Function):
    """Mean of -log softmax(hidden table^T)[target], and its gradients, a block of rows at a time.

    The logits of a batch are rows x items; PyTorch's own cross_entropy keeps them, their
    log-softmax and its gradient. Here a block's softmax becomes its gradient in place, while it is
    in cache.
    """

    @staticmethod
    def forward(ctx, hidden, table, target, block=64):
        """hidden float32 [n, D]; table float32 [N, D]; target int64 [n]. Returns float32 []."""
        loss = hidden.new_zeros(())
        needed = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden) if needed else None
        grad_table = torch.zeros_like(table) if needed else None
        for rows in torch.arange(len(hidden)).split(block):
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
            at = target[rows, None]
            logits = hidden[rows] @ table.T
            own = logits.gather(1, at)
            top = logits.amax(1, keepdim=True)
            p = logits.sub_(top).exp_()
            total = p.sum(1, keepdim=True)
            loss += (total.log() + top - own).sum()
            if needed:
                p.div_(total * len(hidden))
                p.scatter_add_(1, at, p.new_full(at.shape, -1.0 / len(hidden)))
                torch.mm(p, table, out=grad_hidden[rows])
                grad_table.addmm_(p.T, hidden[rows])
        if needed:
            ctx.save_for_backward(grad_hidden, grad_table)
        return loss / len(hidden)

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_table = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_table.mul_(grad), None, None
