"""The door to TryBranch: a part of the graph whose failure is not the request's."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from genrecall.tf_ops.library import ops


def try_branch(
    f: Callable,
    args: Sequence[tf.Tensor],
    fallback: Sequence[tf.Tensor],
    deadline_ms: tf.Tensor,
    *,
    output_shapes: Sequence[tf.TensorShape] | None = None,
    scores: Sequence[int] = (),
    branch: str = "branch",
    max_threads: int = 64,
) -> list[tf.Tensor]:
    """Runs f(*args), and answers with the fallback when f fails, is late or gives what it must not.

    f runs on threads of its own. When it is late it is cancelled and left to end by itself, and
    everything it needs is kept alive; while `max_threads` late runs have not ended it is not called
    again. A malformed request is no reason for a fallback: refuse it before (check_request).

    Args:
      f: a ConcreteFunction, a tf.function or a Python function of `args` that returns a sequence of
        tensors. What it captures is passed along.
      args: tensors of any dtype, resource and variant included.
      fallback: one tensor per output of f, of its dtype and rank.
      deadline_ms: int32 [B] or scalar. The smallest positive value counts from the start of the op;
        none positive: no deadline.
      output_shapes: what the outputs must be compatible with; default: the fallback's static
        shapes. Dim 0 must in addition equal the fallback's when the op runs.
      scores: indices of the float outputs in which a NaN is a failure of the branch (-inf is not).
      branch: name in metrics (`/genrecall/branch_answers`) and log lines.
      max_threads: threads f's ops may occupy at a time, all requests together.

    Returns:
      f's outputs or the fallback, then status: int32 scalar, 0 or the canonical code of the
      failure: 4 DEADLINE_EXCEEDED, 8 RESOURCE_EXHAUSTED (late runs have not ended), 13 INTERNAL
      (another dtype or shape, NaN, or what TensorFlow makes of an op's UNAVAILABLE), else f's own.

    Raises:
      CancelledError: the step was cancelled.
      ValueError: f has other output dtypes than the fallback, seen while tracing.
    """
    args = [tf.convert_to_tensor(a) for a in args]
    fallback = [tf.convert_to_tensor(t) for t in fallback]
    f = _concrete(f, args)
    outputs = tf.nest.flatten(f.structured_outputs, expand_composites=True)
    got, want = [t.dtype.name for t in outputs], [t.dtype.name for t in fallback]
    if got != want:
        raise ValueError(f"branch '{branch}' returns {got}: expected {want}, as its fallback")
    f.add_to_graph(None if tf.executing_eagerly() else tf.compat.v1.get_default_graph())
    if output_shapes is None:
        output_shapes = [t.shape for t in fallback]
    answer = ops.genrecall_try_branch(
        args=args + list(f.captured_inputs),
        fallback=fallback,
        deadline_ms=deadline_ms,
        f=f,
        output_shapes=list(output_shapes),
        scores=list(scores),
        branch=branch,
        max_threads=max_threads,
    )
    return [*answer.outputs, answer.status]


def _concrete(f, args):
    if hasattr(f, "captured_inputs"):  # a ConcreteFunction
        return f
    if not hasattr(f, "get_concrete_function"):
        f = tf.function(f, autograph=False)
    return f.get_concrete_function(*[tf.TensorSpec(a.shape, a.dtype) for a in args])
