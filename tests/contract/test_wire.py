"""The codec: openpi-client's recorded bytes, round trips, and what a hostile message meets."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import hypothesis.extra.numpy as arrays_of
import msgpack
import numpy as np
import openpi_messages
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspec.contract.wire import WireError, WireLimits, pack, unpack

MESSAGES = openpi_messages.messages()
ARRAY = {b"__ndarray__": True, b"data": b"\0" * 12, b"dtype": "<f4", b"shape": [3]}
SCALAR = {b"__npgeneric__": True, b"data": 1, b"dtype": "<i4"}


def same(left: Any, right: Any) -> bool:
    """Equal in value, type and shape, NaN being equal to itself."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return (
            isinstance(left, np.ndarray)
            and isinstance(right, np.ndarray)
            and left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
        )
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    return bool(left == right or (left != left and right != right))


@pytest.mark.parametrize("name", MESSAGES)
def test_recorded_messages_of_openpi_are_read(name: str) -> None:
    recorded = (openpi_messages.RECORDED / f"{name}.msgpack").read_bytes()
    assert same(MESSAGES[name], unpack(recorded))


@pytest.mark.parametrize("name", MESSAGES)
def test_our_bytes_are_those_of_openpi(name: str) -> None:
    recorded = (openpi_messages.RECORDED / f"{name}.msgpack").read_bytes()
    assert pack(MESSAGES[name]) == recorded


def test_numpy_scalars_keep_their_type() -> None:
    read = unpack((openpi_messages.RECORDED / "scalars.msgpack").read_bytes())
    assert type(read["float32"]) is np.float32
    assert type(read["int8"]) is np.int8
    assert type(read["bool"]) is np.bool_


