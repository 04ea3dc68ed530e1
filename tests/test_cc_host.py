"""A SavedModel with the custom ops in a process without Python, as a C++ server runs it."""

import os
import shutil

import cc_host_util
import numpy as np
import op_fixtures
import pytest
import tensorflow as tf


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel that was moved, its source files gone; and what it answered in Python."""
    folder = tmp_path_factory.mktemp("saved")
    asset = folder / "recall_index.gguf"
    op_fixtures.random_index().save(asset)
    module = op_fixtures.LookupModule(asset)
    module.save(folder / "model")
    answers = [module.lookup(tf.constant(i, tf.int64)) for i in ([1000, 1003, 7], [1000])]
    asset.unlink()
    shutil.move(folder / "model", folder / "elsewhere")
    return folder / "elsewhere", answers


def test_host_needs_no_python():
    needed = os.popen(f"ldd {cc_host_util.build()}").read()
    assert "libtensorflow_cc" in needed and "libpython" not in needed


def test_serves_what_python_serves(saved):
    model, (want, default) = saved
    requests = [{"item": np.array([1000, 1003, 7])}, {}, {"item": np.zeros(2, np.float32)}]
    answers = cc_host_util.run_many(model, requests)
    for (got, elapsed_ms), expected in zip(answers, (want, default), strict=False):
        assert 0 < elapsed_ms < 10_000
        assert set(got) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)
    assert isinstance(answers[2][0], cc_host_util.HostError) and answers[2][0].code == 3


def test_index_is_replaced_in_the_running_host(saved, tmp_path):
    index = op_fixtures.random_index(seed=9)
    index.save(tmp_path / "v2.gguf")
    env = {"GENRECALL_INDEX_DIR": str(tmp_path)}
    got, _ = cc_host_util.run(saved[0], {"item": np.array([1000, 1003])}, env=env)
    np.testing.assert_array_equal(got["sids"], index.lookup(np.array([1000, 1003]))[0])
    np.testing.assert_array_equal(got["popular"][0], index.top_items(3)[0])


def test_a_model_that_cannot_load_says_why(saved, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(saved[0], broken)
    asset = broken / "assets" / "recall_index.gguf"
    asset.write_bytes(asset.read_bytes()[:-30])
    with pytest.raises(RuntimeError, match="recall_index.gguf"):
        cc_host_util.run(broken, {"item": np.array([1000])})
