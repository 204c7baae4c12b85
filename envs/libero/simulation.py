"""LIBERO's robosuite scene without its renderer: exact resets, control steps, privileged state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from rlspec_envs.libero.bootstrap import import_libero
from rlspec_envs.libero.tasks import LiberoTask
from rlspec_envs.physics import relay_warnings

CONTROL_HZ = 20
OBSERVED = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


class LiberoSimulation:
    """One loaded scene.

    robosuite's own renderer is left out (see `LiberoRenderer`), so no OpenGL context exists here. Resets are "soft":
    they keep the compiled model, and restore the one thing that robosuite then forgets, the gripper's integrated
    command. So they give bitwise the same states as reloading the scene, in a fraction of the time.
    """

    def __init__(self, task: LiberoTask) -> None:
        import_libero()
        relay_warnings()
        import robosuite
        from libero.libero.envs import TASK_MAPPING
        from libero.libero.envs.bddl_utils import get_problem_info

        problem = TASK_MAPPING[get_problem_info(str(task.bddl_file))["problem_name"]]
        with seeded(0):
            self.env: Any = problem(
                str(task.bddl_file),
                robots=["Panda"],
                controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
                initialization_noise=None,
                use_camera_obs=False,
                has_offscreen_renderer=False,
                control_freq=CONTROL_HZ,
                ignore_done=True,
                hard_reset=False,
            )
        self.env._observables = {name: self.env._observables[name] for name in OBSERVED}

    def reset(self, initial_state: np.ndarray | None, seed: int, arm_offset: np.ndarray | None = None) -> None:
        """Set a stored state, or none; `seed` places what it leaves out (cabinet, stove, rack), without one all.

        Args:
            initial_state: Time, positions, velocities.
            seed: Of what is random.
            arm_offset: By how much each of the seven joints (rad) is then moved.
        """
        with seeded(seed):
            for gripper in (robot.gripper for robot in self.env.robots):
                gripper.current_action = np.zeros(gripper.dof)
            self.env.reset()
        if initial_state is not None:
            self.env.sim.set_state_from_flattened(initial_state)
        if arm_offset is not None:
            self.data.qpos[self.env.robots[0]._ref_joint_pos_indexes] += arm_offset
        self.refresh()

    def refresh(self) -> None:
        """Let everything that is derived from the state follow it."""
        self.env.sim.forward()
        self.env._check_success()
        self.env._post_process()
        self.env._update_observables(force=True)

    def place_cameras(self) -> None:
        """Let cameras and lights be where the model now has them; nothing else of the state changes."""
        import mujoco

        mujoco.mj_camlight(self.model, self.data)

    def step(self, action: np.ndarray) -> bool:
        """Advance one control step (25 physics steps); return whether LIBERO's goal predicate holds.

        This is robosuite's own loop but for a forward pass per physics step that its controller repeats at once, and
        for observations that nobody reads: bitwise the same states in less time.
        """
        env, values = self.env, np.asarray(action, dtype=np.float64)
        env.timestep += 1
        for substep in range(int(env.control_timestep / env.model_timestep)):
            env._pre_action(values, policy_step=substep == 0)
            env.sim.step()
            env._update_observables()
        env.cur_time += env.control_timestep
        reward, _, _ = env._post_action(values)
        return bool(reward > 0.0)

    def check_success(self) -> bool:
        """LIBERO's goal predicate, in the present state."""
        return bool(self.env._check_success())

    @property
    def goal(self) -> tuple[tuple[str, ...], ...]:
        """The conditions that make up the goal, all to hold at once: ("on", "bowl_1", "plate_1"), ("close", ...)."""
        return tuple(tuple(condition) for condition in self.env.parsed_problem["goal_state"])

    def holds(self, condition: tuple[str, ...]) -> bool:
        """Whether one of LIBERO's conditions is true in the present state."""
        return bool(self.env._eval_predicate(list(condition)))

    def robot_state(self) -> np.ndarray:
        """(8,) float32 as LIBERO observes them: end-effector position (m), axis-angle (rad), two fingers (m)."""
        position, quaternion, fingers = (self.env._observables[name].obs for name in OBSERVED)
        return np.concatenate([position, axis_angle(quaternion), fingers]).astype(np.float32)

    def physics_state(self) -> np.ndarray:
        """Time, positions and velocities (1 + nq + nv,) float64, in the layout of the stored initial states."""
        state: np.ndarray = self.env.sim.get_state().flatten()
        return state

    @property
    def objects_of_interest(self) -> tuple[str, ...]:
        """Names of the bodies that the goal speaks of (objects and fixtures), in the task file's order."""
        return tuple(name for name in self.env.obj_of_interest if name in self.env.obj_body_id)

    def body_position(self, name: str) -> np.ndarray:
        """World position (3,) in m of an object or fixture."""
        return np.array(self.data.xpos[self.env.obj_body_id[name]])

    def hands_are_free(self) -> bool:
        """Whether the gripper touches none of the movable objects."""
        gripper = self.env.robots[0].gripper
        return not any(self.env.check_contact(gripper, thing) for thing in self.env.objects_dict.values())

    def is_finite(self) -> bool:
        """Whether the physics is still sound: finite, and not reset by MuJoCo after an unstable step."""
        data = self.env.sim.data
        return bool(np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()) and not self._unstable()

    def _unstable(self) -> bool:
        import mujoco

        kinds = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
        return any(self.data.warning[int(kind)].number for kind in kinds)

    @property
    def model(self) -> Any:
        """The compiled `mujoco.MjModel`."""
        return self.env.sim.model._model

    @property
    def data(self) -> Any:
        """The `mujoco.MjData`."""
        return self.env.sim.data._data

    def close(self) -> None:
        """Free model and data."""
        self.env.close()


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Axis times angle (rad, up to 2 pi, not wrapped) of an (x, y, z, w) quaternion, as LIBERO's users compute it."""
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    norm = np.sqrt(1.0 - w * w)
    if np.isclose(norm, 0.0):
        return np.zeros(3)
    return np.asarray(quaternion[:3]) * (2.0 * np.arccos(w) / norm)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """LIBERO samples from numpy's global generator: seed it here and give it back unchanged."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)
