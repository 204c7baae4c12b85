"""Messages between a robot and a policy server: msgpack with NumPy arrays, as openpi-client 0.1.2 writes them.

An array is a map of `__ndarray__`, `data` (its bytes, C order), `dtype` (NumPy's short name) and `shape`, a NumPy
scalar one of `__npgeneric__`, `data` (a plain number) and `dtype`; the keys are bytes. Nothing is ever unpickled. What
comes in is bounded before it is built: a hostile message costs its sender an error and the reader next to nothing.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

_ARRAY, _SCALAR, _DATA, _DTYPE, _SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
_ALLOWED = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,4})")
_SCALARS: dict[str, tuple[type, ...]] = {
    "b": (bool,),
    "i": (int,),
    "u": (int,),
    "f": (int, float),
    "S": (bytes,),
    "U": (str,),
}
_LAST_CODE_POINT = 0x10FFFF


class WireError(ValueError):
    """A message that cannot be read or written; one line, safe to show."""


@dataclass(frozen=True)
class WireLimits:
    """What a message may hold.

    Attributes:
        max_bytes: Of the whole message.
        max_depth: Maps and lists inside each other; an array counts as one.
        max_items: Entries of all maps and lists together.
        max_arrays: Arrays and NumPy scalars.
        max_elements: Of one array.
        max_dims: Of one array.
        max_text: Bytes of one text.
    """

    max_bytes: int = 16 * 2**20
    max_depth: int = 8
    max_items: int = 1024
    max_arrays: int = 64
    max_elements: int = 2**24
    max_dims: int = 8
    max_text: int = 2**16


DEFAULT_LIMITS = WireLimits()


def pack(message: Any) -> bytes:
    """Encode maps, lists, texts, bytes, numbers, arrays and NumPy scalars.

    Raises:
        WireError: Something else is in it, or an array of objects, structures, complex numbers or dates.
    """
    try:
        packed: bytes = msgpack.packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"cannot be sent: {_line(error)}") from error
    return packed


def unpack(data: bytes, limits: WireLimits = DEFAULT_LIMITS) -> Any:
    """Decode a message; arrays are read-only views of `data`'s parts.

    Raises:
        WireError: It is no message, or one beyond the limits; the text says what was found and what is allowed.
    """
    if len(data) > limits.max_bytes:
        raise WireError(f"message of {len(data)} bytes; at most {limits.max_bytes} are allowed")
    reader = _Reader(limits)
    try:
        message = msgpack.unpackb(
            data,
            object_hook=reader.read_map,
            list_hook=reader.read_list,
            ext_hook=_refuse_extension,
            max_str_len=limits.max_text,
            max_bin_len=limits.max_bytes,
            max_array_len=limits.max_items,
            max_map_len=limits.max_items,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"no message of msgpack: {_line(error)}") from error
    _check_depth(message, limits.max_depth)
    return message


def _encode(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise WireError(f"cannot be sent: a value of type {type(value).__name__}")
    if not _ALLOWED.fullmatch(value.dtype.str):
        raise WireError(f"cannot be sent: an array of type {value.dtype}")
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: value.dtype.str, _SHAPE: value.shape}
    return {_SCALAR: True, _DATA: value.item(), _DTYPE: value.dtype.str}


class _Reader:
    """Builds maps and lists of one message and counts what is in it."""

    def __init__(self, limits: WireLimits) -> None:
        self.limits = limits
        self.items = 0
        self.arrays = 0

    def read_map(self, entries: dict[Any, Any]) -> Any:
        self._count(len(entries))
        if _ARRAY in entries:
            self._count_array()
            return _read_array(entries, self.limits)
        if _SCALAR in entries:
            self._count_array()
            return _read_scalar(entries)
        return entries

    def read_list(self, values: list[Any]) -> list[Any]:
        self._count(len(values))
        return values

    def _count(self, entries: int) -> None:
        # An empty map is one byte on the wire and 64 in memory: it counts as well.
        self.items += 1 + entries
        if self.items > self.limits.max_items:
            raise WireError(f"more than {self.limits.max_items} entries in maps and lists")

    def _count_array(self) -> None:
        self.arrays += 1
        if self.arrays > self.limits.max_arrays:
            raise WireError(f"more than {self.limits.max_arrays} arrays")


def _read_array(entries: dict[Any, Any], limits: WireLimits) -> np.ndarray:
    if entries.keys() != {_ARRAY, _DATA, _DTYPE, _SHAPE}:
        raise WireError("an array wants exactly the keys __ndarray__, data, dtype and shape")
    data, dtype = entries[_DATA], _read_dtype(entries[_DTYPE])
    shape = _read_shape(entries[_SHAPE], limits)
    if not isinstance(data, bytes):
        raise WireError(f"data of an array wants bytes, got {type(data).__name__}")
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise WireError(f"an array of shape {shape} and type {dtype.str} wants {wanted} bytes, got {len(data)}")
    array: np.ndarray = np.ndarray(shape, dtype, buffer=data)
    _check_content(array, data)
    return array


def _read_dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or not _ALLOWED.fullmatch(name):
        raise WireError(f"type of an array: {_shown(name)} is not allowed; send numbers, truth values or texts")
    return np.dtype(name)


def _read_shape(shape: Any, limits: WireLimits) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise WireError(f"shape of an array: {_shown(shape)}; it wants a list of sizes")
    if len(shape) > limits.max_dims:
        raise WireError(f"an array of {len(shape)} dimensions; at most {limits.max_dims} are allowed")
    # Each size by itself as well: NumPy refuses (2**62, 0) by an error of its own.
    if max(shape, default=0) > limits.max_elements or math.prod(shape) > limits.max_elements:
        raise WireError(f"an array of shape {tuple(shape)}; at most {limits.max_elements} elements are allowed")
    return tuple(shape)


def _check_content(array: np.ndarray, data: bytes) -> None:
    """Refuse bytes that are no value of the type: NumPy would fail later, or differ from Python on what is true."""
    if array.dtype.kind == "U" and array.size:
        points = np.frombuffer(data, array.dtype.str[0] + "u4")
        if points.max() > _LAST_CODE_POINT or ((points >= 0xD800) & (points <= 0xDFFF)).any():
            raise WireError("an array of texts holds no Unicode")
    if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise WireError("an array of truth values holds other numbers than 0 and 1")


def _read_scalar(entries: dict[Any, Any]) -> np.generic:
    if entries.keys() != {_SCALAR, _DATA, _DTYPE}:
        raise WireError("a NumPy scalar wants exactly the keys __npgeneric__, data and dtype")
    dtype, value = _read_dtype(entries[_DTYPE]), entries[_DATA]
    if type(value) not in _SCALARS[dtype.kind]:
        raise WireError(f"a NumPy scalar of type {dtype.str} cannot be of {type(value).__name__}")
    try:
        with np.errstate(over="ignore"):
            scalar: np.generic = dtype.type(value)
    except (OverflowError, ValueError) as error:
        raise WireError(f"a NumPy scalar of type {dtype.str}: {_line(error)}") from error
    return scalar


def _check_depth(message: Any, most: int) -> None:
    level, depth = [message], 0  # level by level: recursion would end in Python's own limit before ours
    while level := [value for value in level if isinstance(value, dict | list)]:
        depth += 1
        if depth > most:
            raise WireError(f"more than {most} maps and lists inside each other")
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]


def _refuse_extension(code: int, data: bytes) -> Any:
    raise WireError(f"msgpack's extension type {code} is not allowed")


def _shown(value: Any) -> str:
    """A foreign value in a message: plain ASCII, short."""
    text = ascii(value) if isinstance(value, str | bytes | int | list) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."


def _line(error: BaseException) -> str:
    text = " ".join(ascii(str(error))[1:-1].split())
    return text[:160] or type(error).__name__
