"""Grasp planning and mesh thinning on small scenes of our own: no LIBERO, no renderer."""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np
import pytest
from rlspec_envs.libero.geometry import CollisionGeometry, grid
from rlspec_envs.libero.grasps import (
    MAX_WIDTH,
    WRIST_RANGE,
    Grasp,
    Situation,
    gripper_points,
    plan_grasps,
    wrap_half_turn,
    wrist_turn,
)
from rlspec_envs.libero.scene import drawer_way
from rlspec_envs.thinning import thin_visual_meshes

NOTHING = np.array([], dtype=int)
SHOULDER = np.array([-0.6, 0.0, 0.3])


def shifted(way: tuple[float, float, float]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda position: position + np.array(way)


ALONE = Situation(NOTHING, 0.0, 0.0, SHOULDER, shifted((0.0, 0.0, 0.0)))


def scene(bodies: str) -> tuple[CollisionGeometry, mujoco.MjModel]:
    text = f"<mujoco><worldbody><geom type='plane' size='1 1 1'/>{bodies}</worldbody></mujoco>"
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return CollisionGeometry(model, data), model


def box(name: str, position: str, size: str, yaw: float = 0.0) -> str:
    return (
        f"<body name='{name}' pos='{position}' euler='0 0 {np.degrees(yaw)}'><freejoint/>"
        f"<geom type='box' size='{size}'/></body>"
    )


def bowl() -> str:
    walls = "".join(
        f"<geom type='box' size='0.002 0.011 0.025' pos='{0.05 * np.cos(a)} {0.05 * np.sin(a)} 0.025' "
        f"euler='0 0 {np.degrees(a)}'/>"
        for a in np.linspace(0, 2 * np.pi, 16, endpoint=False)
    )
    return f"<body name='bowl' pos='0 0 0'><freejoint/>{walls}<geom type='cylinder' size='0.05 0.002'/></body>"


def test_vertices_and_overlaps_agree_with_a_rotated_box() -> None:
    geometry, model = scene(box("thing", "0.1 0.2 0.05", "0.04 0.02 0.05", yaw=0.3))
    geoms = geometry.geoms_below(model.body("thing").id)
    corners = geometry.vertices(geoms)
    assert corners.shape == (8, 3)
    np.testing.assert_allclose(np.linalg.norm(corners[:, :2] - [0.1, 0.2], axis=1), np.hypot(0.04, 0.02))
    points = np.random.default_rng(0).uniform([0, 0.1, 0], [0.2, 0.3, 0.2], (2000, 3))
    rotation = np.array([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]])
    local = np.column_stack([(points[:, :2] - [0.1, 0.2]) @ rotation.T, points[:, 2] - 0.05])
    expected = (np.abs(local) <= [0.04, 0.02, 0.05]).all(1)
    assert 20 < expected.sum() < 1000
    np.testing.assert_array_equal(geometry.inside(points, geoms), expected)
    assert geometry.overlaps(points, NOTHING, 0.0) == expected.sum()
    assert geometry.overlaps(points, geoms, 0.0) == 0


def test_a_box_is_grasped_across_its_narrow_side_off_the_table() -> None:
    geometry, model = scene(box("thing", "0 0 0.009", "0.04 0.02 0.009", yaw=0.4))
    best = plan_grasps(geometry, model.body("thing").id, ALONE)[0]
    assert abs(wrap_half_turn(best.yaw - (0.4 + np.pi / 2))) < np.pi / 24
    np.testing.assert_allclose(best.position[:2], [0, 0], atol=0.002)
    assert 0.005 < best.position[2] < 0.013 and best.width < 0.05


def test_a_neighbour_turns_the_gripper() -> None:
    can = "<body name='thing' pos='0 0 0.04'><freejoint/><geom type='box' size='0.02 0.02 0.04'/></body>"
    free, model = scene(can)
    alone = plan_grasps(free, model.body("thing").id, ALONE)[0]
    assert abs(wrap_half_turn(alone.yaw)) < 0.1 and alone.blocked == 0
    crowded, model = scene(can + box("wall", "0.06 0 0.05", "0.01 0.05 0.05"))
    beside = plan_grasps(crowded, model.body("thing").id, ALONE)[0]
    assert abs(wrap_half_turn(beside.yaw - np.pi / 2)) < 0.3 and beside.blocked == 0


def test_a_bowl_is_grasped_at_its_rim_where_it_is_free() -> None:
    geometry, model = scene(bowl() + box("wall", "-0.09 0 0.05", "0.01 0.2 0.05"))
    grasps = plan_grasps(geometry, model.body("bowl").id, ALONE)
    best = grasps[0]
    assert best.blocked == 0 and best.width == 0.0
    assert np.linalg.norm(best.position[:2]) == pytest.approx(0.052, abs=0.005)
    assert best.position[0] > -0.04, "not between bowl and wall"
    radial = np.arctan2(best.position[1], best.position[0])
    assert abs(wrap_half_turn(best.yaw - float(radial))) < 0.05, "one finger inside, one outside"


def test_a_rim_is_grasped_where_the_arm_also_reaches_the_goal() -> None:
    geometry, model = scene(bowl())
    behind = Situation(NOTHING, 0.0, 0.0, np.array([0.0, -0.6, 0.3]), shifted((0.0, 0.13, 0.0)))
    best = plan_grasps(geometry, model.body("bowl").id, behind)[0]
    assert best.position[1] < -0.02, "on the robot's side of the bowl"


