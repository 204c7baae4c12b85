"""Gymnasium environment of one LIBERO task, with LeRobot's observation names and a protocol profile."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from rlspec_envs.libero import bootstrap, perturbed
from rlspec_envs.libero.profiles import get_profile
from rlspec_envs.libero.renderer import CAMERAS, LiberoRenderer
from rlspec_envs.libero.simulation import CONTROL_HZ, LiberoSimulation
from rlspec_envs.libero.tasks import get_task, load_initial_states
from rlspec_envs.perturbation import CONTROL, Look, Perturbation, arm_offset, with_noise
from rlspec_envs.thinning import thin_visual_meshes
from rlspec_envs.wording import reworded

ACTION_SIZE = JOINTS = 7
SUCCESS_CONDITIONS = ("predicate", "released")
STATE_NAMES = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right")
_STATE_BOUND = np.array([3.0, 3.0, 3.0, 7.0, 7.0, 7.0, 0.1, 0.1], dtype=np.float32)
SAMPLED = -1
"""In place of a stored initial state's number: objects are placed by the seed, as the scene's author described."""
FALL_HEIGHT = 0.25
"""An object of interest this far (m) below its lowest stored height has left the table."""


class LiberoEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One LIBERO task: a Panda arm moved by end-effector deltas at 20 Hz.

    Observation: `pixels` {camera: uint8 (size, size, 3)} and `agent_pos` float32 (8,) = end-effector position (m),
    axis-angle (rad), two finger positions (m). Action: Box(-1, 1, (7,)) = position delta, rotation delta, gripper
    (-1 open, +1 close). `terminated` on success, `truncated` at the profile's limit or when the physics diverged.

    The scene is loaded at the first reset, so that worker processes of a vector environment never inherit a renderer.

    Args:
        suite: `libero_spatial`, `libero_object`, `libero_goal`, `libero_10` or `libero_90`.
        task_id: Number of the task in LIBERO's order.
        profile: `openpi` or `lerobot`: episode length, settling, rotation (see `profiles`).
        image_size: Height and width in pixels.
        cameras: Any of `image` (LIBERO's agentview) and `image2` (eye in hand).
        render_observations: False leaves `pixels` at zero and renders nothing; may be changed at any time.
        success_condition: `predicate` is LIBERO's own test, which fires while an object is still held; `released` also
            waits until the gripper lets go of every object, for demonstrations that end in a release.
        fast_rendering: Thinned visual meshes and no multisampling: several times faster, other pixels.
        max_episode_steps: Overrides the profile's limit.
        render_mode: None or `rgb_array`.

    Raises:
        ValueError: An argument is not one of the values above.
        EnvironmentUnavailable: hf-libero or its assets are missing.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}
    control_hz = float(CONTROL_HZ)
    action_space_name = "delta_eef"
    demonstration_options = {"initial_state": SAMPLED}  # noqa: RUF012  the stored states are for evaluations

    def __init__(
        self,
        suite: str,
        task_id: int,
        *,
        profile: str = "openpi",
        image_size: int = 256,
        cameras: Sequence[str] = ("image", "image2"),
        render_observations: bool = True,
        success_condition: str = "predicate",
        fast_rendering: bool = False,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        _check_options(image_size, cameras, success_condition, max_episode_steps, render_mode)
        self.profile = get_profile(profile)
        self.libero_task = get_task(suite, task_id)
        bootstrap.check_available()
        self.initial_states = load_initial_states(self.libero_task)
        self.suite, self.task, self.task_name = suite, str(self.libero_task.task_id), self.libero_task.name
        self.instruction = self.task_description = self.libero_task.instruction
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self._max_episode_steps = max_episode_steps
        self.render_observations = render_observations
        self.success_condition = success_condition
        self.fast_rendering = fast_rendering
        self.render_mode = render_mode
        images: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(0, 255, (image_size, image_size, 3), np.uint8) for name in self.cameras
        }
        self.observation_space: spaces.Space[dict[str, Any]] = spaces.Dict(
            {"pixels": spaces.Dict(images), "agent_pos": spaces.Box(-_STATE_BOUND, _STATE_BOUND, dtype=np.float32)}
        )
        self.action_space: spaces.Space[np.ndarray] = spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)
        self._simulation: LiberoSimulation | None = None
        self._renderer: LiberoRenderer | None = None
        self._look: Look | None = None
        self._perturbation: Perturbation | None = None
        self._path: tuple[int, ...] = ()  # of the perturbation's random numbers
        self._episode: dict[str, Any] = {}
        self._steps = 0
        self._floor = -np.inf

    @property
    def max_episode_steps(self) -> int:
        """Control steps until `truncated`: the constructor's, else `gymnasium.make`'s, else the profile's."""
        registered = self.spec.max_episode_steps if self.spec is not None else None
        return self._max_episode_steps or registered or self.profile.max_steps[self.suite]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start from a stored initial state and let the objects settle.

        `options={"initial_state": i}` chooses the state; else `seed` does (modulo their number), else the environment's
        generator. `SAMPLED` (-1) takes none of them, but lets the seed place the objects: for demonstrations. What
        the states leave out (cabinet, stove, rack) follows `seed`, or without one the profile's seed plus i, so that a
        seed or a state number alone repeats an episode exactly. `"perturb": "camera:2"` changes one factor of it, see
        `rlspec_envs.perturbation`.
        """
        super().reset(seed=seed)
        index, scene_seed = self._choose_start(seed, options or {})
        text = (options or {}).get("perturb")
        self._perturbation, self._path = None if text is None else Perturbation.parse(text), (scene_seed, index + 1)
        if self._simulation is None:
            self._simulation = LiberoSimulation(self.libero_task)
        if self._look is not None:
            self._look.restore()
        offset = arm_offset(self._perturbation, self._path, JOINTS)
        self._simulation.reset(None if index == SAMPLED else self.initial_states[index], scene_seed, offset)
        self._floor = self._lowest_object() - FALL_HEIGHT
        for _ in range(self.profile.settle_steps):
            self._simulation.step(np.array(self.profile.settle_action))
        self._steps = 0
        self._perturb(self._simulation)
        self._episode = {"task": self.task, "initial_state": index, "scene_seed": scene_seed}
        return self.observe(), self._info(success=False, predicate=self._simulation.check_success(), failure="")

    def _perturb(self, simulation: LiberoSimulation) -> None:
        """Change what the perturbation says of a settled scene."""
        self.instruction, perturbation = self.libero_task.instruction, self._perturbation
        if perturbation is not None:
            self._look = self._look or perturbed.background_of(simulation)
            self._look.perturb(perturbation, self._path)
            rng = perturbation.generator(*self._path)
            if perturbation.factor == "layout":
                perturbed.displace(simulation, perturbation.strength, rng)
            elif perturbation.factor == "language":
                self.instruction = reworded(self.instruction, perturbation.strength, rng)
            elif perturbation.factor == CONTROL:
                self.instruction = perturbed.wrong_instruction(self.libero_task, rng)
            simulation.place_cameras()
        self.task_description = self.instruction

    def _choose_start(self, seed: int | None, options: Mapping[str, Any]) -> tuple[int, int]:
        unknown = sorted(set(options) - {"initial_state", "perturb"})
        if unknown:
            raise ValueError(f"unknown reset option {unknown[0]!r}: LIBERO knows 'initial_state' and 'perturb'")
        count = len(self.initial_states)
        index = options.get("initial_state")
        if index is None:
            index = seed % count if seed is not None else int(self.np_random.integers(count))
            return index, seed if seed is not None else int(self.np_random.integers(2**31))
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or not SAMPLED <= index < count:
            raise ValueError(f"{self.suite} task {self.task} has no initial state {index!r}: choose 0 to {count - 1}")
        if index == SAMPLED and seed is None:
            seed = int(self.np_random.integers(2**31))
        return int(index), seed if seed is not None else self.profile.seed + int(index)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Advance 1/20 s; numbers outside [-1, 1] are clipped."""
        simulation = self.simulation
        predicate = simulation.step(self._checked_action(action))
        self._steps += 1
        diverged = not simulation.is_finite()
        success = predicate and not diverged and (self.success_condition == "predicate" or simulation.hands_are_free())
        truncated = not success and (diverged or self._steps >= self.max_episode_steps)
        failure = self._failure(diverged) if truncated else ""
        observation = self._blank() if diverged else self.observe()
        return observation, float(success), success, truncated, self._info(success, predicate, failure)

    def _blank(self) -> dict[str, Any]:
        """Zeros: what is left to see of diverged physics."""
        shape = (self.image_size, self.image_size, 3)
        pixels = {name: np.zeros(shape, np.uint8) for name in self.cameras}
        return {"pixels": pixels, "agent_pos": np.zeros_like(self.simulation.robot_state())}

    def _checked_action(self, action: np.ndarray) -> np.ndarray:
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (ACTION_SIZE,):
            raise ValueError(f"LIBERO needs an action of shape ({ACTION_SIZE},), not {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"the action has a number that is not finite: {values.tolist()}")
        return np.clip(values, -1.0, 1.0)

    def _failure(self, diverged: bool) -> str:
        if diverged:
            return "diverged"
        return "out_of_bounds" if self._lowest_object() < self._floor else "timeout"

    def _lowest_object(self) -> float:
        heights = (float(self.simulation.body_position(name)[2]) for name in self.simulation.objects_of_interest)
        return min(heights, default=np.inf)

    def _info(self, success: bool, predicate: bool, failure: str) -> dict[str, Any]:
        return {"is_success": success, "failure": failure, "goal_predicate": predicate} | self._episode

    def observe(self) -> dict[str, Any]:
        """Observe the present state, rendering now if `render_observations`."""
        observation = self._blank()
        observation["agent_pos"] = self.simulation.robot_state()
        if self.render_observations:
            observation["pixels"] = {name: self._image(name) for name in self.cameras}
        if self._perturbation is not None and self._perturbation.factor == "noise":
            return with_noise(observation, self._perturbation, (*self._path, self._steps))
        return observation

    def _image(self, name: str) -> np.ndarray:
        if self._renderer is None:
            if self.fast_rendering:
                thin_visual_meshes(self.simulation.model)
            self._renderer = LiberoRenderer(
                self.simulation.model, self.image_size, multisampling=not self.fast_rendering
            )
        pixels = self._renderer.render(self.simulation.data, CAMERAS[name])
        return np.ascontiguousarray(pixels[::-1, ::-1]) if self.profile.rotate else pixels

    def render(self) -> np.ndarray | None:
        """The view of the camera `image` as a policy sees it (mirrored: LIBERO's rotation is not a mere flip)."""
        return self._image("image") if self.render_mode == "rgb_array" else None

    @property
    def simulation(self) -> LiberoSimulation:
        """The privileged simulation; `RuntimeError` before the first reset."""
        if self._simulation is None:
            raise RuntimeError("the LIBERO environment was not reset: call reset() first")
        return self._simulation

    def describe(self) -> dict[str, Any]:
        """What a report has to say about results from this environment, JSON-safe."""
        setup = bootstrap.describe_setup()
        return {
            "environment": "libero",
            "suite": self.suite,
            "task": self.task,
            "task_name": self.task_name,
            "instruction": self.instruction,
            "robot": "Panda",
            "action_space": self.action_space_name,
            "control_hz": self.control_hz,
            "state_names": list(STATE_NAMES),
            "cameras": list(self.cameras),
            "image_size": self.image_size,
            "render_observations": self.render_observations,
            "fast_rendering": self.fast_rendering,
            "success_condition": self.success_condition,
            "max_episode_steps": self.max_episode_steps,
            "initial_states": len(self.initial_states),
            "profile": self.profile.describe(),
            "gl": setup["gl"],
            "assets": setup["assets"],
            "assets_source": setup["assets_source"],
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("hf-libero", "robosuite", "mujoco", "gymnasium", "numpy")
            },
        }

    def close(self) -> None:
        """Free the renderer and the scene; a later reset would load them again."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._simulation is not None:
            self._simulation.close()
            self._simulation = self._look = None


def _check_options(
    image_size: int,
    cameras: Sequence[str],
    success_condition: str,
    max_episode_steps: int | None,
    render_mode: str | None,
) -> None:
    if isinstance(cameras, str) or not cameras or len(set(cameras)) != len(cameras):
        raise ValueError(f"cameras must be a list of different names, not {cameras!r}")
    for name in cameras:
        if name not in CAMERAS:
            raise ValueError(f"LIBERO has no camera {name!r}: choose from {', '.join(CAMERAS)}")
    if not 16 <= image_size <= 2048:
        raise ValueError(f"image_size={image_size} is not within 16 to 2048 pixels")
    if success_condition not in SUCCESS_CONDITIONS:
        raise ValueError(f"success_condition={success_condition!r}: choose one of {', '.join(SUCCESS_CONDITIONS)}")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps={max_episode_steps} must be at least 1")
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode={render_mode!r}: LIBERO renders to 'rgb_array' only")
