"""What the safety filter lets pass unchanged, how it changes the rest, and how it holds and stops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from filter_oracle import ACCELERATION, HIGH, LOW, MODELS, VELOCITY, Trial, places, violations
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.kinematics import HOME, forward, solve
from rlspec.deploy.arm.robot_limits import LIMITS
from rlspec.deploy.safety import filter as reasons
from rlspec.deploy.safety.filter import SafetyFilter, SafetySettings, filter_action, start
from rlspec.errors import RobotError

RATES = (1.0, 15.0, 20.0, 100.0, 200.0)


def trial_of(
    model: str = "fr3", hz: float = 15.0, joints: np.ndarray = HOME, lag: float = 0.0, **changes: object
) -> Trial:
    return Trial(SafetyFilter(LIMITS[model], SafetySettings(**changes), hz), joints, lag)


# Legal requests


def sines(model: str, hz: float, seed: int) -> np.ndarray:
    """A smooth random motion from rest within 97% of every limit, (n, 7)."""
    random = np.random.default_rng(seed)
    share, seconds = 0.97, max(8.0, 40.0 / hz)
    time = np.arange(1, int(seconds * hz)) / hz
    start_up = np.minimum(time / (0.25 * seconds), 1.0)
    start_up = start_up**4 * (35 - 84 * start_up + 70 * start_up**2 - 20 * start_up**3)
    waves = np.zeros((len(time), 7))
    for _ in range(3):
        rate = random.uniform(0.2, 3.0, 7) * min(1.0, hz / 15.0)
        waves += random.uniform(0.2, 1.0, 7) * np.sin(rate * time[:, None] + random.uniform(0, 6, 7))
    waves *= start_up[:, None]
    size = random.uniform(0.02, 0.3, 7)
    for _ in range(60):  # shrink until the independent oracle is content
        motion = HOME + size * waves
        wide = SafetySettings(velocity_share=share, acceleration_share=share, max_step=0.2 * share)
        if not violations(model, hz, wide, np.concatenate([HOME[None], motion])):
            return motion
        size *= 0.85
    raise AssertionError("no legal motion found")


@pytest.mark.parametrize("hz", RATES)
@pytest.mark.parametrize("model", MODELS)
def test_smooth_motions_pass_unchanged(model: str, hz: float) -> None:
    motion = sines(model, hz, seed=int(hz))[:600]
    assert np.ptp(motion, axis=0).min() > 1e-3
    trial = trial_of(model, hz, lag=0.2, max_tracking_error=2.0, first_jump=10.0)
    for wanted in motion:
        verdict = trial.tick(wanted)
        assert verdict.reasons == () and verdict.phase == "run"
        assert verdict.joints.tobytes() == wanted.tobytes()


def dash(distance: float, velocity: float, acceleration: float, hz: float) -> np.ndarray:
    """Positions from 0 to `distance` at rest: accelerate, cruise, brake, the last two as late as they can be."""
    step = acceleration / hz
    speeds = [min(velocity, step)]
    while sum(speeds) / hz < distance:
        speed = min(velocity, speeds[-1] + step)
        braking = np.arange(speed, 0.0, -step)
        if (sum(speeds) + braking.sum()) / hz > distance:
            break
        speeds.append(speed)
    # What is left over is driven by lengthening the braking: any speed between the last two keeps the limits.
    left = distance * hz - sum(speeds)
    count = int(np.ceil((np.sqrt(1.0 + 8.0 * left / step) - 1.0) / 2.0 + 1e-9))
    first = (left + step * count * (count - 1) / 2.0) / count
    return np.cumsum(np.concatenate([speeds, first - step * np.arange(count)])) / hz


@pytest.mark.parametrize("hz", [15.0, 50.0, 200.0])
@pytest.mark.parametrize("joint", range(7))
def test_the_fastest_dash_to_a_limit_passes_unchanged(joint: int, hz: float) -> None:
    """It brakes at the last moment: a filter that is more careful than needed would change it."""
    share = 0.999
    limit = np.array(HIGH["fer"])[joint] - 0.1
    velocity = min(VELOCITY["fer"][joint], 0.2 * hz) * share
    way = dash(limit - HOME[joint] - 1e-4, velocity, ACCELERATION["fer"][joint] * share, hz)
    motion = np.tile(HOME, (len(way), 1))
    motion[:, joint] += way
    wide = {"workspace_low": [-2.0] * 3, "workspace_high": [2.0] * 3, "first_jump": 10.0}
    assert not violations("fer", hz, SafetySettings(**wide), np.concatenate([HOME[None], motion]))
    trial = trial_of("fer", hz, **wide)
    for wanted in motion:
        verdict = trial.tick(wanted)
        assert verdict.reasons == (), verdict.reasons
        assert verdict.joints.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("space", [np.float32, list])
def test_requests_may_be_lists_and_of_single_precision(space: type) -> None:
    wanted = HOME + 0.01
    given_as = wanted.astype(np.float32) if space is np.float32 else wanted.tolist()
    verdict = trial_of().tick(given_as)
    assert verdict.reasons == ()
    np.testing.assert_array_equal(verdict.joints, np.asarray(given_as, dtype=np.float64))


# Changed requests


@pytest.mark.parametrize(("hz", "jerk"), [*((hz, None) for hz in RATES), (20.0, 150.0), (50.0, 500.0)])
@pytest.mark.parametrize("model", MODELS)
def test_it_arrives_without_overshooting(model: str, hz: float, jerk: float | None) -> None:
    """A filter that never moved would be safe as well."""
    limits = LIMITS[model] if jerk is None else replace(LIMITS[model], jerk=np.full(7, jerk))
    trial = Trial(SafetyFilter(limits, SafetySettings(first_jump=10.0), hz), HOME)
    wanted = HOME + np.array([0.8, 0.3, -0.5, 0.4, 0.5, -0.5, 0.9])
    for _ in range(int(max(10, 2 * hz))):
        verdict = trial.tick(wanted)
    np.testing.assert_allclose(verdict.joints, wanted, atol=1e-9 if jerk is None else 1e-3)
    assert not trial.violations(model, limits.jerk)
    left = np.abs(np.array(trial.segments[0]) - wanted)
    past = (np.sign(np.array(trial.segments[0]) - wanted) == np.sign(wanted - HOME)) & (left > 1e-9)
    assert left[past].max(initial=0.0) <= (0.0 if jerk is None else 0.03)
    if jerk is None:
        assert verdict.reasons == () and np.all(verdict.joints == wanted) and not np.any(verdict.command.velocities)


def test_it_catches_up_with_a_moving_request() -> None:
    trial = trial_of("fr3", 15.0, first_jump=10.0, max_tracking_error=3.0)
    changed = []
    for tick in range(45):
        verdict = trial.tick(HOME + np.array([0.2 + 0.03 * tick, 0, 0, 0, 0, 0, 0.1 - 0.04 * tick]))
        changed.append(bool(verdict.reasons))
    assert changed[0] and not any(changed[12:])
    assert not trial.violations("fr3")


def test_it_goes_to_the_margin_and_no_further() -> None:
    trial = trial_of("fer", 20.0, first_jump=10.0)
    wanted = HOME.copy()
    wanted[0] = 5.0
    for _ in range(100):
        verdict = trial.tick(wanted)
    assert verdict.reasons == (reasons.POSITION,)
    np.testing.assert_allclose(verdict.joints[0], HIGH["fer"][0] - 0.1, atol=1e-9)
    np.testing.assert_array_equal(verdict.joints[1:], HOME[1:])


def test_a_long_step_keeps_its_direction() -> None:
    trial = trial_of("fr3", 1.0, first_jump=10.0)  # at 1 Hz nothing but the slew binds
    step = np.array([0.4, -0.2, 0.1, 0.0, 0.3, -0.05, 0.02])
    verdict = trial.tick(HOME + step)
    assert verdict.reasons == (reasons.SLEW,)
    np.testing.assert_allclose(verdict.joints - HOME, step / 2.0, rtol=1e-3)


def test_the_arm_slides_along_a_wall() -> None:
    trial = trial_of("fr3", 15.0, first_jump=10.0, workspace_low=[-1.0, -1.0, 0.15], max_tracking_error=3.0)
    position, rotation = forward(HOME)
    wanted = solve(HOME, np.array([position[0] + 0.05, 0.25, 0.05]), rotation, iterations=30)
    seen = set()
    for _ in range(150):
        seen.update(trial.tick(wanted).reasons)
    assert reasons.WORKSPACE in seen
    assert not trial.violations("fr3")
    reached = places(trial.measured[None])[0]
    assert 0.15 <= reached[:, 2].min() < 0.17
    assert abs(reached[-1, 1] - 0.25) < 0.06


def test_from_outside_of_the_box_only_the_way_back_is_open() -> None:
    floor = float(forward(HOME)[0][2]) + 0.1  # the hand starts 0.1 m below it
    position, rotation = forward(HOME)
    for goal, comes_back in ((0.3, True), (-0.2, False)):
        trial = trial_of("fr3", 15.0, workspace_low=[-1.0, -1.0, floor], first_jump=10.0)
        wanted = solve(HOME, position + [0.0, 0.0, goal], rotation, iterations=30)
        for _ in range(80):
            trial.tick(wanted)
        assert not trial.violations("fr3")
        heights = places(np.array(trial.segments[0]))[:, -1, 2]
        assert np.all(np.diff(heights)[heights[1:] < floor] >= -1e-9)
        assert (heights[-1] > floor) == comes_back


def test_from_outside_of_the_margin_only_the_way_back_is_open() -> None:
    joints = HOME.copy()
    joints[3] = LOW["fer"][3] + 0.02
    for wanted, comes_back in ((HOME, True), (joints - 0.05, False)):
        trial = trial_of("fer", 15.0, joints, first_jump=10.0)
        for _ in range(60):
            trial.tick(wanted)
        assert not trial.violations("fer")
        assert (trial.measured[3] > LOW["fer"][3] + 0.1) == comes_back
        assert trial.measured[3] >= joints[3]


# Missing and refused requests


def moving(hz: float = 15.0, **changes: object) -> Trial:
    trial = trial_of("fr3", hz, first_jump=10.0, **changes)
    for _ in range(int(hz)):
        trial.tick(HOME + [0.9, 0, 0, 0, 0, 0, 0.9])
        if abs(trial.verdicts[-1].command.velocities[0]) > 1.5:
            return trial
    raise AssertionError("too slow")


@pytest.mark.parametrize(
    ("requested", "age", "reason"),
    [
        (None, 0.0, reasons.MISSING),
        (HOME, 0.21, reasons.STALE),
        (HOME, np.nan, reasons.STALE),
        (HOME[:6], 0.0, reasons.MALFORMED),
        (np.full(7, np.nan), 0.0, reasons.MALFORMED),
        (["a"] * 7, 0.0, reasons.MALFORMED),
    ],
)
def test_without_a_usable_request_it_brakes_holds_and_stops(requested: object, age: float, reason: str) -> None:
    trial = moving()
    phases, joints = [], []
    for _ in range(12):
        verdict = trial.tick(requested, age)
        assert verdict.reasons == (reason,)
        phases.append(verdict.phase)
        joints.append(verdict.joints)
    held = phases.index("stop")
    assert set(phases[:held]) == {"hold"} and set(phases[held:]) == {"stop"}
    assert 0.5 < (held + 1) / 15.0 <= 0.6
    speeds = np.abs(np.diff(joints, axis=0)).max(axis=1) * 15.0
    assert np.all(np.diff(speeds) <= 1e-9) and speeds[3] == 0.0  # 2 rad/s at 10 rad/s^2
    assert [verdict.command is None for verdict in trial.verdicts[-12:]] == [phase == "stop" for phase in phases]
    assert not trial.violations("fr3")


def test_after_a_hold_it_goes_on_and_after_a_stop_it_starts_anew() -> None:
    trial = moving()
    for _ in range(3):
        trial.tick(None)
    assert trial.tick(trial.verdicts[-1].joints + 0.01).phase == "run"
    while trial.tick(None).phase != "stop":
        pass
    trial.safety.settings.first_jump = 0.25
    trial.measured = trial.measured + 0.02  # it sagged when the law was switched off
    assert trial.tick(trial.measured + 0.3).phase == "start"
    assert trial.verdicts[-1].reasons == (reasons.FIRST_JUMP,)
    verdict = trial.tick(trial.measured + 0.01)
    assert verdict.phase == "run" and verdict.reasons == ()
    assert not trial.violations("fr3")


def test_a_first_action_far_away_is_refused() -> None:
    trial = trial_of()
    for _ in range(3):
        verdict = trial.tick(HOME + [0.3, 0, 0, 0, 0, 0, 0])
        assert verdict.reasons == (reasons.FIRST_JUMP,) and verdict.phase == "start"
        np.testing.assert_array_equal(verdict.joints, HOME)
    assert trial.tick(HOME + [0.2, 0, 0, 0, 0, 0, 0]).phase == "run"
    assert trial.tick(HOME + [0.6, 0, 0, 0, 0, 0, 0]).phase == "run"  # later ones are only limited


@pytest.mark.parametrize(
    ("change", "reason", "phase"),
    [
        ({"joints": np.full(7, np.nan)}, reasons.STATE_MALFORMED, "hold"),
        ({"velocities": np.zeros(6)}, reasons.STATE_MALFORMED, "hold"),
        ({"joints": HOME + [0, 0, 0, 3.0, 0, 0, 0]}, reasons.STATE_OUTSIDE, "hold"),
        ({"velocities": np.full(7, 9.0)}, reasons.STATE_OUTSIDE, "hold"),
        ({"joints": HOME - [0.6, 0, 0, 0, 0, 0, 0]}, reasons.TRACKING, "hold"),
        ({"mode": "reflex"}, reasons.ROBOT_STOPPED, "stop"),
        ({"mode": "disconnected"}, reasons.ROBOT_STOPPED, "stop"),
    ],
)
def test_a_robot_that_is_not_where_it_should_be(change: dict[str, object], reason: str, phase: str) -> None:
    trial = moving()
    verdict = trial.tick(trial.measured, state=replace(trial.state(), **change))
    assert (verdict.reasons, verdict.phase) == ((reason,), phase)
    assert not trial.violations("fr3")


def test_a_moving_robot_is_not_taken_over() -> None:
    trial = trial_of()
    verdict = trial.tick(HOME, state=replace(trial.state(), velocities=np.full(7, 0.5)))
    assert verdict.reasons == (reasons.NOT_STANDING,)


def test_a_start_outside_of_the_limits_is_refused() -> None:
    joints = HOME.copy()
    joints[3] = 0.5
    with pytest.raises(RobotError, match="joint 4"):
        trial_of(joints=joints)
    with pytest.raises(RobotError, match="finite"):
        trial_of(joints=np.full(7, np.nan))


def test_a_start_anew_beyond_a_limit_is_refused_although_such_a_measurement_is_tolerated_in_motion() -> None:
    """The first target is where the robot stands, and no target may lie there."""
    trial = trial_of()
    beyond = replace(trial.state(), joints=np.where(np.arange(7) == 6, HIGH["fr3"][6] + 0.01, HOME))
    trial.tick(HOME, state=replace(trial.state(), mode="reflex"))
    assert trial.verdicts[-1].phase == "stop"
    verdict = trial.tick(beyond.joints, state=beyond)
    assert verdict.command is None and verdict.reasons == (reasons.STATE_OUTSIDE,)
    assert trial.tick(HOME).phase == "run", "and from a place within it goes on"


@pytest.mark.parametrize(("hz", "expires"), [(1.0, 1.5), (15.0, 0.2), (200.0, 0.2)])
def test_commands_expire(hz: float, expires: float) -> None:
    command = trial_of(hz=hz).tick(HOME + 2e-4).command
    assert command.expires == expires
    np.testing.assert_allclose(command.velocities, 2e-4 * hz)


def test_a_robot_that_follows_velocities_stops_where_a_missed_tick_has_left_it() -> None:
    """Its targets begin where it is measured; else the way that it went unseen would stay in every later velocity."""
    guard = SafetyFilter(LIMITS["fr3"], SafetySettings(velocity_share=0.75), 15.0, by_velocity=True)
    state = RobotState(0.0, HOME, np.zeros(7), 0.0)
    guard.reset(state)
    for tick in range(30):
        asked = state.joints + 0.2 * (tick < 8) * np.eye(7)[0]
        verdict = guard.filter(asked, state)
        assert verdict.command is not None
        seconds = (2 if tick == 5 else 1) / 15.0  # the sixth command is carried out for two periods
        velocities = verdict.command.velocities
        state = RobotState(0.0, state.joints + seconds * velocities, velocities, 0.0)
        if tick == 7:
            left = state.joints[0]
    assert left > 0.3, "it did move"
    assert np.abs(velocities).max() < 1e-9 and state.joints[0] < left + 0.3


# The pure function


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.sampled_from(RATES),
    st.lists(
        st.one_of(
            st.none(),
            arrays(np.float64, 7, elements=st.floats(allow_nan=True, allow_infinity=True)),
            arrays(np.float64, 7, elements=st.floats(-4, 4)),
            arrays(np.float64, st.integers(0, 9), elements=st.floats(-1, 1)),
        ),
        max_size=12,
    ),
)
def test_any_sequence_keeps_the_limits_and_the_function_is_pure(model: str, hz: float, requests: list[object]) -> None:
    chosen = SafetySettings(first_jump=10.0)
    trial = Trial(SafetyFilter(LIMITS[model], chosen, hz), HOME)
    memory = start(trial.state(), LIMITS[model], hz)
    for requested in requests:
        state, before = trial.state(), None if requested is None else requested.copy()
        verdict = trial.tick(requested)
        for _ in range(2):  # twice with the same memory: nothing is remembered elsewhere
            again, after = filter_action(memory, requested, state, 0.0, LIMITS[model], chosen)
            np.testing.assert_array_equal(again.joints, verdict.joints)
            assert (again.reasons, again.phase) == (verdict.reasons, verdict.phase)
        memory = after
        assert before is None or before.tobytes() == requested.tobytes()
    assert not trial.violations(model)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="workspace_low"):
        SafetySettings(workspace_low=[2.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="velocity_share"):
        SafetySettings(velocity_share=1.5)
    with pytest.raises(ValueError, match="control_hz"):
        SafetyFilter(LIMITS["fr3"], SafetySettings(), 0.0)


def test_a_state_is_not_kept_by_reference() -> None:
    joints = HOME.copy()
    trial = trial_of(joints=joints)
    trial.safety.reset(RobotState(0.0, joints, np.zeros(7), 0.0))
    joints += 1.0
    np.testing.assert_array_equal(trial.tick(None, state=RobotState(0.0, HOME, np.zeros(7), 0.0)).joints, HOME)


def test_what_of_an_arm_stands_outside_is_named() -> None:
    bounds = SafetyFilter(LIMITS["fr3"], SafetySettings(workspace_low=[-1.0, -1.0, 0.0])).bounds
    assert list(bounds.stands_outside(HOME)) == []
    bent, low = HOME.copy(), HOME.copy()
    bent[3] = LIMITS["fr3"].low[3] + 0.001
    low[1] = 1.5  # the hand below the table
    (line,) = bounds.stands_outside(bent)
    assert f"(joint4 {bent[3]:+.3f} rad)" in line
    (line,) = bounds.stands_outside(low)
    tip = forward(low)[0]
    assert f"tcp {tip[0]:+.2f} {tip[1]:+.2f} {tip[2]:+.2f}" in line and "elbow" not in line
