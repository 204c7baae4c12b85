"""Idle frames, instructions, rotations and other rates, against plain loops and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from rlspec.contract.droid import Placement, commanded, euler_angles, euler_matrix, pose_of
from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.kinematics import HOME, flange, forward
from rlspec.deploy.arm.targets import Targets
from rlspec.vla.droid.episodes import Frame, Recording, Refused
from rlspec.vla.droid.filters import choose_instructions, chosen_ranges, idle_frames, kept_ranges
from rlspec.vla.droid.pose_frames import with_poses_of_flange
from rlspec.vla.droid.resample import cut_segment
from rlspec.vla.droid.rotations import from_vector, to_vector


def no_images(camera: str) -> Iterator[Frame]:
    raise AssertionError("nobody asked for images")


def recording(frames: int, *, rate: float = 15.0, seed: int = 0, **given: object) -> Recording:
    rng = np.random.default_rng(seed)
    joints = np.cumsum(rng.normal(0, 0.02, (frames, 7)), axis=0)
    poses = np.cumsum(rng.normal(0, 0.02, (frames, 6)), axis=0) + [0.4, 0, 0.3, 3.0, 0.1, -0.2]
    fields: dict[str, object] = {
        "identity": "a",
        "state": {
            "joint_position": joints,
            "gripper_position": rng.uniform(0, 1, (frames, 1)),
            "cartesian_position": poses,
        },
        "actions": {
            "joint_velocity": rng.uniform(-0.5, 0.5, (frames, 7)),
            "joint_position": joints + rng.normal(0, 0.05, (frames, 7)),
            "cartesian_velocity": rng.uniform(-0.4, 0.4, (frames, 6)),
            "cartesian_position": poses + 0.01,
            "gripper_position": rng.uniform(0, 1, (frames, 1)),
        },
        "instructions": ("lift it", "raise it", "lift it", ""),
        "success": True,
        "rate": rate,
        "frames": no_images,
        **given,
    }
    return Recording(**fields)  # type: ignore[arg-type]


def openpi_ranges(idle: list[bool], min_idle: int, min_non_idle: int, last: int) -> list[tuple[int, int]]:
    """Frame by frame."""
    keep = [True] * len(idle)
    for start in range(len(idle)):
        if idle[start] and (start == 0 or not idle[start - 1]):
            end = start
            while end < len(idle) and idle[end]:
                end += 1
            if end - start >= min_idle:
                for frame in range(start, end):
                    keep[frame] = False
    ranges = []
    for start in range(len(idle)):
        if keep[start] and (start == 0 or not keep[start - 1]):
            end = start
            while end < len(idle) and keep[end]:
                end += 1
            if end - start >= min_non_idle and end - last > start:
                ranges.append((start, end - last))
    return ranges


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 30)), min_size=0, max_size=12),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(0, 12),
)
@settings(deadline=None, max_examples=100)
def test_ranges_are_those_of_a_plain_loop(
    runs: list[tuple[bool, int]], min_idle: int, min_non_idle: int, last: int
) -> None:
    idle = [flag for flag, length in runs for _ in range(length)]
    found = kept_ranges(
        np.array(idle, dtype=bool), min_idle_len=min_idle, min_non_idle_len=min_non_idle, filter_last_n=last
    )
    assert found == openpi_ranges(idle, min_idle, min_non_idle, last)


def test_the_numbers_are_openpis() -> None:
    idle = np.array([False] * 20 + [True] * 7 + [False] * 16 + [True] * 6 + [False] * 3 + [True] * 8 + [False] * 15)
    assert kept_ranges(idle) == [(0, 10), (27, 42)]


def test_idle_is_an_unchanged_command_of_an_arm_whose_gripper_rests() -> None:
    command, closure = np.zeros((8, 7)), np.zeros((8, 2))
    command[3:, 2] = 5e-4  # too little to count
    command[4:, 2] = 2e-2
    closure[6:, 0] = 0.1
    assert idle_frames(command, closure).tolist() == [False, True, True, True, False, True, False, True]
    enabled = np.array([True, True, True, True, False, True, True, True])
    assert idle_frames(command, closure, enabled).tolist() == [False, True, True, True, True, True, False, True]


def test_an_episode_of_idle_frames_alone_is_refused() -> None:
    still = recording(40)
    still.state["gripper_position"][:] = still.actions["gripper_position"][:] = 0
    with pytest.raises(Refused) as refusal:
        chosen_ranges(still, np.zeros((40, 7)), drop_idle=True)
    assert refusal.value.kind == "idle"
    assert chosen_ranges(still, np.zeros((40, 7)), drop_idle=False) == [(0, 40)]


def test_a_random_instruction_depends_on_seed_and_episode_alone() -> None:
    texts = tuple(map(str, range(10)))
    episodes = [recording(3, identity=f"e{number}", instructions=texts) for number in range(40)]
    chosen = [choose_instructions(each, "random", 3)[0] for each in episodes]
    assert [choose_instructions(each, "random", 3)[0] for each in episodes[::-1]] == chosen[::-1]
    assert len(set(chosen)) > 5
    assert [choose_instructions(each, "random", 4)[0] for each in episodes] != chosen
    assert choose_instructions(recording(3), "all", 0) == ["lift it", "raise it"]
    assert choose_instructions(recording(3), "1", 0) == ["raise it"]


def test_rotations_are_scipys() -> None:
    rng = np.random.default_rng(0)
    angles = rng.uniform(-np.pi, np.pi, (500, 3)) * [1, 0.49, 1]
    vectors = np.concatenate([rng.normal(0, 1, (300, 3)), rng.normal(0, 1e-9, (50, 3)), np.zeros((1, 3))])
    half_turns = np.eye(3) * np.pi
    matrices = Rotation.from_euler("xyz", angles).as_matrix()
    assert np.allclose(euler_matrix(angles), matrices, atol=1e-12)
    assert np.allclose(euler_angles(matrices), angles, atol=1e-9)
    assert np.allclose(from_vector(vectors), Rotation.from_rotvec(vectors).as_matrix(), atol=1e-12)
    assert np.allclose(to_vector(matrices), Rotation.from_matrix(matrices).as_rotvec(), atol=1e-9)
    back = to_vector(Rotation.from_rotvec(half_turns).as_matrix())
    assert np.allclose(np.abs(back), half_turns, atol=1e-7)
    locked = np.array([[0.3, np.pi / 2, 0.0], [-0.4, -np.pi / 2, 0.0]])
    assert np.allclose(euler_matrix(euler_angles(euler_matrix(locked))), euler_matrix(locked), atol=1e-7)


@pytest.mark.parametrize("space", ["joint_velocity", "joint_position", "cartesian_velocity", "cartesian_position"])
def test_at_its_own_rate_nothing_changes(space: str) -> None:
    episode = recording(30)
    segment = cut_segment(episode, (4, 20), space, 15)
    assert np.array_equal(segment.action[:, :-1], episode.actions[space][4:20].astype("f4"))
    assert np.array_equal(segment.action[:, -1], episode.actions["gripper_position"][4:20, 0].astype("f4"))
    assert np.array_equal(segment.state[:, :7], episode.state["joint_position"][4:20].astype("f4"))
    assert segment.images.tolist() == list(range(4, 20))
    assert segment.rescaled == 0


def interpolated(values: NDArray[np.float64], time: float) -> NDArray[np.float64]:
    frames = np.arange(len(values))
    return np.array([np.interp(time, frames, column) for column in values.T])


@pytest.mark.parametrize("rate", [5, 10, 15, 20, 30])
def test_joint_velocities_keep_the_recorded_targets(rate: int) -> None:
    """Frame by frame: where the target is at the end of the interval, seen from where the arm is at its beginning."""
    episode = recording(31)
    segment = cut_segment(episode, (1, 31), "joint_velocity", rate)
    joints, velocity = episode.state["joint_position"], episode.actions["joint_velocity"]
    for number in range(len(segment)):
        begin, end = 1 + number * 15 / rate, 1 + (number + 1) * 15 / rate
        last = max(frame for frame in range(1, 31) if frame < end - 1e-9)
        now = interpolated(joints, begin)
        expected = (joints[last] + 0.2 * velocity[last] - now) / 0.2
        expected /= max(1.0, np.abs(expected).max())
        assert np.allclose(segment.action[number, :7], expected, atol=1e-5)
        assert np.allclose(segment.state[number, :7], now, atol=1e-6)
        assert segment.images[number] == int(begin + 1e-9)
        assert segment.action[number, 7] == np.float32(episode.actions["gripper_position"][last, 0])
    assert len(segment) == int(29 * rate / 15 + 1e-9) + 1


def test_joint_positions_are_those_in_force_at_the_end_of_the_interval() -> None:
    segment = cut_segment(recording(12), (0, 12), "joint_position", 5)
    targets = recording(12).actions["joint_position"]
    assert np.array_equal(segment.action[:, :7], targets[[2, 5, 8, 11]].astype("f4"))
    faster = cut_segment(recording(12), (0, 12), "joint_position", 30)
    assert np.array_equal(faster.action[:5, :7], targets[[0, 0, 1, 1, 2]].astype("f4"))


def test_both_joint_spaces_mean_the_same_target_at_another_rate() -> None:
    """Recorded so that they agree, they agree at 5 Hz as well; an average of velocities would not."""
    episode = recording(30)
    episode.actions["joint_velocity"] *= 0.3
    episode.actions["joint_position"] = episode.state["joint_position"] + 0.2 * episode.actions["joint_velocity"]
    velocity, position = (cut_segment(episode, (0, 30), f"joint_{name}", 5) for name in ("velocity", "position"))
    assert velocity.rescaled == 0
    reached = velocity.state[:, :7] + 0.2 * velocity.action[:, :7]
    assert np.allclose(reached, position.action[:, :7], atol=1e-6)


@pytest.mark.parametrize("rate", [5, 30])
def test_cartesian_velocities_keep_the_recorded_targets(rate: int) -> None:
    episode = recording(31)
    segment = cut_segment(episode, (0, 31), "cartesian_velocity", rate)
    poses, velocity = episode.state["cartesian_position"], episode.actions["cartesian_velocity"]
    for number in range(len(segment)):
        begin, end = number * 15 / rate, (number + 1) * 15 / rate
        last = max(frame for frame in range(31) if frame < end - 1e-9)
        target = Rotation.from_euler("xyz", 0.15 * velocity[last, 3:]) * Rotation.from_euler("xyz", poses[last, 3:])
        low = int(begin + 1e-9)
        high, share = min(low + 1, 30), begin - low
        before, after = (Rotation.from_euler("xyz", poses[frame, 3:]) for frame in (low, high))
        now = Rotation.from_rotvec(share * (after * before.inv()).as_rotvec()) * before
        turn = (target * now.inv()).as_euler("xyz") / 0.15
        move = (poses[last, :3] + 0.075 * velocity[last, :3] - interpolated(poses[:, :3], begin)) / 0.075
        for found, wanted in ((segment.action[number, :3], move), (segment.action[number, 3:6], turn)):
            assert np.allclose(found, wanted / max(1.0, np.abs(wanted).max()), atol=1e-5)


def test_what_is_beyond_the_largest_step_is_shortened_and_counted() -> None:
    episode = recording(12)
    episode.state["joint_position"][:, 1] = 0.3 * np.arange(12)
    segment = cut_segment(episode, (0, 12), "joint_velocity", 5)
    assert segment.rescaled == 4
    assert np.allclose(np.abs(segment.action[:, :7]).max(axis=1), 1.0)
    whole = (episode.state["joint_position"][2] + 0.2 * episode.actions["joint_velocity"][2]) - episode.state[
        "joint_position"
    ][0]
    assert np.allclose(segment.action[0, :7], whole / np.abs(whole).max(), atol=1e-6)


def bending(
    place: Callable[[NDArray[np.float64]], Placement], pose_frame: str, start: NDArray[np.float64] = HOME
) -> Recording:
    """Joint 6 bends by 0.03 rad a step for 11 steps, recorded as poses of a place on the hand."""
    joints = np.tile(start, (12, 1))
    joints[:, 5] += 0.03 * np.arange(12)
    target = np.vstack([joints[1:], joints[-1:]])
    closed = np.zeros(12)
    actions = commanded(place(joints), place(target), target, (target - joints) / 0.2, (closed, closed))
    names = ("cartesian_position", "cartesian_velocity", "joint_velocity", "gripper_position")
    return recording(
        12,
        state={
            "joint_position": joints,
            "gripper_position": closed[:, None],
            "cartesian_position": pose_of(*place(joints)),
        },
        actions={name: actions[f"action/{name}"].reshape(12, -1) for name in names},
        pose_frame=pose_frame,
    )


def test_a_robot_that_repeats_delta_eef_ends_where_the_recorded_one_did() -> None:
    episode = bending(flange, "flange")
    joints, targets = HOME, Targets("delta_eef")
    for action in cut_segment(episode, (0, 12), "delta_eef", 15).action:
        wanted = targets(action, RobotState(0.0, joints, np.zeros(7), 0.0)).joints
        assert wanted is not None
        joints = wanted
    recorded = forward(episode.state["joint_position"])[0]
    assert np.linalg.norm(recorded[-1] - recorded[0]) > 0.07
    assert np.allclose(forward(joints)[0], recorded[-1], atol=2e-3)


def test_poses_of_the_tip_say_the_same_as_those_of_the_flange() -> None:
    start = HOME + 0.1  # Euler angles jump by a turn where the hand points straight down
    expected, found = bending(flange, "flange", start), with_poses_of_flange(bending(forward, "tcp", start))
    assert found.pose_frame == "flange"
    for wanted, have in ((expected.state, found.state), (expected.actions, found.actions)):
        assert wanted.keys() == have.keys()
        for name in wanted:
            assert np.allclose(have[name], wanted[name], atol=1e-9), name
