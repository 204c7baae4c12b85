"""What stands in the messages between a robot and a policy server: openpi's keys, RoboArena's, and our own.

The server sends its metadata, then answers one request after the other. Keys of openpi's DROID client come first; what
is ours begins with `rlspec`, which other servers and clients pass over. `rlspec.contract.wire` makes bytes of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypedDict, cast

from rlspec.contract.actions import ACTION_SPACES, DROID_SPACES, JOINT_POSITION
from rlspec.contract.features import EXTERIOR_1, EXTERIOR_2, JOINT_STATE, TASK, WRIST, camera_of
from rlspec.contract.pictures import OPENPI_SIZE

# Requests

_OBSERVATION = "observation/"
JOINTS, GRIPPER = f"{_OBSERVATION}{JOINT_POSITION}", f"{_OBSERVATION}gripper_position"
"""Joint angles (7,) in radians and the gripper's closure (1,), 0 open to 1 closed."""
FLAT_STATE = f"{_OBSERVATION}state"
"""The state whole, for policies with another one than DROID's."""
PROMPTS = ("prompt", TASK)
PROMPT = PROMPTS[0]
"""The instruction by openpi's name; LeRobot's is understood as well."""

PREFIX, DELAY = "rlspec/prefix", "rlspec/delay"
"""Actions (n, A) that the robot is committed to, and how many it carries out before the answer."""
REQUEST_ID, DEADLINE = "rlspec/request_id", "rlspec/deadline_ms"
"""Comes back in the answer; and milliseconds after which the client does not want it any more."""

ENDPOINT, INFER, RESET = "endpoint", "infer", "reset"
RESET_REPLY = "reset successful"
"""RoboArena's clients say what they want, and its servers cannot do without; a reset is answered by these words."""
POSE, SESSION_ID = f"{_OBSERVATION}cartesian_position", "session_id"
"""RoboArena's as well: pose of the flange (6,), in metres and extrinsic xyz Euler angles; which session asks."""

# Answers

ACTIONS, TIMING, INFER_MS = "actions", "server_timing", "infer_ms"
"""(horizon, A) actions; and a map with the policy's own share of the time, in milliseconds."""
OPEN_LOOP_STEPS = 8
"""Actions of an answer that are carried out where nobody says it; openpi's DROID client does as many."""
MAX_HORIZON, MAX_HZ = 1000, 1000
"""Actions that an answer may hold, and that a policy may give per second."""

# Cameras

EXTERIOR = re.compile(rf"{_OBSERVATION}exterior_image_(\d)_left")
ROBOARENA_EXTERIOR = f"{_OBSERVATION}exterior_image_{{}}_left"
"""Counted from 0; openpi counts from 1."""
_CAMERA_KEYS = {
    EXTERIOR_1: ROBOARENA_EXTERIOR.format(1),
    EXTERIOR_2: ROBOARENA_EXTERIOR.format(2),
    WRIST: f"{_OBSERVATION}wrist_image_left",
}
WRIST_KEY = _CAMERA_KEYS[WRIST]

OPENPI_CAMERAS = dict.fromkeys((_CAMERA_KEYS[EXTERIOR_1], WRIST_KEY), OPENPI_SIZE)
"""Key -> size of what openpi's DROID client sends; for servers that do not say what they want."""


def camera_key(camera: str) -> str:
    """Key of a camera's pictures."""
    return _CAMERA_KEYS.get(camera, f"{_OBSERVATION}{camera}")


def camera_by_key(key: str, *, from_zero: bool = False) -> str:
    """The camera behind a key of openpi's, of RoboArena's (`from_zero`) or a feature's name; else the key itself."""
    name = camera_of(key).removeprefix(_OBSERVATION)
    name = name.replace("exterior_image_", "exterior_").replace("wrist_image_", "wrist_")
    if from_zero:
        name = re.sub(r"exterior_(\d)", lambda match: f"exterior_{int(match[1]) + 1}", name)
    return name


def counts_from_zero(keys: Collection[str]) -> bool:
    """Whether exterior cameras are numbered as RoboArena does: number 0 is among them."""
    return ROBOARENA_EXTERIOR.format(0) in keys


# Metadata

SECTION = "rlspec"
"""Of the metadata: what is ours. Foreign servers have none."""
USER_AGENT = "rlspec/"
"""Beginning of our client's User-Agent, and of our server's Server header; the version follows."""


class Terms(TypedDict, total=False):
    """What a policy's actions mean and what it wants: the section `rlspec` of the metadata.

    Attributes:
        action_space: Key of `rlspec.contract.actions.ACTION_SPACES`.
        control_hz: Actions per second.
        execution_law: Key of `rlspec.contract.actions.EXECUTION_LAWS`; "": it is at home under any.
        horizon: Actions in an answer.
        n_action_steps: How many of them are meant to be carried out.
        cameras: Key of messages -> [height, width].
        state: Numbers of the state; 0: it wants none.
        norm_stats_sha256: Of the statistics that it normalises by.
        model, version: Words for the policy; of rlspec.
        prompt_required: Requests must hold an instruction.
        takes_prefix: It can be guided by the actions that the robot is committed to (real-time chunking).
    """

    action_space: str
    control_hz: float
    execution_law: str
    horizon: int
    n_action_steps: int
    cameras: dict[str, list[int]]
    state: int
    norm_stats_sha256: str | None
    model: str
    version: str
    prompt_required: bool
    takes_prefix: bool


