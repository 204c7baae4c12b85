"""Episodes: gymnasium's contract, repetition, ends, options."""

from __future__ import annotations

import json
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import rlspec_envs
from franka_cases import MakeScene, play
from gymnasium.utils.env_checker import check_env
from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.franka.environment import FrankaEnv
from rlspec_envs.franka.tasks import TASKS

IDS = ("FrankaPickPlace", "FrankaPush", "FrankaStack", "FrankaDrawer")


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_checker_has_nothing_to_say(gl: str, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(f"rlspec/{name}-v0", render_mode="rgb_array", image_size=32, render_size=32)
        check_env(env.unwrapped)
        env.reset(seed=0)
        env.step(env.action_space.sample())
        env.close()


@pytest.mark.parametrize("space", ["joint_velocity", "joint_position"])
def test_the_checker_accepts_the_joint_spaces(gl: str, space: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The checker would like every action space to be -1 to 1; joint positions are radians by contract.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space.*")
        env = gymnasium.make("rlspec/FrankaPickPlace-v0", action_space=space, image_size=32, render_size=32)
        check_env(env.unwrapped)
        env.close()


@pytest.mark.parametrize("task", list(TASKS))
def test_a_seed_repeats_an_episode_bit_for_bit_and_so_do_its_recorded_actions(scene: MakeScene, task: str) -> None:
    env, other = scene(task), scene(task, image_size=16)
    info, actions, states = play(env, seed=5)
    instruction = env.instruction
    play(env, seed=6)  # another episode in between leaves no trace
    again, again_actions, again_states = play(env, seed=5)
    assert again == info and env.instruction == instruction
    np.testing.assert_array_equal(again_actions, actions)
    np.testing.assert_array_equal(again_states, states)
    other.reset(seed=5)
    assert other.instruction == instruction
    for action, state in zip(actions, states, strict=True):
        *_, info = other.step(action)
        np.testing.assert_array_equal(np.concatenate([other.world.data.qpos, other.world.data.qvel]), state)
    assert info["is_success"]


@pytest.mark.parametrize("task", list(TASKS))
def test_seeds_differ_in_layout_instruction_and_colours(scene: MakeScene, task: str) -> None:
    env = scene(task)
    layouts, instructions, looks = set(), set(), set()
    for seed in range(12):
        env.reset(seed=seed)
        layouts.add(env.world.data.xpos.tobytes())
        instructions.add(env.instruction)
        looks.add(env.world.model.geom_rgba.tobytes() + env.world.model.cam_pos.tobytes())
    assert len(layouts) == len(looks) == 12
    assert len(instructions) >= 5


def test_an_unseeded_reset_goes_on_drawing(scene: MakeScene) -> None:
    env = scene()
    env.reset(seed=0)
    first = env.world.data.qpos.copy()
    env.reset()
    assert not np.array_equal(env.world.data.qpos, first)


def test_randomise_none_varies_positions_only(scene: MakeScene) -> None:
    env = scene(randomise="none")
    looks, cubes = [], []
    for seed in range(3):
        env.reset(seed=seed)
        looks.append((env.world.model.cam_pos.copy(), env.world.model.light_diffuse.copy(), env.world.joints))
        cubes.append(env.world.position("block0"))
        assert env.world.yaw("block0") == pytest.approx(np.pi / 4)
    for look in looks[1:]:
        for here, there in zip(look, looks[0], strict=True):
            np.testing.assert_array_equal(here, there)
    assert np.linalg.norm(cubes[0] - cubes[1]) > 1e-3


def test_objects_lie_in_the_workspace_and_keep_apart(scene: MakeScene) -> None:
    env = scene(distractors=3, plates=2, workspace=(0.35, 0.65, -0.2, 0.2))
    for seed in range(30):
        env.reset(seed=seed)
        blocks = np.array([env.world.position(f"block{i}")[:2] for i in range(4)])
        plates = np.array([env.world.position(f"plate{i}")[:2] for i in range(2)])
        both = np.concatenate([blocks, plates])
        assert (both >= [0.35, -0.2]).all() and (both <= [0.65, 0.2]).all()
        between = np.linalg.norm(blocks[:, None] - blocks[None], axis=2) + np.eye(4)
        assert between.min() >= 0.1
        assert np.linalg.norm(blocks[:, None] - plates[None], axis=2).min() >= 0.1
        env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
        assert max(env.world.speed(f"block{i}") for i in range(4)) < 5e-3  # nothing overlaps or falls


def test_the_instruction_names_colour_of_object_and_goal(scene: MakeScene) -> None:
    env = scene(distractors=2, plates=2, randomise="none", workspace=(0.35, 0.65, -0.2, 0.2))
    colours = {
        "red": [0.9, 0.08, 0.08],
        "green": [0.08, 0.7, 0.16],
        "blue": [0.1, 0.22, 0.95],
        "yellow": [0.98, 0.85, 0.05],
    }
    goals = {"white": [0.97] * 3, "purple": [0.6, 0.12, 0.75], "black": [0.06, 0.06, 0.07]}
    for seed in range(8):
        env.reset(seed=seed)
        named = [colour for colour in colours if f"{colour} cube" in env.instruction]
        plates = [colour for colour in goals if f"{colour} plate" in env.instruction]
        assert len(named) == len(plates) == 1
        np.testing.assert_allclose(env.world.model.geom("block0").rgba[:3], colours[named[0]], atol=1e-6)
        np.testing.assert_allclose(env.world.model.geom("plate0").rgba[:3], goals[plates[0]], atol=1e-6)
        others = [tuple(env.world.model.geom(f"block{i}").rgba) for i in range(3)]
        assert len(set(others)) == 3


def test_a_timeout_truncates_and_is_named(scene: MakeScene) -> None:
    env = rlspec_envs.make_env("franka", "stack", max_episode_steps=7)
    env.unwrapped.render_observations = False
    assert env.unwrapped.max_episode_steps == 7
    env.reset(seed=0)
    for step in range(1, 8):
        _, reward, terminated, truncated, info = env.step(np.zeros(7))
        assert (reward, terminated, truncated) == (0.0, False, step == 7)
        assert info["failure"] == ("timeout" if step == 7 else "")
        assert info["is_success"] is False and info["task"] == env.unwrapped.instruction
    assert scene("stack").max_episode_steps == gymnasium.spec("rlspec/FrankaStack-v0").max_episode_steps


def test_an_object_beside_the_table_ends_the_episode(scene: MakeScene) -> None:
    env = scene()
    env.reset(seed=0)
    env.world.place("block1", [0.5, 1.2, 0.1])
    info: dict[str, Any] = {}
    for _ in range(20):
        *_, terminated, truncated, info = env.step(np.zeros(7))
        if terminated or truncated:
            break
    assert (terminated, truncated, info["failure"]) == (False, True, "out_of_bounds")


def test_diverged_physics_is_noticed(scene: MakeScene) -> None:
    env = scene()
    env.reset(seed=0)
    env.world.data.qvel[0] = 1e12
    observation, _, terminated, truncated, info = env.step(np.zeros(7))
    assert (terminated, truncated, info["failure"], info["is_success"]) == (False, True, "diverged", False)
    assert np.isfinite(observation["agent_pos"]).all()
    env.reset(seed=0)
    assert env.step(np.zeros(7))[4]["failure"] == ""


def test_success_needs_the_cube_on_the_plate_and_the_hand_gone(scene: MakeScene) -> None:
    env = scene()
    still = np.array([0, 0, 0, 0, 0, 0, -1.0])

    def succeeds(offset: tuple[float, float, float], close: bool = False) -> bool:
        env.reset(seed=0)
        env.world.place("block0", env.world.position("plate0") + [offset[0], offset[1], 0.0225 + offset[2]])
        info: dict[str, Any] = {}
        for _ in range(8):
            still[6] = 1.0 if close else -1.0
            *_, info = env.step(still)
        return bool(info["is_success"])

    assert succeeds((0, 0, 0)) and succeeds((0.04, 0, 0.01))
    assert not succeeds((0.08, 0, 0))
    assert not succeeds((0, 0, 0), close=True)
    env.reset(seed=0)
    plate = env.world.position("plate0")
    env.world.place("block1", plate + [0, 0, 0.0225])
    assert not env.step(still)[4]["is_success"]


def _judged(env: FrankaEnv, body: str, position: np.ndarray) -> bool:
    """Whether the task counts as done when an object lies somewhere and the hand keeps still."""
    env.world.place(body, position)
    env.world.advance()
    return bool(env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))[4]["is_success"])


