"""A LeRobot policy with its processors behind `BatchPolicy`. torch is imported when the first request is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import ACTION_SPACES
from rlspec.contract.features import ACTION, STATE, TASK, camera_of, image_key, is_empty_camera, is_image
from rlspec.contract.pictures import resize_with_pad
from rlspec.contract.policies import action_steps, chunk_length, keeps_past
from rlspec.errors import ConfigError
from rlspec.serving.policy import Observation, PolicySpec

_WITHOUT_LANGUAGE = ("act", "diffusion", "vqbet", "tdmpc")
_MAX_BATCH = 64


@dataclass(frozen=True)
class Meaning:
    """What a policy's folder, or the command line, says about its actions.

    Attributes:
        model: Words for the policy.
        action_space, control_hz, execution_law: See `PolicySpec`.
        wire_keys: Camera -> key of messages, where it is not the usual one.
        sizes: Camera -> (height, width) of the training data, where they are known.
        horizon: Actions in an answer: as many of its own, from the first; None: all.
        n_action_steps: None: the policy's own number.
        prompt: Instruction for requests without one.
        norm_stats_sha256: Of the statistics.
    """

    model: str
    action_space: str
    control_hz: float
    execution_law: str
    wire_keys: Mapping[str, str]
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    horizon: int | None = None
    n_action_steps: int | None = None
    prompt: str | None = None
    norm_stats_sha256: str | None = None


def read_spec(config: Any, meaning: Meaning) -> PolicySpec:
    """What a policy wants and gives, from its LeRobot config.

    Raises:
        ConfigError: It cannot be served: it keeps past observations, wants what robots do not send, or has
            another number of actions than its action space.
    """
    if keeps_past(config):
        raise ConfigError(
            f"{meaning.model}: it keeps past observations (n_obs_steps or state_history > 1), of which a server sees "
            "too few; choose a policy that does not"
        )
    cameras, state = _inputs(config, meaning.model)
    unknown = sorted(set(meaning.wire_keys) - set(cameras))
    if unknown:
        names = ", ".join(cameras) or "none"
        raise ConfigError(f"camera.{unknown[0]}: {meaning.model} has no such camera; its cameras: {names}")
    _check_actions(config, meaning)
    own = chunk_length(config) or 1
    horizon = meaning.horizon or own
    if horizon > own:
        raise ConfigError(f"horizon={horizon}: {meaning.model} predicts {own} actions; choose 1 to {own}")
    steps = meaning.n_action_steps or min(action_steps(config) or horizon, horizon)
    if not 1 <= steps <= horizon:
        raise ConfigError(f"n_action_steps={steps}: {meaning.model} gives {horizon} actions; choose 1 to {horizon}")
    return PolicySpec(
        model=meaning.model,
        action_space=meaning.action_space,
        control_hz=meaning.control_hz,
        execution_law=meaning.execution_law,
        horizon=horizon,
        n_action_steps=steps,
        cameras={name: meaning.sizes.get(name, size) for name, size in cameras.items()},
        wire_keys=dict(meaning.wire_keys),
        state=state,
        prompt_required=config.type not in _WITHOUT_LANGUAGE,
        prompt=meaning.prompt,
        norm_stats_sha256=meaning.norm_stats_sha256,
    )


def _inputs(config: Any, model: str) -> tuple[dict[str, tuple[int, int]], int]:
    """Cameras with their sizes, and the numbers of the state."""
    cameras, state = {}, 0
    for key, feature in config.input_features.items():
        if key == STATE:
            state = int(feature.shape[0])
        elif is_image(key):
            if not is_empty_camera(key):
                cameras[camera_of(key)] = (int(feature.shape[-2]), int(feature.shape[-1]))
        else:
            raise ConfigError(
                f"{model}: wants {key}, which robots do not send; only {image_key('NAME')} and {STATE} are served"
            )
    return cameras, state


def _check_actions(config: Any, meaning: Meaning) -> None:
    feature = (config.output_features or {}).get(ACTION)
    wanted = ACTION_SPACES[meaning.action_space].size
    found = None if feature is None else int(feature.shape[0])
    if found != wanted:
        raise ConfigError(
            f"action_space={meaning.action_space}: has {wanted} numbers, and {meaning.model} gives {found}; "
            "choose the one it was trained with"
        )


class LeRobotPolicy:
    """preprocessor -> predict_action_chunk -> postprocessor, for several observations at once."""

    def __init__(self, policy: Any, preprocessor: Any, postprocessor: Any, spec: PolicySpec) -> None:
        """Take a loaded policy.

        Args:
            policy: A PreTrainedPolicy, or PEFT's wrapper of one, in evaluation mode.
            preprocessor: LeRobot's pipeline for observations.
            postprocessor: LeRobot's pipeline for actions.
            spec: From `read_spec`.
        """
        self.spec = spec
        self.max_batch = _MAX_BATCH
        self._policy = policy
        self._preprocessor = preprocessor
        self._postprocessor = postprocessor

    def infer(self, observations: Sequence[Observation]) -> list[NDArray[np.float32]]:
        """See `BatchPolicy`. Observations with a prefix are answered one by one: each has a delay of its own."""
        import torch

        free = [i for i, each in enumerate(observations) if each.prefix is None]
        answers: dict[int, NDArray[np.float32]] = {}
        if free:
            with torch.inference_mode():
                batch = self._preprocessor(self._batch([observations[i] for i in free]))
                answers.update(zip(free, self._actions(self._policy.predict_action_chunk(batch)), strict=True))
        for i, each in enumerate(observations):
            if each.prefix is not None:
                (answers[i],) = self._continue(each, each.prefix)
        return [answers[i] for i in range(len(observations))]

    def _continue(self, observation: Observation, prefix: NDArray[np.float64]) -> NDArray[np.float32]:
        """Actions (1, horizon, A) guided towards those that the robot is committed to, (n, A)."""
        import torch

        with torch.no_grad():  # and not inference mode: guidance takes a gradient
            batch = self._batch([observation]) | {ACTION: torch.from_numpy(prefix)[None].float()}
            batch = self._preprocessor(batch)
            left = batch.pop(ACTION)  # normalised
            guidance = {"inference_delay": observation.delay, "execution_horizon": len(prefix)}
            return self._actions(self._policy.predict_action_chunk(batch, prev_chunk_left_over=left, **guidance))

    def _actions(self, chunk: Any) -> NDArray[np.float32]:
        """Denormalised: as a batch of single actions, which is what postprocessors are made for."""
        actions = self._postprocessor(chunk.flatten(0, 1)).reshape(*chunk.shape[:2], -1)
        values: NDArray[np.float32] = actions.float().cpu().numpy()
        return values[:, : self.spec.horizon]

    def forget(self, session: int) -> None:
        """Chunks are predicted from one observation each: nothing is remembered."""

    def warm_up(self) -> None:
        """Answer a made-up observation: the first request must not pay for what is set up lazily."""
        images: dict[str, NDArray[np.uint8]] = {
            name: np.zeros((*size, 3), np.uint8) for name, size in self.spec.cameras.items()
        }
        asked = Observation(images, np.zeros(self.spec.state), self.spec.prompt or "wait", session=0)
        (actions,) = self.infer([asked])
        if self.spec.takes_prefix:
            self.infer([replace(asked, prefix=actions.astype(np.float64), delay=1)])

    def _batch(self, observations: Sequence[Observation]) -> dict[str, Any]:
        """In LeRobot's form: images float32 (B, 3, H, W) in [0, 1], state float32 (B, n), a list of instructions."""
        import torch

        batch: dict[str, Any] = {TASK: [each.prompt for each in observations]}
        for name, size in self.spec.cameras.items():
            # Letterboxed as bytes, as the converter does, and only then scaled to [0, 1]: the pixels of training.
            pixels = np.stack([resize_with_pad(each.images[name], *size) for each in observations])
            batch[image_key(name)] = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(255)
        if self.spec.state:
            states = np.stack([each.state for each in observations])
            batch[STATE] = torch.from_numpy(states).float()
        return batch
