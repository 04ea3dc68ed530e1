"""The same events give the same tokens through NumPy and through the TF ops."""

import random

import numpy as np
import pytest
import tensorflow as tf
from prompt_shop import (
    MERGED_SPEC,
    NOW,
    SPEC,
    batch,
    catalogue,
    random_features,
    random_user,
    sid_space,
    tokenize,
)

from genrecall import tf_ops
from genrecall.kernels.prompt_spec import PromptSpec, compile_prompt

MISSING = {"string": b"", "int64": 0, "bucket": -np.inf}  # what a request that gives none sends


@pytest.fixture(scope="module", params=[SPEC, MERGED_SPEC], ids=["plain", "merged"])
def shop(request, tmp_path_factory):
    """(compiled prompt, index, the resources of the two files)."""
    folder, space = tmp_path_factory.mktemp("shop"), sid_space([7, 5, 9])
    prompt = compile_prompt(
        PromptSpec.from_json(request.param), tokenize, space, folder / "prompt.gguf"
    )
    index = catalogue(space, 400, 1)
    index.save(folder / "index.gguf")
    return (
        prompt,
        index,
        tf_ops.PromptResource(folder / "prompt.gguf"),
        tf_ops.RecallIndexResource(folder / "index.gguf"),
    )


def feature_columns(prompt, features):
    """The features as the ops take them: by kind, in spec order."""
    columns = {"string": [], "int64": [], "bucket": []}
    for name, kind in prompt.features:
        filled = [MISSING[kind] if v is None else v for v in features[name]]
        dtype = {"string": tf.string, "int64": tf.int64, "bucket": tf.float32}[kind]
        columns[kind].append(tf.constant(filled, dtype))
    return columns["string"], columns["int64"], columns["bucket"]


def test_a_thousand_users(shop):
    prompt, index, prompt_resource, index_resource = shop
    rng = random.Random(0)
    users = [random_user(rng, rng.choice([3, 30, 500])) for _ in range(1000)]
    features = random_features(rng, len(users))
    item, action, domain, time, length = batch(users)
    request_time = np.array([NOW + rng.choice([-2000, 0, 10**7]) for _ in users])

    want = prompt.assemble(index, item, action, domain, time, length, request_time, features)
    cleaned = tf_ops.clean_behaviors(
        item,
        action.astype(np.int32),
        domain.astype(np.int32),
        time,
        length,
        request_time,
        **prompt.clean_options,
    )
    known = tf_ops.lookup_semantic_ids(
        tf_ops.acquire_index(index_resource), cleaned.item, levels=3, facets=1
    )
    got = tf_ops.assemble_prompt(
        prompt_resource,
        cleaned.action,
        cleaned.domain,
        *known,
        cleaned.length,
        *feature_columns(prompt, features),
    )
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_codes_are_checked(shop):
    prompt, _, prompt_resource, _ = shop
    features = feature_columns(prompt, {"gender": ["F"], "age": [20.0], "city": [1]})

    def assemble(sids):
        sids = tf.constant([sids], tf.int32)
        zeros = tf.zeros(sids.shape[:2], tf.int32)
        facets = tf.zeros([*sids.shape[:2], 1], tf.int16)
        return tf_ops.assemble_prompt(
            prompt_resource, zeros, zeros, sids, facets, [sids.shape[1]], *features
        )

    assert (
        assemble([[6, 4, 8], [-1, -1, -1]]).length.numpy() == assemble([[6, 4, 8]]).length.numpy()
    )
    for bad, message in (
        ([6, 5, 0], r"sids\[0, 1, 1\] = 5: expected 0..C - 1 = 4"),
        ([0, -1, 0], r"sids\[0, 1, 1\] = -1: expected 0..C - 1 = 4"),
        ([7, 0, 0], r"sids\[0, 1, 0\] = 7: expected 0..C - 1 = 6"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            assemble([[0, 0, 0], bad])
