"""A LIBERO scene in the simulator: what is observed, that episodes repeat, and that experts do the task."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from rlspec_envs.libero import experts
from rlspec_envs.libero.environment import LiberoEnv
from rlspec_envs.libero.experts import make_libero_expert
from rlspec_envs.libero.perturbed import wrong_instruction
from rlspec_envs.libero.simulation import LiberoSimulation, axis_angle
from rlspec_envs.libero.tasks import get_task

REST = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)


@pytest.fixture(scope="module")
def env(libero_assets: Path) -> Iterator[LiberoEnv]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIBERO_ASSETS", str(libero_assets))
        env = LiberoEnv("libero_object", 0, render_observations=False, success_condition="released")
        yield env
        env.close()


def play(env: LiberoEnv, actions: np.ndarray) -> np.ndarray:
    """Physics states and observed states after each action."""
    rows = []
    for action in actions:
        observation = env.step(action)[0]
        rows.append(np.concatenate([env.simulation.physics_state(), observation["agent_pos"]]))
    return np.array(rows)


def run_expert(env: LiberoEnv, initial_state: int) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Actions of an episode and the information after each."""
    env.reset(options={"initial_state": initial_state})
    expert = make_libero_expert(env)
    expert.reset()
    actions, infos = [], []
    for _ in range(env.max_episode_steps):
        actions.append(expert.act())
        _, _, terminated, truncated, info = env.step(actions[-1])
        infos.append(info)
        assert terminated == info["is_success"]
        if terminated or truncated:
            break
    return actions, infos


def test_the_fist_turns_a_knob(libero: Path) -> None:
    stove = LiberoEnv("libero_goal", 7, render_observations=False)
    try:
        actions, infos = run_expert(stove, 2)
    finally:
        stove.close()
    assert infos[-1]["is_success"] and len(actions) < 120


def test_a_goal_is_met_in_an_order_that_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    heights = {"mug_1": 0.1, "pudding_1": 0.03, "bowl_1": 0.05}
    monkeypatch.setattr(experts, "_height", lambda _, condition: heights.get(condition[1], 0.0))
    goal = (("close", "drawer"), ("on", "mug_1", "plate_1"), ("on", "pudding_1", "table"), ("turnon", "stove_1"))
    simulation = cast(LiberoSimulation, types.SimpleNamespace(goal=goal))
    assert [condition[1] for condition in experts.plan(simulation)] == ["stove_1", "pudding_1", "mug_1", "drawer"]


def test_observation_and_spaces_have_lerobots_names(env: LiberoEnv) -> None:
    observation, info = env.reset(options={"initial_state": 2})
    assert env.observation_space.contains(observation)
    assert set(observation["pixels"]) == {"image", "image2"} and observation["agent_pos"].shape == (8,)
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)
    assert np.isfinite(env.observation_space["agent_pos"].low).all()
    assert not observation["pixels"]["image"].any(), "nothing is rendered unless it is asked for"
    assert (info["initial_state"], info["is_success"], info["failure"], info["task"]) == (2, False, "", "0")
    assert (env.suite, env.task, env.control_hz, env.action_space_name) == ("libero_object", "0", 20.0, "delta_eef")


def test_the_state_is_robosuites_own_observation(env: LiberoEnv) -> None:
    env.reset(options={"initial_state": 0})
    for _ in range(3):
        state = env.step(np.array([0.5, -0.5, 0.2, 0.1, 0.2, 0.3, 1.0], np.float32))[0]["agent_pos"]
    theirs = env.simulation.env._get_observations()
    np.testing.assert_array_equal(state[:3], theirs["robot0_eef_pos"].astype(np.float32))
    np.testing.assert_array_equal(state[3:6], axis_angle(theirs["robot0_eef_quat"]).astype(np.float32))
    np.testing.assert_array_equal(state[6:], theirs["robot0_gripper_qpos"].astype(np.float32))
    assert abs(state[3]) > 3.0, "the gripper points down: half a turn about x"


def test_an_episode_repeats_bit_for_bit(env: LiberoEnv) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 7)).astype(np.float32)
    env.reset(seed=53)
    assert env._episode["initial_state"] == 3
    first = play(env, actions)
    env.reset(seed=54)
    other = play(env, actions)
    env.reset(seed=53)
    np.testing.assert_array_equal(play(env, actions), first)
    assert not np.array_equal(other, first)


