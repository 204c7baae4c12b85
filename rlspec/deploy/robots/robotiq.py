"""Robotiq's 2F-85 (DROID's hand) over Modbus RTU, in a thread of its own: the arm never waits for it.

Registers are those of Robotiq's manual of the 2F-85, chapter "Control": three words to write from 0x03E8 (action,
position, speed and force), three to read from 0x07D0 (status, fault and echo, position and current). Numbers are bytes:
position 0 open to 255 closed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlspec.config.extras import install
from rlspec.deploy.robots.gripper_thread import PERIOD, GripperThread
from rlspec.errors import RobotError

DEVICE, BAUD = 9, 115200  # as delivered
WRITE_AT, READ_AT, WORDS = 0x03E8, 0x07D0, 3
ACTIVATE, GO_TO = 0x01, 0x08  # bits rACT and rGTO of the first byte written; gACT and gGTO of the first one read
READY = 3  # gSTA
DROID_STROKE = (13, 230)
"""Positions that DROID's recordings call open and closed (polymetis): what its policies mean by 0 and 1."""
DROID_SPEED, DROID_FORCE = 0.42, 0.0
"""What DROID asks of the hand (50 mm/s, and no force beyond the least), as shares of what it can."""

FAULTS = {  # gFLT; below 0x08 of priority: they only say what is missing
    0x05: "it waits for its activation",
    0x07: "it is not activated",
    0x08: "it is too hot; let it cool down",
    0x0A: "its supply is below the minimum; check its 24 V",
    0x0B: "it releases by itself",
    0x0C: "an internal fault; power it off and on",
    0x0D: "its activation failed; free its fingers",
    0x0E: "its current was too high; power it off and on",
    0x0F: "it has released by itself; power it off and on",
}
_QUIET = 0x09  # nobody spoke to it for a second: it says so once more, after we speak again

_TIMEOUT = 0.1  # seconds for an answer; one takes 4 ms
_RETRIES = 2  # of a message: one that is lost is no lost cable
_ACTIVATION = 10.0  # seconds; it opens and closes once
_CHECK = "check its cable, its 24 V and robot.gripper_port (`ls /dev/serial/by-id`; you must be in the group dialout)"


@dataclass(frozen=True)
class RobotiqStatus:
    """What the hand says.

    Attributes:
        activated: It was activated since it got power.
        ready: That is over.
        moving: Towards a position.
        object: It was stopped by something between its fingers (or around them, while it opened).
        fault: gFLT; 0: none.
        position: 0 to 255.
        current: Amperes.
    """

    activated: bool
    ready: bool
    moving: bool
    object: bool
    fault: int
    position: int
    current: float

    @classmethod
    def of(cls, words: Sequence[int]) -> RobotiqStatus:
        """From the three words at `READ_AT`."""
        first, fault, position, current = words[0] >> 8, words[1] >> 8 & 0x0F, words[2] >> 8, words[2] & 0xFF
        seen = first >> 6
        return cls(
            activated=bool(first & ACTIVATE),
            ready=first >> 4 & 0x03 == READY,
            moving=bool(first & GO_TO) and seen == 0,
            object=seen in (1, 2),
            fault=fault,
            position=position,
            current=0.01 * current,
        )

    @property
    def problem(self) -> str:
        """Why the hand does not do what it is told; empty: it does."""
        if self.fault and self.fault != _QUIET:
            return FAULTS.get(self.fault, f"fault 0x{self.fault:02X}")
        return "" if self.activated and self.ready else "it has lost its activation: its supply was interrupted"


class RobotiqBus:
    """The hand's registers behind a serial port.

    Args:
        port: Device file, or an address that pyserial opens (socket://HOST:PORT of a serial server).
    """

    def __init__(self, port: str) -> None:
        try:
            from pymodbus.client import ModbusSerialClient
            from pymodbus.exceptions import ModbusException
        except ImportError:
            raise RobotError(f"robot.gripper=robotiq: pymodbus is missing; {install('robotiq')}") from None
        logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)  # what fails is told by us
        self.port = port
        self._failures = (ModbusException, OSError)
        try:
            self._client: Any = ModbusSerialClient(port, baudrate=BAUD, timeout=_TIMEOUT, retries=_RETRIES)
        except RuntimeError:
            raise RobotError(f"robot.gripper=robotiq: pyserial is missing; {install('robotiq')}") from None

    def read(self) -> RobotiqStatus:
        """What the hand says.

        Raises:
            RobotError: It does not answer.
        """
        return RobotiqStatus.of(self._ask("read_holding_registers", READ_AT, count=WORDS).registers)

    def write(self, action: int, position: int = 0, speed: int = 0, force: int = 0) -> None:
        """Set all that can be set at once; each is a byte.

        Raises:
            RobotError: It does not answer.
        """
        self._ask("write_registers", WRITE_AT, [action << 8, position, speed << 8 | force])

    def close(self) -> None:
        """Free the port."""
        self._client.close()

    def _ask(self, what: str, *given: Any, **more: Any) -> Any:
        try:
            if not self._client.connect():
                raise RobotError(f"no Robotiq hand at {self.port}: the port cannot be opened; {_CHECK}")
            answer = getattr(self._client, what)(*given, device_id=DEVICE, **more)
        except self._failures as error:
            self._client.close()  # the next look opens it anew: a USB adapter that comes back is another device
            reason = " ".join(str(error).split())
            raise RobotError(f"the Robotiq hand at {self.port} does not answer ({reason}); {_CHECK}") from None
        if answer.isError():
            raise RobotError(f"the Robotiq hand at {self.port} refuses a message ({answer}); is it a 2F-85?")
        return answer


