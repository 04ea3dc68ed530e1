"""Files of the recall index: whatever is wrong with one is refused with a message, never a crash.

Truncations and bit flips are tried both as they are (the checksum refuses them) and with the
checksum made right again (what is then still accepted must be a well-formed index).
"""

import os
import struct

import numpy as np
import pytest

from genrecall import kernels
from genrecall.kernels import DataLossError, FailedPreconditionError, RecallIndex

TRAILER_BYTES = 16


def seal(body):
    """The bytes with a right checksum trailer."""
    return body + b"GRCKSUM1" + struct.pack("<II", kernels.crc32c(body), 0)


def small_index(seed=0, n=40, level_sizes=(3, 300, 4), facets=2):
    rng = np.random.default_rng(seed)
    codes = np.stack(
        [rng.choice(size, min(4, size))[rng.integers(0, min(4, size), n)] for size in level_sizes],
        1,
    )
    return RecallIndex.build(
        level_sizes,
        rng.permutation(1000)[:n],
        codes,
        rng.integers(0, 3, n).astype(np.float32),
        rng.integers(-1, 5, (n, facets)),
        sid_space_digest="digest-1",
    )


def saved(index, folder):
    path = folder / "index.gguf"
    index.save(path)
    return path.read_bytes()


def try_load(path, data):
    """The index in these bytes, or None when they are refused as they should be."""
    path.write_bytes(data)
    try:
        return RecallIndex.load(path)
    except (DataLossError, FailedPreconditionError) as error:
        assert str(path) in str(error)
    except RuntimeError as error:
        assert "has ggml type" in str(error)
    return None


def check_well_formed(index):
    """Rebuilding the index from its own rows changes nothing."""
    item_id, codes, weight, facets = index.rows()
    again = RecallIndex.build(
        index.level_sizes, item_id, codes, weight, facets, index.sid_space_digest
    )
    for got, expected in zip(index.rows(), again.rows(), strict=True):
        np.testing.assert_array_equal(got, expected)
    for level in range(len(index.level_sizes)):
        assert index.num_nodes(level + 1) == again.num_nodes(level + 1)
        for node in range(index.num_nodes(level)):
            for got, expected in zip(
                index.children(level, node), again.children(level, node), strict=True
            ):
                np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(index.lookup(item_id)[0], codes)
    np.testing.assert_array_equal(index.top_items(9999)[0], again.top_items(9999)[0])


def test_truncated_at_every_byte(tmp_path):
    data = saved(small_index(n=12), tmp_path)
    for size in range(len(data)):
        assert try_load(tmp_path / "cut.gguf", data[:size]) is None, size


def test_truncated_at_every_byte_with_the_checksum_made_right(tmp_path):
    body = saved(small_index(n=12), tmp_path)[:-TRAILER_BYTES]
    accepted = [
        n for n in range(len(body)) if try_load(tmp_path / "cut.gguf", seal(body[:n])) is not None
    ]
    assert len(accepted) < 32  # what may be missing is the padding at the end
    assert accepted == list(range(len(body) - len(accepted), len(body)))


def test_any_bit_flipped(tmp_path):
    data = saved(small_index(n=12), tmp_path)
    for bit in range(0, 8 * len(data), 7):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert try_load(tmp_path / "flip.gguf", flipped) is None, bit


@pytest.mark.parametrize("seed", range(4))
def test_bits_flipped_with_the_checksum_made_right(tmp_path, seed):
    shapes = [(3, 300, 4), (2,), (256, 257), (2, 2, 2, 2, 2, 2)]
    index = small_index(seed, n=30, level_sizes=shapes[seed], facets=seed % 3)
    body = saved(index, tmp_path)[:-TRAILER_BYTES]
    rng = np.random.default_rng(seed)
    refused = 0
    for trial in range(800):
        flipped = bytearray(body)
        for _ in range(1 + trial % 3):
            flipped[rng.integers(len(body))] ^= 1 << int(rng.integers(8))
        loaded = try_load(tmp_path / "flip.gguf", seal(bytes(flipped)))
        if loaded is None:
            refused += 1
        else:
            check_well_formed(loaded)
    assert refused > 200


