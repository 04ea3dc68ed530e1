"""How any objective is trained: the options of the training loop. Knows no objective."""

from dataclasses import dataclass

from genrecall.training import config
from genrecall.training.config import option


@dataclass(frozen=True)
class LoopOptions:
    """Options of training_loop.train; a batch is the same batch on one device and on many."""

    minutes: float | None = option(
        None,
        "wall-clock budget, validation included; the schedule is fitted to it, so a run with it is "
        "not reproducible to the bit",
        above=0,
    )
    epochs: float = option(40.0, "passes over the data, at most", above=0)
    steps: int | None = option(None, "optimizer steps, at most", low=1)
    batch_tokens: int = option(2048, "tokens of a batch over all devices, padding included", low=1)
    optimizer: str = option(
        "adamw",
        "muon: Muon for the decoder's hidden matrices, AdamW for the rest",
        choices=("adamw", "muon"),
    )
    learning_rate: float = option(2e-3, "of the peak", above=0)
    final_rate: float = option(
        0.02, "learning rate at the end, as a part of the peak's", low=0, high=1
    )
    weight_decay: float = option(0.05, "of matrices; norms and biases have none", low=0)
    beta2: float = option(0.98, "AdamW's decay of squared gradients", low=0, below=1)
    warmup_steps: int = option(100, "steps until the learning rate's peak", low=0)
    max_grad_norm: float = option(1.0, "longer gradients are shortened to this", above=0)
    ema: float = option(
        0.0,
        "decay per step of a moving average of the weights, which is what is evaluated and saved; "
        "0: none",
        low=0,
        below=1,
    )
    mixed_precision: str = option("no", "autocast of the forward pass", choices=("no", "bf16"))
    validations: int = option(4, "how often to validate, evenly spread, the last at the end", low=1)
    save_minutes: float = option(
        2.0, "how often what is needed to resume is saved; 0: after every step", low=0
    )
    seed: int = option(0, "of weights, batches, dropout and the validation sample", low=0)

    def __post_init__(self):
        config.check(self)