def activate(bus: RobotiqBus, patience: float = _ACTIVATION) -> RobotiqStatus:
    """Make the hand ready; it opens and closes, unless it is ready already.

    A hand after an emergency stop or a fault wants its activation withdrawn before it can be given anew.

    Raises:
        RobotError: It does not answer, or does not become ready.
    """
    status = bus.read()
    if not status.problem:
        return status
    bus.write(0)
    end = time.monotonic() + patience
    while (status := bus.read()).activated and time.monotonic() < end:
        time.sleep(PERIOD)
    bus.write(ACTIVATE)
    while not (status := bus.read()).ready and time.monotonic() < end:
        time.sleep(PERIOD)
    if status.problem:
        raise RobotError(f"the Robotiq hand at {bus.port} is not ready: {status.problem}")
    return status


class RobotiqGripperLane(GripperThread):
    """Sends the newest closure to the hand and knows the measured one.

    Args:
        bus: Of the hand.
        stroke: Positions that count as open (closure 0) and closed (closure 1); None: measured by opening and closing
            the hand once, which must be empty.
        speed: 0 to 1 of its 20 to 150 mm/s.
        force: 0 to 1 of its 20 to 235 N.
        read_only: Only look: neither activate nor move.
    """

    def __init__(
        self,
        bus: RobotiqBus,
        stroke: tuple[int, int] | None = DROID_STROKE,
        *,
        speed: float = DROID_SPEED,
        force: float = DROID_FORCE,
        read_only: bool = False,
    ) -> None:
        self._bus = bus
        self._speed, self._force = round(255 * speed), round(255 * force)
        if not read_only:
            activate(bus)
        self.stroke = stroke or (DROID_STROKE if read_only else self._measured_stroke())
        self.status = bus.read()
        self.closure = self._closure_at(self.status.position)
        self._sent: tuple[float] | None = None
        super().__init__()

    def close(self, patience: float = 0.5) -> None:
        """As the parent; the cable is free afterwards."""
        super().close(patience)
        self._bus.close()

    def _closure_at(self, position: int) -> float:
        opened, closed = self.stroke
        return min(max((position - opened) / (closed - opened), 0.0), 1.0)

    def _go_to(self, position: int) -> None:
        self._bus.write(ACTIVATE | GO_TO, min(max(position, 0), 255), self._speed, self._force)

    def _measured_stroke(self) -> tuple[int, int]:
        ends = []
        for position in (0, 255):
            self._go_to(position)
            end = time.monotonic() + _ACTIVATION
            time.sleep(PERIOD)  # until it shows that it moves
            while (status := self._bus.read()).moving and time.monotonic() < end:
                time.sleep(PERIOD)
            ends.append(status.position)
        self._go_to(0)
        if ends[1] - ends[0] < 128:
            raise RobotError(
                f"the Robotiq hand at {self._bus.port} closes from {ends[0]} to {ends[1]} of 255 only: empty it, or "
                "give robot.gripper_stroke=[OPEN,CLOSED]"
            )
        return ends[0], ends[1]

    def work(self, order: tuple[float] | None) -> None:
        """As the parent."""
        try:
            if order is not None and order is not self._sent:
                opened, closed = self.stroke
                self._go_to(self._target(order[0], opened, closed))
                self._sent = order
            self.status = self._bus.read()
            self.closure = self._closure_at(self.status.position)
            self.error = self.status.problem and f"gripper: {self.status.problem}"
        except RobotError as error:  # the arm goes on without its hand until the loop has seen this
            self.error = f"gripper: {error}"
            time.sleep(PERIOD)

    @staticmethod
    def _target(closure: float, opened: int, closed: int) -> int:
        """The position to ask for: a closed hand goes on to the end, so that it presses on what is thin."""
        if closure in (0.0, 1.0):
            return 255 * int(closure)
        return round(opened + closure * (closed - opened))