numbers = st.one_of(
    arrays_of.arrays(
        dtype=st.one_of(
            arrays_of.boolean_dtypes(),
            arrays_of.integer_dtypes(endianness="<"),
            arrays_of.unsigned_integer_dtypes(endianness=">"),
            arrays_of.floating_dtypes(endianness="<"),
        ),
        shape=arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    # numpy cannot tell a trailing NUL from padding
    arrays_of.arrays(
        dtype="<U5", shape=3, elements=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
    ),
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=20), st.binary(), numbers
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(trees)
def test_whatever_is_packed_comes_back(message: Any) -> None:
    assert same(message, unpack(pack(message), WireLimits(max_depth=20)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    try:
        unpack(data)
    except WireError as error:
        assert str(error).isascii()
        assert "\n" not in str(error)


def test_mutated_messages_are_a_message_or_a_wire_error() -> None:
    generator = random.Random(0)
    valid = [pack(message) for message in MESSAGES.values()]
    refused = 0
    for _ in range(4000):
        data = bytearray(generator.choice(valid))
        for _ in range(generator.randint(1, 6)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        del data[len(data) - generator.choice((0, 0, 0, generator.randrange(len(data)))) :]
        try:
            unpack(bytes(data))
        except WireError:
            refused += 1
    assert refused > 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"shape": [4]}, "wants 16 bytes, got 12"),
        ({b"shape": [2]}, "wants 8 bytes, got 12"),
        ({b"shape": [-3]}, "sizes"),
        ({b"shape": [3.0]}, "sizes"),
        ({b"shape": [True, 3]}, "sizes"),
        ({b"shape": 3}, "sizes"),
        ({b"shape": [2**62, 0]}, "elements are allowed"),
        ({b"shape": [2**32, 2**32]}, "elements are allowed"),
        ({b"shape": [1] * 9 + [3]}, "dimensions"),
        ({b"dtype": "|O"}, "not allowed"),
        ({b"dtype": "O"}, "not allowed"),
        ({b"dtype": "|V4"}, "not allowed"),
        ({b"dtype": "<c8"}, "not allowed"),
        ({b"dtype": "<M8[s]"}, "not allowed"),
        ({b"dtype": "f4,f4"}, "not allowed"),
        ({b"dtype": "<f16"}, "not allowed"),
        ({b"dtype": "<U0"}, "not allowed"),
        ({b"dtype": "<f4\n"}, "not allowed"),
        ({b"dtype": 4}, "not allowed"),
        ({b"dtype": ["<f4"]}, "not allowed"),
        ({b"data": "0" * 12}, "wants bytes, got str"),
        ({b"data": [0] * 12}, "wants bytes, got list"),
        ({b"more": 1}, "exactly the keys"),
        ({b"dtype": "<U3", b"shape": [1], b"data": b"\xff" * 12}, "no Unicode"),
        ({b"dtype": "<U3", b"shape": [1], b"data": b"\x00\xd8\x00\x00" * 3}, "no Unicode"),
        ({b"dtype": "|b1", b"shape": [12], b"data": b"\x02" * 12}, "truth values"),
    ],
)
def test_broken_arrays_are_refused(change: dict[bytes, Any], message: str) -> None:
    assert unpack(msgpack.packb(ARRAY)).shape == (3,)
    with pytest.raises(WireError, match=message):
        unpack(msgpack.packb({**ARRAY, **change}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": "1"}, "cannot be of str"),
        ({b"data": 1.0}, "cannot be of float"),
        ({b"data": True}, "cannot be of bool"),
        ({b"data": 2**40}, "scalar of type <i4"),
        ({b"data": [1]}, "cannot be of list"),
        ({b"dtype": "|O"}, "not allowed"),
        ({b"more": 1}, "exactly the keys"),
    ],
)
def test_broken_scalars_are_refused(change: dict[bytes, Any], message: str) -> None:
    assert unpack(msgpack.packb(SCALAR)) == 1
    with pytest.raises(WireError, match=message):
        unpack(msgpack.packb({**SCALAR, **change}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no message"),
        (b"\xc1", "no message"),
        (b"\x93\x01", "no message"),
        (msgpack.packb(1) + b"\x01", "extra data"),
        (b"\x91" * 9 + b"\xc0", "inside each other"),
        (b"\x91" * 100_000 + b"\xc0", "no message"),
        (b"\xdd\x7f\xff\xff\xff" + b"\xc0" * 10, "no message"),
        (b"\xdf\x7f\xff\xff\xff" + b"\xc0" * 10, "no message"),
        (b"\xc6\x7f\xff\xff\xff" + b"\xc0" * 10, "no message"),
        (b"\xdb\x7f\xff\xff\xff" + b"a" * 10, "no message"),
        (b"\xd4\x05a", "no message"),
        (b"\xd6\xff\x00\x00\x00\x00", "no message"),
        (b"\xc7\x00\x05", "extension"),
        (b"\xa2\xff\xfe", "no message"),
        (b"\x81\x01\x02", "no message"),
        (b"\x81\x90\x02", "no message"),
        (msgpack.packb("a" * 2**17), "no message"),
        (msgpack.packb([[]] * 600 + [{}] * 600), "no message|entries"),
        (msgpack.packb([[0] * 900, [0] * 900]), "more than 1024 entries"),
        (msgpack.packb([ARRAY] * 65), "more than 64 arrays"),
        (b"\0" * (16 * 2**20 + 1), "at most 16777216"),
    ],
)
def test_broken_messages_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        unpack(data)


def test_depth_counts_maps_and_lists() -> None:
    assert unpack(b"\x91" * 8 + b"\xc0") == [[[[[[[[None]]]]]]]]


@pytest.mark.parametrize("value", [{1, 2}, np.array([object()]), np.zeros(2, "c8"), np.datetime64("now"), 2**70, 1j])
def test_what_cannot_be_sent_is_refused(value: Any) -> None:
    with pytest.raises(WireError, match="cannot be sent"):
        pack({"x": value})


def test_a_list_in_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(WireError):
        pack(loop)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdc\x03\xff" + b"\x80" * 2**21,  # two million empty maps would take 130 MB
        (b"\xdc\x03\xff" + b"\xc0" * 1022) * 800,
        b"\xdc\x03\xff" * 1000 + b"\xc0" * 2**21,
        (b"\xdc\x04\x00" + b"\x80" * 1023) * 500 + b"\xc0",  # half a million maps before the first list is whole
        msgpack.packb({**ARRAY, b"shape": [2**22]}),
    ],
)
def test_a_bomb_takes_no_memory(bomb: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(WireError):
        unpack(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_nothing_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    for name in ("load", "loads"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
    data = pickle.dumps(Trap())
    for message in ({**ARRAY, b"dtype": "|O", b"data": data}, {b"nd": True, b"type": b"O", b"data": data}):
        try:
            assert unpack(msgpack.packb(message)) == message  # another codec's map is a map
        except WireError as error:
            assert "not allowed" in str(error)


def test_arrays_share_no_writable_memory_with_the_message() -> None:
    array = unpack(pack({"x": np.arange(3)}))["x"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
