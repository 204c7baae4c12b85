"""The environments of `rlspec_envs` for LeRobot's commands, as env types `rlspec_franka` and `rlspec_libero`.

    lerobot-eval --env.discover_packages_path=rlspec.vla --env.type=rlspec_franka --env.task=pick_place,push \
        --policy.path=.../pretrained_model --eval.n_episodes=50 --eval.batch_size=2
    lerobot-eval --env.discover_packages_path=rlspec.vla --env.type=rlspec_libero --env.task=libero_object \
        --env.task_ids=[0,3] --policy.path=.../pretrained_model --eval.n_episodes=50

`rlspec_libero` differs from LeRobot's own `libero` in its protocol profiles, and in asking and writing nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import rlspec_envs
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import NEW_ROLLOUT_OPTION, _LazyAsyncVectorEnv, freeze_after_episode_end

from rlspec.contract.actions import ACTION_SPACES, DELTA_EEF, SIMULATED_SPACES
from rlspec.contract.features import ACTION, AGENT_POS, JOINT_STATE, STATE, image_key
from rlspec.errors import ConfigError

Envs = dict[str, dict[int, VectorEnv]]


class EvaluationView(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment as LeRobot's evaluation asks for it."""

    @property
    def _max_episode_steps(self) -> int:
        limit: Any = self.get_wrapper_attr("max_episode_steps")
        return int(limit)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; LeRobot's mark of a new rollout is no option of ours."""
        kept = {key: value for key, value in (options or {}).items() if key != NEW_ROLLOUT_OPTION}
        return self.env.reset(seed=seed, options=kept or None)


def make_view(suite: str, task: str, options: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """One environment, of whose class worker processes need to know no more than this function."""
    return EvaluationView(rlspec_envs.make_env(suite, task, render_mode="rgb_array", **options))


def make_vector(make: Callable[[], gymnasium.Env[Any, Any]], count: int, in_processes: bool) -> VectorEnv:
    """Several of one kind; an episode that has ended waits for the others.

    Args:
        make: one of them.
        count: how many.
        in_processes: one worker process each, started with the first episode, so that tasks that are evaluated one
            after the other never have their workers at once.
    """
    if in_processes and count > 1:
        lazy: Any = _LazyAsyncVectorEnv([make] * count)
        return lazy
    return SyncVectorEnv([freeze_after_episode_end(make)] * count, autoreset_mode=AutoresetMode.NEXT_STEP)


@dataclass
class RlspecEnvConfig(EnvConfig):
    """What both have in common.

    Attributes:
        image_size: pixels per side of each camera.
        cameras: those that the policy sees.
        episode_length: control steps until an episode is cut off; None: the task's own number.
    """

    image_size: int = 128
    cameras: list[str] = field(default_factory=list)
    episode_length: int | None = None

    def _declare(self, action_space: str) -> None:
        """Take rates and sizes from the action space, and say under which names the policy gets what."""
        space = ACTION_SPACES[action_space]
        self.fps = round(space.control_hz)
        pictures = {image_key(camera): (self.image_size, self.image_size, 3) for camera in self.cameras}
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (space.size,)),
            AGENT_POS: PolicyFeature(FeatureType.STATE, (len(JOINT_STATE),)),  # as many as of EEF_STATE
            **{name: PolicyFeature(FeatureType.VISUAL, shape) for name, shape in pictures.items()},
        }
        self.features_map = {ACTION: ACTION, AGENT_POS: STATE, **{name: name for name in pictures}}

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Options of `rlspec_envs.make_env`."""
        limit = {} if self.episode_length is None else {"max_episode_steps": self.episode_length}
        return {"image_size": self.image_size, "cameras": list(self.cameras), **limit}

    def _vector(self, suite: str, task: str, count: int, in_processes: bool) -> VectorEnv:
        return make_vector(partial(make_view, suite, task, self.gym_kwargs), count, in_processes)


@EnvConfig.register_subclass("rlspec_franka")
@dataclass
class RlspecFrankaEnv(RlspecEnvConfig):
    """The Franka table-top.

    Attributes:
        task: names separated by commas: pick_place, push, stack, drawer; or "all".
        robot: fr3 or panda.
        arm: its look: primitive, meshes or menagerie.
        action_space: delta_eef, joint_velocity or joint_position.
        randomise: none, default or strong.
    """

    task: str | None = "pick_place"
    cameras: list[str] = field(default_factory=lambda: ["external", "wrist"])
    robot: str = "fr3"
    arm: str = "primitive"
    action_space: str = DELTA_EEF
    randomise: str = "default"

    def __post_init__(self) -> None:
        """Check."""
        if self.action_space not in SIMULATED_SPACES:
            raise ConfigError(f"env.action_space={self.action_space}; allowed: {', '.join(SIMULATED_SPACES)}")
        self._declare(self.action_space)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Options of `rlspec_envs.make_env`."""
        mine = {name: getattr(self, name) for name in ("robot", "arm", "action_space", "randomise")}
        return super().gym_kwargs | mine

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> Envs:
        """A group of its own for each task.

        Raises:
            ValueError: on a task or option that there is not.
        """
        known = rlspec_envs.list_tasks("franka")
        tasks = known if self.task in (None, "", "all") else _words(self.task)
        return {f"franka_{task}": {0: self._vector("franka", task, n_envs, use_async_envs)} for task in tasks}


@EnvConfig.register_subclass("rlspec_libero")
@dataclass
class RlspecLiberoEnv(RlspecEnvConfig):
    """LIBERO.

    Attributes:
        task: suites separated by commas.
        task_ids: numbers within them; None: all.
        profile: openpi or lerobot: length of episodes, settling, rotation of images.
    """

    task: str | None = "libero_object"
    task_ids: list[int] | None = None
    image_size: int = 256
    cameras: list[str] = field(default_factory=lambda: ["image", "image2"])
    profile: str = "openpi"

    def __post_init__(self) -> None:
        """LIBERO has one rate and one action space."""
        self._declare(DELTA_EEF)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Options of `rlspec_envs.make_env`."""
        return super().gym_kwargs | {"profile": self.profile}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> Envs:
        """Suite -> task -> environments, as LeRobot's own `libero`.

        Raises:
            ValueError: on a suite or task that there is not.
            EnvironmentUnavailable: where hf-libero or its scenes are missing.
        """
        made: Envs = {}
        for suite in _words(self.task):
            ids = self.task_ids if self.task_ids is not None else map(int, rlspec_envs.list_tasks(suite))
            made[suite] = {index: self._vector(suite, str(index), n_envs, use_async_envs) for index in ids}
        return made


def _words(text: str | None) -> list[str]:
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if not words:
        raise ConfigError("env.task is empty; give names separated by commas")
    return words