def test_a_rim_is_grasped_where_the_hand_is_also_free_at_the_goal() -> None:
    walls = box("left", "0.43 0 0.1", "0.01 0.2 0.1") + box("right", "0.57 0 0.1", "0.01 0.2 0.1")
    geometry, model = scene(bowl() + walls)
    body = model.body("bowl").id
    best = plan_grasps(geometry, body, Situation(NOTHING, 0.0, 0.0, SHOULDER, shifted((0.5, 0.0, 0.0))))[0]
    assert abs(wrap_half_turn(best.yaw - np.pi / 2)) < 0.3, "the hand, wide along its fingers, fits between the walls"


def test_an_object_too_wide_for_the_gripper_is_never_grasped_across() -> None:
    geometry, model = scene(box("thing", "0 0 0.02", "0.05 0.05 0.02"))
    for grasp in plan_grasps(geometry, model.body("thing").id, ALONE):
        assert grasp.width <= MAX_WIDTH


@pytest.mark.parametrize("wrist", [-2.0, 0.0, 0.8, 2.5])
@pytest.mark.parametrize("target", np.linspace(-1.5, 1.5, 7))
def test_turns_spare_the_wrist(target: float, wrist: float) -> None:
    turn = wrist_turn(target, 1.57, wrist)
    assert abs(wrap_half_turn(1.57 + turn - target)) < 1e-9, "the same line between the fingers"
    assert abs(wrist - turn) <= WRIST_RANGE + np.pi / 10
    assert abs(turn) <= np.pi / 2 or abs(wrist - wrap_half_turn(turn)) > WRIST_RANGE, "no turn that is not needed"


@pytest.mark.parametrize(("travel", "sign"), [("-0.16 0.01", -1.0), ("-0.005 0.14", 1.0)])
def test_a_drawer_opens_along_the_longer_way_of_its_joint(travel: str, sign: float) -> None:
    model = mujoco.MjModel.from_xml_string(
        f"""<mujoco><worldbody><body name='box' euler='0 0 90'><geom size='0.1'/>
        <body name='drawer'><joint type='slide' axis='0 1 0' range='{travel}'/><geom size='0.1'/></body>
        </body></worldbody></mujoco>"""
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(drawer_way(model, data, model.body("drawer").id), [-sign, 0.0, 0.0], atol=1e-12)
    assert not drawer_way(model, data, model.body("box").id).any()


def test_gripper_points_turn_with_the_grasp() -> None:
    along_x = gripper_points(Grasp(np.zeros(3), 0.0, 0.0))
    along_y = gripper_points(Grasp(np.zeros(3), np.pi / 2, 0.0))
    np.testing.assert_allclose(along_y[:, 1], along_x[:, 0], atol=1e-12)
    assert np.ptp(along_x[:, 0]) > 2 * np.ptp(along_x[:, 1])


def test_grid_fills_a_box_closely() -> None:
    points = grid((0, 0, 0), (0.05, 0.02, 0.01), spacing=0.01)
    np.testing.assert_allclose(np.ptp(points, axis=0), [0.05, 0.02, 0.01])
    assert max(np.diff(np.unique(points[:, axis])).max() for axis in range(3)) <= 0.01 + 1e-12


def sphere_scene() -> mujoco.MjModel:
    """A ball that shows one mesh and collides with another."""
    angles = [
        (u, v) for u in np.linspace(0.05, np.pi - 0.05, 40) for v in np.linspace(0, 2 * np.pi, 60, endpoint=False)
    ]
    points = np.array([(np.sin(u) * np.cos(v), np.sin(u) * np.sin(v), np.cos(u)) for u, v in angles]) * 0.05
    text = " ".join(f"{value:.6f}" for value in points.ravel())
    coarse = " ".join(f"{value:.6f}" for value in points[::7].ravel())
    return mujoco.MjModel.from_xml_string(
        f"""<mujoco><asset><mesh name='shown' vertex='{text}'/><mesh name='solid' vertex='{coarse}'/></asset>
        <worldbody><geom type='plane' size='1 1 1'/><body pos='0 0 0.2'><freejoint/>
        <geom name='shown' type='mesh' mesh='shown' contype='0' conaffinity='0' group='1'/>
        <geom name='solid' type='mesh' mesh='solid'/></body></worldbody></mujoco>"""
    )


def fall(model: mujoco.MjModel) -> np.ndarray:
    data = mujoco.MjData(model)
    rows = []
    for _ in range(300):
        mujoco.mj_step(model, data)
        rows.append(np.concatenate([data.qpos, data.qvel]))
    return np.array(rows)


def test_thinning_changes_the_picture_and_never_the_physics() -> None:
    model = sphere_scene()
    shown, solid = model.mesh("shown").id, model.mesh("solid").id
    before, expected = model.mesh_facenum.copy(), fall(model)
    left = thin_visual_meshes(model, relative_cell=0.2)
    assert left == pytest.approx(model.mesh_facenum.sum() / before.sum())
    assert model.mesh_facenum[shown] < 0.4 * before[shown] and model.mesh_facenum[solid] == before[solid]
    np.testing.assert_array_equal(fall(model), expected)
    start = model.mesh_faceadr[shown]
    faces = model.mesh_face[start : start + model.mesh_facenum[shown]]
    assert (faces[:, 0] != faces[:, 1]).all() and (faces[:, 1] != faces[:, 2]).all()
    assert faces.max() < model.mesh_vertnum[shown]
    corners = model.mesh_vert[model.mesh_vertadr[shown] :][faces]
    area = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum()
    assert area == pytest.approx(4 * np.pi * 0.05**2, rel=0.1), "the ball has kept its surface"
