"""A 2F-85 at the other end of a serial line: Modbus RTU frames by the book, and the registers of Robotiq's manual."""

from __future__ import annotations

import os
import pty
import select
import struct
import threading
import tty
from collections.abc import Callable


def crc(data: bytes) -> bytes:
    """CRC-16 of Modbus, bit by bit, low byte first."""
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ 0xA001 if value & 1 else value >> 1
    return struct.pack("<H", value)


class RobotiqHand:
    """The simulated slave. Its fingers move by `pace` positions for every message that it gets.

    Attributes:
        port: Device file of the line.
        least, most: Positions in which its fingers end.
        block: Position at which something is between its fingers; None: nothing is.
        orders: (position, speed, force) as they were written with rACT and rGTO.
        activations: How often it was made ready.
        mute: Messages that it does not answer.
    """

    def __init__(self, *, least: int = 3, most: int = 228, pace: int = 60) -> None:
        self._ours, theirs = pty.openpty()
        tty.setraw(theirs)
        self._theirs = theirs
        self.port = os.ttyname(theirs)
        self.least, self.most, self.pace = least, most, pace
        self.block: int | None = None
        self.orders: list[tuple[int, int, int]] = []
        self.activations = self.mute = self.fault = 0
        self._active = self._going = False
        self._state, self._object, self._asked, self.position = 0, 0, 0, least
        self._steps = 0
        self.news = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def wait_for(self, true: Callable[[RobotiqHand], bool]) -> None:
        with self.news:
            assert self.news.wait_for(lambda: true(self), 20), vars(self)

    def lose_power(self) -> None:
        """It forgets that it was activated."""
        self._active, self._going, self._state = False, False, 0

    def unplug(self) -> None:
        """The device file is dead from now on."""
        self._ended = True
        self._thread.join(5)
        if self._ours >= 0:
            os.close(self._theirs)
            os.close(self._ours)
            self._ours = -1

    def _serve(self) -> None:
        heard = b""
        while not self._ended:
            if not select.select([self._ours], [], [], 0.02)[0]:
                continue
            heard += os.read(self._ours, 256)
            while (size := self._size(heard)) and len(heard) >= size:
                frame, heard = heard[:size], heard[size:]
                assert crc(frame[:-2]) == frame[-2:], frame.hex()
                assert frame[0] == 9, "another device is meant"
                with self.news:
                    self._advance()
                    answer = self._answer(frame[1], frame[2:-2])
                    self.news.notify_all()
                if self.mute:
                    self.mute -= 1
                    continue
                os.write(self._ours, answer + crc(answer))

    @staticmethod
    def _size(heard: bytes) -> int:
        if len(heard) < 7:
            return 0
        return 8 if heard[1] == 3 else 9 + heard[6]

    def _answer(self, function: int, body: bytes) -> bytes:
        address, count = struct.unpack(">HH", body[:4])
        if function == 3 and (address, count) == (2000, 3):
            return bytes([9, 3, 6]) + self._status()
        if function == 16 and (address, count) == (1000, 3):
            self._take(body[5:])
            return bytes([9, 16]) + body[:4]
        return bytes([9, function | 0x80, 2])  # illegal address

    def _status(self) -> bytes:
        first = int(self._active) | int(self._going) << 3 | self._state << 4 | self._object << 6
        current = 30 if self._going and self._object == 0 else 0
        return bytes([first, 0, self.fault, self._asked, self.position, current])

    def _take(self, data: bytes) -> None:
        action, _, _, position, speed, force = data
        if not action & 1:
            self.fault = 0
            self.lose_power()
            return
        if not self._active:
            self._active, self._state, self._steps = True, 1, 3
        if action & 8:
            if self._state != 3:
                self.fault = 0x07
                return
            self._going, self._asked, self._object = True, position, 0
            self.orders.append((position, speed, force))

    def _advance(self) -> None:
        if self._state == 1:
            self._steps -= 1
            if self._steps == 0:
                self._state = 3
                self.activations += 1
        if not self._going or self._state != 3:
            return
        goal = min(max(self._asked, self.least), self.most)
        if self.block is not None and self.position <= self.block < goal:
            goal = self.block
        way = min(max(goal - self.position, -self.pace), self.pace)
        self.position += way
        if way == 0:
            self._object = 2 if goal == self.block and self._asked > goal else 3
