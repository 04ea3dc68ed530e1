"""Ops that read the index or merge branches, against the bindings and plain Python."""

import threading

import numpy as np
import op_fixtures
import pytest
import tensorflow as tf

from genrecall import tf_ops

LEVELS, FACETS = len(op_fixtures.LEVEL_SIZES), op_fixtures.FACETS
InvalidArgument = tf.errors.InvalidArgumentError


@pytest.fixture(scope="module")
def index():
    return op_fixtures.random_index()


@pytest.fixture(scope="module")
def resource(index, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "recall_index.gguf"
    index.save(path)
    return tf_ops.RecallIndexResource(path, "space-a")


@pytest.fixture
def snapshot(resource):
    return tf_ops.acquire_index(resource)


def random_beams(index, rows, width, seed=0):
    """SIDs of the index, some made up, some padding at the end; with scores."""
    rng = np.random.default_rng(seed)
    codes = index.rows()[1]
    sids = codes[rng.integers(0, len(codes), (rows, width))].copy()
    made_up = rng.random((rows, width)) < 0.2
    sids[made_up] = rng.integers(0, op_fixtures.LEVEL_SIZES, (made_up.sum(), LEVELS))
    score = -np.sort(rng.exponential(1, (rows, width))).astype(np.float32)
    for b, beams in enumerate(rng.integers(1, width + 1, rows)):
        sids[b, beams:] = -1
        score[b, beams:] = -np.inf
    return sids, score


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5)])
def test_lookup_equals_bindings(index, snapshot, shape):
    items = np.random.default_rng(1).integers(995, 1620, shape)
    got = tf_ops.lookup_semantic_ids(snapshot, items, levels=LEVELS, facets=FACETS)
    want = index.lookup(items.reshape(-1))
    np.testing.assert_array_equal(got.sids, want[0].reshape(*shape, LEVELS))
    np.testing.assert_array_equal(got.facets, want[1].reshape(*shape, FACETS))
    assert got.sids.dtype == tf.int32 and got.facets.dtype == tf.int16


def test_lookup_refuses_other_levels_and_facets(snapshot):
    with pytest.raises(InvalidArgument, match="index has 3 levels: expected levels = 4"):
        tf_ops.lookup_semantic_ids(snapshot, [1000], levels=4, facets=FACETS)
    with pytest.raises(InvalidArgument, match="index has 2 facets: expected facets = 0"):
        tf_ops.lookup_semantic_ids(snapshot, [1000], levels=LEVELS, facets=0)


@pytest.mark.parametrize("rows,width,cap", [(0, 4, 0), (1, 1, 0), (4, 12, 0), (5, 30, 1)])
def test_expand_equals_bindings(index, snapshot, rows, width, cap):
    k = 16
    sids, score = random_beams(index, rows, width)
    request = op_fixtures.request(rows, excluded=5)
    wanted = np.arange(1, rows + 1, dtype=np.int32) * 3
    got = tf_ops.expand_items(
        snapshot,
        sids,
        score,
        request["exclude_item"],
        request["exclude_length"],
        wanted,
        k=k,
        per_sid_cap=cap,
    )
    assert got.item_id.shape == (rows, k)
    for b in range(rows):
        excluded = request["exclude_item"][b, : request["exclude_length"][b]]
        want = index.expand(sids[b], score[b], int(wanted[b]), cap, excluded)
        n = len(want[0])
        assert n <= wanted[b]
        np.testing.assert_array_equal(got.item_id[b, :n], want[0])
        np.testing.assert_array_equal(got.score[b, :n], want[1])
        np.testing.assert_array_equal(got.beam[b, :n], want[2])
        assert set(got.item_id[b, n:].numpy()) <= {-1} and set(got.beam[b, n:].numpy()) <= {-1}
        assert np.all(np.isneginf(got.score[b, n:]))


def test_expand_does_not_look_at_rows_without_beams(index, snapshot):
    sids, score = random_beams(index, 2, 4)
    sids[0] = -1
    bad = np.array([-7, 4], np.int32)
    got = tf_ops.expand_items(snapshot, sids, score, np.zeros((2, 1), np.int64), [99, 0], bad, k=4)
    assert set(got.item_id[0].numpy()) == {-1}
    assert got.item_id[1, 0] >= 0