def test_success_of_push_and_stack_is_where_the_instruction_says(scene: MakeScene) -> None:
    push, stack = scene("push"), scene("stack")
    for offset, expected in (([0.03, 0, 0], True), ([0, -0.05, 0], False)):
        push.reset(seed=0)
        assert _judged(push, "block0", push.world.position("circle") + offset + [0, 0, 0.02]) is expected
    for height, aside, expected in ((0.045, 0.01, True), (0.045, 0.028, False), (0.0, 0.06, False)):
        stack.reset(seed=0)
        assert _judged(stack, "block0", stack.world.position("block1") + [aside, 0, height]) is expected


@pytest.mark.parametrize(
    ("goal", "travel", "expected"),
    [("open", 0.10, True), ("open", 0.08, False), ("close", 0.01, True), ("close", 0.03, False)],
)
def test_success_of_the_drawer_is_the_named_drawers_travel(
    scene: MakeScene, goal: str, travel: float, expected: bool
) -> None:
    env = scene("drawer", goal=goal)
    named = set()
    for seed in range(10):
        env.reset(seed=seed)
        assert env.instruction.startswith(goal)
        fronts = {name: env.world.model.geom(f"{name}_front").rgba for name in ("drawer0", "drawer1")}
        target = next(name for name in fronts if _colour_name(fronts[name]) in env.instruction)
        named.add(target)
        other = {"drawer0": "drawer1", "drawer1": "drawer0"}[target]
        env.world.data.joint(target).qpos[0] = travel
        env.world.data.joint(other).qpos[0] = 0.06
        assert env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))[4]["is_success"] is expected
    assert len(named) == 2


