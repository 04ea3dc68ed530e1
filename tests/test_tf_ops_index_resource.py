"""The index resource: loaded from an asset, replaced in place, never by a bad file."""

import gc
import os
import shutil
import threading
import time

import numpy as np
import op_fixtures
import pytest
import tensorflow as tf

from genrecall import kernels, tf_ops

SERVE_WITHIN_S = 10


def counters():
    """Value of each genrecall:index metric."""
    lines = tf_ops.metrics_text().numpy().decode().splitlines()
    rows = [line.rsplit(" ", 1) for line in lines if line.startswith(":genrecall:index:")]
    return {name.split("{")[0].rsplit(":", 1)[1]: int(value) for name, value in rows}


def write_index(folder, name, mtime, **options):
    """Publishes an index file with a modification time; returns its number of items."""
    index = op_fixtures.random_index(**options)
    new = folder / f".{name}"
    index.save(new)
    os.utime(new, (mtime, mtime))
    os.replace(new, folder / name)
    return index.num_items


def serving(resource):
    """How many items the serving index has, by asking for the most popular."""
    popular = tf_ops.popular_items(tf_ops.acquire_index(resource), [[0]], [0], [1000], k=1000)
    return int(np.sum(popular.item_id.numpy() >= 0))


def wait_for(condition):
    end = time.monotonic() + SERVE_WITHIN_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


@pytest.fixture
def asset(tmp_path):
    path = tmp_path / "recall_index.gguf"
    op_fixtures.random_index(items=50).save(path)
    return path


@pytest.fixture
def watched(tmp_path, monkeypatch):
    folder = tmp_path / "watched"
    folder.mkdir()
    monkeypatch.setenv("GENRECALL_INDEX_DIR", str(folder))
    monkeypatch.setenv("GENRECALL_INDEX_POLL_MS", "20")
    return folder


def test_bad_assets_are_refused(asset, tmp_path):
    with pytest.raises(tf.errors.FailedPreconditionError, match="space-b"):
        tf_ops.RecallIndexResource(asset, "space-b")
    with pytest.raises(tf.errors.NotFoundError, match="nowhere.gguf"):
        tf_ops.RecallIndexResource(tmp_path / "nowhere.gguf")
    asset.write_bytes(asset.read_bytes()[:-100])
    with pytest.raises(tf.errors.DataLossError, match="recall_index.gguf"):
        tf_ops.RecallIndexResource(asset)


def test_poll_interval_is_checked(asset, watched, monkeypatch):
    monkeypatch.setenv("GENRECALL_INDEX_POLL_MS", "soon")
    message = "GENRECALL_INDEX_POLL_MS='soon': expected a positive integer"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        tf_ops.RecallIndexResource(asset)


def test_newest_valid_file_serves_from_the_start(asset, watched):
    write_index(watched, "b.gguf", 2000, items=60)
    write_index(watched, "a.gguf", 2000, items=70)  # as new, but the name comes first
    write_index(watched, "old.gguf", 1000, items=80)
    (watched / "newest.gguf").write_bytes(b"no index")
    (watched / "notes.txt").write_bytes(b"no index either")
    assert serving(tf_ops.RecallIndexResource(asset, "space-a")) == 60


def test_replaced_in_place_and_snapshots_stay(asset, watched):
    resource = tf_ops.RecallIndexResource(asset, "space-a")
    assert serving(resource) == 50
    before, snapshot = counters(), tf_ops.acquire_index(resource)
    write_index(watched, "v1.gguf", 1000, items=60)
    wait_for(lambda: serving(resource) == 60)
    write_index(watched, "v1.gguf", 1001, items=61)  # the same name, replaced
    wait_for(lambda: serving(resource) == 61)
    write_index(watched, "v0.gguf", 900, items=62)  # older than what serves
    write_index(watched, "v2.gguf", 2000, items=63)
    wait_for(lambda: serving(resource) == 63)
    old = tf_ops.popular_items(snapshot, [[0]], [0], [100], k=100)
    assert int(np.sum(old.item_id.numpy() >= 0)) == 50, "a request in flight keeps its snapshot"
    assert counters()["replaced"] == before.get("replaced", 0) + 3
    assert counters()["items"] == 63
    (watched / "v2.gguf").unlink()  # taking a version back
    wait_for(lambda: serving(resource) == 61)
    shutil.rmtree(watched)
    time.sleep(0.1)
    assert serving(resource) == 61


def spoil(path, how):
    data = bytearray(path.read_bytes())
    if how == "other version":  # well-formed, its checksum right
        file = kernels.read_gguf(str(path))
        key = next(k for k in file["metadata"] if k.endswith("format_version"))
        file["metadata"][key] += 1
        kernels.write_gguf(str(path), file["metadata"], file["tensors"])
        return
    if how == "truncated":
        del data[-50:]
    elif how == "bit-flipped":
        data[len(data) // 2] ^= 4
    elif how == "empty":
        data.clear()
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how,options",
    [
        ("truncated", {}),
        ("bit-flipped", {}),
        ("empty", {}),
        ("other version", {}),
        ("other SID space", {"digest": "space-b"}),
        ("other level sizes", {"level_sizes": (5, 9, 5)}),
        ("other depth", {"level_sizes": (5, 9)}),
        ("other facets", {"facets": 1}),
    ],
)
def test_bad_files_leave_the_old_serving(asset, watched, capfd, how, options):
    resource = tf_ops.RecallIndexResource(asset, "space-a")
    before = counters().get("rejected", 0)
    bad = watched / ".bad.gguf"
    op_fixtures.random_index(items=70, **options).save(bad)
    spoil(bad, how)
    os.replace(bad, watched / "bad.gguf")
    wait_for(lambda: counters().get("rejected", 0) > before)
    time.sleep(0.2)  # ten more looks at the directory
    assert counters()["rejected"] == before + 1, "counted once per version of the file"
    assert serving(resource) == 50
    logged = capfd.readouterr().err
    if int(os.environ.get("TF_CPP_MIN_LOG_LEVEL", 0)) < 3:
        assert logged.count("bad.gguf refused, the old one goes on serving") == 1
    write_index(watched, "bad.gguf", time.time() + 5, items=71)  # repaired
    wait_for(lambda: serving(resource) == 71)


