"""Every option of `genrecall dpo`, with defaults that were measured on the generated shop. Knows no
data folder and no loss.
"""

from dataclasses import dataclass

from genrecall.training import config
from genrecall.training.config import nested, option
from genrecall.training.tuning.dpo_objective import LossOptions
from genrecall.training.tuning.loop_options import LoopOptions
from genrecall.training.tuning.preference_pairs import PairOptions


@dataclass(frozen=True)
class DpoLoopOptions(LoopOptions):
    """LoopOptions as a fine-tuned decoder wants them: a short run of small steps."""

    epochs: float = option(2.0, "passes over the prompts, at most", above=0)
    batch_tokens: int = option(4096, "tokens of a batch over all devices, padding included", low=1)
    learning_rate: float = option(3e-4, "of the peak", above=0)
    weight_decay: float = option(0.0, "of matrices; norms and biases have none", low=0)
    warmup_steps: int = option(20, "steps until the learning rate's peak", low=0)


@dataclass(frozen=True)
class DpoOptions:
    """What `genrecall dpo` does."""

    pairs: PairOptions = nested(PairOptions)
    loss: LossOptions = nested(LossOptions)
    loop: DpoLoopOptions = nested(DpoLoopOptions)
    softmax: str = option(
        "level", "what codes compete with, as in fine-tuning", choices=("level", "vocab")
    )
    dropout: float = option(0.0, "on embeddings, attention and MLP outputs", low=0, below=1)
    max_hr_loss: float = option(
        0.03,
        "a checkpoint is kept only if validation HR@10 has fallen by at most this part",
        low=0,
        high=1,
    )
    valid_users: int = option(1000, "users ranked at each validation", low=0)
    dtype: str = option("float32", "of the saved weights", choices=("float32", "bfloat16"))
    threads: int = option(2, "of PyTorch, in each process", low=1)

    def __post_init__(self):
        config.check(self)