def _colour_name(rgba: np.ndarray) -> str:
    red, green, blue = (value > 0.5 for value in rgba[:3])
    return {(True, False, False): "red", (False, True, False): "green", (False, False, True): "blue"}.get(
        (red, green, blue), "yellow"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"robot": "ur5"}, "robot='ur5': choose one of fr3, panda"),
        ({"arm": "mesh"}, "arm='mesh': choose one of primitive, meshes, menagerie"),
        ({"arm": "meshes", "robot": "panda"}, "arm='meshes' has no robot='panda'"),
        ({"action_space": "eef"}, "action_space='eef'"),
        ({"image_size": 2}, "image_size=2"),
        ({"image_size": (64, 64, 3)}, "image_size="),
        ({"image_size": 64.5}, "image_size=64.5"),
        ({"cameras": ["front"]}, "cameras="),
        ({"cameras": "wrist"}, "cameras='wrist'"),
        ({"randomise": "lots"}, "randomise='lots': choose one of none, default, strong"),
        ({"control_hz": 0}, "control_hz=0"),
        ({"distractors": 9}, "distractors=9: give a whole number from 0 to 3"),
        ({"distractors": True}, "distractors=True"),
        ({"colours": ["pink"]}, "colours="),
        ({"workspace": (0.4, 0.3, 0, 0.1)}, "workspace="),
        ({"plate_radius": 1.0}, "plate_radius=1.0"),
        ({"distracters": 1}, "distracters=1: task pick_place has no such option; did you mean distractors?"),
        ({"time_limit": 0}, "time_limit=0"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        rlspec_envs.make_env("franka", "pick_place", **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_number_of_distractors_fits_the_default_workspaces(scene: MakeScene) -> None:
    for task, options in (("pick_place", {"distractors": 3, "plates": 2}), ("stack", {"distractors": 2})):
        env = scene(task, **options)
        for seed in range(100):
            env.reset(seed=seed)
    for seed in range(100):
        scene("push", distractors=2).reset(seed=seed)


def test_a_layout_that_does_not_fit_is_refused(scene: MakeScene) -> None:
    env = scene(distractors=3, plates=2, workspace=(0.5, 0.55, 0.0, 0.05))
    with pytest.raises(ValueError, match="no room for 6 objects"):
        env.reset(seed=0)


def test_stored_initial_states_are_libero_s(scene: MakeScene) -> None:
    with pytest.raises(ValueError, match="initial_state.*no stored initial states"):
        scene().reset(options={"initial_state": 3})


def test_a_display_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(EnvironmentUnavailable, match="needs a display.*rgb_array"):
        rlspec_envs.make_env("franka", "push", render_mode="human")


@pytest.mark.parametrize("task", list(TASKS))
def test_the_description_is_json_and_names_what_a_report_needs(scene: MakeScene, task: str) -> None:
    description = json.loads(json.dumps(scene(task).describe()))
    assert {"suite", "task", "robot", "arm", "action_space", "control_hz", "options", "gl", "versions"} <= set(
        description
    )
    assert (description["suite"], description["task"]) == ("franka", task)
    assert len(description["state_names"]) == scene(task).observation_space["agent_pos"].shape[0]