def test_expand_names_what_is_wrong(index, snapshot):
    sids, score = random_beams(index, 2, 4)
    exclude = np.zeros((2, 1), np.int64)
    zero, four = np.zeros(2, np.int32), np.full(2, 4, np.int32)
    bad_code = sids.copy()
    bad_code[1, 0, 2] = 4
    cases = [
        ((bad_code, score, exclude, zero, four), r"row 1: .*= 4: expected"),
        ((sids, score, exclude, [0, 2], four), r"exclude_length\[1\] = 2: expected 0..E = 1"),
        ((sids, score, exclude, zero, [5, 4]), r"num_items\[0\] = 5: expected 1..k = 4"),
        (
            (sids, score[:1], exclude, zero, four),
            r"score: expected shape \[B = 2, W = 4\], got \[1,4\]",
        ),
        ((sids[..., :2], score, exclude, zero, four), r"sids: expected shape \[B, W, L = 3\], got"),
        ((sids[0], score, exclude, zero, four), r"sids"),
    ]
    for inputs, message in cases:
        with pytest.raises(InvalidArgument, match=message):
            tf_ops.expand_items(snapshot, *inputs, k=4)


def test_index_must_come_from_acquire_index():
    empty = tf.raw_ops.EmptyTensorList(
        element_shape=tf.constant([], tf.int32), max_num_elements=1, element_dtype=tf.int32
    )
    with pytest.raises(InvalidArgument, match="index: expected the output of AcquireIndex"):
        tf_ops.lookup_semantic_ids(empty, [1], levels=3, facets=2)


def test_popular_equals_bindings(index, snapshot):
    request = op_fixtures.request(4, excluded=5)
    top = index.top_items(8)[0]
    request["exclude_item"][1, :2] = top[:2]
    request["exclude_length"][:] = [0, 2, 5, 99]
    got = tf_ops.popular_items(
        snapshot,
        request["exclude_item"],
        request["exclude_length"],
        [8, 8, 3, 99],
        [0, 0, 0, 3],
        k=8,
    )
    for b, wanted in enumerate([8, 8, 3]):
        excluded = request["exclude_item"][b, : request["exclude_length"][b]]
        want = index.popular(wanted, excluded)
        np.testing.assert_array_equal(got.item_id[b, :wanted], want[0])
        np.testing.assert_array_equal(got.score[b, :wanted], want[1])
        assert set(got.item_id[b, wanted:].numpy()) <= {-1}
    assert set(got.item_id[3].numpy()) == {-1}, "a refused row gives no items and is not looked at"
    with pytest.raises(InvalidArgument, match=r"num_items\[0\] = 0: expected 1..k = 8"):
        tf_ops.popular_items(snapshot, np.zeros((1, 1), np.int64), [0], [0], k=8)


def merge_oracle(branches, quotas, k):
    """(item, score, mask, source) by the contract's words. branches: lists of (item, score)."""
    mask, placed = {}, {}
    for b, rows in enumerate(branches):
        for item, _ in rows:
            if item != -1:
                mask[item] = mask.get(item, 0) | 1 << b
    for limits in (quotas, [-1] * len(quotas)):
        for b, rows in enumerate(branches):
            used = 0
            for item, score in rows:
                full = len(placed) == k or 0 <= limits[b] <= used
                if item != -1 and item not in placed and not full:
                    placed[item] = (score, b)
                    used += 1
    return [(item, score, mask[item], b) for item, (score, b) in placed.items()]


@pytest.mark.parametrize("quotas", [[-1, -1, -1], [3, 2, 4], [0, 1, -1], [2, 0, 0]])
def test_merge_equals_its_contract(quotas):
    rng = np.random.default_rng(3)
    rows, k = 6, 9
    items = [rng.integers(-1, 14, (rows, n)).astype(np.int64) for n in (7, 0, 12)]
    for one in items:  # a branch proposes an item once
        for b in range(rows):
            first = {v: i for i, v in reversed(list(enumerate(one[b])))}
            one[b] = [v if first[v] == i else -1 for i, v in enumerate(one[b])]
    scores = [rng.standard_normal(one.shape).astype(np.float32) for one in items]
    wanted = rng.integers(1, k + 1, rows).astype(np.int32)
    status = np.array([0, 0, 4, 0, 0, 0], np.int32)
    got = tf_ops.merge_branches(items, scores, wanted, status, quotas=quotas, k=k)
    for b in range(rows):
        branches = [list(zip(i[b], s[b], strict=True)) for i, s in zip(items, scores, strict=True)]
        want = merge_oracle(branches, quotas, wanted[b]) if status[b] == 0 else []
        n = got.num_items[b].numpy()
        fields = [t[b].numpy() for t in got[:4]]
        assert list(zip(*(f[:n] for f in fields), strict=True)) == want
        padding = zip(*(f[n:] for f in fields), strict=True)
        assert all(p == (-1, -np.inf, 0, -1) for p in padding)


