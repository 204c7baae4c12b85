"""TFRecord files and tf.train.Example messages, read without TensorFlow.

A record is its length (8 bytes), a checksum of the length (4), its content and a checksum of the content (4), all
little endian; the checksum is CRC-32C, rotated and shifted ("masked"). A message maps names to lists of bytes, of
floats or of integers (tensorflow/core/example/example.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_LANE = 1024  # bytes that are worked off one after the other, all lanes at once
_HEAD, _TAIL = 12, 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf

Feature = list[memoryview] | NDArray[np.float32] | NDArray[np.int64]


class BadRecord(ValueError):
    """A file or a message is cut short, or was changed."""


@dataclass(frozen=True)
class Place:
    """Where the content of a record is in its file."""

    offset: int
    length: int


def list_records(path: Path) -> tuple[list[Place], str]:
    """The records of a file by their heads alone.

    Returns:
        Their places, and what is wrong with the file after the last of them; empty where nothing is.
    """
    size, places, offset = path.stat().st_size, list[Place](), 0
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            head = file.read(_HEAD)
            if len(head) < _HEAD:
                return places, f"cut short at byte {size}"
            length, checksum = struct.unpack("<QI", head)
            if masked_crc32c(head[:8]) != checksum:
                return places, f"damaged at byte {offset}"
            if offset + _HEAD + length + _TAIL > size:
                return places, f"cut short at byte {size}"
            places.append(Place(offset + _HEAD, length))
            offset += _HEAD + length + _TAIL
    return places, ""


def read_record(path: Path, place: Place) -> bytes:
    """The content of a record.

    Raises:
        BadRecord: It is not what was written.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(place.offset)
        content, tail = file.read(place.length), file.read(_TAIL)
    if len(content) < place.length or len(tail) < _TAIL:
        raise BadRecord(f"the record at byte {place.offset} is cut short")
    if masked_crc32c(content) != struct.unpack("<I", tail)[0]:
        raise BadRecord(f"the checksum of the record at byte {place.offset} is wrong")
    return content


def masked_crc32c(data: bytes) -> int:
    """The checksum that TFRecord files hold."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C, in lanes of numpy: about as fast as reading from a disk.

    The checksum without its first and last inversion is linear, so lanes are worked off from zero and put together by
    what many zero bytes do to a checksum.
    """
    if len(data) < 4:
        return _crc32c_bytes(data)
    content = np.frombuffer(data, dtype=np.uint8)
    lanes = -(-len(content) // _LANE)
    padded = np.zeros(lanes * _LANE, dtype=np.uint8)
    padded[-len(content) :] = content  # zeros in front change nothing
    start = len(padded) - len(content)
    padded[start : start + 4] ^= 0xFF  # the first inversion
    columns = np.ascontiguousarray(padded.reshape(lanes, _LANE).T)
    table = _table()
    state: NDArray[np.uint32] = np.zeros(lanes, dtype=np.uint32)
    for column in columns:
        state = table[(state ^ column) & 0xFF] ^ (state >> np.uint32(8))
    return int(_joined(state)) ^ 0xFFFFFFFF


def _joined(state: NDArray[np.uint32]) -> np.uint32:
    """The checksum of all lanes, two by two."""
    shift = _lane_shift()
    while len(state) > 1:
        if len(state) % 2:
            state = np.concatenate([np.zeros(1, dtype=np.uint32), state])
        state = _apply(shift, state[::2]) ^ state[1::2]
        shift = _apply(shift, shift)
    return np.uint32(state[0])


def _apply(columns: NDArray[np.uint32], values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A linear map, given by what it makes of the 32 bits, on (n,) values."""
    result = np.zeros_like(values)
    for bit, column in enumerate(columns):
        result ^= np.where((values >> np.uint32(bit)) & 1, column, np.uint32(0))
    return result


@cache
def _lane_shift() -> NDArray[np.uint32]:
    """What a lane of zero bytes does to a checksum."""
    table = _table()
    state: NDArray[np.uint32] = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(_LANE):
        state = table[state & 0xFF] ^ (state >> np.uint32(8))
    return state


@cache
def _table() -> NDArray[np.uint32]:
    values: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> np.uint32(1)) ^ np.uint32(_POLYNOMIAL), values >> np.uint32(1))
    return values


def _crc32c_bytes(data: bytes) -> int:
    crc, table = 0xFFFFFFFF, _table()
    for byte in data:
        crc = int(table[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def parse_example(content: bytes) -> dict[str, Feature]:
    """A tf.train.Example: name -> its values; pieces of bytes are views of `content`.

    Raises:
        BadRecord: It is none.
    """
    features: dict[str, Feature] = {}
    try:
        for number, message in _fields(memoryview(content)):
            if number == 1:
                for _, entry in _fields(message):
                    name, feature = _entry(entry)
                    features[name] = feature
    except (IndexError, ValueError, struct.error, TypeError) as error:
        raise BadRecord(f"no tf.train.Example ({error})") from None
    return features


def _entry(entry: memoryview) -> tuple[str, Feature]:
    name, feature = "", list[memoryview]()
    result: Feature = feature
    for number, value in _fields(entry):
        if number == 1:
            name = bytes(value).decode()
        elif number == 2:
            for kind, values in _fields(value):
                result = _values(kind, values)
    return name, result


def _values(kind: int, message: memoryview) -> Feature:
    """Field 1 of a BytesList (1), a FloatList (2) or an Int64List (3)."""
    if kind == 1:
        return [value for _, value in _fields(message)]
    parts = [value for _, value in _fields(message)]
    if kind == 2:
        floats: NDArray[np.float32] = np.frombuffer(b"".join(parts), dtype="<f4")
        return floats
    numbers: list[int] = []
    for part in parts:
        position = 0
        while position < len(part):
            number, position = _varint(part, position)
            numbers.append(number - (1 << 64) if number >> 63 else number)
    return np.array(numbers, dtype=np.int64)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and content of each field, as views; a varint is given as it is written."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind, start = key & 7, position
        if kind == _BYTES:
            length, start = _varint(message, position)
            position = start + length
        elif kind == _VARINT:
            _, position = _varint(message, position)
        elif kind in (_FIXED32, _FIXED64):
            position += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if position > len(message):
            raise ValueError("cut short")
        yield key >> 3, message[start:position]


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of seven bits per byte, and where the next thing begins."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError("a number without an end")
