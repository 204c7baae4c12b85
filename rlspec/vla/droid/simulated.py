"""One episode of the Franka simulation as what a DROID workstation would have recorded.

Imports neither torch nor LeRobot, as it runs in worker processes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import CARTESIAN_POSITION, JOINT_VELOCITY, MAX_JOINT_STEP
from rlspec.contract.droid import commanded, pose_of
from rlspec.contract.features import AGENT_POS, CAMERAS, PIXELS
from rlspec.errors import ConfigError, DataError
from rlspec.vla.data.recording import Disturbance, ScriptedExpert, disturb
from rlspec.vla.droid.schema import GRIPPER_POSITION

SPACE = JOINT_VELOCITY
KEPT_OF_FAILURE = (0.3, 0.7)  # share of a path after which an operator gives up
_STREAM = 0xD201D  # keeps these draws apart from other generators with the same seed

Array = NDArray[np.float64]


@dataclass
class RecordingPlan:
    """An episode without pictures.

    Attributes:
        seed: of the reset.
        instruction: what the robot was told.
        idle: steps at the start in which the operator does not move.
        labels: (T, 8) recorded actions.
        executed: (T, 8) what was done; differs where a step was disturbed.
        states: (T + 1, 8) robot's state before every action, and after the last.
        failure: kind of failure; empty after a success.
    """

    seed: int
    instruction: str
    idle: int
    labels: NDArray[np.float32]
    executed: NDArray[np.float32]
    states: NDArray[np.float32]
    failure: str = ""

    def cut(self, steps: int) -> RecordingPlan:
        """The same as far as an operator who gives up after so many steps."""
        parts = self.labels[:steps], self.executed[:steps], self.states[: steps + 1]
        return RecordingPlan(self.seed, self.instruction, self.idle, *parts, failure="gave_up")


@dataclass
class SimulatedRecording:
    """What was recorded.

    Attributes:
        plan: actions and states.
        arrays: path in trajectory.h5 below `action` or `observation/robot_state` -> (T, ...) numbers.
        pictures: camera of `schema.CAMERAS` -> (T, H, W, 3) uint8 RGB.
        extrinsics: camera -> (T, 6) pose in the base frame, by OpenCV's axes (x right, y down, z ahead).
        environment: the simulator's own description.
    """

    plan: RecordingPlan
    arrays: dict[str, Array] = field(default_factory=dict)
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    extrinsics: dict[str, Array] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


def check_environment(env: Any) -> None:
    """Raises ConfigError unless the environment is a Franka that DROID's actions move and all cameras see."""
    simulator = env.unwrapped
    if simulator.suite != "franka" or simulator.action_space_name != SPACE:
        space = getattr(simulator, "action_space_name", "no known action space")
        raise ConfigError(
            f"format=droid_raw: wants the Franka with {SPACE}, this is {simulator.suite} with {space}; "
            "use env=franka_droid"
        )
    assert simulator.cameras == CAMERAS, "the generator asks for these"


def plan_episode(
    env: Any, expert: ScriptedExpert, seed: int, disturbance: Disturbance, idle_steps: Sequence[int] = (0, 0)
) -> RecordingPlan:
    """Stand idle for a moment, then run the expert, without rendering.

    Args:
        env: an environment of `rlspec_envs`.
        expert: bound to it.
        seed: of the reset and of all that is drawn here.
        disturbance: of executed actions; the gripper is left alone.
        idle_steps: fewest and most, before the operator moves the robot.
    """
    env.unwrapped.render_observations = False
    rng = np.random.default_rng([_STREAM, seed])
    idle = int(rng.integers(idle_steps[0], idle_steps[1] + 1))
    observation, _ = env.reset(seed=seed)
    expert.reset()
    labels: list[NDArray[np.float32]] = []
    executed: list[NDArray[np.float32]] = []
    states = [_state(observation)]
    ended, outcome = False, {}
    while not ended:
        label = np.zeros(8, np.float32) if len(labels) < idle else np.asarray(expert.act(), np.float32)
        action = label if len(labels) < idle else disturb(label, disturbance, env.action_space, rng)
        observation, _, terminated, truncated, outcome = env.step(action)
        ended = terminated or truncated
        labels.append(label)
        executed.append(action)
        states.append(_state(observation))
    failure = "" if outcome["is_success"] else str(outcome.get("failure") or "unknown")
    stacked = np.stack(labels), np.stack(executed), np.stack(states)
    return RecordingPlan(seed, str(env.unwrapped.instruction), idle, *stacked, failure=failure)


def give_up(plan: RecordingPlan) -> RecordingPlan:
    """The same episode as one that its operator broke off and called a failure."""
    rng = np.random.default_rng([_STREAM, plan.seed, 1])
    moving = len(plan.labels) - plan.idle
    return plan.cut(plan.idle + max(1, int(moving * rng.uniform(*KEPT_OF_FAILURE))))


