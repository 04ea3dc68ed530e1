"""The recall index against brute force: a complete and sound trie, items found, bad rows named.

Files of the index are in test_recall_index_file.py.
"""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

from genrecall import kernels
from genrecall.kernels import RecallIndex


def random_rows(rng, n, level_sizes, distinct=False):
    """n rows; a random part of the space is used, so that prefixes and whole SIDs are shared."""
    used = [int(rng.integers(1, size + 1)) for size in level_sizes]
    columns = zip(level_sizes, used, strict=True)
    codes = np.stack([rng.choice(size, u)[rng.integers(0, u, n)] for size, u in columns], 1)
    if distinct:
        codes = np.unique(codes, axis=0)
        codes = codes[rng.permutation(len(codes))]
    n = len(codes)
    return {
        "item_id": rng.choice(10 * n + 5, n, replace=False).astype(np.int64)
        * int(rng.choice([1, 2**40])),
        "codes": codes.astype(np.int32),
        "weight": rng.integers(-2, 3, n).astype(np.float32) / 2,
        "facets": rng.integers(-1, 9, (n, int(rng.integers(0, 3)))).astype(np.int16),
    }


def position_order(rows):
    """Rows in the order the index stores them."""
    keys = [rows["item_id"], -rows["weight"], *rows["codes"].T[::-1]]
    return np.lexsort(keys)


def check_trie(index, codes):
    """At every node the children are exactly the next codes of its rows, in order, numbered on."""
    levels = codes.shape[1]
    prefixes = {(): 0}
    for level in range(levels):
        below = {}
        for prefix, node in sorted(prefixes.items()):
            rows = codes[(codes[:, :level] == prefix).all(axis=1)]
            expected = np.unique(rows[:, level])
            got, nodes = index.children(level, node)
            np.testing.assert_array_equal(got, expected)
            np.testing.assert_array_equal(nodes, len(below) + np.arange(len(expected)))
            below.update({(*prefix, int(c)): int(n) for c, n in zip(got, nodes, strict=True)})
            for code in range(-1, index.level_sizes[level] + 1):
                assert index.child(level, node, code) == below.get((*prefix, code), -1)
        assert index.num_nodes(level + 1) == len(below)
        prefixes = below
    assert index.num_sids == len(prefixes) == len(np.unique(codes, axis=0))


def check_items(index, rows):
    order = position_order(rows)
    got = index.rows()
    for value, name in zip(got, ("item_id", "codes", "weight", "facets"), strict=True):
        np.testing.assert_array_equal(value, rows[name][order], err_msg=name)
        assert value.dtype == rows[name].dtype
    assert index.num_items == len(order)
    assert index.num_facets == rows["facets"].shape[1]
    sids, facets = index.lookup(rows["item_id"])
    np.testing.assert_array_equal(sids, rows["codes"])
    np.testing.assert_array_equal(facets, rows["facets"])
    heaviest = np.lexsort((rows["item_id"], -rows["weight"]))[:4096]
    for k in (1, 3, 5000):
        items, weights = index.top_items(k)
        np.testing.assert_array_equal(items, rows["item_id"][heaviest[:k]])
        np.testing.assert_array_equal(weights, rows["weight"][heaviest[:k]])


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("seed", range(6))
def test_trie_and_items_equal_brute_force(tmp_path, depth, seed):
    rng = np.random.default_rng([depth, seed])
    limit = [2, 9, 300][seed % 3] if depth <= 3 else [2, 9, 20][seed % 3]
    level_sizes = rng.integers(1, limit + 1, depth).tolist()
    rows = random_rows(rng, int(rng.integers(1, 120)), level_sizes, distinct=seed == 4)
    index = RecallIndex.build(level_sizes, **rows, sid_space_digest="abc")
    index.save(tmp_path / "index.gguf")
    loaded = RecallIndex.load(tmp_path / "index.gguf", "abc")
    for one in (index, loaded):
        assert one.level_sizes == tuple(level_sizes)
        assert one.sid_space_digest == "abc"
        check_trie(one, rows["codes"])
        check_items(one, rows)
    assert loaded.checksum == index.checksum


def test_one_item():
    index = RecallIndex.build([1], [0], [[0]])
    check_trie(index, np.zeros((1, 1), np.int32))
    assert [a.tolist() for a in index.top_items(9)] == [[0], [1.0]]


def test_all_items_share_one_sid():
    rng = np.random.default_rng(3)
    rows = random_rows(rng, 500, [7, 300, 2])
    rows["codes"][:] = [6, 299, 1]
    index = RecallIndex.build([7, 300, 2], **rows)
    assert index.num_sids == 1
    check_trie(index, rows["codes"])
    check_items(index, rows)