def terms_of(metadata: Mapping[str, Any]) -> Terms:
    """Our section of a server's metadata; empty where it is another's."""
    return cast(Terms, metadata.get(SECTION) or {})


def fault_of_terms(terms: Any) -> str | None:
    """What is wrong with a section that came from a server; None: nothing, or there is no section."""
    if terms is None:
        return None
    if not isinstance(terms, dict):
        return f"{SECTION} is no map"
    for name, (fits, wanted) in _CHECKS.items():
        if name in _REQUIRED or terms.get(name) is not None:
            value = terms.get(name)
            if not fits(value):
                return f"{SECTION}.{name} {ascii(value)[:60]} {wanted}"
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_HORIZON


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= MAX_HZ


def _is_size(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int and 0 < n <= 4096 for n in value)


def _are_cameras(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and _is_size(size) for key, size in value.items())


_REQUIRED = ("action_space", "control_hz")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "action_space": (lambda value: isinstance(value, str) and value in ACTION_SPACES, "is unknown to this version"),
    "control_hz": (_is_rate, "is no rate"),
    "execution_law": (lambda value: isinstance(value, str), "is no name"),
    "horizon": (_is_count, "is no number of actions"),
    "n_action_steps": (_is_count, "is no number of actions"),
    "cameras": (_are_cameras, "are no cameras with [height, width]"),
    "prompt_required": (lambda value: isinstance(value, bool), "is neither true nor false"),
    "takes_prefix": (lambda value: isinstance(value, bool), "is neither true nor false"),
}
"""Of what the robot acts on; the rest is for people."""


class ArenaConfig(TypedDict):
    """RoboArena's PolicyServerConfig and nothing else: its client refuses what it does not know.

    Attributes:
        image_resolution: [height, width] of all pictures; None: as the cameras deliver.
        needs_wrist_camera, needs_stereo_camera, needs_session_id: What requests must hold.
        n_external_cameras: 0, 1 or 2.
        action_space: Key of `rlspec.contract.actions.ACTION_SPACES`.
    """

    image_resolution: list[int] | None
    needs_wrist_camera: bool
    n_external_cameras: int
    needs_stereo_camera: bool
    needs_session_id: bool
    action_space: str


def arena_config_of(metadata: Mapping[str, Any]) -> ArenaConfig | None:
    """The metadata of a server of RoboArena's; None: it is ours, or openpi's."""
    if metadata.get(SECTION) is not None or not _ARENA_CHECKS.keys() <= metadata.keys():
        return None
    return cast(ArenaConfig, metadata)


def fault_of_arena_config(config: ArenaConfig) -> str | None:
    """What is wrong with such metadata, or beyond this robot; None: nothing."""
    for name, (fits, wanted) in _ARENA_CHECKS.items():
        if not fits(value := config.get(name)):
            return f"{name} {ascii(value)[:60]} {wanted}"
    return None


def arena_cameras(config: ArenaConfig) -> dict[str, tuple[int, int] | None]:
    """Key -> (height, width), or None: any size, of what a server of RoboArena's wants to see."""
    keys = [ROBOARENA_EXTERIOR.format(number) for number in range(config["n_external_cameras"])]
    keys += [WRIST_KEY] if config["needs_wrist_camera"] else []
    size = config["image_resolution"]
    return dict.fromkeys(keys, None if size is None else (size[0], size[1]))


_YES_OR_NO: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, bool), "is neither true nor false")
_ARENA_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "action_space": (lambda value: value in DROID_SPACES, "is unknown to RoboArena"),
    "image_resolution": (_is_size, "is no [height, width]"),
    "n_external_cameras": (lambda value: type(value) is int and 0 <= value <= 2, "is not 0, 1 or 2"),
    "needs_wrist_camera": _YES_OR_NO,
    "needs_stereo_camera": (
        lambda value: value is False,
        "asks for right images of stereo cameras, which no robot has",
    ),
    "needs_session_id": _YES_OR_NO,
}


def blind_metadata(
    model: str, action_space: str, control_hz: float, *, horizon: int, n_action_steps: int, law: str
) -> dict[str, Any]:
    """Metadata of a policy in the robot's own process that looks at no pictures and wants no instruction."""
    terms: Terms = {
        "model": model,
        "action_space": action_space,
        "control_hz": control_hz,
        "execution_law": law,
        "horizon": horizon,
        "n_action_steps": n_action_steps,
        "cameras": {},
        "state": len(JOINT_STATE),
        "prompt_required": False,
    }
    return {SECTION: terms}