def film(env: Any, plan: RecordingPlan) -> SimulatedRecording:
    """Repeat a plan with pictures and everything that DROID records.

    Raises:
        DataError: The environment does not repeat itself.
    """
    env.unwrapped.render_observations = True
    observation, _ = env.reset(seed=plan.seed)
    recording = SimulatedRecording(plan, environment=env.unwrapped.describe())
    rows: dict[str, list[Any]] = {}
    torques = np.zeros(7)
    for step, (label, action) in enumerate(zip(plan.labels, plan.executed, strict=True)):
        _compare(observation, plan, step)
        row = _measured(env.unwrapped, torques) | _commanded(env.unwrapped, np.asarray(label, np.float64))
        row |= {f"pictures/{name}": picture for name, picture in observation[PIXELS].items()}
        row |= {f"extrinsics/{name}": camera_pose(env.unwrapped, name) for name in observation[PIXELS]}
        for key, value in row.items():
            rows.setdefault(key, []).append(value)
        torques = row["observation/robot_state/joint_torques_computed"]
        observation, *_ = env.step(action)
    _compare(observation, plan, len(plan.labels))
    for key, values in rows.items():
        kind, _, name = key.partition("/")
        if kind == "pictures":
            recording.pictures[name] = np.stack(values)
        elif kind == "extrinsics":
            recording.extrinsics[name] = np.stack(values)
        else:
            recording.arrays[key] = np.stack(values)
    return recording


def _compare(observation: Any, plan: RecordingPlan, step: int) -> None:
    if _state(observation).tobytes() != plan.states[step].tobytes():
        raise DataError(
            f"seed {plan.seed}: the replay is in another state before step {step}; the environment does not repeat "
            "itself, so recordings of it could not be checked"
        )


def _state(observation: Any) -> NDArray[np.float32]:
    return np.array(observation[AGENT_POS], dtype=np.float32)


def _measured(simulator: Any, before: Array) -> dict[str, Any]:
    """robot_state of this moment; `before` are the torques of the last one."""
    world, group = simulator.world, "observation/robot_state/"
    torques = np.array(world.data.qfrc_actuator[:7])
    return {
        f"{group}{CARTESIAN_POSITION}": pose_of(*world.kinematics.pose(world.joints)),
        f"{group}{GRIPPER_POSITION}": np.float64(closure_of(world)),
        f"{group}joint_positions": world.joints,
        f"{group}joint_velocities": np.array(world.data.qvel[:7]),
        f"{group}joint_torques_computed": torques,
        f"{group}prev_joint_torques_computed": before,
        f"{group}prev_joint_torques_computed_safened": before,
        f"{group}motor_torques_measured": torques,
        f"{group}prev_controller_latency_ms": np.float64(0.0),
        f"{group}prev_command_successful": np.True_,
    }


def closure_of(world: Any) -> float:
    """How far the hand is closed, 0 open to 1 closed."""
    from rlspec_envs.franka.robots import FINGER_STROKE

    return float(np.clip(1.0 - world.gap / (2 * FINGER_STROKE), 0.0, 1.0))


def _commanded(simulator: Any, action: Array) -> dict[str, Any]:
    """A `joint_velocity` action in all of DROID's spaces.

    The Cartesian target is where the hand would be with the target joints.
    """
    world = simulator.world
    here = world.kinematics.pose(world.joints)
    target = world.joints + MAX_JOINT_STEP * action[:7]
    there = world.kinematics.pose(target)
    measured, closure = closure_of(world), float(np.clip(action[7], 0.0, 1.0))
    return commanded(here, there, target, action[:7], (measured, closure))


def camera_pose(simulator: Any, name: str) -> Array:
    """Pose (6,) of a camera in the base frame, by OpenCV's axes."""
    from rlspec_envs.franka.scene import CAMERAS as NAMES

    world = simulator.world
    camera = world.data.camera(NAMES[name])
    return pose_of(np.array(camera.xpos), camera.xmat.reshape(3, 3) * (1.0, -1.0, -1.0))


def instructions(task: str, instruction: str) -> tuple[str, str, str]:
    """An instruction as three annotators would put it; the first is as given."""
    from rlspec_envs.franka.tasks import TASKS

    templates: Sequence[str] = getattr(TASKS[task], "templates", ())
    words = next((match.groupdict() for each in templates if (match := _pattern(each).fullmatch(instruction))), None)
    others = [each.format(**words) for each in templates] if words is not None else []
    given = [each for each in dict.fromkeys(others) if each != instruction]
    given += [f"{instruction}, please", f"I want you to {instruction}"]
    return instruction, given[0], given[1]


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(template)))
