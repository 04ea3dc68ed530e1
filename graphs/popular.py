"""The popular branch: the heaviest items of the index. Needs no model: the net under the others."""

import tensorflow as tf

from genrecall import tf_ops
from genrecall.graphs.branch import BranchAnswer, Request


class PopularBranch(tf.Module):
    """Score: the item's weight in the index."""

    def __init__(self):
        super().__init__(name="popular")

    def detail_specs(self):
        return {}

    def recall(self, request: Request, k: int) -> BranchAnswer:
        items = tf_ops.popular_items(
            request.index,
            request.exclude_item,
            request.exclude_length,
            request.num_items,
            request.row_status,
            k=k,
        )
        return BranchAnswer(items.item_id, items.score, tf.zeros_like(request.row_status))
