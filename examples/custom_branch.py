"""A branch of one's own in the recall graph: a list of editor's picks, beside the generative one.

    python examples/custom_branch.py --checkpoint RUN/checkpoint --index RUN/recall_index.gguf \
        --output models/shop --pick 17 --pick 4711

Any TensorFlow graph can be a branch: a two-tower model with its own variables, a lookup table of
item-to-item neighbours. If it fails or is late, the others answer and branch_status says why.
"""

import argparse

import tensorflow as tf

from genrecall.graphs.branch import BranchAnswer, Request
from genrecall.graphs.export import export
from genrecall.graphs.options import RecallOptions


class PicksBranch(tf.Module):
    """Answers everyone with the same items, in their order, less the excluded ones."""

    def __init__(self, picks):
        super().__init__(name="picks")
        # A variable would be saved with the model, too; a constant becomes part of the graph.
        self._picks = tuple(int(p) for p in picks)

    def detail_specs(self):
        return {}

    def recall(self, request: Request, k: int) -> BranchAnswer:
        picks = tf.constant(self._picks, tf.int64)
        position = tf.range(tf.shape(request.exclude_item)[1])
        excluding = position < request.exclude_length[:, None]  # [B, E]
        hit = (request.exclude_item[:, :, None] == picks) & excluding[:, :, None]  # [B, E, N]
        wanted = ~tf.reduce_any(hit, axis=1) & (request.row_status == 0)[:, None]  # [B, N]
        item_id = tf.where(wanted, picks, -1)  # -1 entries are skipped by the merge
        score = tf.where(wanted, tf.linspace(1.0, 0.0, len(self._picks)), -float("inf"))
        padding = [[0, 0], [0, max(0, k - len(self._picks))]]
        return BranchAnswer(
            item_id=tf.pad(item_id, padding, constant_values=-1)[:, :k],
            score=tf.pad(score, padding, constant_values=-float("inf"))[:, :k],
            status=tf.zeros_like(request.row_status),
        )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--index", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--pick", type=int, action="append", required=True)
    args = parser.parse_args(argv)
    # Two picks come after the generative branch's items, and the popular branch fills up.
    options = RecallOptions(quotas={"generative": 20, "picks": 2})
    branches = [PicksBranch(args.pick)]
    return export(args.checkpoint, args.index, args.output, options=options, branches=branches)


if __name__ == "__main__":
    main()
