"""Messages of openpi's, RoboArena's and LeRobot's naming -> checked observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import ACTION_SPACES
from rlspec.contract.features import JOINT_STATE, STATE, image_key
from rlspec.contract.messages import (
    DELAY,
    EXTERIOR,
    FLAT_STATE,
    GRIPPER,
    JOINTS,
    PREFIX,
    PROMPT,
    PROMPTS,
    ROBOARENA_EXTERIOR,
    counts_from_zero,
)
from rlspec.contract.pictures import without_bars
from rlspec.serving.policy import Observation, PolicySpec

MAX_PROMPT = 2000  # characters
MAX_SIDE = 4096  # of a picture, pixels


class RequestError(ValueError):
    """A request that the policy cannot answer; names the key, what came and what is wanted."""


def read_observation(message: Mapping[str, Any], spec: PolicySpec, session: int) -> Observation:
    """Check a request and take from it what the policy wants; keys that it does not want are passed over.

    Raises:
        RequestError: A camera, the state or the instruction is missing, or one of them or of the actions that the robot
            is committed to is of another form.
    """
    images = {
        name: without_bars(_image(message, _camera_keys(message, spec, name)), *size)
        for name, size in spec.cameras.items()
    }
    prefix, delay = _prefix(message, spec)
    return Observation(images, _state(message, spec), _prompt(message, spec), session, prefix, delay)


def _camera_keys(message: Mapping[str, Any], spec: PolicySpec, camera: str) -> tuple[str, str]:
    """Keys under which a camera's picture may come.

    RoboArena counts exterior cameras from 0, openpi from 1: a message with number 0 is RoboArena's.
    """
    key = spec.wire_key(camera)
    if counts_from_zero(message) and EXTERIOR.fullmatch(key):
        key = ROBOARENA_EXTERIOR.format(spec.exterior_cameras().index(camera))
    return key, image_key(camera)


def _image(message: Mapping[str, Any], keys: tuple[str, str]) -> NDArray[np.uint8]:
    key = next((key for key in keys if key in message), None)
    if key is None:
        raise RequestError(f"{keys[0]}: missing; the policy wants this camera, and got {_names(message)}")
    image = message[key]
    wanted = "wanted uint8 (height, width, 3)"
    if not isinstance(image, np.ndarray):
        raise RequestError(f"{key}: got {type(image).__name__}; {wanted}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise RequestError(f"{key}: got {image.dtype} {image.shape}; {wanted}")
    if not all(1 <= side <= MAX_SIDE for side in image.shape[:2]):
        raise RequestError(f"{key}: got {image.shape}; {wanted}, sides of 1 to {MAX_SIDE} pixels")
    return image


def _state(message: Mapping[str, Any], spec: PolicySpec) -> NDArray[np.float64]:
    if spec.state == 0:
        return np.zeros(0)
    whole = next((key for key in (STATE, FLAT_STATE) if key in message), None)
    if whole is not None:
        return _vector(message, whole, spec.state)
    if spec.state != len(JOINT_STATE):
        raise RequestError(f"{FLAT_STATE}: missing; the policy wants {spec.state} numbers, and got {_names(message)}")
    return np.concatenate([_vector(message, JOINTS, 7), _vector(message, GRIPPER, 1)])


def _vector(message: Mapping[str, Any], key: str, size: int) -> NDArray[np.float64]:
    if key not in message:
        raise RequestError(f"{key}: missing; wanted {size} numbers, and got {_names(message)}")
    value = message[key]
    if isinstance(value, list) and not all(type(number) in (int, float) for number in value):
        raise RequestError(f"{key}: got a list of other things than numbers; wanted {size} numbers")
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.shape not in {(size,), () if size == 1 else (size,)}:
        raise RequestError(f"{key}: got {array.dtype} {array.shape}; wanted numbers ({size},)")
    return _finite(key, array).reshape(size)


def _finite(key: str, array: NDArray[Any]) -> NDArray[np.float64]:
    numbers = array.astype(np.float64)
    if not (np.abs(numbers) <= np.finfo(np.float32).max).all():  # NaN is not; policies compute in float32
        raise RequestError(f"{key}: got NaN, infinity or more than float32 holds; wanted finite numbers")
    return numbers


def _prefix(message: Mapping[str, Any], spec: PolicySpec) -> tuple[NDArray[np.float64] | None, int]:
    """Actions that the robot is committed to, and how many of them it carries out before the answer."""
    if not spec.takes_prefix or PREFIX not in message:
        return None, 0
    prefix, delay, width = message[PREFIX], message.get(DELAY, 0), ACTION_SPACES[spec.action_space].size
    wanted = f"wanted numbers (n, {width}), n from 1 to {spec.horizon}"
    if not isinstance(prefix, np.ndarray) or prefix.dtype.kind not in "fiu" or prefix.ndim != 2:
        raise RequestError(f"{PREFIX}: got {type(prefix).__name__} {np.shape(prefix)}; {wanted}")
    if prefix.shape[1] != width or not 1 <= len(prefix) <= spec.horizon:
        raise RequestError(f"{PREFIX}: got {prefix.shape}; {wanted}")
    if type(delay) is not int or delay < 0:
        raise RequestError(f"{DELAY}: got {ascii(delay)[:40]}; wanted a number of actions from 0")
    return _finite(PREFIX, prefix), min(delay, len(prefix))


def _prompt(message: Mapping[str, Any], spec: PolicySpec) -> str:
    key = next((key for key in PROMPTS if key in message), PROMPT)
    prompt = message.get(key, spec.prompt)
    if isinstance(prompt, np.ndarray) and prompt.dtype.kind == "U" and prompt.size == 1:
        prompt = prompt.item()
    if prompt is None and not spec.prompt_required:
        return ""
    if not isinstance(prompt, str) or (spec.prompt_required and not prompt.strip()):
        got = "nothing" if prompt is None else "an empty text" if isinstance(prompt, str) else type(prompt).__name__
        raise RequestError(f"{key}: got {got}; wanted the instruction, for example 'pick up the cube'")
    if len(prompt) > MAX_PROMPT:
        raise RequestError(f"{key}: got {len(prompt)} characters; wanted at most {MAX_PROMPT}")
    return prompt


def _names(message: Mapping[str, Any]) -> str:
    """Keys of a message, as far as they go on a line."""
    text = ", ".join(ascii(key)[1:-1] for key in list(message)[:20])
    return text[:300] or "nothing"
