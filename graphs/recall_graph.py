"""The recall graph: all branches and their merge as one tf.Module with two signatures.

One request: broadcast and check it, take one snapshot of the index, ask every branch inside
TryBranch, merge, look up the semantic IDs of what came out. Knows no particular branch.
"""

import tensorflow as tf

from genrecall import tf_ops
from genrecall.graphs.branch import BranchAnswer, Request
from genrecall.graphs.options import RecallOptions
from genrecall.graphs.signature import request_inputs, signature_function
from genrecall.tf_ops.request import broadcast_request
from genrecall.tf_ops.try_branch import try_branch

MAX_BRANCHES = 31  # bits of branch_mask
UNTIMED_STEP_S = 2 * 86400  # between behaviours without times: longer than repeats are folded over


class RecallGraph(tf.Module):
    """serve(user_id, ...) and explain(user_id, ...): see `inputs` and OUTPUTS.

    Malformed input: a wrong dtype, rank or size, an empty batch, or a batch of one malformed row
    raises InvalidArgumentError naming input, value and expectation; a malformed row among others
    gets request_status 3 and no items.

    Args:
      index: RecallIndexResource.
      levels, facets: L and F of that index.
      branches: Branches in order: bit numbers of branch_mask, columns of branch_status, and who
        places an item first.
      features: [(name, kind)] of profile features, kind "string", "int64" or "bucket".
      options: RecallOptions.

    Raises:
      ValueError: no branch, more than 31, two of one name, or a quota of none of them.
    """

    def __init__(self, index, *, levels, facets, branches, features=(), options=None):
        super().__init__(name="recall_graph")
        self.options = options or RecallOptions()
        names = [b.name for b in branches]
        if not 1 <= len(names) <= MAX_BRANCHES:
            raise ValueError(f"{len(names)} branches: expected 1..{MAX_BRANCHES}")
        if len(set(names)) < len(names):
            raise ValueError(f"branches {', '.join(names)}: expected different names")
        self._quotas = tuple(self.options.quota_list(names))
        self.index = index
        self.branches = list(branches)
        self._levels, self._facets = levels, facets
        self._features = tuple((name, kind) for name, kind in features)
        self.inputs = request_inputs(
            self._features,
            num_items=self.options.num_items,
            beam_width=self.options.beam_width,
            deadline_ms=self.options.deadline_ms,
        )
        self.serve = signature_function(self.inputs, lambda i: self._answer(i, explain=False))
        self.explain = signature_function(self.inputs, lambda i: self._answer(i, explain=True))

    @property
    def branch_names(self):
        return [b.name for b in self.branches]

    def signatures(self):
        """What to pass to tf.saved_model.save."""
        return {"serving_default": self.serve, "explain": self.explain}

    def _answer(self, inputs, *, explain):
        request = self._checked(inputs)
        k = self.options.num_items
        answers = [self._ask(branch, request, k, explain) for branch in self.branches]
        merged = tf_ops.merge_branches(
            [a.item_id for a in answers],
            [a.score for a in answers],
            request.num_items,
            request.row_status,
            quotas=self._quotas,
            k=k,
        )
        known = tf_ops.lookup_semantic_ids(
            request.index, merged.item_id, levels=self._levels, facets=self._facets
        )
        outputs = {
            "item_id": merged.item_id,
            # A number that JSON has, for clients of the REST API.
            "score": tf.where(merged.item_id >= 0, merged.score, 0.0),
            "branch_mask": merged.branch_mask,
            "semantic_id": known.sids,
            "num_items": merged.num_items,
            "branch_status": tf.stack([a.status for a in answers], axis=1),
            "request_status": request.row_status,
        }
        if explain:
            outputs["source"] = merged.source
            for answer in answers:
                outputs.update(answer.details)
        return outputs

    def _checked(self, inputs) -> Request:
        """Broadcasts, checks, takes the snapshot; no branch meets a malformed row's values."""
        x = broadcast_request(inputs, {i.name: i.dims for i in self.inputs})
        x["behavior_time"] = self._spread(inputs["behavior_time"], x["behavior_time"])
        features = {name: x.pop(name) for name, _ in self._features}
        status = tf_ops.check_request(
            **x,
            max_beam_width=self.options.max_beam_width,
            max_items=self.options.num_items,
            features={n: t for n, t in features.items() if t.dtype.is_floating},
        )
        good = tf.equal(status, 0)
        for name, neutral in _NEUTRAL.items():
            x[name] = tf.where(good, x[name], tf.constant(neutral, x[name].dtype))
        for name, value in features.items():
            if value.dtype.is_floating:
                features[name] = tf.where(good, value, -float("inf"))
        now = tf.cast(tf.timestamp(), tf.int64)
        x["request_time"] = tf.where(tf.equal(x["request_time"], 0), now, x["request_time"])
        x["deadline_ms"] = self._branch_deadline(x["deadline_ms"])
        return Request(
            **x, row_status=status, index=tf_ops.acquire_index(self.index), features=features
        )

    def _spread(self, given, times):
        """Behaviours sent in order but without times, as in a sequences file, are no repeats."""
        with tf.control_dependencies([times]):  # its rank has been checked
            untimed = tf.equal(tf.shape(given, tf.int64)[1], 1)
        position = tf.range(tf.shape(times, tf.int64)[1])
        return times + tf.where(untimed, tf.constant(UNTIMED_STEP_S, tf.int64), 0) * position

    def _branch_deadline(self, deadline_ms):
        """What of a request's deadline the branches may use."""
        reserve = tf.minimum(self.options.reply_reserve_ms, deadline_ms // 4)
        return tf.where(deadline_ms > 0, tf.maximum(deadline_ms - reserve, 1), 0)

    def _ask(self, branch, request, k, explain):
        """The branch's answer, or an empty one with the reason in status."""
        specs = branch.detail_specs() if explain else {}

        def recall(*tensors):
            answer = branch.recall(request.with_tensors(tensors), k)
            details = [answer.details[name] for name in specs]
            return [answer.item_id, answer.score, answer.status, *details]

        rows = tf.shape(request.user_id)[0]
        fallback = [
            tf.fill([rows, k], tf.constant(-1, tf.int64)),
            tf.fill([rows, k], -float("inf")),
            tf.zeros_like(request.row_status),
            *[_nothing(rows, spec) for spec in specs.values()],
        ]
        shapes = [tf.TensorShape([None, k])] * 2 + [tf.TensorShape([None])]
        *answer, failed = try_branch(
            recall,
            request.tensors(),
            fallback,
            request.deadline_ms,
            output_shapes=shapes + [spec.shape for spec in specs.values()],
            scores=[1],
            branch=branch.name,
            max_threads=self.options.branch_threads,
        )
        item_id, score, status, *details = answer
        status = tf.where(tf.equal(failed, 0), status, failed)
        status = tf.where(tf.equal(request.row_status, 0), status, request.row_status)
        return BranchAnswer(item_id, score, status, dict(zip(specs, details, strict=True)))


# What a malformed row holds instead of what it was refused for.
_NEUTRAL = {
    "behavior_length": 0,
    "exclude_length": 0,
    "request_time": 0,
    "beam_width": 1,
    "num_items": 1,
    "deadline_ms": 0,
    "priority": 0,
}


def _nothing(rows, spec):
    """Zeros of a detail's shape; unknown dimensions are 0."""
    shape = [rows] + [d or 0 for d in spec.shape.as_list()[1:]]
    return tf.zeros(shape, spec.dtype)


# Outputs of `serve` with their shapes; K = options.num_items, L = levels, N = branches.
OUTPUTS = {
    "item_id": ("int64", ["B", "K"], "best first; -1 pads"),
    "score": ("float32", ["B", "K"], "given by the branch that placed the item; 0 pads"),
    "branch_mask": ("int32", ["B", "K"], "bit n: branch n proposed the item"),
    "semantic_id": ("int32", ["B", "K", "L"], "codes of the item; -1 pads"),
    "num_items": ("int32", ["B"], "items of the row"),
    "branch_status": (
        "int32",
        ["B", "N"],
        "0, or the canonical code for which the branch is empty",
    ),
    "request_status": ("int32", ["B"], "0, or 3 for a malformed row among others"),
}
