"""TFRecord files and messages: against TensorFlow Datasets' files, protobuf's parser, and published checksums."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from rlspec.vla.droid import tfrecord
from rlspec.vla.droid.tfrecord import BadRecord, Place, crc32c, list_records, masked_crc32c, parse_example, read_record

SHARD = Path(__file__).parent / "rlds/droid_tiny/1.0.0/droid_tiny-train.tfrecord-00000-of-00002"


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_published_checksums(data: bytes, crc: int) -> None:
    """RFC 3720, B.4, and the usual check value."""
    assert crc32c(data) == crc


def test_lanes_give_the_checksum_of_a_plain_loop() -> None:
    data = np.random.default_rng(0).bytes(9000)
    for length in (1, 3, 4, 5, 1023, 1024, 1025, 2047, 2048, 2049, 5 * 1024, 9000):
        crc = 0xFFFFFFFF
        for byte in data[:length]:
            crc ^= byte
            for _ in range(8):
                crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        assert crc32c(data[:length]) == crc ^ 0xFFFFFFFF, length


def protobuf_example() -> Any:
    """tf.train.Example by its published definition, made at run time."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    for name, kind in (("BytesList", "TYPE_BYTES"), ("FloatList", "TYPE_FLOAT"), ("Int64List", "TYPE_INT64")):
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label="LABEL_REPEATED")
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), start=1):
        type_name = ".tf." + name.title().replace("_", "")
        feature.field.add(
            name=name, number=number, type="TYPE_MESSAGE", label="LABEL_OPTIONAL", type_name=type_name, oneof_index=0
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry", options=descriptor_pb2.MessageOptions(map_entry=True))
    entry.field.add(name="key", number=1, type="TYPE_STRING", label="LABEL_OPTIONAL")
    entry.field.add(name="value", number=2, type="TYPE_MESSAGE", label="LABEL_OPTIONAL", type_name=".tf.Feature")
    features.field.add(
        name="feature",
        number=1,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_REPEATED,
        type_name=".tf.Features.FeatureEntry",
    )
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, type="TYPE_MESSAGE", label="LABEL_OPTIONAL", type_name=".tf.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


def test_messages_are_read_as_protobuf_reads_them() -> None:
    example = protobuf_example()()
    rng = np.random.default_rng(0)
    feature = example.features.feature
    feature["floats"].float_list.value.extend(rng.normal(size=300).tolist())
    feature["integers"].int64_list.value.extend([0, 1, -1, 127, 128, 2**63 - 1, -(2**63), 300, 2**35])
    feature["bytes"].bytes_list.value.extend([b"", b"a", rng.bytes(70_000)])
    feature["none"].bytes_list.value.extend([])
    feature["naïve"].float_list.value.append(1.5)
    found = parse_example(example.SerializeToString())
    assert found.keys() == {"floats", "integers", "bytes", "none", "naïve"}
    assert found["floats"].tolist() == list(feature["floats"].float_list.value)  # type: ignore[union-attr]
    assert found["integers"].tolist() == list(feature["integers"].int64_list.value)  # type: ignore[union-attr]
    assert [bytes(each) for each in found["bytes"]] == list(feature["bytes"].bytes_list.value)
    assert len(found["none"]) == 0


def test_real_records_are_read_as_protobuf_reads_them() -> None:
    places, fault = list_records(SHARD)
    assert (len(places), fault) == (2, "")
    for place in places:
        content = read_record(SHARD, place)
        example = protobuf_example().FromString(content)
        found = parse_example(content)
        assert found.keys() == set(example.features.feature)
        for name, values in found.items():
            theirs = example.features.feature[name]
            kind = str(theirs.WhichOneof("kind"))
            wanted = list(getattr(theirs, kind).value)
            assert ([bytes(each) for each in values] if kind == "bytes_list" else list(values)) == wanted, name


@pytest.mark.parametrize("cut", [1, 4, 11, 17, 900])
def test_a_cut_file_keeps_what_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a"
    content = SHARD.read_bytes()
    path.write_bytes(content[:-cut])
    places, fault = list_records(path)
    assert len(places) == 1
    assert fault == f"cut short at byte {len(content) - cut}"
    read_record(path, places[0])


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    path, content = tmp_path / "a", bytearray(SHARD.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    places, fault = list_records(path)
    assert not fault
    with pytest.raises(BadRecord, match="the checksum of the record at byte 12 is wrong"):
        read_record(path, places[0])
    read_record(path, places[1])
    content[places[1].offset - 12] ^= 1  # its length
    path.write_bytes(content)
    assert list_records(path) == (places[:1], f"damaged at byte {places[1].offset - 12}")


def test_nonsense_is_no_message() -> None:
    rng = np.random.default_rng(0)
    content = read_record(SHARD, list_records(SHARD)[0][0])
    for _ in range(300):
        piece = bytearray(content[: rng.integers(1, 2000)])
        piece[rng.integers(len(piece))] = rng.integers(256)
        try:
            parse_example(bytes(piece))
        except BadRecord:
            continue
    with pytest.raises(BadRecord, match="no tf.train.Example"):
        parse_example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")


def test_a_length_beyond_the_file_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    head = struct.pack("<Q", 2**60)
    path.write_bytes(head + struct.pack("<I", masked_crc32c(head)) + bytes(50))
    assert list_records(path) == ([], "cut short at byte 62")
    with pytest.raises(BadRecord, match="is cut short"):
        read_record(path, Place(12, 51))
    assert tfrecord._LANE == 1024
