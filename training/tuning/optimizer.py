"""Which optimizer trains which parameter. Knows no objective and no schedule."""

import torch
from torch import nn

from genrecall.training.tuning.muon import Muon


class Optimizers:
    """Several optimizers of disjoint parameters, stepped and stored as one."""

    def __init__(self, parts):
        self.parts = parts

    @property
    def param_groups(self):
        return [group for part in self.parts for group in part.param_groups]

    def step(self):
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none=True):
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self):
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states):
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def make_optimizer(module, options):
    """AdamW for what requires a gradient in `module`, or with optimizer="muon" Muon for the
    hidden matrices and AdamW for the rest. Norms and biases are not decayed.

    Args:
      module: nn.Module.
      options: LoopOptions.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    hidden = hidden_matrices(module) if options.optimizer == "muon" else []
    taken = {id(p) for p in hidden}
    rest = [p for p in trained if id(p) not in taken]
    parts = []
    if hidden:
        parts.append(Muon(hidden, options.learning_rate, options.weight_decay))
    if rest:
        groups = [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ]
        betas = (0.9, options.beta2)
        parts.append(torch.optim.AdamW(groups, options.learning_rate, betas, fused=True))
    return Optimizers(parts)


def hidden_matrices(module):
    """Trained weights of the linear layers that neither read nor write a vocabulary.

    Embeddings and heads are left out, also a head that is the embedding's own parameter: their rows
    are trained token by token, rare ones seldom, and AdamW's step per element suits that.

    Returns:
      list of 2-d parameters.
    """
    embeddings = [m for m in module.modules() if isinstance(m, nn.Embedding)]
    vocabularies = {m.num_embeddings for m in embeddings}
    return [
        m.weight
        for m in module.modules()
        if isinstance(m, nn.Linear)
        and m.weight.requires_grad
        and m.out_features not in vocabularies
    ]
