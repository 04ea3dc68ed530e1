"""Small recall indexes and requests that the op tests share."""

import numpy as np
import tensorflow as tf

from genrecall import kernels, tf_ops

LEVEL_SIZES = (5, 9, 4)
FACETS = 2
KNOWN_ITEM = tf.constant([1000], tf.int64)


def random_index(seed=0, items=200, level_sizes=LEVEL_SIZES, facets=FACETS, digest="space-a"):
    """An index of `items` random items with ids 1000, 1003, ...; several share a semantic ID."""
    rng = np.random.default_rng(seed)
    return kernels.RecallIndex.build(
        list(level_sizes),
        np.arange(items, dtype=np.int64) * 3 + 1000,
        rng.integers(0, level_sizes, (items, len(level_sizes))).astype(np.int32),
        weight=rng.standard_normal(items).astype(np.float32),
        facets=rng.integers(-1, 4, (items, facets)).astype(np.int16),
        sid_space_digest=digest,
    )


def request(rows=2, events=6, excluded=3, seed=0, **changes):
    """The inputs of `check_request`, valid; `changes` replace some."""
    rng = np.random.default_rng(seed)
    item = (rng.integers(0, 220, (rows, events)) * 3 + 1000).astype(np.int64)
    inputs = dict(
        user_id=np.arange(rows, dtype=np.int64),
        behavior_item=item,
        behavior_action=rng.integers(0, 3, (rows, events)).astype(np.int32),
        behavior_domain=rng.integers(0, 2, (rows, events)).astype(np.int32),
        behavior_time=rng.integers(1, 2_000_000, (rows, events)).astype(np.int64),
        behavior_length=rng.integers(0, events + 1, rows).astype(np.int32),
        request_time=np.full(rows, 2_000_000, np.int64),
        exclude_item=item[:, :excluded].copy(),
        exclude_length=rng.integers(0, excluded + 1, rows).astype(np.int32),
        beam_width=np.full(rows, 8, np.int32),
        num_items=np.full(rows, 10, np.int32),
        deadline_ms=np.zeros(rows, np.int32),
        priority=np.zeros(rows, np.int32),
        seed=np.zeros(rows, np.int32),
    )
    inputs.update(changes)
    return inputs


class LookupModule(tf.Module):
    """The smallest graph on an index: items -> semantic IDs, and the heaviest items."""

    def __init__(self, path):
        super().__init__()
        self.index = tf_ops.RecallIndexResource(path, "space-a")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, "item")])
    def lookup(self, item=KNOWN_ITEM):
        index = tf_ops.acquire_index(self.index)
        sids, facets = tf_ops.lookup_semantic_ids(
            index, item, levels=len(LEVEL_SIZES), facets=FACETS
        )
        popular = tf_ops.popular_items(index, [[-1]], [0], [3], k=3)
        return {"sids": sids, "facets": facets, "popular": popular.item_id}

    def save(self, folder):
        tf.saved_model.save(self, str(folder), signatures=self.lookup)
