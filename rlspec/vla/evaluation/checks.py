"""What a policy expects against what the environment gives: one line per contradiction, before the first episode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from rlspec.contract.features import ACTION, AGENT_POS, PIXELS, STATE, image_key, is_empty_camera, is_image

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TrainingConditions:
    """What the training data said of itself; None: not known."""

    control_hz: float | None = None
    action_space: str | None = None
    fps: float | None = None  # of data that does not state its control rate; LIBERO's is labelled 10 and was made at 20


@dataclass(frozen=True)
class Expected:
    """What a policy reads and writes.

    Attributes:
        inputs: Feature in the policy's names -> shape; images as (3, H, W).
        action: Shape of one action.
        rename: Feature of the environment -> feature of the policy, as its preprocessor does it.
    """

    inputs: Mapping[str, Shape]
    action: Shape | None
    rename: Mapping[str, str] = field(default_factory=dict)
    training: TrainingConditions = field(default_factory=TrainingConditions)


def expected_by(config: Any, preprocessor: Any, training: TrainingConditions) -> Expected:
    """Read a LeRobot policy's config and preprocessor."""
    rename: dict[str, str] = {}
    for step in preprocessor.steps:
        rename.update(getattr(step, "rename_map", None) or {})
    # Cameras that a policy is allowed to miss are filled by the policy itself.
    given = (config.input_features or {}).items()
    inputs = {name: tuple(each.shape) for name, each in given if not is_empty_camera(name)}
    action = (config.output_features or {}).get(ACTION)
    return Expected(inputs, tuple(action.shape) if action is not None else None, rename, training)


def contradictions(expected: Expected, env: gymnasium.Env[Any, Any]) -> list[str]:
    """One line per contradiction that makes a measurement meaningless."""
    lines = [*_features(expected, env), *_action(expected, env), *_training(expected.training, env)]
    return list(dict.fromkeys(lines))


def remarks(expected: Expected, env: gymnasium.Env[Any, Any]) -> list[str]:
    """Lines about what policies usually bear."""
    given, unwrapped = _given(expected, env), env.unwrapped
    lines = []
    fps, rate = expected.training.fps, unwrapped.control_hz  # type: ignore[attr-defined]
    if expected.training.control_hz is None and fps is not None and abs(fps - rate) > 0.01:
        lines.append(f"control rate: the data is labelled {fps:g} frames/s, the environment runs at {rate:g} Hz")
    return lines + [
        f"{name}: the policy was made for {_size(shape)} pixels, the environment renders {_size(given[name])}"
        for name, shape in expected.inputs.items()
        if is_image(name) and name in given and given[name][1:] != shape[1:]
    ]


def _size(shape: Shape) -> str:
    return f"{shape[1]}x{shape[2]}"


def _given(expected: Expected, env: gymnasium.Env[Any, Any]) -> dict[str, Shape]:
    space: Any = env.observation_space
    given = {image_key(name): (box.shape[2], *box.shape[:2]) for name, box in space[PIXELS].spaces.items()}
    given[STATE] = space[AGENT_POS].shape
    return {expected.rename.get(name, name): shape for name, shape in given.items()}


def _features(expected: Expected, env: gymnasium.Env[Any, Any]) -> Iterator[str]:
    given = _given(expected, env)
    for name, shape in expected.inputs.items():
        images = is_image(name)
        if name not in given:
            kind = "camera" if images else "input"
            yield f"the policy needs the {kind} {name}; the environment has {', '.join(given)}"
        elif not images and shape != given[name]:
            yield f"{name}: the policy reads {shape} numbers, the environment gives {given[name]}"


def _action(expected: Expected, env: gymnasium.Env[Any, Any]) -> Iterator[str]:
    if expected.action is not None and expected.action != env.action_space.shape:
        yield f"action: the policy answers {expected.action} numbers, the environment takes {env.action_space.shape}"


def _training(training: TrainingConditions, env: gymnasium.Env[Any, Any]) -> Iterator[str]:
    unwrapped: Any = env.unwrapped
    if training.control_hz is not None and abs(training.control_hz - unwrapped.control_hz) > 0.01:
        yield f"control rate: the data has {training.control_hz:g} Hz, the environment {unwrapped.control_hz:g} Hz"
    if training.action_space is not None and training.action_space != unwrapped.action_space_name:
        yield f"action space: the data has {training.action_space}, the environment {unwrapped.action_space_name}"
