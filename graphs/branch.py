"""What a recall branch is: the interface, what it reads and what it answers. Knows no branch.

A branch is a tf.Module with a name and a `recall(request, k)`; see examples/custom_branch.py.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Request:
    """One checked batch: B rows everywhere.

    A row with row_status != 0 is malformed: it holds neutral values and gets no answer.
    """

    user_id: tf.Tensor  # int64 [B]
    behavior_item: tf.Tensor  # int64 [B, T]
    behavior_action: tf.Tensor  # int32 [B, T]
    behavior_domain: tf.Tensor  # int32 [B, T]
    behavior_time: tf.Tensor  # int64 [B, T], Unix seconds
    behavior_length: tf.Tensor  # int32 [B], 0..T
    request_time: tf.Tensor  # int64 [B], Unix seconds
    exclude_item: tf.Tensor  # int64 [B, E]
    exclude_length: tf.Tensor  # int32 [B], 0..E
    beam_width: tf.Tensor  # int32 [B], 1..the exported maximum
    num_items: tf.Tensor  # int32 [B], 1..k
    deadline_ms: tf.Tensor  # int32 [B], of the branches; <= 0: none
    priority: tf.Tensor  # int32 [B]
    seed: tf.Tensor  # int32 [B]
    row_status: tf.Tensor  # int32 [B]
    index: tf.Tensor  # variant []: the request's snapshot of the recall index
    features: dict  # name -> [B], of the prompt spec's features

    def tensors(self) -> list[tf.Tensor]:
        """All of them in a fixed order, so that a Request can cross a function's boundary."""
        return [getattr(self, name) for name in _FIELDS] + list(self.features.values())

    def with_tensors(self, tensors) -> "Request":
        """The same request made of other tensors, in the order of `tensors()`."""
        fields = dict(zip(_FIELDS, tensors, strict=False))
        features = dict(zip(self.features, tensors[len(_FIELDS) :], strict=True))
        return Request(**fields, features=features)


_FIELDS = tuple(f.name for f in dataclasses.fields(Request) if f.name != "features")


@dataclasses.dataclass(frozen=True)
class BranchAnswer:
    """One branch's answer for a batch."""

    item_id: tf.Tensor  # int64 [B, k], best first; -1 pads
    score: tf.Tensor  # float32 [B, k]; -inf pads. A NaN is a failure of the branch
    status: tf.Tensor  # int32 [B], 0 or why the row is empty (canonical code)
    details: dict = dataclasses.field(default_factory=dict)  # name -> [B, ...], shown by `explain`


@runtime_checkable
class Branch(Protocol):
    """One source of recall.

    The recall graph calls it inside TryBranch: whatever it raises, however late it is, or if it
    answers NaN, the request is answered by the other branches, and branch_status says why.
    """

    name: str  # short; in metrics, logs and the model card

    def recall(self, request: Request, k: int) -> BranchAnswer:
        """Traced once per signature. At most k items per row; rows with row_status != 0: none."""

    def detail_specs(self) -> dict[str, tf.TensorSpec]:
        """The details it answers with: first dimension B, other unknown ones 0 when it fails."""
