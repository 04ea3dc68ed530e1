"""Muon: momentum made orthogonal, for the matrices inside a decoder. Knows no model and no
schedule.
"""

import torch

# Newton-Schulz iteration of fifth order with the coefficients of K. Jordan's Muon (2024): few steps
# bring every singular value near 1, without an SVD.
_A, _B, _C, _ITERATIONS = 3.4445, -4.7750, 2.0315, 5


class Muon(torch.optim.Optimizer):
    """A matrix moves by lr * 0.2 * sqrt(its longer side) along its momentum with all singular
    values made (about) 1.

    The factor gives the step the root mean square of an AdamW step (Liu et al. 2025, "Muon is
    scalable for LLM training"), so AdamW's learning rate and weight decay serve both. Unlike
    torch.optim.Muon it computes in float32, which is faster than bfloat16 on CPUs without its
    arithmetic, and matrices of one shape share their products.

    Args:
      matrices: 2-d parameters.
      lr, weight_decay: as AdamW's.
      momentum: in [0, 1).

    Raises:
      ValueError: a parameter that is no matrix.
    """

    def __init__(self, matrices, lr, weight_decay=0.0, momentum=0.95):
        matrices = list(matrices)
        for p in matrices:
            if p.ndim != 2:
                raise ValueError(f"a parameter of shape {tuple(p.shape)}: expected a matrix")
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(matrices, defaults)

    @torch.no_grad()
    def step(self):
        """One step of every matrix that has a gradient."""
        for group in self.param_groups:
            alike = {}
            for p in group["params"]:
                if p.grad is not None:
                    direction = self._direction(p, group["momentum"])
                    alike.setdefault(direction.shape, []).append((p, direction))
            for shape, pairs in alike.items():
                scale = 0.2 * group["lr"] * max(shape) ** 0.5
                directions = orthogonalised(torch.stack([d for _, d in pairs]))
                for (p, _), direction in zip(pairs, directions, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(direction if p.shape == shape else direction.T, alpha=-scale)

    def _direction(self, p, momentum):
        """Nesterov's momentum of `p`, lying on its longer side."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - momentum)
        ahead = p.grad.lerp(state["momentum"], momentum)
        return ahead if p.shape[0] <= p.shape[1] else ahead.T


def orthogonalised(matrices):
    """U V^T, about, of each matrix U S V^T: singular values that are not tiny beside the largest
    come out within 0.6 .. 1.3.

    Args:
      matrices: float32 [n, rows, columns], rows <= columns (the other way round it costs more).
        Zero matrices stay zero.

    Returns:
      float32 of the same shape.
    """
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x
