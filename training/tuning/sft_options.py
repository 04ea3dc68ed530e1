"""Every option of `genrecall sft`. Knows no preset: those are in presets.py."""

from dataclasses import dataclass

from genrecall.training import config
from genrecall.training.config import nested, option
from genrecall.training.dataset.splits import HOLD_OUT
from genrecall.training.prompting.prompts import PromptOptions
from genrecall.training.tuning.alignment import TASKS, check_tasks
from genrecall.training.tuning.loop_options import LoopOptions


@dataclass(frozen=True)
class DecoderOptions:
    """The shape of a decoder made from scratch."""

    hidden: int = option(128, "width of a decoder made from scratch", low=8)
    layers: int = option(2, "its layers", low=1)
    heads: int = option(4, "its attention heads", low=1)
    kv_heads: int = option(0, "its key/value heads; 0: as many as heads", low=0)
    feed_forward: int = option(256, "inner width of its MLPs", low=8)

    def __post_init__(self):
        config.check(self)
        head = self.hidden / self.heads
        if head != int(head) or head % 2:
            raise ValueError(
                f"hidden = {self.hidden}, heads = {self.heads}: expected an even whole number of "
                "columns a head"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads = {self.kv_heads}: expected a divisor of {self.heads}")


@dataclass(frozen=True)
class TwoStageOptions:
    """Stage 1 trains the SID tokens' new rows only, stage 2 everything or LoRA adapters."""

    new_rows_share: float = option(
        0.0,
        "part of epochs, steps and minutes that goes to stage 1: new rows only, all else frozen",
        low=0,
        below=1,
    )
    new_rows_rate: float = option(5e-3, "learning rate of stage 1's peak", above=0)
    lora_rank: int = option(
        0, "stage 2 trains LoRA adapters of this rank and the new rows; 0: everything", low=0
    )
    lora_alpha: float = option(32.0, "LoRA additions are scaled by alpha / rank", above=0)

    def __post_init__(self):
        config.check(self)


@dataclass(frozen=True)
class SftOptions:
    """What `genrecall sft` does."""

    checkpoint: str | None = option(
        None,
        "Qwen2-class Hugging Face folder to start from (default: a decoder from scratch)",
        metavar="HF_DIR",
    )
    decoder: DecoderOptions = nested(DecoderOptions)
    stages: TwoStageOptions = nested(TwoStageOptions)
    loop: LoopOptions = nested(LoopOptions)
    prompt_spec: str | None = option(
        None,
        "prompt spec (default: made from the data folder by the options below)",
        metavar="JSON",
    )
    prompt: PromptOptions = nested(PromptOptions)
    responses: int = option(1, "events after a prompt that are its responses, at most", low=1)
    tasks: dict[str, float] = option(
        {},
        f"alignment tasks, samples for each sample of users: {', '.join(TASKS)}",
        low=0,
        high=100,
    )
    softmax: str = option("level", "what codes compete with", choices=("level", "vocab"))
    history_loss: bool = option(True, "learn every event of a line, not the last alone")
    dropout: float = option(0.2, "on embeddings, attention and MLP outputs", low=0, below=1)
    label_smoothing: float = option(0.0, "of the cross-entropy", low=0, below=1)
    hold_out: str = option(
        "valid",
        "the first split that training may not see; beyond valid nothing is validated and the last "
        "weights are kept",
        choices=HOLD_OUT,
    )
    valid_users: int = option(1000, "users ranked at each validation", low=0)
    dtype: str = option("float32", "of the saved weights", choices=("float32", "bfloat16"))
    threads: int = option(2, "of PyTorch, in each process", low=1)

    def __post_init__(self):
        config.check(self)
        check_tasks(self.tasks)
        if self.prompt_spec and self.prompt != PromptOptions():
            raise ValueError(
                f"prompt_spec = {self.prompt_spec!r}: expected no options of the default prompt "
                "beside it"
            )
