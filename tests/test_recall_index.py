"""The recall index against NumPy."""

import numpy as np

from genrecall import kernels


def test_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.permutation(9000)[:700]
    codes = rng.integers(0, [5, 300, 7], (700, 3)).astype(np.int32)
    weight = rng.standard_normal(700).astype(np.float32).round(1)
    index = kernels.RecallIndex.build([5, 300, 7], ids, codes, weight)
    order = np.lexsort((ids, -weight, codes[:, 2], codes[:, 1], codes[:, 0]))
    index.save(tmp_path / "index.gguf")
    for one in (index, kernels.RecallIndex.load(tmp_path / "index.gguf")):
        got = one.rows()
        np.testing.assert_array_equal(got[0], ids[order])
        np.testing.assert_array_equal(got[1], codes[order])
        np.testing.assert_array_equal(got[2], weight[order])
