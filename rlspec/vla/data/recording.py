"""One demonstration: planned on the simulator's state alone, then replayed with images.

The replay is a check as well: it must reach bitwise the same states and succeed, or the data set could not be trusted
to show what its actions do. Imports neither torch nor LeRobot, as it runs in worker processes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.features import ACTION, AGENT_POS, EXECUTED, PIXELS, STATE
from rlspec.errors import DataError

PNG_LEVEL = 3  # of pictures of 96 pixels: smaller and quicker than 1, half the time of 6
_STREAM = 0x0D15  # keeps the disturbance apart from other generators with the same seed

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class ScriptedExpert(Protocol):
    """A scripted demonstrator of `rlspec_envs`, bound to its environment."""

    def reset(self) -> None:
        """Begin an episode."""

    def act(self) -> Floats:
        """The action for the present state."""


@dataclass(frozen=True)
class Disturbance:
    """Noise on executed actions, which takes the expert off its path and shows how to return."""

    std: float = 0.0  # in units of the action
    share: float = 0.0  # of the steps


@dataclass
class AttemptPlan:
    """An episode without images.

    Attributes:
        instruction: what the robot was told.
        seed: of the reset.
        initial_state: option of the reset, where the suite has such: LIBERO's stored states are for evaluations, so
            its demonstrations start from -1, which lets the seed place the objects.
        states: (T + 1, n) robot's state before every action, and after the last.
        labels: (T, a) what the expert would do in that state.
        executed: (T, a) what was done; differs from the labels where the step was disturbed.
        failure: kind of failure; empty after a success.
    """

    instruction: str
    seed: int
    initial_state: int | None
    states: Floats
    labels: Floats
    executed: Floats
    failure: str


@dataclass
class Episode:
    """A successful plan with the encoded pictures of its first T states.

    Attributes:
        plan: states and actions.
        shapes: camera -> (height, width, 3).
        pictures: camera -> T PNG files, or one MP4 file.
        histograms: camera -> (3, 256) how often each channel has each value, over all frames.
        environment: action_space, control_hz and env, the environment's own description.
    """

    plan: AttemptPlan
    shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    pictures: dict[str, list[bytes]] = field(default_factory=dict)
    histograms: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.plan.labels)

    @property
    def instruction(self) -> str:
        """What the robot was told."""
        return self.plan.instruction

    def columns(self) -> dict[str, Floats]:
        """Feature -> (T, d) numbers."""
        plan = self.plan
        return {STATE: plan.states[:-1], ACTION: plan.labels, EXECUTED: plan.executed}


def plan_episode(env: Any, expert: ScriptedExpert, seed: int, disturbance: Disturbance) -> AttemptPlan:
    """Run the expert without rendering.

    Args:
        env: an environment of `rlspec_envs`.
        expert: bound to it.
        seed: of the reset and of the disturbance.
        disturbance: the last number of an action, the gripper's, is left alone.
    """
    env.unwrapped.render_observations = False
    rng = np.random.default_rng([_STREAM, seed])
    observation, info = env.reset(seed=seed, options=getattr(env.unwrapped, "demonstration_options", None))
    expert.reset()
    states, labels, executed = [_state(observation)], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        label = np.asarray(expert.act(), dtype=np.float32)
        action = disturb(label, disturbance, env.action_space, rng)
        observation, _, terminated, truncated, outcome = env.step(action)
        states.append(_state(observation))
        labels.append(label)
        executed.append(action)
    return AttemptPlan(
        instruction=str(env.unwrapped.instruction),
        seed=seed,
        initial_state=info.get("initial_state"),
        states=np.stack(states),
        labels=np.stack(labels),
        executed=np.stack(executed),
        failure="" if outcome["is_success"] else str(outcome.get("failure") or "unknown"),
    )


def disturb(label: Floats, disturbance: Disturbance, space: Any, rng: np.random.Generator) -> Floats:
    """The action that is executed in place of `label`; draws the same amount whether the step is disturbed or not."""
    is_disturbed = rng.random() < disturbance.share
    noise = rng.normal(0.0, 1.0, len(label) - 1) * disturbance.std
    if not is_disturbed or disturbance.std == 0:
        return label
    action = label.copy()
    action[:-1] += noise.astype(np.float32)
    clipped: Floats = np.clip(action, space.low, space.high).astype(np.float32)
    return clipped


def replay_with_images(env: Any, plan: AttemptPlan, *, video_fps: int | None = None) -> Episode:
    """Repeat a plan's actions with rendering.

    Args:
        env: the environment, or an equal one.
        plan: a success.
        video_fps: encode each camera as one MP4 of this rate; None: a PNG per frame.

    Raises:
        DataError: The environment does not repeat itself.
    """
    env.unwrapped.render_observations = True
    options = None if plan.initial_state is None else {"initial_state": plan.initial_state}
    observation, _ = env.reset(seed=plan.seed, options=options)
    frames: dict[str, list[Pixels]] = {camera: [] for camera in observation[PIXELS]}
    succeeded = False
    for step, action in enumerate(plan.executed):
        _compare(observation, plan, step)
        for camera, image in observation[PIXELS].items():
            frames[camera].append(np.array(image))
        observation, _, _, _, outcome = env.step(action)
        succeeded = bool(outcome["is_success"])
    _compare(observation, plan, len(plan.executed))
    if not succeeded:
        raise DataError(f"seed {plan.seed}: the expert succeeded, the replay of its actions did not; {_REMEDY}")
    episode = encode_episode(plan, {camera: np.stack(images) for camera, images in frames.items()}, video_fps)
    episode.environment = describe_environment(env)
    return episode


def describe_environment(env: Any) -> dict[str, Any]:
    """What the data set says about its environment."""
    simulator = env.unwrapped
    return {
        "action_space": simulator.action_space_name,
        "control_hz": float(simulator.control_hz),
        "env": simulator.describe(),
    }


_REMEDY = "the environment does not repeat itself, so demonstrations from it could not be checked"


def _compare(observation: Mapping[str, Any], plan: AttemptPlan, step: int) -> None:
    if _state(observation).tobytes() != plan.states[step].tobytes():
        raise DataError(f"seed {plan.seed}: the replay is in another state before step {step}; {_REMEDY}")


def _state(observation: Mapping[str, Any]) -> Floats:
    return np.array(observation[AGENT_POS], dtype=np.float32)


def encode_episode(plan: AttemptPlan, frames: Mapping[str, Pixels], video_fps: int | None) -> Episode:
    """Compress the frames, camera -> (T, H, W, 3), and count their values."""
    episode = Episode(plan)
    for camera, images in frames.items():
        episode.shapes[camera] = images.shape[1:]  # type: ignore[assignment]
        episode.pictures[camera] = (
            [encode_png(image) for image in images] if video_fps is None else [encode_mp4(images, video_fps)]
        )
        episode.histograms[camera] = count_values(images)
    return episode


def count_values(images: Pixels) -> NDArray[np.int64]:
    """(3, 256) counts of the values of each channel of (..., 3) uint8 images."""
    channels = images.reshape(-1, images.shape[-1])
    return np.stack([np.bincount(channels[:, index], minlength=256) for index in range(images.shape[-1])])


def encode_png(image: Pixels) -> bytes:
    """A (H, W, 3) image as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


