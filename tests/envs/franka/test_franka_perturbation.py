"""Perturbed Franka scenes: one factor changes, as far as its strength says, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import rlspec_envs
from franka_cases import MakeScene
from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.franka.environment import FrankaEnv
from rlspec_envs.franka.tasks.base import COLOURS
from rlspec_envs.perturbation import CONTROL, FACTORS, STRENGTHS
from rlspec_envs.rendering import choose_gl

SEEN = ("camera", "start", "light", "background", "noise", "layout")
TASKS = ("pick_place", "push", "stack", "drawer")


@pytest.fixture(scope="module")
def seen() -> Iterator[FrankaEnv]:
    try:
        choose_gl()
    except EnvironmentUnavailable as error:
        pytest.skip(str(error))
    env = cast(FrankaEnv, rlspec_envs.make_env("franka", "pick_place", image_size=32, randomise="strong").unwrapped)
    yield env
    env.close()


def start(env: FrankaEnv, perturb: str = "", seed: int = 5) -> dict[str, Any]:
    return env.reset(seed=seed, options={"perturb": perturb} if perturb else None)[0]


def picture(observation: dict[str, Any]) -> np.ndarray:
    return np.concatenate([pixels.astype(float) for pixels in observation["pixels"].values()])


def colours(text: str) -> list[str]:
    return [word for word in text.split() if word in COLOURS]


def test_every_factor_is_seen_the_more_the_stronger_and_taken_back(seen: FrankaEnv) -> None:
    plain = start(seen)
    words, layout = seen.instruction, seen.world.data.qpos[9:].copy()
    for factor in SEEN:
        gaps = [np.abs(picture(start(seen, f"{factor}:{strength}")) - picture(plain)).mean() for strength in STRENGTHS]
        assert 0.2 < gaps[0] < gaps[1] < gaps[2], (factor, gaps)
        assert seen.instruction == words
        same_layout = np.array_equal(seen.world.data.qpos[9:], layout)
        assert same_layout == (factor != "layout"), factor
        again = start(seen)
        assert np.array_equal(picture(again), picture(plain)), f"{factor} stays in the scene"
        assert np.array_equal(again["agent_pos"], plain["agent_pos"])
    start(seen, "light:2", seed=6)  # of one scene, as the next one is drawn
    assert np.array_equal(picture(start(seen)), picture(plain))


def test_a_perturbation_repeats_with_its_seed_and_is_another_with_another(seen: FrankaEnv) -> None:
    for factor in SEEN:
        first, other = start(seen, f"{factor}:2"), start(seen, f"{factor}:2", seed=6)
        assert np.array_equal(picture(start(seen, f"{factor}:2")), picture(first)), factor
        assert not np.array_equal(picture(other), picture(first))
    noisy, action = [start(seen, "noise:1")], np.zeros(7)
    noisy += [seen.step(action)[0] for _ in range(2)]
    assert not np.array_equal(noisy[1]["pixels"]["wrist"], noisy[2]["pixels"]["wrist"])
    again = seen.observe()
    assert np.array_equal(again["agent_pos"], noisy[2]["agent_pos"]), "noise belongs to the step, not to the look at it"


@pytest.mark.parametrize("task", TASKS)
def test_other_words_mean_the_same_and_the_control_something_else(scene: MakeScene, task: str) -> None:
    env = scene(task, **({"distractors": 1} if task != "drawer" else {}))
    for seed in range(12):
        start(env, seed=seed)
        plain = env.instruction
        for strength in STRENGTHS:
            start(env, f"language:{strength}", seed=seed)
            assert env.instruction == env.task_description != plain
            assert colours(env.instruction.replace(",", "")) == colours(plain), (plain, env.instruction)
        start(env, CONTROL, seed=seed)
        assert colours(env.instruction) != colours(plain)
        assert len(env.instruction) - len(plain) < 8
        start(env, seed=seed)
        assert env.instruction == plain


def test_the_control_names_a_thing_that_is_there(scene: MakeScene) -> None:
    env = scene("pick_place", distractors=1)
    for seed in range(8):
        start(env, CONTROL, seed=seed)
        named = np.array(COLOURS[colours(env.instruction)[0]])
        decoy = env.world.model.geom("block1").rgba[:3]
        assert np.abs(decoy - named).max() < 0.1  # randomised colours


@pytest.mark.parametrize("task", TASKS)
def test_what_is_perturbed_can_still_be_done(scene: MakeScene, task: str) -> None:
    env = scene(task)
    expert = rlspec_envs.make_expert(env)
    for perturb in ("start:3", "layout:3"):
        start(env, perturb, seed=3)
        expert.reset()
        terminated = truncated = False
        while not (terminated or truncated):
            _, _, terminated, truncated, info = env.step(expert.act())
        assert terminated, (perturb, info)


@pytest.mark.parametrize(
    ("perturb", "said"),
    [
        ("camrea:2", "did you mean camera"),
        ("camera", "give FACTOR:STRENGTH"),
        ("camera:4", "strength 1, 2 or 3"),
        ("wrong_instruction:1", "or wrong_instruction"),
        ("", "unknown"),
        (2, "2.*unknown"),
    ],
)
def test_what_is_no_perturbation_is_refused(scene: MakeScene, perturb: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scene("pick_place").reset(seed=0, options={"perturb": perturb})


def test_every_factor_says_what_it_does() -> None:
    assert len(FACTORS) == 7 and all(FACTORS.values())