def test_replaced_under_a_stream_of_requests(asset, watched):
    """Every answer is wholly of one catalogue: number of items, order and SIDs fit together."""
    catalogues = {60 + i: op_fixtures.random_index(seed=i, items=60 + i) for i in range(6)}
    resource = tf_ops.RecallIndexResource(asset, "space-a")
    wrong, seen, stop = [], set(), threading.Event()

    def stream():
        while not stop.is_set():
            snapshot = tf_ops.acquire_index(resource)
            popular = tf_ops.popular_items(snapshot, [[0]], [0], [100], k=100)
            items = popular.item_id[0].numpy()
            items = items[items >= 0]
            found = tf_ops.lookup_semantic_ids(snapshot, items, levels=3, facets=2)
            seen.add(len(items))
            index = catalogues.get(len(items))
            if index is None:
                continue  # the asset
            same = np.array_equal(items, index.top_items(100)[0])
            if not (same and np.array_equal(found.sids, index.lookup(items)[0])):
                wrong.append(len(items))

    threads = [threading.Thread(target=stream) for _ in range(3)]
    for thread in threads:
        thread.start()
    for items, index in catalogues.items():
        index.save(watched / ".new")
        os.utime(watched / ".new", (items, items))
        os.replace(watched / ".new", watched / "index.gguf")
        wait_for(lambda items=items: items in seen)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def private_bytes():
    """Bytes that this process holds in memory of its own."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon:"))


def test_a_replaced_index_is_freed_by_the_watcher(asset, watched, monkeypatch):
    """Not by the request that was the last to hold it, which would wait for that."""
    monkeypatch.setenv("GENRECALL_INDEX_POLL_MS", "1000")
    write_index(watched, "large.gguf", 1000, items=2_500_000)  # beyond malloc's heap
    before = private_bytes()
    resource = tf_ops.RecallIndexResource(asset, "space-a")
    with_large = private_bytes()
    half_freed = (before + with_large) / 2
    assert with_large > before + 40e6
    snapshot = tf_ops.acquire_index(resource)
    write_index(watched, "small.gguf", 2000, items=60)
    wait_for(lambda: serving(resource) == 60)
    del snapshot  # just after a scan, so the next one is most of a second away
    assert private_bytes() > half_freed, "freed by who let go of it"
    wait_for(lambda: private_bytes() < half_freed)


def nice_values():
    """Scheduling priority of each thread of this process: {thread: nice value}."""
    values = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/stat", encoding="utf-8") as stat:
            values[task] = int(stat.read().rsplit(")", 1)[1].split()[16])
    return values


def test_the_watcher_gives_way_to_requests(asset, watched):
    """Its thread alone has a lower priority, whatever the process' own is."""
    lower = min(os.nice(0) + 10, 19)
    before = nice_values()
    resource = tf_ops.RecallIndexResource(asset, "space-a")

    def lowered():
        now = nice_values()
        return [task for task in now if task not in before and now[task] == lower]

    wait_for(lambda: len(lowered()) == 1)
    assert set(before.values()) == {os.nice(0)} and serving(resource) == 50


def test_a_dropped_resource_stops_watching(asset, watched):
    resource = tf_ops.RecallIndexResource(asset, "space-a")
    del resource
    gc.collect()
    before = counters()
    write_index(watched, "v1.gguf", 1000, items=60)
    time.sleep(0.2)
    assert counters() == before


def test_resources_do_not_share(asset, tmp_path):
    other = tmp_path / "other.gguf"
    op_fixtures.random_index(items=20).save(other)
    one, two = tf_ops.RecallIndexResource(asset), tf_ops.RecallIndexResource(other)
    assert (serving(one), serving(two)) == (50, 20)
    del two
    assert serving(one) == 50


def test_saved_model_restores_the_index_from_its_asset(asset, tmp_path):
    module = op_fixtures.LookupModule(asset)
    module.save(tmp_path / "model")
    want = module.lookup(tf.constant([1000, 1003, 7], tf.int64))
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "model", moved)
    asset.unlink()
    loaded = [tf.saved_model.load(moved) for _ in range(2)]  # twice in one process
    for model in loaded:
        got = model.signatures["serving_default"](item=tf.constant([1000, 1003, 7], tf.int64))
        np.testing.assert_array_equal(got["sids"], want["sids"])
    del loaded[0]
    loaded[0].signatures["serving_default"](item=tf.constant([1000], tf.int64))
    text = (moved / "saved_model.pb").read_bytes()
    assert str(tmp_path).encode() not in text, "no absolute path in the SavedModel"