VIDEO: dict[str, Any] = {
    "vcodec": "h264",
    "pix_fmt": "yuv420p",
    "g": 2,
    "crf": 21,
    "preset": "veryfast",
    # x264's macroblock tree encodes equal pictures differently from run to run. With a key frame every other picture it
    # gains nothing: crf 21 without it gives the size and the error of crf 18 with it.
    "extra_options": {"mbtree": "0"},
}  # LeRobot's names


def encode_mp4(images: Pixels, fps: int) -> bytes:
    """(T, H, W, 3) images as an MP4 file."""
    film = FilmEncoder(fps)
    for image in images:
        film.add(image)
    return film.finish()


class FilmEncoder:
    """An MP4 file in memory, image by image: H.264, the quickest of LeRobot's codecs on a CPU by far."""

    def __init__(self, fps: int) -> None:
        import av

        self._buffer = io.BytesIO()
        self._file = av.open(self._buffer, "w", format="mp4")
        options = (
            {name: str(VIDEO[name]) for name in ("g", "crf", "preset")} | VIDEO["extra_options"] | {"threads": "1"}
        )
        self._stream: Any = self._file.add_stream(VIDEO["vcodec"], fps, options=options)
        self._stream.pix_fmt = VIDEO["pix_fmt"]
        self._is_empty = True

    def add(self, image: Pixels) -> None:
        """Append a (H, W, 3) image; height and width are even."""
        import av

        if self._is_empty:
            self._stream.height, self._stream.width = image.shape[:2]
            self._is_empty = False
        self._file.mux(self._stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))

    def finish(self) -> bytes:
        """The file's content."""
        self._file.mux(self._stream.encode())
        self._file.close()
        return self._buffer.getvalue()
