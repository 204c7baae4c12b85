"""A second external camera on request, DROID's names for cameras, and no log file when physics diverges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rlspec_envs

DROID = ("exterior_1_left", "exterior_2_left", "wrist_left")


def pictures(**options: Any) -> dict[str, np.ndarray]:
    env = rlspec_envs.make_env("franka", "pick_place", image_size=(36, 64), **options)
    observation, _ = env.reset(seed=4)
    env.close()
    return dict(observation["pixels"])


def test_a_second_camera_changes_nothing_for_the_others(gl: str) -> None:
    two, three = pictures(), pictures(cameras=["external", "external_2", "wrist"])
    for name, picture in two.items():
        np.testing.assert_array_equal(picture, three[name])
    assert np.abs(three["external_2"].astype(int) - three["external"]).mean() > 10


def test_droids_names_are_other_names_of_the_same_cameras(gl: str) -> None:
    ours, droids = pictures(cameras=["external", "external_2", "wrist"]), pictures(cameras=DROID)
    assert tuple(droids) == DROID
    for name, other in zip(ours, droids, strict=True):
        np.testing.assert_array_equal(ours[name], droids[other])


def test_the_second_camera_is_moved_by_randomisation_as_well() -> None:
    env = rlspec_envs.make_env("franka", "push", cameras=["external_2"])
    model = env.unwrapped.world.model  # type: ignore[attr-defined]
    env.unwrapped.render_observations = False  # type: ignore[attr-defined]
    places = []
    for seed in (1, 2, 1):
        env.reset(seed=seed)
        places.append(model.camera("external_2").pos.copy())
    assert (places[0] == places[2]).all() and (places[0] != places[1]).all()
    env.close()


@pytest.mark.parametrize("cameras", [["wrist", "wrist_left"], ["external_3"], [], "wrist"])
def test_cameras_that_there_are_not_are_refused(cameras: Any) -> None:
    with pytest.raises(ValueError, match="some of external, wrist, external_2, .*wrist_left"):
        rlspec_envs.make_env("franka", "pick_place", cameras=cameras)


def test_diverged_physics_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = rlspec_envs.make_env("franka", "pick_place")
    env.unwrapped.render_observations = False  # type: ignore[attr-defined]
    env.reset(seed=0)
    env.unwrapped.world.data.qvel[:] = 1e20  # type: ignore[attr-defined]
    *_, info = env.step(np.zeros(7))
    assert info["failure"] == "diverged"
    assert list(tmp_path.iterdir()) == []
    env.close()
