"""Length-prefixed JSON over pipes: four bytes of length (big endian), then ASCII JSON."""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any

_HEADER = struct.Struct(">I")
_READ = 1 << 16


class ChannelClosed(OSError):
    """The other side is gone, or wrote something that is no frame."""


class ChannelTimeout(OSError):
    """The other side did not answer in time."""


def pack(message: Any) -> bytes:
    """A message as one frame; lone surrogates survive."""
    body = json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return _HEADER.pack(len(body)) + body


class Channel:
    """Frames over a pair of non-blocking file descriptors, with deadlines (`time.monotonic`, None: forever)."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self._buffer = bytearray()
        os.set_blocking(incoming, False)
        os.set_blocking(outgoing, False)

    def send(self, message: Any, deadline: float | None = None) -> None:
        """Write a whole frame.

        Raises:
            ChannelClosed: nobody reads any more.
            ChannelTimeout: the deadline passed.
        """
        data = memoryview(pack(message))
        while data:
            try:
                data = data[os.write(self.outgoing, data) :]
            except BlockingIOError:
                _wait([], [self.outgoing], deadline)
            except OSError as error:
                raise ChannelClosed(str(error)) from error

    def receive(self, deadline: float | None = None) -> Any:
        """Read one frame; raises as `send` does."""
        while (message := self._take()) is None:
            try:
                data = os.read(self.incoming, _READ)
            except BlockingIOError:
                _wait([self.incoming], [], deadline)
                continue
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not data:
                raise ChannelClosed("end of file")
            self._buffer += data
        return message[0]

    def _take(self) -> tuple[Any] | None:
        if len(self._buffer) < _HEADER.size:
            return None
        end = _HEADER.size + _HEADER.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        try:
            return (json.loads(body),)
        except ValueError as error:
            raise ChannelClosed("not a frame") from error


def _wait(reading: list[int], writing: list[int], deadline: float | None) -> None:
    remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
    poll = select.poll()  # unlike select.select it has no limit on the number of a descriptor
    for descriptor in reading:
        poll.register(descriptor, select.POLLIN)
    for descriptor in writing:
        poll.register(descriptor, select.POLLOUT)
    if not poll.poll(None if remaining is None else remaining * 1000):
        raise ChannelTimeout("no answer in time")