@pytest.mark.parametrize("seed", range(2))
def test_words_overwritten_with_the_checksum_made_right(tmp_path, seed):
    """Counts, lengths, offsets and positions of extreme values."""
    body = saved(small_index(seed, n=30), tmp_path)[:-TRAILER_BYTES]
    rng = np.random.default_rng(seed)
    words = [struct.pack("<q", w) for w in (-1, 2**62, 2**32, 2**31, 2**63 - 1, 30, 0, len(body))]
    for at in range(0, len(body) - 8, 5):
        changed = bytearray(body)
        size = int(rng.choice([2, 4, 8]))
        changed[at : at + size] = words[rng.integers(len(words))][:size]
        loaded = try_load(tmp_path / "word.gguf", seal(bytes(changed)))
        if loaded is not None:
            check_well_formed(loaded)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no checksum trailer in the last 16 of 0 bytes"),
        (b"GGUF", "no checksum trailer"),
        (b"plain garbage, long enough to hold a trailer", "no checksum trailer"),
        (seal(b""), "truncated: magic at byte 0 of 0"),
        (seal(b"PK\x03\x04" + bytes(64)), "not a GGUF file"),
        (seal(b"GGUF" + struct.pack("<I", 99)), "GGUF version 99: expected 2 or 3"),
        (
            seal(b"GGUF" + struct.pack(">I", 3)),
            "GGUF version 50331648: expected 2 or 3, little endian",
        ),
        (b"GRCKSUM1" + bytes(8), "truncated: magic"),
    ],
)
def test_what_is_no_index_is_refused(tmp_path, data, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(DataLossError, match=message):
        RecallIndex.load(path)


def test_random_garbage_is_refused(tmp_path):
    rng = np.random.default_rng(1)
    for size in (1, 15, 16, 17, 100, 5000):
        noise = rng.bytes(size)
        assert try_load(tmp_path / "noise.gguf", noise) is None
        assert try_load(tmp_path / "noise.gguf", seal(noise)) is None
        assert try_load(tmp_path / "noise.gguf", seal(b"GGUF\3\0\0\0" + noise)) is None


def test_a_wrong_trailer_is_refused(tmp_path):
    data = bytearray(saved(small_index(), tmp_path))
    data[-1] = 1
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(DataLossError, match="trailer padding = 16777216: expected 0"):
        RecallIndex.load(tmp_path / "bad.gguf")


def test_missing_file_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.gguf: No such file"):
        RecallIndex.load(tmp_path / "none.gguf")
    with pytest.raises(FileNotFoundError, match="none"):
        small_index().save(tmp_path / "none" / "index.gguf")
    with pytest.raises(RuntimeError, match="not a regular file"):
        RecallIndex.load(tmp_path)


def test_another_sid_space_is_refused(tmp_path):
    path = tmp_path / "index.gguf"
    small_index().save(path)
    assert RecallIndex.load(path).sid_space_digest == "digest-1"
    assert RecallIndex.load(path, "digest-1").num_items == 40
    with pytest.raises(FailedPreconditionError, match="'digest-1': expected 'digest-2'"):
        RecallIndex.load(path, "digest-2")


def rewritten(index, folder, metadata=None, drop=(), **tensors):
    """A sealed copy of the index's file with some of its content replaced."""
    path = folder / "index.gguf"
    index.save(path)
    content = kernels.read_gguf(path)
    content["tensors"].update(tensors)
    for name in drop:
        del content["tensors"][name]
    kernels.write_gguf(path, {**content["metadata"], **(metadata or {})}, content["tensors"])
    return path


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        (
            {"genrecall.format_version": 2},
            FailedPreconditionError,
            "format_version = 2: expected 1",
        ),
        (
            {"genrecall.format": "prompt"},
            FailedPreconditionError,
            "'prompt': expected 'recall_index'",
        ),
        (
            {"genrecall.format": 3},
            DataLossError,
            "'genrecall.format' has another type: expected a str",
        ),
        ({"genrecall.level_sizes": [3, 0, 4]}, DataLossError, r"level_sizes\[1\] = 0: expected"),
        ({"genrecall.level_sizes": []}, DataLossError, "level_sizes has 0 levels"),
        ({"genrecall.level_sizes": [3, 2**40, 4]}, DataLossError, r"level_sizes\[1\] = 2147483647"),
        ({"genrecall.level_sizes": [3, 300]}, DataLossError, "'first_item' has a bit at"),
        ({"genrecall.level_sizes": [2, 300, 4]}, DataLossError, r"codes\.0\[\d\] = 2 under node 0"),
        ({"genrecall.num_items": 0}, DataLossError, r"num_items = 0: expected 1\.\."),
        ({"genrecall.num_items": 2**32}, DataLossError, "num_items = 4294967296"),
        ({"genrecall.num_items": 41}, DataLossError, "elements: expected"),
        ({"genrecall.num_facets": -1}, DataLossError, "num_facets = -1"),
        ({"genrecall.num_facets": 3}, DataLossError, r"another shape: expected \[40, 3\]"),
    ],
)
def test_wrong_metadata_is_refused(tmp_path, metadata, error, message):
    path = rewritten(small_index(), tmp_path, metadata)
    with pytest.raises(error, match=message):
        RecallIndex.load(path)


