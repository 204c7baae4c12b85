"""Limits against the simulation's tables, libfranka's formula and the URDF that franky-sim reports."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rlspec_envs.franka.robots import ROBOTS

from rlspec.deploy.arm.robot_limits import LIMITS, from_robot, from_urdf, match, velocity_bounds
from rlspec.errors import RobotError


@pytest.mark.parametrize(("model", "robot"), [("fr3_pre_5_9", "fr3"), ("fer", "panda")])
def test_tables_agree_with_the_simulation(model: str, robot: str) -> None:
    limits, table = LIMITS[model], ROBOTS[robot]
    np.testing.assert_array_equal(limits.low, table.low)
    np.testing.assert_array_equal(limits.high, table.high)
    np.testing.assert_array_equal(limits.velocity, table.max_velocity)


@pytest.mark.parametrize("model", LIMITS)
def test_tables_are_whole(model: str) -> None:
    limits = LIMITS[model]
    assert limits.model == model
    for row in (limits.low, limits.high, limits.velocity, limits.acceleration, limits.jerk):
        assert row.shape == (7,) and np.all(np.isfinite(row))
    assert np.all(limits.low < limits.high)
    # All published tables have 500 between jerk and acceleration; a typing error would break the pattern.
    np.testing.assert_array_equal(limits.jerk, 500.0 * limits.acceleration)


def libfranka_upper(q: np.ndarray) -> list[float]:
    """computeUpperLimitsJointVelocity of libfranka 0.15, re-typed."""
    return [
        min(2.62, max(0.0, -0.30 + math.sqrt(max(0.0, 12.0 * (2.75010 - q[0]))))),
        min(2.62, max(0.0, -0.20 + math.sqrt(max(0.0, 5.17 * (1.79180 - q[1]))))),
        min(2.62, max(0.0, -0.20 + math.sqrt(max(0.0, 7.00 * (2.90650 - q[2]))))),
        min(2.62, max(0.0, -0.30 + math.sqrt(max(0.0, 8.00 * (-0.1458 - q[3]))))),
        min(5.26, max(0.0, -0.35 + math.sqrt(max(0.0, 34.0 * (2.81010 - q[4]))))),
        min(4.18, max(0.0, -0.35 + math.sqrt(max(0.0, 11.0 * (4.52050 - q[5]))))),
        min(5.26, max(0.0, -0.35 + math.sqrt(max(0.0, 34.0 * (3.01960 - q[6]))))),
    ]


def libfranka_lower(q: np.ndarray) -> list[float]:
    return [
        -min(2.62, max(0.0, -0.30 + math.sqrt(max(0.0, 12.0 * (2.75010 + q[0]))))),
        -min(2.62, max(0.0, -0.20 + math.sqrt(max(0.0, 5.17 * (1.79180 + q[1]))))),
        -min(2.62, max(0.0, -0.20 + math.sqrt(max(0.0, 7.00 * (2.90650 + q[2]))))),
        -min(2.62, max(0.0, -0.30 + math.sqrt(max(0.0, 8.00 * (3.04810 + q[3]))))),
        -min(5.26, max(0.0, -0.35 + math.sqrt(max(0.0, 34.0 * (2.81010 + q[4]))))),
        -min(4.18, max(0.0, -0.35 + math.sqrt(max(0.0, 11.0 * (-0.54092 + q[5]))))),
        -min(5.26, max(0.0, -0.35 + math.sqrt(max(0.0, 34.0 * (3.01960 + q[6]))))),
    ]


def test_velocity_bounds_are_libfrankas() -> None:
    limits = LIMITS["fr3"]
    joints = np.random.default_rng(0).uniform(limits.low - 0.1, limits.high + 0.1, (500, 7))
    low, high = velocity_bounds(limits, joints)
    np.testing.assert_allclose(high, [libfranka_upper(q) for q in joints], atol=1e-12)
    np.testing.assert_allclose(low, [libfranka_lower(q) for q in joints], atol=1e-12)
    low, high = velocity_bounds(LIMITS["fer"], joints[0])
    np.testing.assert_array_equal(high, LIMITS["fer"].velocity)
    np.testing.assert_array_equal(low, -LIMITS["fer"].velocity)


def sim_urdf() -> str:
    franky_sim = pytest.importorskip("franky_sim")
    return (Path(franky_sim.__file__).parent / "assets" / "fr3.urdf").read_text(encoding="utf-8")


def test_urdf_of_franky_sim_is_an_fr3() -> None:
    reported = from_urdf(sim_urdf())
    assert reported.model == "fr3"
    obeyed = match(LIMITS["fr3"], reported)
    np.testing.assert_array_equal(obeyed.low, LIMITS["fr3"].low)
    # Joint 1 of its description: deceleration limit 6, offset 0.652, upper limit 2.9007.
    _, high = velocity_bounds(obeyed, np.array([2.7, 0, 0, -1, 0, 2, 0]))
    assert high[0] == pytest.approx(math.sqrt(2 * 6.0 * (2.9007 - 2.7)) - 0.652)


def report(model: str, **changes: object) -> object:
    limits = LIMITS[model]
    return replace(from_robot(model, low=limits.low, high=limits.high, velocity=limits.velocity), **changes)


def test_match_takes_the_tighter_figures() -> None:
    limits = LIMITS["fer"]
    reported = report("fer", acceleration=limits.acceleration / 2, jerk=limits.jerk * 2)
    obeyed = match(limits, reported)
    np.testing.assert_array_equal(obeyed.acceleration, limits.acceleration / 2)
    np.testing.assert_array_equal(obeyed.jerk, limits.jerk)
    assert match(LIMITS["fr3"], report("fr3")).envelope is LIMITS["fr3"].envelope


@pytest.mark.parametrize("expected", LIMITS)
@pytest.mark.parametrize("actual", LIMITS)
def test_match_refuses_another_model(expected: str, actual: str) -> None:
    if expected == actual:
        match(LIMITS[expected], report(actual))
        return
    with pytest.raises(RobotError) as refusal:
        match(LIMITS[expected], report(actual))
    assert expected in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("field", ["low", "high", "velocity"])
def test_match_names_the_joint_that_differs(field: str) -> None:
    changed = getattr(LIMITS["fr3"], field).copy()
    changed[4] -= 0.05
    with pytest.raises(RobotError, match="joint 5"):
        match(LIMITS["fr3"], report("fr3", **{field: changed}))


def test_nonsense_is_refused() -> None:
    limits = LIMITS["fr3"]
    given = {"low": limits.low, "high": limits.high, "velocity": limits.velocity}
    with pytest.raises(RobotError, match="ur5"):
        from_robot("ur5", **given)
    for name, wrong in (("low", limits.low[:6]), ("high", np.full(7, np.nan)), ("velocity", -limits.velocity)):
        with pytest.raises(RobotError):
            from_robot("fr3", **{**given, name: wrong})
    for text in ("", "<robot/>", sim_urdf().replace('velocity="2.62"', "")):
        with pytest.raises(RobotError):
            from_urdf(text)
