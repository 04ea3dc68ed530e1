"""One implementation, two doors: bindings and exported SavedModel write the same prompts."""

import numpy as np
import tiny_model

from genrecall import kernels
from genrecall.graphs.loaded import LoadedModel

USERS, BATCH = 1000, 100


def test_a_thousand_users_get_the_same_token_ids(tiny, exported):
    prompt = kernels.Prompt.load(str(tiny.checkpoint / "prompt.gguf"))
    index = kernels.RecallIndex.load(str(tiny.index))
    lengths = []
    with LoadedModel(exported) as model:
        for batch in range(USERS // BATCH):
            users = tiny_model.random_users(tiny, BATCH, seed=batch)
            served = model({**users, "beam_width": [1]}, "explain")
            features = {name: list(users[name]) for name, _ in prompt.features}
            events = [
                users[f"behavior_{x}"] for x in ("item", "action", "domain", "time", "length")
            ]
            tokens, length, stable = prompt.assemble(
                index, *events, users["request_time"], features
            )
            np.testing.assert_array_equal(served["prompt_token"], tokens)
            np.testing.assert_array_equal(served["prompt_length"], length)
            np.testing.assert_array_equal(served["prompt_stable_prefix"], stable)
            lengths += length.tolist()
    assert len(set(lengths)) > 50, "the users are not all alike"


def test_training_exports_its_own_prompt(tiny, exported):
    """What is served is the file that training assembled with, byte for byte."""
    asset = exported / "assets" / "prompt.gguf"
    assert asset.read_bytes() == (tiny.checkpoint / "prompt.gguf").read_bytes()
