"""While requests stream in: another version, another index, bad indexes, kill -9."""

import collections
import os
import shutil
import threading
import time

import numpy as np
import pytest
from server_process import ServerProcess

from genrecall import kernels
from genrecall.serving.client import Client

OFFSET = 1_000_000  # between the item ids of one catalogue and the next


def catalogue_index(tiny, number, **changes):
    """The recall index of catalogue `number`: tiny's SIDs, item ids of their own."""
    index = kernels.RecallIndex.load(str(tiny.index))
    item_id, codes, weight, facets = index.rows()
    options = {"sid_space_digest": index.sid_space_digest} | changes
    return kernels.RecallIndex.build(
        list(index.level_sizes), item_id + number * OFFSET, codes, weight, facets, **options
    )


def publish(index, path, age_s=0):
    """Puts an index in a watched directory, whole, `age_s` seconds old."""
    new = path.parent / f".{path.name}"
    index.save(str(new))
    when = time.time() - age_s
    os.utime(new, (when, when))
    new.rename(path)


class Stream:
    """Threads that ask all the time; which catalogues the answers came from.

    A context manager: no request may have failed when it ends.
    """

    def __init__(self, target, tiny, threads=4):
        self.client = Client(target, "shop", timeout_s=30)
        self.inputs = {"user_id": np.arange(3), "behavior_item": tiny.item_id[None, :8].copy()}
        self.inputs |= {"behavior_length": np.full(3, 8, np.int32)}
        self.catalogues = collections.deque()  # one a request
        self.problems = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self):
        try:
            while not self._stop.is_set():
                answer = self.client.predict(self.inputs)
                assert not answer["branch_status"].any()
                catalogues = set((answer["item_id"] // OFFSET).flat)
                assert len(catalogues) == 1, f"an answer from catalogues {catalogues}"
                assert (answer["semantic_id"] >= 0).all()
                self.catalogues.append(catalogues.pop())
        except BaseException as error:
            self.problems.append(error)

    def settle_on(self, catalogue, answers=12, timeout_s=30):
        """Waits until the last `answers` came from `catalogue`."""
        end = time.monotonic() + timeout_s
        while not self.last_are(catalogue, answers):
            assert not self.problems, self.problems
            assert time.monotonic() < end, collections.Counter(self.catalogues)
            time.sleep(0.02)

    def last_are(self, catalogue, answers):
        last = list(self.catalogues)[-answers:]
        return len(last) == answers and set(last) == {catalogue}

    def more(self, answers=12):
        """Waits for that many more answers; their catalogues."""
        before, end = len(self.catalogues), time.monotonic() + 30
        while len(self.catalogues) < before + answers:
            assert not self.problems and time.monotonic() < end, self.problems
            time.sleep(0.02)
        return set(list(self.catalogues)[before:])

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.client.close()
        assert not self.problems, self.problems


def serve(folder, models, **variables):
    flags = ["--model_base_path", str(models), "--model_name", "shop"]
    running = ServerProcess(
        folder / "log", *flags, "--file_system_poll_wait_seconds", "0.1", **variables
    )
    running.wait_for_log("serving HTTP")
    return running


def test_versions_are_swapped_under_a_stream_without_a_failure(tiny, exported, tmp_path):
    models = tmp_path / "models with a space \u00e9\u6f22"
    shutil.copytree(exported, models / "1")
    running = serve(tmp_path, models)
    try:
        with Stream(running.target, tiny) as stream:
            stream.settle_on(0)
            for version in (2, 3):
                new = tmp_path / "new"
                shutil.copytree(exported, new)
                catalogue_index(tiny, version).save(str(new / "assets" / "recall_index.gguf"))
                new.rename(models / str(version))
                stream.settle_on(version)
            shutil.rmtree(models / "3")  # taken back
            stream.settle_on(2)
            broken = {  # version -> what to spoil, what the status must name
                4: ("assets/model.gguf", b"GGUF?", "model.gguf"),
                5: ("assets/prompt.gguf", b"", "prompt.gguf"),
                6: ("saved_model.pb", b"\xff\xff", "saved_model.pb"),
                7: ("assets/recall_index.gguf", None, "recall_index.gguf"),
            }
            for version, (name, content, _) in broken.items():
                shutil.copytree(exported, new)
                if content is None:
                    content = (new / name).read_bytes()[:-7]
                (new / name).write_bytes(content)
                new.rename(models / str(version))
                running.wait_for_log(f"version {version}: ")
                end = time.monotonic() + 30
                while stream.client.status()[version][0] != "END":
                    assert time.monotonic() < end, stream.client.status()
                    time.sleep(0.05)
                assert stream.more() == {2}, "a broken version leaves the one before it serving"
            states = stream.client.status()
            for version, (_, _, named) in broken.items():
                assert named in states[version][1], states
        assert set(stream.catalogues) == {0, 2, 3}
    finally:
        running.kill()


@pytest.fixture
def watched(tmp_path):
    folder = tmp_path / "indexes"
    folder.mkdir()
    return folder


def test_the_index_is_replaced_refused_and_found_again_after_kill_9(
    tiny, exported, tmp_path, watched
):
    variables = {"GENRECALL_INDEX_DIR": str(watched), "GENRECALL_INDEX_POLL_MS": "50"}
    running = serve(tmp_path, exported.parent, **variables)
    try:
        with Stream(running.target, tiny) as stream:
            stream.settle_on(0)
            for number in (1, 2):
                publish(catalogue_index(tiny, number), watched / f"{number}.gguf", 100 - number)
                stream.settle_on(number)
            assert running.metric(":genrecall:index:replaced") == 2
            for name, path in write_bad_indexes(tiny, watched):
                refused = running.metric(":genrecall:index:rejected")
                path.rename(watched / f"9-{name}.gguf")
                running.wait_until(
                    lambda refused=refused: (
                        running.metric(":genrecall:index:rejected") == refused + 1
                    )
                )
                assert stream.more() == {2}, name
                assert f"9-{name}.gguf refused, the old one goes on serving" in running.log()
        assert set(stream.catalogues) == {0, 1, 2}
    finally:
        running.kill()
    (watched / ".3.gguf").write_bytes(b"half of a file that was being written")
    running = serve(tmp_path, exported.parent, **variables)
    try:
        with Stream(running.target, tiny, threads=1) as stream:
            assert stream.more(3) == {2}, "the newest valid one, from the first answer on"
    finally:
        running.kill()


def write_bad_indexes(tiny, folder):
    """[(what is wrong, file under a name that is not watched)]."""
    good = folder / ".good"
    catalogue_index(tiny, 3).save(str(good))
    data = good.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    content = kernels.read_gguf(str(good))
    version = next(k for k in content["metadata"] if k.endswith("format_version"))
    content["metadata"][version] += 1
    bad = {name: folder / f".{name}" for name in ("truncated", "flipped", "version", "space")}
    bad["truncated"].write_bytes(data[: len(data) // 2])
    bad["flipped"].write_bytes(flipped)
    kernels.write_gguf(str(bad["version"]), content["metadata"], content["tensors"])
    catalogue_index(tiny, 3, sid_space_digest="another").save(str(bad["space"]))
    return list(bad.items())
