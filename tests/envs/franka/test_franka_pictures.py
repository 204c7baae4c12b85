"""Pictures: shapes, contents, repetition, and what switches them off."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import gymnasium
import numpy as np
import pytest
import rlspec_envs
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from rlspec_envs import rendering
from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.franka.environment import FrankaEnv

pytestmark = pytest.mark.usefixtures("gl")


@pytest.fixture(scope="module")
def env(gl: str) -> Iterator[FrankaEnv]:
    made = rlspec_envs.make_env("franka", "pick_place", randomise="none", render_mode="rgb_array", distractors=0)
    yield cast(FrankaEnv, made.unwrapped)
    made.close()


def _share(image: np.ndarray, colour: str) -> float:
    """Share of pixels that are clearly red or clearly blue."""
    channel = {"red": 0, "blue": 2}[colour]
    others = np.delete(image.astype(int), channel, axis=2).max(axis=2)
    return float((image[..., channel].astype(int) > others + 80).mean())


def test_two_cameras_see_the_named_cube(gl: str) -> None:
    env = rlspec_envs.make_env("franka", "pick_place", colours=["red"], distractors=0, image_size=(96, 128))
    expert = rlspec_envs.make_expert(env)
    observation, _ = env.reset(seed=0)
    assert set(observation["pixels"]) == {"external", "wrist"}
    for image in observation["pixels"].values():
        assert image.shape == (96, 128, 3) and image.dtype == np.uint8 and image.std() > 10
    assert 0.0005 < _share(observation["pixels"]["external"], "red") < 0.05
    held = []
    for _ in range(40):
        observation, *_, info = env.step(expert.act())
        if env.unwrapped.world.gap < 0.05:
            held.append(_share(observation["pixels"]["wrist"], "red"))
    assert max(held) > 0.08  # large between the fingers
    env.close()


def test_pictures_repeat_and_follow_the_seed(env: FrankaEnv) -> None:
    first, _ = env.reset(seed=1)
    other, _ = env.reset(seed=2)
    again, _ = env.reset(seed=1)
    for camera in env.cameras:
        np.testing.assert_array_equal(first["pixels"][camera], again["pixels"][camera])
        assert (first["pixels"][camera] != other["pixels"][camera]).any()


def test_the_wrist_camera_moves_with_the_hand_and_the_external_one_stays(env: FrankaEnv) -> None:
    before, _ = env.reset(seed=1)
    for _ in range(5):
        after, *_ = env.step(np.array([1.0, 1.0, 0, 0, 0, 0, -1.0]))
    changed = {name: (before["pixels"][name] != after["pixels"][name]).any(axis=2).mean() for name in env.cameras}
    assert changed["wrist"] > 0.05
    assert 0.0 < changed["external"] < 0.4


def test_pictures_stand_upright(env: FrankaEnv) -> None:
    observation, _ = env.reset(seed=1)
    table, wall = (env.world.model.geom(name).rgba[:3] for name in ("table", "wall"))
    image = observation["pixels"]["external"]
    for corner, colour in ((image[0, 0], wall), (image[-1, 0], table)):
        measured = corner / np.linalg.norm(corner.astype(float))
        assert np.abs(measured - colour / np.linalg.norm(colour)).max() < 0.02
    assert np.ptp(observation["pixels"]["wrist"][-1].astype(int), axis=0).max() < 60  # the hand, all along the bottom


def test_randomised_light_camera_and_colours_show(gl: str) -> None:
    env = rlspec_envs.make_env("franka", "pick_place", randomise="strong", image_size=64)
    corners = [env.reset(seed=seed)[0]["pixels"]["external"][-1, -1] for seed in range(4)]
    assert len({tuple(corner) for corner in corners}) == 4
    env.close()


def test_pictures_can_be_switched_off_at_any_time(env: FrankaEnv) -> None:
    env.reset(seed=0)
    env.render_observations = False
    try:
        blank = env.observe()
        assert not any(image.any() for image in blank["pixels"].values())
        assert env.observation_space.contains(blank)
    finally:
        env.render_observations = True
    assert all(image.any() for image in env.observe()["pixels"].values())


def test_render_gives_a_larger_picture_for_videos(env: FrankaEnv) -> None:
    env.reset(seed=0)
    picture = env.render()
    assert picture is not None and picture.shape == (256, 256, 3)
    assert env.observe()["pixels"]["wrist"].shape == (128, 128, 3)


def test_one_camera_can_be_left_out(gl: str) -> None:
    env = rlspec_envs.make_env("franka", "push", cameras=["wrist"], image_size=16)
    observation, _ = env.reset(seed=0)
    assert list(observation["pixels"]) == ["wrist"] and env.observation_space.contains(observation)
    env.close()


def _make() -> gymnasium.Env:
    return rlspec_envs.make_env("franka", "pick_place", image_size=24)


def test_vector_environments_give_what_single_ones_give(gl: str) -> None:
    single = _make()
    expected, _ = single.reset(seed=11)
    action = np.array([0.5, 0, -0.5, 0, 0, 0, -1], np.float32)
    after, *_ = single.step(action)
    # This process has rendered, so workers have to be spawned.
    for vector in (SyncVectorEnv([_make, _make]), AsyncVectorEnv([_make, _make], context="spawn")):
        observation, _ = vector.reset(seed=[10, 11])
        assert observation["pixels"]["external"].shape == (2, 24, 24, 3)
        np.testing.assert_array_equal(observation["pixels"]["external"][1], expected["pixels"]["external"])
        stepped, *_ = vector.step(np.stack([action, action]))
        np.testing.assert_array_equal(stepped["agent_pos"][1], after["agent_pos"])
        np.testing.assert_array_equal(stepped["pixels"]["wrist"][1], after["pixels"]["wrist"])
        vector.close()
    single.close()


def test_rendering_after_a_fork_is_an_error_instead_of_a_hang(env: FrankaEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    env.reset(seed=0)
    monkeypatch.setattr(rendering, "_first_context", [os.getpid() + 1])
    with pytest.raises(EnvironmentUnavailable, match="forked.*spawn"):
        rendering.OffscreenRenderer(env.world.model, 16, 16)


def test_the_gl_library_is_the_users_choice_else_one_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    assert rendering.choose_gl() == "osmesa" == os.environ["PYOPENGL_PLATFORM"]
    for devices, osmesa, expected in ((2, True, "egl"), (0, True, "osmesa")):
        monkeypatch.delenv("MUJOCO_GL")
        monkeypatch.delenv("PYOPENGL_PLATFORM")
        monkeypatch.setattr(rendering, "_egl_devices", lambda count=devices: count)
        monkeypatch.setattr(rendering, "_osmesa_library", lambda there=osmesa: there)
        assert rendering.choose_gl() == expected == os.environ["MUJOCO_GL"]
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(rendering, "_osmesa_library", lambda: False)
    with pytest.raises(EnvironmentUnavailable, match="apt-get install"):
        rendering.choose_gl()


def test_pyopengls_platform_is_followed_or_its_contradiction_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(rendering, "_egl_devices", lambda: 1)
    monkeypatch.setattr(rendering, "_osmesa_library", lambda: True)
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert rendering.choose_gl() == "osmesa" == os.environ["MUJOCO_GL"]
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(EnvironmentUnavailable, match="^PYOPENGL_PLATFORM=osmesa contradicts MUJOCO_GL=egl: unset it"):
        rendering.choose_gl()


def test_an_egl_device_that_is_not_there_is_one_line_with_its_remedy(gl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if gl != "egl":
        pytest.skip("without EGL")
    import mujoco.egl

    unraisable: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)
    monkeypatch.setattr(mujoco.egl, "EGL_DISPLAY", None)
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    with pytest.raises(EnvironmentUnavailable, match="got 99.*: unset MUJOCO_EGL_DEVICE_ID, or set it") as error:
        rendering._make_context(16, 16)
    assert "\n" not in str(error.value)
    del error
    gc.collect()
    assert unraisable == [], "no traceback of what was never made"


def test_an_arm_of_meshes_moves_like_the_primitive_one_and_looks_different(gl: str) -> None:
    if importlib.util.find_spec("franky_sim") is None:
        pytest.skip("franky-sim is not installed")
    pictures, states = [], []
    for arm in ("primitive", "meshes"):
        env = rlspec_envs.make_env("franka", "pick_place", arm=arm, image_size=64)
        pictures.append(env.reset(seed=0)[0]["pixels"]["external"])
        env.unwrapped.render_observations = False
        env.step(np.array([1.0, 0.3, -1.0, 0, 0, 0.2, -1.0]))
        states.append(env.unwrapped.world.data.qpos.copy())
        env.close()
    np.testing.assert_array_equal(*states)
    assert (pictures[0] != pictures[1]).any(axis=2).mean() > 0.02


def test_missing_meshes_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "franky_sim", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentUnavailable, match="franky-sim.*arm='primitive'"):
        rlspec_envs.make_env("franka", "pick_place", arm="meshes")
    monkeypatch.setitem(sys.modules, "mujoco_menagerie", None)
    with pytest.raises(EnvironmentUnavailable, match="mujoco-menagerie.*arm='primitive'"):
        rlspec_envs.make_env("franka", "pick_place", arm="menagerie")


def test_menageries_meshes_are_taken_where_its_package_gives_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "assets").mkdir()
    corners = [(x, y, z) for x in (0, 0.1) for y in (0, 0.1) for z in (0, 0.1)]
    faces = ("1 2 3", "2 4 3", "5 7 6", "6 7 8", "1 5 2", "2 5 6", "3 4 7", "4 8 7", "1 3 5", "3 7 5", "2 6 4", "4 6 8")
    lines = ["v {} {} {}".format(*corner) for corner in corners] + [f"f {face}" for face in faces]
    (tmp_path / "assets" / "part.obj").write_text("\n".join(lines))
    names = [*(f"link{i}" for i in range(8)), "hand", "left_finger", "right_finger"]
    bodies = "".join(
        f'<body name="{name}"><geom type="mesh" mesh="part" rgba="1 0 0 1" contype="0" conaffinity="0"/></body>'
        for name in names
    )
    text = f'<mujoco><asset><mesh name="part" file="part.obj"/></asset><worldbody>{bodies}</worldbody></mujoco>'
    (tmp_path / "panda.xml").write_text(text)
    package = types.ModuleType("mujoco_menagerie")
    model = types.SimpleNamespace(xml=lambda entry: tmp_path / "panda.xml")
    monkeypatch.setattr(package, "get", lambda name: model, raising=False)
    monkeypatch.setitem(sys.modules, "mujoco_menagerie", package)
    env = rlspec_envs.make_env("franka", "pick_place", arm="menagerie", robot="panda")
    assert env.unwrapped.world.model.nmesh == 1
    env.close()
