"""The objective of preference optimisation (DPO), and the scores it compares. Knows no data folder
and no training loop.
"""

from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.nn import functional

from genrecall.training import config
from genrecall.training.config import option
from genrecall.training.tuning.preference_batches import PreferenceBatch


@dataclass(frozen=True)
class LossOptions:
    """What is minimised."""

    beta: float = option(0.3, "how dear it is to leave the reference model", above=0)
    pair_smoothing: float = option(
        0.0, "probability that a preference is the wrong way round", low=0, below=0.5
    )
    nll_weight: float = option(1.0, "of the fine-tuning loss on the same prompts", low=0)

    def __post_init__(self):
        config.check(self)


def dpo_loss(chosen, rejected, label, beta):
    """Rafailov et al. 2023 (arXiv:2305.18290), equation 7, for preferences that may be uncertain.

    Args:
      chosen, rejected: float [P], log pi(answer | prompt) - log pi_ref(answer | prompt).
      label: float [P] in [0, 1], the probability that `chosen` is the better one. 1 is the paper's
        loss, 1 - e that of conservative DPO with label smoothing e.
      beta: > 0; how dear it is to leave the reference.

    Returns:
      (loss float [P], margin float [P]): the margin is the difference of the implied rewards. The
      loss is least where sigmoid(margin) = label.
    """
    margin = beta * (chosen - rejected)
    log_sigmoid = functional.logsigmoid
    return -label * log_sigmoid(margin) - (1 - label) * log_sigmoid(-margin), margin


class DpoObjective(nn.Module):
    """Preference loss plus, weighted, the loss of fine-tuning on the same prompts; a
    training_loop.Objective.

    Args:
      model: next_sid.NextSid; its softmax is what answers are scored with.
      options: LossOptions.
    """

    def __init__(self, model, options):
        super().__init__()
        self.model = model
        self.options = options
        self.parts = ("dpo", *(f"nll_{part}" for part in model.parts))
        self.figures = {}  # of the last forward pass, for logs

    def forward(self, *batch):
        """Loss of a preference_batches.PreferenceBatch, given as its fields.

        Returns:
          (sums float [L + 2], counts float [L + 2]), by parts: weighted preference losses and how
          many contexts they are of; the fine-tuning losses times nll_weight and their targets.
        """
        batch = PreferenceBatch(*batch)
        score, hidden = self.scores(batch)
        gain = score - batch.reference
        smooth = self.options.pair_smoothing
        label = batch.label * (1 - smooth) + (1 - batch.label) * smooth
        chosen, rejected = gain[batch.chosen], gain[batch.rejected]
        loss, margin = dpo_loss(chosen, rejected, label, self.options.beta)
        self._record(margin.detach(), chosen.detach(), rejected.detach())
        sft = batch.sft
        nll, targets = self.model.losses(hidden, sft.at, sft.code, sft.text_at, sft.text_token)
        sums = torch.cat([(loss * batch.weight).sum()[None], self.options.nll_weight * nll])
        return sums, torch.cat([targets.new_tensor([len(sft.tokens)]), targets])

    def scores(self, batch):
        """(log-probability of each answer float [R], last hidden states float [B * T, hidden])."""
        hidden = self.model.states(batch.sft.tokens, batch.sft.own, batch.sft.anchor)
        return self.model.log_probs(hidden, batch.at, batch.code).sum(0), hidden

    def _record(self, margin, chosen, rejected):
        self.figures = {
            "margin": float(margin.mean()),
            "accuracy": float((margin > 0).float().mean()),
            "chosen_gain": float(chosen.mean()),
            "rejected_gain": float(rejected.mean()),
        }


@torch.inference_mode()
def score_answers(objective, samples, batches, device):
    """Log-probability of every answer of PreferenceSamples under the objective's model as it is.

    Args:
      objective: DpoObjective.
      samples: preference_batches.PreferenceSamples.
      batches: list of int64 arrays of contexts that partition range(len(samples)).
      device: torch device of the model.

    Returns:
      float32 NumPy array [R].
    """
    was_training = objective.training
    objective.eval()
    begin = samples.preferences.begin
    out = torch.zeros(int(begin[-1]))
    for contexts in batches:
        score, _ = objective.scores(send_to_device(samples.batch(contexts), device))
        rows = torch.cat([torch.arange(int(begin[c]), int(begin[c + 1])) for c in contexts])
        out[rows] = score.float().cpu()
    objective.train(was_training)
    return out.numpy()
