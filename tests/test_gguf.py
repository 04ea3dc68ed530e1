"""GGUF files and their checksum: the files of the `gguf` package and ours alike; damage refused."""

import os
import struct

import gguf
import numpy as np
import pytest

from genrecall.kernels import DataLossError, crc32c, read_gguf, write_gguf

TRAILER_BYTES = 16


def crc32c_by_bits(data):
    """The definition: a shift register, one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("scalar", [False, True])
def test_crc32c(scalar):
    assert crc32c(b"123456789", scalar=scalar) == 0xE3069283
    assert crc32c(b"", scalar=scalar) == 0
    assert crc32c(bytes(32), scalar=scalar) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"\xff" * 32, scalar=scalar) == 0x62A8AB43
    rng = np.random.default_rng(0)
    for size in [*range(1, 40), 1000]:
        data = rng.bytes(size)
        assert crc32c(data, scalar=scalar) == crc32c_by_bits(data)
        assert crc32c(data[1:], scalar=scalar) == crc32c_by_bits(data[1:])  # unaligned


METADATA = {
    "a.bool": True,
    "a.false": False,
    "a.int": 7,
    "a.large": 2**40,
    "a.negative": -3,
    "a.float": 0.5,
    "a.text": "grüße\n🙂",
    "a.empty": "",
    "b.ints": [1, -2, 3],
    "b.large_ints": [2**40, -(2**62)],
    "b.floats": [0.5, -1.25],
    "b.texts": ["", "x", "ÿ"],
    "b.none": [],
}


def tensors_of_all_types():
    rng = np.random.default_rng(1)
    return {
        "f32": rng.standard_normal((3, 5)).astype(np.float32),
        "f16": rng.standard_normal(7).astype(np.float16),
        "i8": rng.integers(-128, 128, 33).astype(np.int8),
        "i16": rng.integers(-9999, 9999, (2, 3, 4, 5)).astype(np.int16),
        "i32": rng.integers(-9999, 9999, (1, 1)).astype(np.int32),
        "i64": rng.integers(-(2**60), 2**60, 1000),
        "empty": np.zeros((0, 4), np.float32),
    }


def test_round_trip(tmp_path):
    path = tmp_path / "file.gguf"
    tensors = tensors_of_all_types()
    bf16 = np.array([0x3F80, 0xBF80], np.uint16)
    write_gguf(path, METADATA, {**tensors, "bf16": bf16}, types={"bf16": "BF16"})
    got = read_gguf(path)
    assert got["metadata"] == METADATA
    assert {k: type(v) for k, v in got["metadata"].items()} == {
        k: type(v) for k, v in METADATA.items()
    }
    assert got["types"] == {
        "f32": "F32",
        "f16": "F16",
        "i8": "I8",
        "i16": "I16",
        "i32": "I32",
        "i64": "I64",
        "empty": "F32",
        "bf16": "BF16",
    }
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(got["tensors"][name], tensor)
        assert got["tensors"][name].dtype == tensor.dtype
        assert got["tensors"][name].ctypes.data % 32 == 0
        assert not got["tensors"][name].flags.writeable
    np.testing.assert_array_equal(got["tensors"]["bf16"], bf16)
    data = path.read_bytes()
    assert data[-TRAILER_BYTES:] == b"GRCKSUM1" + struct.pack("<II", crc32c(data[:-16]), 0)
    assert got["checksum"] == crc32c(data[:-16])
    assert os.listdir(tmp_path) == ["file.gguf"]


def test_the_gguf_package_reads_our_files(tmp_path):
    path = tmp_path / "ours.gguf"
    tensors = tensors_of_all_types()
    del tensors["empty"]
    write_gguf(path, METADATA, tensors)
    reader = gguf.GGUFReader(path)
    for key, value in METADATA.items():
        if value != []:  # the package has no type for an empty array's contents
            assert reader.fields[key].contents() == value, key
    assert [t.name for t in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data, tensors[tensor.name])


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_files_of_the_gguf_package_are_read(tmp_path, alignment):
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    if alignment:
        writer.add_custom_alignment(alignment)
    numbers = {"uint8": 200, "int8": -100, "uint16": 60000, "int16": -30000, "uint32": 2**32 - 1}
    numbers |= {"int32": -(2**31), "uint64": 2**63 - 1, "int64": -(2**63)}
    for kind, value in numbers.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_float32("x.float32", 0.25)
    writer.add_float64("x.float64", 0.1)
    writer.add_bool("x.bool", True)
    writer.add_string("x.string", "text ☕")
    writer.add_array("x.ints", [1, 2, 300])
    writer.add_array("x.floats", [0.5, 2.0])
    writer.add_array("x.texts", ["a", "bc", ""])
    writer.add_array("x.bools", [True, False])
    tensors = tensors_of_all_types()
    del tensors["empty"]
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    bf16 = np.array([[0x3F80, 0x4000]], np.uint16)
    writer.add_tensor("bf16", bf16.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(DataLossError, match=r"theirs\.gguf: no checksum trailer"):
        read_gguf(path)
    got = read_gguf(path, require_checksum=False)
    assert got["checksum"] == crc32c(path.read_bytes())
    metadata = got["metadata"]
    assert {kind: metadata[f"x.{kind}"] for kind in numbers} == numbers
    assert (metadata["x.float32"], metadata["x.float64"]) == (0.25, 0.1)
    assert metadata["x.bool"] is True
    assert metadata["x.string"] == "text ☕"
    assert metadata["x.ints"] == [1, 2, 300]
    assert metadata["x.floats"] == [0.5, 2.0]
    assert metadata["x.texts"] == ["a", "bc", ""]
    assert metadata["x.bools"] == [1, 0]
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(got["tensors"][name], tensor)
    np.testing.assert_array_equal(got["tensors"]["bf16"], bf16)


# A file made by hand, piece by piece, so that every piece can be wrong.


def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def pair(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


def tensor_info(name="t", shape=(4,), kind=0, offset=0, rank=None):
    rank = len(shape) if rank is None else rank
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", rank, *shape, kind, offset)


def file_of(pairs=(), tensors=(), data=b"", num_pairs=None, num_tensors=None, alignment=32):
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(pairs) if num_pairs is None else num_pairs,
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(pairs) + b"".join(tensors)
    head += bytes(-len(head) % alignment)
    return head + data


STRING, ARRAY, UINT32, BOOL, UINT64 = 8, 9, 4, 7, 10
HUGE = (1 << 64) - 1
BAD_FILES = {
    "huge metadata count": (file_of(num_pairs=HUGE), "truncated: 18446744073709551615 metadata"),
    "huge tensor count": (file_of(num_tensors=HUGE), "truncated: 18446744073709551615 tensors"),
    "huge key": (file_of([struct.pack("<Q", HUGE) + bytes(8)]), "truncated: metadata key"),
    "huge string": (
        file_of([pair("k", STRING, struct.pack("<Q", HUGE))]),
        "truncated: metadata 'k'",
    ),
    "huge array": (
        file_of([pair("k", ARRAY, struct.pack("<IQ", UINT32, HUGE))]),
        "truncated: metadata array 'k' of 18446744073709551615 elements",
    ),
    "array whose bytes overflow": (
        file_of([pair("k", ARRAY, struct.pack("<IQ", UINT64, 1 << 61))]),
        "truncated: metadata array 'k'",
    ),
    "huge array of strings": (
        file_of([pair("k", ARRAY, struct.pack("<IQ", STRING, 1 << 61))]),
        "truncated: metadata array 'k'",
    ),
    "array of arrays": (
        file_of([pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]),
        "'k': array of type 9 is not supported",
    ),
    "unknown value type": (file_of([pair("k", 13, bytes(8))]), "metadata 'k': unknown type 13"),
    "a bool of 2": (file_of([pair("k", BOOL, b"\2")]), "metadata 'k' = 2: expected a bool"),
    "uint64 over int64": (
        file_of([pair("k", UINT64, struct.pack("<Q", HUGE))]),
        r"'k' = 18446744073709551615: expected < 2\^63",
    ),
    "key twice": (file_of([pair("k", BOOL, b"\1")] * 2), "metadata 'k' twice"),
    "key not UTF-8": (file_of([pair(b"\xff", BOOL, b"\1")]), "metadata key .* expected UTF-8"),
    "overlong UTF-8": (file_of([pair(b"\xc0\x80", BOOL, b"\1")]), "expected UTF-8"),
    "surrogate": (file_of([pair(b"\xed\xa0\x80", BOOL, b"\1")]), "expected UTF-8"),
    "cut UTF-8": (file_of([pair(b"k\xe2\x82", BOOL, b"\1")]), "expected UTF-8"),
    "beyond Unicode": (file_of([pair(b"\xf4\x90\x80\x80", BOOL, b"\1")]), "expected UTF-8"),
    "NUL in a key": (file_of([pair(b"a\0b", BOOL, b"\1")]), "expected UTF-8"),
    "text not UTF-8": (file_of([pair("k", STRING, text(b"\xff"))]), "'k': expected UTF-8"),
    "tensor name not UTF-8": (file_of(tensors=[tensor_info(b"\x80")]), "tensor name .* UTF-8"),
    "alignment 0": (
        file_of([pair("general.alignment", UINT32, bytes(4))]),
        r"general\.alignment: expected a power of two",
    ),
    "alignment 24": (
        file_of([pair("general.alignment", UINT32, struct.pack("<I", 24))]),
        r"general\.alignment: expected a power of two",
    ),
    "alignment of text": (
        file_of([pair("general.alignment", STRING, text("32"))]),
        r"general\.alignment: expected a power of two",
    ),
    "rank 5": (file_of(tensors=[tensor_info(shape=(1,) * 5)]), "'t': rank 5, expected 0..4"),
    "huge rank": (file_of(tensors=[tensor_info(rank=2**32 - 1)]), "'t': rank 4294967295"),
    "huge dimension": (
        file_of(tensors=[tensor_info(shape=(HUGE,))]),
        "'t': dimension 18446744073709551615 is larger than the file",
    ),
    "elements overflow": (
        file_of(tensors=[tensor_info(shape=(1 << 16,) * 4)], data=bytes(1 << 16)),
        "'t': dimension 65536 is larger than the file",
    ),
    "offset off the alignment": (
        file_of(tensors=[tensor_info(offset=8)], data=bytes(64)),
        "'t' at offset 8: expected a multiple of 32",
    ),
    "huge offset": (
        file_of(tensors=[tensor_info(offset=HUGE - 31)], data=bytes(64)),
        "truncated: tensor 't' has 16 bytes at offset 18446744073709551584",
    ),
    "data beyond the end": (
        file_of(tensors=[tensor_info(shape=(9,))], data=bytes(35)),
        "truncated: tensor 't' has 36 bytes at offset 0, but only 35 bytes of data are there",
    ),
    "data in the padding": (
        file_of(tensors=[tensor_info()], alignment=1),
        "truncated: tensor 't' has 16 bytes at offset 0, but only 0 bytes",
    ),
    "tensor twice": (file_of(tensors=[tensor_info()] * 2, data=bytes(64)), "tensor 't' twice"),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("sealed", [False, True])
def test_damage_is_refused(tmp_path, case, sealed):
    data, message = BAD_FILES[case]
    if sealed:
        data += b"GRCKSUM1" + struct.pack("<II", crc32c(data), 0)
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(DataLossError, match=message) as raised:
        read_gguf(path, require_checksum=sealed)
    assert str(path) in str(raised.value)


def test_the_trailer_is_not_tensor_data(tmp_path):
    data = file_of(tensors=[tensor_info(shape=(8,))], data=bytes(16))  # 32 bytes with the trailer's
    path = tmp_path / "bad.gguf"
    path.write_bytes(data + b"GRCKSUM1" + struct.pack("<II", crc32c(data), 0))
    with pytest.raises(DataLossError, match="only 16 bytes of data are there"):
        read_gguf(path)


def test_a_wrong_trailer_is_refused_even_where_none_is_required(tmp_path):
    data = file_of(tensors=[tensor_info()], data=bytes(16))
    path = tmp_path / "bad.gguf"
    path.write_bytes(data + b"GRCKSUM1" + struct.pack("<II", crc32c(data) ^ 1, 0))
    with pytest.raises(DataLossError, match=r"checksum \d+: expected \d+ as its trailer says"):
        read_gguf(path, require_checksum=False)


def test_quantised_tensors_are_not_read(tmp_path):
    path = tmp_path / "q4.gguf"
    path.write_bytes(file_of(tensors=[tensor_info(kind=2)], data=bytes(64)))
    with pytest.raises(RuntimeError, match="tensor 't' has ggml type 2: expected one of F32, F16"):
        read_gguf(path, require_checksum=False)


def test_files_made_by_hand_are_read(tmp_path):
    """What the pieces above damage is otherwise right; version 2 has the same layout."""
    data = file_of([pair("k", STRING, text("v"))], [tensor_info(shape=(2, 3))], bytes(range(24)))
    for version in (2, 3):
        path = tmp_path / "good.gguf"
        path.write_bytes(data[:4] + struct.pack("<I", version) + data[8:])
        got = read_gguf(path, require_checksum=False)
        assert got["metadata"] == {"k": "v"}
        assert got["tensors"]["t"].shape == (3, 2)  # the file's order is innermost first
        assert got["tensors"]["t"].tobytes() == bytes(range(24))


def test_a_file_larger_than_the_read_chunk(tmp_path):
    big = np.random.default_rng(2).integers(0, 2**60, 700_001)
    write_gguf(tmp_path / "big.gguf", {}, {"big": big})
    got = read_gguf(tmp_path / "big.gguf")
    np.testing.assert_array_equal(got["tensors"]["big"], big)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"k": None}, {}), "metadata 'k' is <class 'NoneType'>: expected bool, int"),
        (({"k": [1, "a"]}, {}), "metadata 'k' is <class 'list'>"),
        (({"k": {}}, {}), "metadata 'k' is <class 'dict'>"),
        (({"general.alignment": 64}, {}), "'general.alignment' is fixed at 32"),
        (({"k": "a\0b"}, {}), "metadata 'k': expected UTF-8 without NUL"),
        (({"a\0b": 1}, {}), "metadata key: expected UTF-8"),
        (({}, {"a\0b": np.zeros(2, np.int8)}), "tensor 0's name: expected UTF-8"),
        (({}, {"t": np.zeros(2)}), "tensor 't' has dtype float64"),
        (({}, {"t": np.zeros((1,) * 5, np.int8)}), "tensor 't' has rank 5: expected 0..4"),
        (({}, {"t": np.zeros(2, np.int8)}, {"t": "BF16"}), "BF16 needs 2-byte elements"),
        (({}, {"t": np.zeros(2, np.int8)}, {"t": "Q4_0"}), "'Q4_0', expected BF16 or F16"),
        (({}, {}, {"t": "BF16"}), "types names 't', which is no tensor"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "bad.gguf", *arguments)
    assert os.listdir(tmp_path) == []


def test_integers_beyond_int64_are_refused(tmp_path):
    for value in (2**64, [1, 2**64]):
        with pytest.raises(ValueError, match="'k' has value 18446744073709551616"):
            write_gguf(tmp_path / "bad.gguf", {"k": value}, {})


def test_numpy_values_are_metadata(tmp_path):
    metadata = {"i": np.int32(4), "f": np.float32(0.5), "a": np.arange(3), "b": np.bool_(True)}
    write_gguf(tmp_path / "f.gguf", metadata, {"strided": np.arange(10)[::2]})
    got = read_gguf(tmp_path / "f.gguf")
    assert got["metadata"] == {"i": 4, "f": 0.5, "a": [0, 1, 2], "b": True}
    assert got["tensors"]["strided"].tolist() == [0, 2, 4, 6, 8]