def test_wrong_tensors_are_refused(tmp_path):
    index = small_index()
    rewritten(index, tmp_path)
    good = kernels.read_gguf(tmp_path / "index.gguf")["tensors"]
    swapped = good["by_item_id"][[1, 0, *range(2, 40)]]
    heavy = good["weight"].copy()
    heavy[0] = np.nan
    negative = good["item_id"].copy()
    negative[3] = -1
    cases = [
        ({"by_item_id": swapped}, r"by_item_id\[1\]: item_id \d+ after \d+"),
        ({"by_item_id": np.zeros(40, np.int32)}, r"by_item_id\[1\]"),
        ({"by_item_id": np.full(40, 40, np.int32)}, r"by_item_id\[0\] = 40: expected 0\.\.39"),
        ({"weight": heavy}, r"weight\[0\] = nan: expected finite"),
        ({"weight": np.arange(40, dtype=np.float32)}, "expected the heavier item first"),
        ({"item_id": negative}, r"item_id\[3\] = -1: expected >= 0"),
        ({"item_id": good["item_id"][:39]}, "'item_id' has 39 elements: expected 40"),
        ({"item_id": good["item_id"].reshape(4, 10)}, "'item_id' has rank 2: expected 1"),
        ({"item_id": good["item_id"].astype(np.int32)}, "'item_id' has type I32: expected I64"),
        ({"facets": good["facets"] - 5}, "facets, element 0 = -"),
        ({"top_items": good["top_items"][::-1]}, r"top_items\[1\]: expected a lighter item"),
        ({"top_items": np.full(40, 77, np.int32)}, r"top_items\[0\] = 77: expected 0\.\.39"),
        ({"codes.0": good["codes.0"][::-1]}, r"codes\.0\[\d\] = \d under node 0"),
        (
            {"codes.1": np.full_like(good["codes.1"], 300)},
            r"codes\.1\[0\] = 300 under node 0: expected 0\.\.299",
        ),
        ({"codes.2": good["codes.2"][:0]}, "'codes.2' has 0 elements: expected"),
        ({"first_child.1": good["first_child.1"] ^ 1}, "the first at"),
        ({"first_child.2": np.full_like(good["first_child.2"], -1)}, "has a bit at"),
        ({"first_item": np.zeros_like(good["first_item"])}, "'first_item' begins 0 ranges"),
    ]
    for tensors, message in cases:
        path = rewritten(index, tmp_path, **tensors)
        with pytest.raises(DataLossError, match=message):
            RecallIndex.load(path)
    for name in good:
        path = rewritten(index, tmp_path, drop=[name])
        if (
            name == "weight"
        ):  # a file without weights weighs all items the same: not this file's item order
            continue
        with pytest.raises(DataLossError, match=f"tensor '{name}' is missing"):
            RecallIndex.load(path)


def test_top_items_must_be_the_heaviest(tmp_path):
    n = 5000
    index = RecallIndex.build([1], np.arange(n), np.zeros((n, 1), np.int32), np.arange(n, 0, -1))
    path = rewritten(index, tmp_path, top_items=np.arange(100, 4196, dtype=np.int32))
    with pytest.raises(DataLossError, match="expected the 4096 heaviest items"):
        RecallIndex.load(path)


def test_the_file_is_small(tmp_path):
    """Beside id and facets at most 14 bytes an item, with random SIDs, the worst case."""
    rng = np.random.default_rng(2)
    n = 100_000
    index = RecallIndex.build(
        [256] * 4,
        rng.permutation(n),
        rng.integers(0, 256, (n, 4)),
        rng.random(n),
        rng.integers(0, 9, (n, 1)),
    )
    size = len(saved(index, tmp_path))
    assert size / n - 8 - 2 < 14


def test_equal_weights_and_single_items_take_no_room(tmp_path):
    index = RecallIndex.build([9], np.arange(9), np.arange(9)[:, None])
    saved(index, tmp_path)
    assert set(kernels.read_gguf(tmp_path / "index.gguf")["tensors"]) == {
        "codes.0",
        "item_id",
        "by_item_id",
        "top_items",
    }


def test_save_replaces_the_file_whole(tmp_path):
    path = tmp_path / "index.gguf"
    old, new = small_index(0), small_index(1)
    old.save(path)
    held = RecallIndex.load(path)
    new.save(path)
    assert RecallIndex.load(path).checksum == new.checksum
    assert os.listdir(tmp_path) == ["index.gguf"]
    check_well_formed(held)  # a loaded index does not depend on its file
    path.write_bytes(b"")
    check_well_formed(held)


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "index.gguf").mkdir()
    with pytest.raises(RuntimeError, match="cannot rename to"):
        small_index().save(tmp_path / "index.gguf")
    assert os.listdir(tmp_path) == ["index.gguf"]


def test_the_checksum_names_the_content(tmp_path):
    index = small_index()
    data = saved(index, tmp_path)
    assert index.checksum == kernels.crc32c(data[:-TRAILER_BYTES])
    assert RecallIndex.load(tmp_path / "index.gguf").checksum == index.checksum
    assert saved(RecallIndex.load(tmp_path / "index.gguf"), tmp_path) == data
