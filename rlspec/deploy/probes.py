"""What a robot's computer must offer, one function each: the doctor lists them, a deployment may ask them.

Each returns an `ProbeResult` in a few seconds at most; nothing moves.
"""

from __future__ import annotations

import http.client
import platform
import resource
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from rlspec.contract.messages import GRIPPER, JOINTS, OPENPI_CAMERAS, PROMPT, terms_of
from rlspec.deploy.arm.kinematics import HOME
from rlspec.deploy.link import ANSWERS, LinkFigures, chunk_verdict, clock_words
from rlspec.deploy.policy.reach import START_PATIENCE, remedy_of
from rlspec.deploy.policy.sources import read_contract
from rlspec.deploy.robots.fci import check_model, driver_versions, import_franky, server_version
from rlspec.errors import ConfigError, RobotError, ServerError

_PRIORITY = 80  # that libfranka's thread asks for
_DESK = 443  # port of the robot's web interface; a refusal answers as well
_ROUND_TRIPS = 100
_MILLISECOND = 1e-3
_CAMERA_SECONDS = 1.5
_ANSWER_SECONDS = 10.0  # for an answer after the first one
_CPUS = Path("/sys/devices/system/cpu")
_KERNEL = Path("/sys/kernel/realtime")


class ProbeResult(NamedTuple):
    """Of a probe: `fail`: the robot cannot be used; `warn`: worse than it could be; and what to do."""

    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def driver() -> ProbeResult:
    """Version of franky, and of the robot server that it speaks to."""
    try:
        import_franky()
        version, server = driver_versions()
    except RobotError as error:
        return ProbeResult("fail", *_split(error))
    return ProbeResult("ok", f"franky-control {version} speaks to robot server {server}")


def robot_server(host: str, model: str) -> ProbeResult:
    """Whether the robot answers, is of the model, and of the version that the driver speaks to.

    Args:
        host: Address of the robot.
        model: "fr3" or "fer".
    """
    try:
        found = server_version(host)
        check_model(model, found, host)
        _, spoken = driver_versions()
    except RobotError as error:
        return ProbeResult("fail", *_split(error))
    if found != spoken:
        remedy = f"install the franky-control wheel for robot server {found}, or update the robot"
        return ProbeResult("fail", f"{host} has robot server {found}, the driver speaks to {spoken}", remedy)
    return ProbeResult("ok", f"{host}: robot server {found} ({model})")


def realtime_kernel() -> ProbeResult:
    """Whether the kernel is PREEMPT_RT."""
    version = f"{platform.release()} {platform.version()}"
    realtime = _KERNEL.is_file() and _KERNEL.read_text().strip() == "1"
    if realtime or "PREEMPT_RT" in version:
        return ProbeResult("ok", version)
    remedy = "boot a PREEMPT_RT kernel (Ubuntu: `sudo pro enable realtime-kernel`); without it, robot.realtime=false"
    return ProbeResult("warn", f"{version} is not PREEMPT_RT", f"{remedy} risks communication_constraints_violation")


def realtime_priority() -> ProbeResult:
    """Whether this user may run threads with real-time priority."""
    _, most = resource.getrlimit(resource.RLIMIT_RTPRIO)
    if most == resource.RLIM_INFINITY or most >= _PRIORITY:
        return ProbeResult("ok", "rtprio is unlimited" if most == resource.RLIM_INFINITY else f"rtprio up to {most}")
    remedy = "add `@realtime - rtprio 99` to /etc/security/limits.conf and yourself to the group realtime; log in anew"
    return ProbeResult("warn", f"rtprio up to {most}, {_PRIORITY} is needed", remedy)