@pytest.mark.parametrize("level_sizes", [[65535] * 8, [256] * 8, [257, 256, 1, 65535]])
def test_wide_levels(tmp_path, level_sizes):
    """SIDs of up to 128 bits, and codes on both sides of a byte."""
    rng = np.random.default_rng(4)
    rows = random_rows(rng, 3000, level_sizes)
    rows["codes"][:100] = np.array(level_sizes) - 1
    rows["codes"][100:200] = 0
    index = RecallIndex.build(level_sizes, **rows)
    check_items(index, rows)
    index.save(tmp_path / "index.gguf")
    check_items(RecallIndex.load(tmp_path / "index.gguf"), rows)


def test_more_items_than_top_items_hold(tmp_path):
    rng = np.random.default_rng(5)
    rows = random_rows(rng, 9000, [256, 256])
    index = RecallIndex.build([256, 256], **rows)
    check_items(index, rows)
    index.save(tmp_path / "index.gguf")
    check_items(RecallIndex.load(tmp_path / "index.gguf"), rows)


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(6)
    rows = random_rows(rng, 400, [5, 5, 5])
    checksum = RecallIndex.build([5, 5, 5], **rows).checksum
    for _ in range(3):
        mixed = rng.permutation(400)
        again = RecallIndex.build([5, 5, 5], **{name: value[mixed] for name, value in rows.items()})
        assert again.checksum == checksum
    rows["weight"][7] += 1
    assert RecallIndex.build([5, 5, 5], **rows).checksum != checksum


def test_negative_zero_weighs_as_much_as_zero():
    args = ([2], [5, 3, 4], [[0], [0], [0]])
    signed = RecallIndex.build(*args, weight=[0.0, -0.0, 0.0])
    assert signed.rows()[0].tolist() == [3, 4, 5]
    assert signed.checksum == RecallIndex.build(*args, weight=[0.0, 0.0, 0.0]).checksum


def test_weights_and_facets_may_be_left_out():
    index = RecallIndex.build([2], [5, 3], [[0], [1]])
    assert index.rows()[2].tolist() == [1, 1]
    assert index.rows()[3].shape == (2, 0)
    assert index.num_facets == 0


def test_extreme_weights_and_ids():
    big, tiny = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    weight = np.array([-big, -tiny, 0, tiny, big], np.float32)
    index = RecallIndex.build([1], [4, 3, 2, 1, 2**63 - 1], np.zeros((5, 1), np.int32), weight)
    assert index.top_items(5)[0].tolist() == [2**63 - 1, 1, 2, 3, 4]
    assert index.lookup([2**63 - 1, 2**62, -1])[0].tolist() == [[0], [-1], [-1]]


def test_lookup_keeps_the_shape():
    index = RecallIndex.build([3, 4], [10, 20], [[2, 3], [1, 0]], facets=[[7], [-1]])
    sids, facets = index.lookup([[10, 11], [20, -5], [0, 10]])
    assert sids.tolist() == [[[2, 3], [-1, -1]], [[1, 0], [-1, -1]], [[-1, -1], [2, 3]]]
    assert facets.tolist() == [[[7], [-1]], [[-1], [-1]], [[-1], [7]]]
    assert (sids.dtype, facets.dtype) == (np.int32, np.int16)
    assert index.lookup(10)[0].tolist() == [2, 3]
    assert index.lookup([])[0].shape == (0, 2)
    assert index.lookup(np.zeros((4, 0), np.int64))[1].shape == (4, 0, 1)