def test_merge_names_what_is_wrong():
    items, scores = [np.zeros((2, 3), np.int64)], [np.zeros((2, 3), np.float32)]
    with pytest.raises(InvalidArgument, match="quotas has 2 numbers: expected num_branches = 1"):
        tf_ops.merge_branches(items, scores, [1, 1], quotas=[1, 2], k=3)
    with pytest.raises(
        InvalidArgument, match=r"scores\[0\]: expected shape \[B = 2, k = 3\], got \[2,2\]"
    ):
        tf_ops.merge_branches(items, [scores[0][:, :2]], [1, 1], quotas=[1], k=3)
    with pytest.raises(InvalidArgument, match=r"num_items\[1\] = 4: expected 1..k = 3"):
        tf_ops.merge_branches(items, scores, [1, 4], quotas=[1], k=3)


def test_shape_functions(resource):
    shapes = {}

    @tf.function
    def trace(sids, score, exclude, length, wanted, item):
        index = tf_ops.acquire_index(resource)
        shapes["index"] = index.shape
        shapes["lookup"] = tf_ops.lookup_semantic_ids(index, item, levels=3, facets=2)
        expanded = tf_ops.expand_items(index, sids, score, exclude, length, wanted, k=4)
        popular = tf_ops.popular_items(index, exclude, length, wanted, k=5)
        shapes["expanded"], shapes["popular"] = expanded, popular
        shapes["merged"] = tf_ops.merge_branches(
            [expanded.item_id, popular.item_id],
            [expanded.score, popular.score],
            wanted,
            quotas=[2, -1],
            k=6,
        )
        return expanded.item_id

    spec = tf.TensorSpec
    trace.get_concrete_function(
        spec([None, 8, None], tf.int32),
        spec([None, None], tf.float32),
        spec([None, None], tf.int64),
        spec([3], tf.int32),
        spec([None], tf.int32),
        spec([None, 7], tf.int64),
    )
    assert shapes["index"].as_list() == []
    assert [t.shape.as_list() for t in shapes["lookup"]] == [[None, 7, 3], [None, 7, 2]]
    assert [t.shape.as_list() for t in shapes["expanded"]] == [[3, 4]] * 3
    assert [t.shape.as_list() for t in shapes["popular"]] == [[3, 5]] * 2
    assert [t.shape.as_list() for t in shapes["merged"]] == [[3, 6]] * 4 + [[3]]


def test_shape_functions_refuse(snapshot):
    @tf.function
    def expand(index, sids, score, exclude, length, wanted):
        return tf_ops.expand_items(index, sids, score, exclude, length, wanted, k=4)

    spec = tf.TensorSpec
    good = [
        spec([], tf.variant),
        spec([2, 8, 3], tf.int32),
        spec([2, 8], tf.float32),
        spec([2, None], tf.int64),
        spec([2], tf.int32),
        spec([2], tf.int32),
    ]
    expand.get_concrete_function(*good)
    for at, bad in [
        (2, spec([2, 7], tf.float32)),
        (3, spec([2], tf.int64)),
        (4, spec([3], tf.int32)),
    ]:
        name = {2: "score", 3: "exclude_item", 4: "exclude_length"}[at]
        with pytest.raises(ValueError, match=f"{name}: expected shape"):
            expand.get_concrete_function(*good[:at], bad, *good[at + 1 :])


def test_many_threads(index, resource):
    sids, score = random_beams(index, 3, 10)
    request = op_fixtures.request(3)
    args = (request["exclude_item"], request["exclude_length"], request["num_items"])
    want = tf_ops.expand_items(tf_ops.acquire_index(resource), sids, score, *args, k=10)
    wrong = []

    def work():
        for _ in range(50):
            got = tf_ops.expand_items(tf_ops.acquire_index(resource), sids, score, *args, k=10)
            if not np.array_equal(got.item_id, want.item_id):
                wrong.append(got)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_missing_library_says_how_to_build(monkeypatch, tmp_path):
    from genrecall.tf_ops import library

    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    monkeypatch.setattr(library, "_runfiles_path", lambda: None)
    with pytest.raises(FileNotFoundError, match="op library is not built.*pip install"):
        library.path()