def test_demonstrations_start_where_the_seed_places_the_objects_and_evaluations_do_not(env: LiberoEnv) -> None:
    def start(seed: int | None, **options: Any) -> np.ndarray:
        _, info = env.reset(seed=seed, options=options or env.demonstration_options)
        assert info["initial_state"] == options.get("initial_state", -1)
        state: np.ndarray = env.simulation.env.sim.get_state().flatten()
        return state[1:]  # without the time

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(one[9:] - other[9:])[: len(one) // 2].max())  # of the objects, metres and quaternions

    sampled = [start(seed) for seed in (0, 1, 2)]
    np.testing.assert_array_equal(start(1), sampled[1])
    assert distance(start(None), start(None)) > 1e-3
    stored = [start(0, initial_state=index) for index in range(0, 50, 3)]
    for state in sampled:
        nearest = min(distance(state, other) for other in stored)
        assert nearest > 1e-3
        # The same distribution: no further from the nearest stored start than those are from each other.
        assert nearest < max(distance(stored[0], other) for other in stored[1:])


def test_soft_resets_equal_a_freshly_loaded_scene_of_bare_libero(env: LiberoEnv) -> None:
    """The oracle: hf-libero's own environment, which reloads its scene at each reset."""
    actions = np.random.default_rng(1).uniform(-1, 1, (8, 7)).astype(np.float32)
    env.reset(seed=9, options={"initial_state": 5})
    from libero.libero.envs.env_wrapper import ControlEnv

    play(env, -actions)  # leaves the gripper closed, which a soft reset has to undo
    env.reset(seed=9, options={"initial_state": 5})
    ours = play(env, actions)
    bare = ControlEnv(
        str(env.libero_task.bddl_file), use_camera_obs=False, has_offscreen_renderer=False, ignore_done=True
    )
    bare.seed(9)
    bare.reset()
    bare.set_init_state(env.initial_states[5])
    for _ in range(10):
        bare.step([0.0] * 6 + [-1.0])
    theirs = []
    for action in actions:
        bare.step(action.astype(np.float64))
        theirs.append(bare.get_sim_state())
    bare.close()
    np.testing.assert_array_equal(ours[:, :-8], np.array(theirs))


@pytest.mark.parametrize("bad", [np.zeros(6), np.zeros((1, 7)), np.array([0, 0, np.nan, 0, 0, 0, 0]), [np.inf] * 7])
def test_a_wrong_action_is_one_line(env: LiberoEnv, bad: Any) -> None:
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action of shape \(7,\), not|a number that is not finite") as error:
        env.step(bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("index", [-2, 50, "3", True, 1.0])
def test_a_wrong_initial_state_is_one_line(env: LiberoEnv, index: Any) -> None:
    with pytest.raises(ValueError, match=r"libero_object task 0 has no initial state .*: choose 0 to 49"):
        env.reset(options={"initial_state": index})
    with pytest.raises(ValueError, match="unknown reset option 'state'"):
        env.reset(options={"state": 1})


def test_actions_beyond_the_box_are_clipped(env: LiberoEnv) -> None:
    env.reset(seed=1)
    inside = play(env, np.array([[1, -1, 1, 0, 0, 0, 1]], np.float32))
    env.reset(seed=1)
    np.testing.assert_array_equal(play(env, np.array([[9, -7, 2, 0, 0, 0, 3]], np.float32)), inside)


def test_time_runs_out_as_truncation(libero: Path) -> None:
    env = LiberoEnv("libero_object", 1, max_episode_steps=2, render_observations=False)
    env.reset(seed=0)
    assert env.step(REST)[2:4] == (False, False)
    _, reward, terminated, truncated, info = env.step(REST)
    assert (reward, terminated, truncated, info["failure"], info["is_success"]) == (0.0, False, True, "timeout", False)
    env.close()


def test_physics_that_blew_up_is_a_failure_and_no_success(env: LiberoEnv) -> None:
    env.reset(seed=0)
    env.simulation.data.qvel[:] = 1e12
    observation, _, terminated, truncated, info = env.step(REST)
    assert (terminated, truncated, info["failure"]) == (False, True, "diverged")
    assert env.observation_space.contains(observation) and not observation["agent_pos"].any()
    env.reset(seed=0)
    assert env.step(REST)[3] is False, "a reset forgets it"


def test_an_expert_succeeds_and_replaying_its_actions_does_too(env: LiberoEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    actions, infos = run_expert(env, 0)
    assert infos[-1]["is_success"] and infos[-1]["goal_predicate"]
    assert env.simulation.hands_are_free(), "success_condition='released' waits for the release"
    final = env.simulation.physics_state()
    env.reset(options={"initial_state": 0})
    outcomes = [env.step(action)[2] for action in actions]
    assert outcomes == [False] * (len(actions) - 1) + [True]
    np.testing.assert_array_equal(env.simulation.physics_state(), final)
    monkeypatch.setattr(env.simulation, "hands_are_free", lambda: False)
    *_, info = env.step(REST)
    assert info["goal_predicate"] and not info["is_success"], "an object that is still held was not released"
    monkeypatch.setattr(env, "success_condition", "predicate")
    assert env.step(REST)[2], "LIBERO's own predicate does not mind"


def test_frames_are_those_of_robosuite_rotated_by_half_a_turn(env: LiberoEnv, libero: Path) -> None:
    """Oracle: robosuite's own renderer on the same scene. Its rows start at the bottom; LIBERO's users turn them."""
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    env.reset(options={"initial_state": 0})
    env.simulation.env.sim.forward()  # as the other renderer does first
    env.render_observations = True
    pixels = env.observe()["pixels"]
    env.render_observations = False
    theirs = MjRenderContextOffscreen(env.simulation.env.sim, device_id=-1)
    theirs.vopt.geomgroup[0] = 0
    for name, camera in (("image", "agentview"), ("image2", "robot0_eye_in_hand")):
        theirs.gl_ctx.make_current()
        theirs.render(256, 256, camera_id=env.simulation.model.camera(camera).id)
        expected = theirs.read_pixels(256, 256)
        np.testing.assert_array_equal(pixels[name], np.rot90(expected, 2))
    assert pixels["image"][:40].mean() != pytest.approx(pixels["image"][-40:].mean(), abs=5.0)
    theirs.gl_ctx.make_current()
    env.simulation.env.sim._render_context_offscreen = None


@pytest.mark.usefixtures("libero")
def test_a_wrong_instruction_is_any_other_tasks_and_never_the_own() -> None:
    task, rng = get_task("libero_object", 4), np.random.default_rng(0)
    said = {wrong_instruction(task, rng) for _ in range(200)}
    assert said == {get_task("libero_object", number).instruction for number in range(10) if number != 4}


def test_perturbed_scenes_keep_everything_but_one_factor(env: LiberoEnv) -> None:
    def start(perturb: str = "") -> tuple[np.ndarray, dict[str, np.ndarray]]:
        env.reset(options={"initial_state": 3, **({"perturb": perturb} if perturb else {})})
        model = env.simulation.model
        look = {name: getattr(model, name).copy() for name in ("cam_pos", "light_diffuse", "mat_rgba", "geom_rgba")}
        return env.simulation.physics_state(), look

    plain, look = start()
    words = env.instruction
    changed = {"camera:2": {"cam_pos"}, "light:2": {"light_diffuse"}, "background:2": {"mat_rgba", "geom_rgba"}}
    for perturb, names in changed.items():
        state, now = start(perturb)
        assert np.array_equal(state, plain), perturb
        different = {name for name in look if not np.array_equal(now[name], look[name])}
        assert different and different <= names, (perturb, different)
    (gap,) = np.flatnonzero(look["cam_pos"].any(1) & (start("camera:1")[1]["cam_pos"] != look["cam_pos"]).any(1))
    assert env.simulation.model.camera(int(gap)).name == "agentview"
    moved = start("layout:3")[0][1 : 1 + env.simulation.model.nq] - plain[1 : 1 + env.simulation.model.nq]
    assert np.abs(moved[:9]).max() < 1e-6 < 0.02 < np.abs(moved[9:]).max() < 0.0601
    arm = (start("start:3")[0] - plain)[1:8]
    assert 0.1 < np.linalg.norm(arm) < 0.4
    start("language:2")
    assert env.instruction == env.task_description != words
    start("wrong_instruction")
    assert env.instruction != words and env.instruction.startswith("pick up the")
    state, now = start()
    assert np.array_equal(state, plain) and all(np.array_equal(now[name], look[name]) for name in look)
    assert env.instruction == words
