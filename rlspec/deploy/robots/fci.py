"""Versions of both sides of Franka's control interface (FCI), found out before anything moves."""

from __future__ import annotations

import socket
import struct
import threading
import time
from importlib import metadata
from typing import Any

from rlspec.config.extras import install
from rlspec.errors import RobotError

PORT = 1337
_CONNECT = struct.Struct(
    "<IIIHH"
)  # command, id, size; version and UDP port in the request, status and version in the reply
_CURRENT = 10  # robot server of system 5.9
_LAST_FER = 5  # robot servers up to this one belong to the FER (Panda), later ones to the FR3


def import_franky() -> Any:
    """The driver; RobotError with the remedy where it is not installed."""
    try:
        import franky
    except ImportError as error:
        if error.name not in ("franky", "franky._franky"):
            raise RobotError(f"franky cannot be imported ({error}); reinstall franky-control") from None
        raise RobotError(f"the Franka driver is not installed; {install('franka')}") from None
    return franky


def server_version(host: str, timeout: float = 2.0) -> int:
    """Ask a robot for the version of its server; nothing moves, and the connection is closed again.

    Raises:
        RobotError: It cannot be reached, or is in use by another client.
    """
    try:
        with (
            socket.create_connection((host, PORT), timeout) as connection,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as states,
        ):
            states.bind(("", 0))
            connection.sendall(_CONNECT.pack(0, 1, _CONNECT.size, _CURRENT, states.getsockname()[1]))
            reply = b""
            while len(reply) < _CONNECT.size:
                if not (part := connection.recv(_CONNECT.size - len(reply))):
                    raise RobotError(f"{host} closed the connection: is another client in control of it?")
                reply += part
    except TimeoutError:
        raise RobotError(f"{host} does not answer within {timeout:g} s; {_UNLOCK}") from None
    except OSError as error:
        raise RobotError(f"{host} cannot be reached ({error.strerror or error}); {_UNLOCK}") from None
    return int(_CONNECT.unpack(reply)[4])


_UNLOCK = "check the cable and the address, and that Desk shows the brakes open and FCI activated"


def driver_versions() -> tuple[str, int]:
    """Version of franky-control, and the robot server that its libfranka speaks to.

    The driver does not tell, but says it in its greeting: so it is given a robot to greet, on a loopback address.
    """
    franky = import_franky()
    heard: list[int] = []
    host = "127.113.37.1"
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, PORT))
        except OSError as error:
            raise RobotError(
                f"port {PORT} of {host} is taken ({error.strerror}); end the program that uses it"
            ) from None
        listener.listen(1)
        listener.settimeout(5.0)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                request = connection.recv(_CONNECT.size)
                heard.append(_CONNECT.unpack(request)[3])
                reply = _CONNECT.pack(0, _CONNECT.unpack(request)[1], _CONNECT.size + 4, 1, 0) + bytes(4)
                connection.sendall(reply)
                time.sleep(0.02)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            franky.Robot(host, realtime_config=franky.RealtimeConfig.Ignore)
        except franky.IncompatibleVersionException:
            thread.join(5.0)
    return metadata.version("franky-control"), heard[0]


def check_model(wanted: str, version: int, host: str) -> None:
    """Refuse where the robot's server belongs to another model than `wanted` (a key of robot_limits.LIMITS)."""
    found = "fer" if version <= _LAST_FER else "fr3"
    if (wanted == "fer") != (found == "fer"):
        names = {"fer": "robot=franka_panda", "fr3": "robot=franka_fr3"}
        raise RobotError(f"{host} is a {found} (robot server {version}), not a {wanted}; use {names[found]}")
