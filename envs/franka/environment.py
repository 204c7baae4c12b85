"""The Franka table-top as a gymnasium environment."""

from __future__ import annotations

import copy
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from rlspec_envs.errors import EnvironmentUnavailable, check_keywords
from rlspec_envs.franka.control import CONTROLLERS, Controller
from rlspec_envs.franka.randomisation import RANDOMISATIONS, Appearance
from rlspec_envs.franka.robots import FINGER_STROKE, HOME, JOINTS, ROBOTS
from rlspec_envs.franka.rotations import continuous_axis_angle, quaternion_of
from rlspec_envs.franka.scene import CAMERAS as SCENE_CAMERAS
from rlspec_envs.franka.scene import MAX_RENDER, build_model
from rlspec_envs.franka.tasks import TASKS
from rlspec_envs.franka.tasks.base import Motion, check_count
from rlspec_envs.franka.viewer import has_display, open_viewer, require_display
from rlspec_envs.franka.world import World
from rlspec_envs.perturbation import CONTROL, Look, Perturbation, arm_offset, with_noise
from rlspec_envs.rendering import OffscreenRenderer, choose_gl
from rlspec_envs.wording import reworded

CAMERAS = ("external", "wrist")
ARMS = ("primitive", "meshes", "menagerie")
STATE_NAMES = (
    (*(f"joint{i}" for i in range(1, 8)), "closure"),
    ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right"),
)
"""What the numbers of agent_pos are: in the joint spaces, and with delta_eef."""

_PHYSICS_STEP = 0.002

Observation = dict[str, Any]


def _choice(name: str, value: object, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(allowed)}")
    return str(value)


def _gl() -> str:
    try:
        return choose_gl()
    except EnvironmentUnavailable:
        return "none"  # enough for an environment that renders nothing


def _check_cameras(cameras: Sequence[str]) -> tuple[str, ...]:
    known = not isinstance(cameras, str) and cameras and not set(cameras) - set(SCENE_CAMERAS)
    if not known or len({SCENE_CAMERAS[name] for name in cameras}) != len(cameras):
        allowed = "external, wrist, external_2, or by DROID's names exterior_1_left, wrist_left, exterior_2_left"
        raise ValueError(f"cameras={cameras!r}: give a list of some of {allowed}, each camera once")
    return tuple(cameras)


def _image_size(value: int | Sequence[int]) -> tuple[int, int]:
    size = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(size) != 2 or not all(isinstance(side, int | np.integer) and 8 <= side <= MAX_RENDER for side in size):
        raise ValueError(f"image_size={value!r}: give pixels or (height, width), each from 8 to {MAX_RENDER}")
    return int(size[0]), int(size[1])


class FrankaEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """A Franka arm at a table, with pictures, proprioception and an instruction.

    Observation: {"pixels": {camera: uint8 (height, width, 3)}, "agent_pos": float32 (8,)}. With `delta_eef`, agent_pos
    is the tool centre point (3, metres), its axis-angle (3, radians) and the fingers (2, metres, the second negative,
    as in LIBERO); otherwise seven joint angles and the hand's closure, 0 open to 1 closed (as in DROID).
    Reward: 1 with success, else 0. Success terminates; a timeout, an object that has left the table and diverged
    physics truncate, and info["failure"] names which.

    Args:
        task: "pick_place", "push", "stack" or "drawer"; further keywords are the task's options.
        robot: "fr3" or "panda".
        arm: Look of the arm: "primitive", "meshes" (from the franky-sim package) or "menagerie" (from its package).
        action_space: "delta_eef", "joint_velocity" or "joint_position".
        control_hz: Control steps per second; None for the action space's own (20, 15, 15).
        image_size: Pixels, or (height, width).
        cameras: Some of "external", "wrist", "external_2"; or by DROID's names "exterior_1_left", "wrist_left",
            "exterior_2_left", under which they are then observed.
        randomise: "none", "default" or "strong", see `Randomisation`.
        time_limit: Control steps per episode; `gymnasium.make(..., max_episode_steps=...)` goes before it.
        render_mode: "rgb_array" or "human".
        render_size: Pixels (or height, width) of `render`.

    Raises:
        ValueError: An option is wrong.
        EnvironmentUnavailable: Meshes, a GL library or a display is missing.
    """

    # Without a display "human" is not on offer, so that gymnasium's checker does not try it.
    metadata = {"render_modes": ["rgb_array", "human"] if has_display() else ["rgb_array"], "render_fps": 20}
    suite = "franka"

    def __init__(
        self,
        task: str = "pick_place",
        robot: str = "fr3",
        arm: str = "primitive",
        action_space: str = "delta_eef",
        control_hz: float | None = None,
        image_size: int | Sequence[int] = 128,
        cameras: Sequence[str] = CAMERAS,
        randomise: str = "default",
        time_limit: int = 200,
        render_mode: str | None = None,
        render_size: int | Sequence[int] = 256,
        **options: Any,
    ) -> None:
        self.task = _choice("task", task, tuple(TASKS))
        self._robot = ROBOTS[_choice("robot", robot, tuple(ROBOTS))]
        self.arm = _choice("arm", arm, ARMS)
        controller = CONTROLLERS[_choice("action_space", action_space, tuple(CONTROLLERS))]
        self.randomise = _choice("randomise", randomise, tuple(RANDOMISATIONS))
        self.cameras = _check_cameras(cameras)
        self.image_size, self._render_size = _image_size(image_size), _image_size(render_size)
        if render_mode is not None:
            _choice("render_mode", render_mode, ("rgb_array", "human"))
        if render_mode == "human":
            require_display()
        self.render_mode = render_mode
        check_keywords(options, FrankaEnv, TASKS[task], where=f"task {task}")
        self._task = TASKS[task](**options)
        self.control_hz = float(controller.default_hz if control_hz is None else control_hz)
        if not 1.0 <= self.control_hz <= 100.0:
            raise ValueError(f"control_hz={control_hz!r}: give 1 to 100")
        self.max_episode_steps = check_count("time_limit", time_limit, 1, 100_000)
        self.metadata = {**self.metadata, "render_fps": round(self.control_hz)}
        self._make_world(controller)
        self.action_space_name = controller.name
        self.render_observations = True
        self._renderers: dict[tuple[int, int], OffscreenRenderer] = {}
        self._viewer: Any = None
        self._steps = 0
        self._perturbation: Perturbation | None = None
        self._path: tuple[int, ...] = ()  # of the perturbation's random numbers
        self._words = ""

    def _make_world(self, controller: type[Controller]) -> None:
        period = 1.0 / self.control_hz
        substeps = max(1, round(period / _PHYSICS_STEP))
        second = any(SCENE_CAMERAS[name] == "external_2" for name in self.cameras)
        model = build_model(self._robot, self.arm, period / substeps, self._task.build, second_camera=second)
        self.world = World(model, self._robot, substeps)
        self._appearance = Appearance(self.world)
        outer = [i for i in range(model.ncam) if model.camera(i).name.startswith("external")]
        self._look = Look(model, outer, [model.geom(name).id for name in ("table", "wall")])
        self.controller = controller(self.world)
        self.action_space = copy.deepcopy(self.controller.space)  # a space has a random state of its own
        _, down = self.world.kinematics.pose(np.array(HOME))
        self._down = quaternion_of(down)
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Dict(
                    {name: spaces.Box(0, 255, (*self.image_size, 3), np.uint8) for name in self.cameras}
                ),
                "agent_pos": self._state_space(),
            }
        )

    def _state_space(self) -> spaces.Box:
        if self.controller.name == "delta_eef":
            high = np.array([2.0] * 3 + [2 * np.pi] * 3 + [0.1] * 2, dtype=np.float32)
            return spaces.Box(-high, high, dtype=np.float32)
        low = np.append(self._robot.limits[:, 0] - 0.2, -0.5).astype(np.float32)
        high = np.append(self._robot.limits[:, 1] + 0.2, 1.5).astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32)

    @property
    def _max_episode_steps(self) -> int:
        """The name under which LeRobot's evaluation asks for it."""
        return self.max_episode_steps

    @property
    def instruction(self) -> str:
        """What to do in this episode, in words."""
        return self._words or self._task.instruction

    @property
    def task_description(self) -> str:
        """The instruction, under LeRobot's name."""
        return self.instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; equal seeds give equal episodes, bit for bit.

        `options={"perturb": "camera:2"}` changes one factor of it, see `rlspec_envs.perturbation`.

        Raises:
            ValueError: An option is unknown: there are no stored initial states here.
        """
        super().reset(seed=seed)
        self._steps = 0
        self._read_options(seed, options or {})
        ranges = RANDOMISATIONS[self.randomise]
        jitter = ranges.home * self.np_random.uniform(-1, 1, JOINTS)
        jitter += arm_offset(self._perturbation, self._path, JOINTS)
        self.world.reset(jitter, ranges.start * self.np_random.uniform(-1, 1, 3))
        self._task.arrange(self.world, ranges, self.np_random)
        self._appearance.vary(ranges, self.np_random)
        self._perturb()
        mujoco.mj_forward(self.world.model, self.world.data)
        self.controller.reset()
        if self.render_mode == "human":
            self.render()
        return self.observe(), self._info(success=False, failure="")

    def _read_options(self, seed: int | None, options: dict[str, Any]) -> None:
        if unknown := sorted(set(options) - {"perturb"}):
            raise ValueError(f"options {unknown}: Franka scenes have no stored initial states, give a seed")
        self._look.restore()  # before anything is drawn around the look that it was
        self._words, text = "", options.get("perturb")
        self._perturbation = None if text is None else Perturbation.parse(text)
        if self._perturbation is not None:
            self._path = (int(self.np_random.integers(2**31)) if seed is None else seed,)

    def _perturb(self) -> None:
        """Change what the perturbation says of an arranged episode."""
        if (perturbation := self._perturbation) is None:
            return
        self._look.perturb(perturbation, self._path)
        rng = perturbation.generator(*self._path)
        if perturbation.factor == "layout":
            self._task.spread(self.world, perturbation.strength, rng)
        elif perturbation.factor == "language":
            self._words = reworded(self._task.instruction, perturbation.strength, rng)
        elif perturbation.factor == CONTROL:
            self._words = self._task.wrong_instruction(rng)

    def _info(self, success: bool, failure: str) -> dict[str, Any]:
        return {"is_success": success, "failure": failure, "task": self.instruction}

    def _check(self, action: ArrayLike) -> NDArray[np.float64]:
        array = np.asarray(action, dtype=np.float64)
        if array.shape != self.action_space.shape:
            raise ValueError(f"action of shape {array.shape}: {self.action_space_name} takes {self.action_space.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"action {array.tolist()} is not finite")
        return np.clip(array, self.controller.space.low, self.controller.space.high)

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Advance one control step; actions outside the space are clipped to it.

        Raises:
            ValueError: The action has the wrong shape or is not finite.
        """
        self.world.command(*self.controller.command(self._check(action)))
        self.world.advance()
        self._steps += 1
        if self.world.diverged:
            return self._blank(), 0.0, False, True, self._info(success=False, failure="diverged")
        outcome = self._task.judge(self.world)
        late = not outcome.success and self._steps >= self.max_episode_steps
        failure = outcome.failure or ("timeout" if late else "")
        if self.render_mode == "human":
            self.render()
        info = self._info(outcome.success, failure)
        return self.observe(), float(outcome.success), outcome.success, bool(failure), info

    def _blank(self) -> Observation:
        """Return an observation of zeros: what is left to see of diverged physics."""
        pixels = {name: np.zeros((*self.image_size, 3), np.uint8) for name in self.cameras}
        return {"pixels": pixels, "agent_pos": np.zeros(8, np.float32)}

    def observe(self) -> Observation:
        """Return the observation of the state as it is now."""
        observation = self._blank()
        observation["agent_pos"] = self._state()
        if self.render_observations:
            mujoco.mj_camlight(self.world.model, self.world.data)
            renderer = self._renderer(self.image_size)
            observation["pixels"] = {
                name: renderer.render(self.world.data, SCENE_CAMERAS[name]) for name in self.cameras
            }
        if self._perturbation is not None and self._perturbation.factor == "noise":
            return with_noise(observation, self._perturbation, (*self._path, self._steps))
        return observation

    def _state(self) -> NDArray[np.float32]:
        fingers = self.world.fingers
        if self.controller.name == "delta_eef":
            turn = continuous_axis_angle(self.world.hand_rotation, self._down)
            state = np.concatenate([self.world.tcp, turn, [fingers[0], -fingers[1]]])
        else:
            state = np.append(self.world.joints, 1.0 - fingers.mean() / FINGER_STROKE)
        return state.astype(np.float32)

    def plan(self) -> Motion:
        """What an expert that knows the state would do next."""
        return self._task.plan(self.world)

    def _renderer(self, size: tuple[int, int]) -> OffscreenRenderer:
        if size not in self._renderers:
            self._renderers[size] = OffscreenRenderer(self.world.model, *size)
        return self._renderers[size]

    def render(self) -> NDArray[np.uint8] | None:
        """Return the external camera's picture ("rgb_array"), or update the viewer ("human")."""
        if self.render_mode is None:
            return None
        mujoco.mj_camlight(self.world.model, self.world.data)
        if self.render_mode == "rgb_array":
            return self._renderer(self._render_size).render(self.world.data, "external")
        if self._viewer is None:
            self._viewer = open_viewer(self.world.model, self.world.data)
        self._viewer.sync()
        return None

    def close(self) -> None:
        """Free renderers and viewer."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        if self._viewer is not None:
            self._viewer.close()
            self._viewer = None

    def describe(self) -> dict[str, Any]:
        """What a report needs to repeat this environment, JSON-safe."""
        return {
            "environment": "franka",
            "suite": self.suite,
            "task": self.task,
            "robot": self._robot.name,
            "arm": self.arm,
            "action_space": self.action_space_name,
            "control_hz": self.control_hz,
            "physics_hz": round(1.0 / self.world.model.opt.timestep, 3),
            "image_size": list(self.image_size),
            "cameras": list(self.cameras),
            "randomise": self.randomise,
            "max_episode_steps": self.max_episode_steps,
            "ranges": asdict(RANDOMISATIONS[self.randomise]),
            "options": self._task.describe(),
            "state_names": list(STATE_NAMES[self.action_space_name == "delta_eef"]),
            "render_observations": self.render_observations,
            "gl": _gl(),
            "versions": {
                "python": platform.python_version(),
                "mujoco": mujoco.__version__,
                "gymnasium": gymnasium.__version__,
                "numpy": np.__version__,
            },
        }


class TellTimeLimit(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Tells the environment the limit that `gymnasium.make` sets, so that it reports a timeout as one."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        if env.spec is not None and env.spec.max_episode_steps is not None:
            env.unwrapped.max_episode_steps = env.spec.max_episode_steps  # type: ignore[attr-defined]