def governor() -> ProbeResult:
    """Whether the processor's frequency is fixed."""
    found = {path.read_text().strip() for path in _CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    if not found:
        return ProbeResult("ok", "the processor's frequency is not scaled from here")
    if found == {"performance"}:
        return ProbeResult("ok", "performance")
    return ProbeResult("warn", ", ".join(sorted(found)), "`sudo cpupower frequency-set -g performance`")


def network(host: str) -> ProbeResult:
    """Round trips to the robot's computer, by opening TCP connections (to Desk: the robot itself is left alone)."""
    times = []
    for _ in range(_ROUND_TRIPS):
        began = time.perf_counter()
        try:
            socket.create_connection((host, _DESK), 1.0).close()
        except ConnectionRefusedError:
            pass
        except OSError as error:
            return ProbeResult(
                "fail", f"{host}: {error.strerror or error}", "check cable, address and netmask (ip addr)"
            )
        times.append(1000 * (time.perf_counter() - began))
        time.sleep(_MILLISECOND)
    middle, late = statistics.median(times), float(np.percentile(times, 95))
    detail = f"{host}: median {middle:.2f} ms, 95th percentile {late:.2f} ms, largest {max(times):.2f} ms"
    if late > 1.0:
        return ProbeResult(
            "warn", detail, "connect the robot's LAN port directly, without switch or Wi-Fi; stop other load"
        )
    return ProbeResult("ok", detail)


def simulator() -> ProbeResult:
    """Whether franky-sim runs, and as fast as time."""
    from rlspec.deploy.robots.franky_sim import SimulatorProcess

    try:
        process = SimulatorProcess()
    except RobotError as error:
        return ProbeResult("fail", *_split(error))
    try:
        time.sleep(1.0)
        record = process.record()
    finally:
        process.close()
    wall, simulated = record[-1, :2] - record[0, :2]
    detail = f"franky-sim runs at {simulated / wall:.2f} of real time, without a client"
    if simulated < 0.9 * wall:
        return ProbeResult("warn", detail, "end other programs: the simulated robot needs most of one processor core")
    return ProbeResult("ok", detail)


def cameras(descriptions: Sequence[str]) -> ProbeResult:
    """Rate and size of each camera; see `rlspec.deploy.robots.cameras.opener`."""
    from rlspec.deploy.robots.cameras import opener

    found = []
    for text in descriptions:
        try:
            found.append(f"{text}: {_camera_rate(opener(text))}")
        except (ConfigError, RobotError) as error:
            return ProbeResult("fail", *_split(error))
    return ProbeResult("ok", "; ".join(found))


def _camera_rate(open_camera: Callable[[], Any]) -> str:
    source = open_camera()
    try:
        height, width = source.read().shape[:2]
        began, count = time.monotonic(), 0
        while time.monotonic() < began + _CAMERA_SECONDS:
            source.read()
            count += 1
        return f"{width}x{height} at {count / (time.monotonic() - began):.1f} Hz"
    finally:
        source.close()


def policy_server(url: str, token: str | None = None) -> ProbeResult:
    """Health of a policy server, how long answers to a dark picture take, and whether its chunks outlast that.

    Args:
        url: ws://HOST:PORT or wss://HOST:PORT.
        token: What the server was started with.
    """
    from rlspec.deploy.policy.client import PolicyClient

    try:
        health, clock = _health(url)
        client = PolicyClient(url, token, timeout_s=START_PATIENCE)
        try:
            client.connect()
            question = _question(client.metadata)
            client.infer(question)  # the first one compiles and fills caches
            client.timeout_s = _ANSWER_SECONDS
            replies = [client.infer(question) for _ in range(ANSWERS)]
            contract = _contract(client.metadata, url)
        finally:
            client.close()
    except (ConfigError, ServerError) as error:
        return ProbeResult("fail", *_split(error))
    link = LinkFigures.of(replies)
    detail, remedy = f"{url}: {health}, {link.words()}", ""
    if contract is not None:
        control_hz, horizon, steps = contract
        suffices, words = chunk_verdict(link.slowest, control_hz, horizon, steps)
        detail += f"; {words}"
        remedy = "" if suffices else "a cable instead of Wi-Fi, a GPU, n_action_steps=, or a policy with longer chunks"
    if late := clock_words(clock, time.time()):
        detail, remedy = f"{detail}; {late}", remedy or "`timedatectl set-ntp true` on both computers"
    return ProbeResult("warn", detail, remedy) if remedy else ProbeResult("ok", detail)


def _contract(metadata: dict[str, Any], url: str) -> tuple[float, int, int] | None:
    """Rate, horizon and steps of a policy that says what it does; None: it does not."""
    try:
        contract = read_contract(metadata, url, action_space=None, rate=None)
    except ConfigError:
        return None
    return contract.control_hz, contract.horizon, contract.n_action_steps


def _health(url: str) -> tuple[str, float | None]:
    """In a word, and the server's clock in seconds since 1970 where it says the date."""
    parts = urlsplit(url if "//" in url else f"ws://{url}")
    kind = http.client.HTTPSConnection if parts.scheme == "wss" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=5.0)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        status, date = response.status, response.getheader("Date")
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"{url} cannot be reached ({error}); {remedy_of(url, error)}") from None
    finally:
        connection.close()
    if status != 200:
        raise ServerError(f"{url}/healthz answers {status}; look at the server's log")
    try:
        return "healthy", None if date is None else parsedate_to_datetime(date).timestamp()
    except ValueError:
        return "healthy", None


def _question(metadata: dict[str, Any]) -> dict[str, Any]:
    """A dark observation in the server's own keys; a server that does not name its cameras gets openpi's."""
    named: Mapping[str, Sequence[int]] = terms_of(metadata).get("cameras") or OPENPI_CAMERAS
    pictures = {key: np.zeros((*[int(side) for side in size[:2]], 3), np.uint8) for key, size in named.items()}
    state = {JOINTS: HOME, GRIPPER: np.zeros(1)}
    return {**pictures, **state, PROMPT: "stand still"}


def _split(error: Exception) -> tuple[str, str]:
    """Detail and remedy of a one-line error: what follows its last semicolon is what to do."""
    detail, separator, remedy = str(error).rpartition("; ")
    return (detail, remedy) if separator else (str(error), "see the message")
