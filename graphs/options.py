"""What an export may choose about a recall graph. Knows no TensorFlow."""

import dataclasses
import math

MAX_BEAM_WIDTH = 4096  # kMaxBeamWidth of trtllm_bridge/engine.h
MAX_NUM_ITEMS = 1 << 20  # an answer is padded to it
NORMALIZE = ("level", "legal", "vocab")


@dataclasses.dataclass(frozen=True)
class RecallOptions:
    """Choices of a recall graph, checked.

    Attributes:
      num_items: K, items of an answer at most, and the default of the input.
      beam_width: default of the input. max_beam_width: the widest a request may ask for.
      normalize: what log-probabilities are relative to: "level", "legal" or "vocab".
      temperature: divides the logits, > 0.
      prefix_caps: (diversity) at most prefix_caps[l] beams of a request share their first l + 1
        codes; 0: no cap. At most L - 1 numbers.
      per_sid_cap: items of one semantic ID in the generative branch's answer; 0: no cap.
      deadline_ms: default of the input; <= 0: none.
      reply_reserve_ms: kept back from a request's deadline (a quarter of it at most) to merge and
        answer, so that with a late branch the reply still comes in time.
      quotas: {branch name: items it may place before the others fill up}; none for those not named.
      branch_threads: threads one branch's ops may occupy.
    """

    num_items: int = 50
    beam_width: int = 50
    max_beam_width: int = 512
    normalize: str = "level"
    temperature: float = 1.0
    prefix_caps: tuple = ()
    per_sid_cap: int = 0
    deadline_ms: int = 1000
    reply_reserve_ms: int = 10
    quotas: dict = dataclasses.field(default_factory=dict)
    branch_threads: int = 64

    def __post_init__(self):
        def expect(name, ok, what):
            if not ok:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected {what}")

        expect("num_items", 1 <= self.num_items <= MAX_NUM_ITEMS, f"1..{MAX_NUM_ITEMS}")
        limit = f"1..{MAX_BEAM_WIDTH}"
        expect("max_beam_width", 1 <= self.max_beam_width <= MAX_BEAM_WIDTH, limit)
        in_range = 1 <= self.beam_width <= self.max_beam_width
        expect("beam_width", in_range, f"1..max_beam_width = {self.max_beam_width}")
        expect("normalize", self.normalize in NORMALIZE, "|".join(NORMALIZE))
        expect("temperature", math.isfinite(self.temperature) and self.temperature > 0, "> 0")
        whole = all(isinstance(cap, int) and cap >= 0 for cap in self.prefix_caps)
        expect("prefix_caps", whole, "integers >= 0")
        expect("per_sid_cap", self.per_sid_cap >= 0, ">= 0")
        expect("deadline_ms", self.deadline_ms < 1 << 31, "< 2^31")
        expect("reply_reserve_ms", self.reply_reserve_ms >= 0, ">= 0")
        expect("branch_threads", self.branch_threads >= 1, ">= 1")

    def quota_list(self, branch_names) -> list[int]:
        """Quotas in the order of the branches, -1 for none.

        Raises:
          ValueError: a quota of a branch that is not there.
        """
        unknown = sorted(set(self.quotas) - set(branch_names))
        if unknown:
            raise ValueError(
                f"quota of branch {unknown[0]!r}: expected one of {', '.join(branch_names)}"
            )
        return [int(self.quotas.get(name, -1)) for name in branch_names]