GOOD = {"level_sizes": [3, 4], "item_id": [5, 6, 7], "codes": [[0, 0], [1, 1], [2, 2]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": [5, 6, 5]}, r"item_id\[2\] = 5: duplicate of row 0"),
        ({"item_id": [5, -6, 5]}, r"item_id\[1\] = -6: expected >= 0"),
        (
            {"item_id": np.array([5, 6, 2**63], np.uint64)},
            "item_id has value 9223372036854775808: exp",
        ),
        ({"item_id": [5, 6]}, r"codes has shape \[3, 2\]: expected \[N, L\] = \[2, 2\]"),
        ({"item_id": [5.0, 6.0, 7.0]}, "item_id: expected integers, got dtype float64"),
        ({"item_id": [[5, 6, 7]]}, r"item_id: expected rank 1, got shape \[1, 3\]"),
        ({"item_id": ["5", "6", "7"]}, "item_id: expected integers, got dtype <U1"),
        ({"item_id": [], "codes": np.zeros((0, 2), np.int32)}, r"has 0 rows: expected 1\.\."),
        ({"codes": [[0, 0], [1, 4], [2, 2]]}, r"codes\[1, 1\] = 4: expected 0\.\.3 \(item_id 6\)"),
        (
            {"codes": [[0, 0], [1, 1], [-1, 2]]},
            r"codes\[2, 0\] = -1: expected 0\.\.2 \(item_id 7\)",
        ),
        ({"codes": [[0, 0], [1, 1], [2, 2**32]]}, "codes has value 4294967296: expected"),
        ({"codes": [[0], [1], [2]]}, r"codes has shape \[3, 1\]: expected \[N, L\] = \[3, 2\]"),
        ({"codes": [0, 1, 2]}, r"codes: expected rank 2, got shape \[3\]"),
        ({"weight": [1, float("nan"), 1]}, r"weight\[1\] = nan: expected finite \(item_id 6\)"),
        ({"weight": [1, 1, float("-inf")]}, r"weight\[2\] = -inf: expected finite \(item_id 7\)"),
        ({"weight": [1, 1]}, r"weight has shape \[2\]: expected \[N\] = \[3\]"),
        ({"weight": ["a", "b", "c"]}, "weight: expected numbers, got dtype <U1"),
        ({"facets": [[1], [-2], [1]]}, r"facets\[1, 0\] = -2: expected >= -1 \(item_id 6\)"),
        ({"facets": [[1], [2], [40000]]}, r"facets has value 40000: expected -32768\.\.32767"),
        ({"facets": np.zeros((3, 1025), int)}, r"num_facets = 1025: expected 0\.\.1024"),
        ({"sid_space_digest": "a\0b"}, "'genrecall.sid_space_digest': expected UTF-8 without NUL"),
        ({"facets": [[1], [2]]}, r"facets has shape \[2, 1\]: expected \[N, F\], N = 3"),
        ({"level_sizes": []}, r"level_sizes has 0 levels: expected 1\.\.8"),
        ({"level_sizes": [1] * 9}, r"level_sizes has 9 levels: expected 1\.\.8"),
        ({"level_sizes": [3, 0]}, r"level_sizes\[1\] = 0: expected 1\.\.65535"),
        ({"level_sizes": [65536, 4]}, r"level_sizes\[0\] = 65536: expected 1\.\.65535"),
    ],
)
def test_bad_rows_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        RecallIndex.build(**{**GOOD, **change})


def test_a_duplicate_is_named_with_the_first_row_of_its_id():
    item_id = np.arange(1000)
    item_id[[77, 900]] = 5
    with pytest.raises(ValueError, match=r"item_id\[77\] = 5: duplicate of row 5"):
        RecallIndex.build([1], item_id, np.zeros((1000, 1), np.int32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: i.children(2, 0), r"level = 2: expected 0\.\.1"),
        (lambda i: i.children(-1, 0), r"level = -1: expected 0\.\.1"),
        (lambda i: i.children(0, 1), r"node = 1: expected 0\.\.0 at level 0"),
        (lambda i: i.child(1, 3, 0), r"node = 3: expected 0\.\.2 at level 1"),
        (lambda i: i.child(1, -1, 0), r"node = -1: expected 0\.\.2"),
        (lambda i: i.num_nodes(3), r"level = 3: expected 0\.\.2"),
        (lambda i: i.top_items(0), "k = 0: expected >= 1"),
        (lambda i: i.lookup([0.5]), "item_ids: expected integers, got dtype float64"),
    ],
)
def test_bad_queries_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(RecallIndex.build(**GOOD))


def test_arrays_of_any_layout_and_integer_type():
    rng = np.random.default_rng(8)
    codes = np.asfortranarray(rng.integers(0, 3, (50, 2)).astype(np.uint8))
    item_id = np.arange(100, dtype=np.uint64)[::2]
    index = RecallIndex.build([3, 3], item_id, codes, rng.random(50), rng.integers(0, 3, (50, 1)))
    np.testing.assert_array_equal(index.lookup(item_id)[0], codes)


def test_many_threads_read_one_index():
    rng = np.random.default_rng(9)
    rows = random_rows(rng, 2000, [20, 20])
    index = RecallIndex.build([20, 20], **rows)
    failures = []

    def read():
        for _ in range(20):
            sids, _ = index.lookup(rows["item_id"])
            if not (sids == rows["codes"]).all():
                failures.append("lookup")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_index_outlives_its_rows():
    rows = random_rows(np.random.default_rng(10), 300, [9, 9])
    index = RecallIndex.build([9, 9], **{name: value.copy() for name, value in rows.items()})
    gc.collect()
    check_items(index, rows)


def test_a_missing_extension_says_how_to_build_it():
    script = (
        "import sys; sys.modules['genrecall.kernels._kernels'] = None\n"
        "try:\n    import genrecall.kernels\n"
        "except ImportError as e:\n    print(e)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "genrecall.kernels._kernels is not built: run `pip install .`" in run.stdout


def test_public_names():
    assert {"RecallIndex", "DataLossError", "FailedPreconditionError"} <= set(kernels.__all__)
    assert issubclass(kernels.DataLossError, RuntimeError)
    assert issubclass(kernels.FailedPreconditionError, RuntimeError)
