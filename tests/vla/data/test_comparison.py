"""Nonsense in numbers is told from what a task may be: units, constants, ranges, action spaces, rates, laws."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlspec.contract.actions import ACTION_SPACES
from rlspec.errors import CheckpointError
from rlspec.vla.data import comparison
from rlspec.vla.data.exact_statistics import vector_statistics
from rlspec.vla.data.facts import describe_policy, read_facts, statistics_hash, write_facts

STATE_NAMES = [*(f"joint{index}" for index in range(1, 8)), "gripper"]
RNG = np.random.default_rng(0)
VELOCITIES: Any = np.column_stack([RNG.uniform(-0.8, 0.8, (1000, 7)), RNG.integers(0, 2, 1000)])
JOINTS: Any = np.column_stack([RNG.uniform(-2.5, 2.5, (1000, 7)), RNG.uniform(0, 1, 1000)])


def stats(**columns: np.ndarray) -> dict[str, Any]:
    names = {"state": "observation.state", "action": "action"}
    return {names[name]: vector_statistics(values) for name, values in columns.items()}


def split(findings: Iterator[tuple[bool, str]]) -> tuple[list[str], list[str]]:
    found = list(findings)
    return [line for is_fault, line in found if is_fault], [line for is_fault, line in found if not is_fault]


def scaled(values: np.ndarray, *factors: float) -> np.ndarray:
    return values * np.array([*[factors[0]] * 7, factors[-1] if len(factors) > 1 else 1.0])


def test_what_is_as_it_should_be_has_no_finding() -> None:
    given = stats(state=JOINTS, action=VELOCITIES)
    assert split(comparison.units(given, "joint_velocity", STATE_NAMES)) == ([], [])
    modes = {"STATE": "QUANTILES", "ACTION": "QUANTILES"}
    assert split(comparison.near_constant(given, given, modes)) == ([], [])
    columns = {"observation.state": JOINTS, "action": VELOCITIES}
    assert split(comparison.compare_statistics(given, given, columns.__getitem__)) == ([], [])


@pytest.mark.parametrize(
    ("space", "state", "action", "word"),
    [
        ("joint_velocity", JOINTS, scaled(VELOCITIES, 3.0), "divide them by the rate times 0.2"),
        ("joint_velocity", scaled(JOINTS, 57.3), VELOCITIES, "observation.state[0] (joint1): .*no radians"),
        ("joint_position", JOINTS, scaled(JOINTS, 57.3), "action[6] (joint7): .*convert them from degrees"),
        (
            "joint_velocity",
            JOINTS,
            scaled(VELOCITIES, 1.0, 100.0),
            "action[7] (gripper): .*from 0 (open) to 1 (closed)",
        ),
        ("joint_velocity", scaled(JOINTS, 1.0, -1.0), VELOCITIES, "observation.state[7] (gripper): .*convert it"),
        ("cartesian_position", JOINTS, VELOCITIES[:, 1:] * 5000, "action[0] (x): .*from millimetres"),
    ],
)
def test_other_units_are_recognised(space: str, state: np.ndarray, action: np.ndarray, word: str) -> None:
    faults, _ = split(comparison.units(stats(state=state, action=action), space, STATE_NAMES))
    begin, _, end = word.partition(".*")
    assert any(begin in line and end in line for line in faults), faults


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_every_spaces_own_range_is_in_its_units(space: str) -> None:
    low, high = np.array(ACTION_SPACES[space].low), np.array(ACTION_SPACES[space].high)
    action = np.random.default_rng(1).uniform(low, high, (500, len(low)))
    assert split(comparison.units(stats(action=action), space, None)) == ([], [])


@pytest.mark.parametrize(("mode", "stops"), [("QUANTILES", True), ("MEAN_STD", False), ("MIN_MAX", False)])
def test_a_number_that_rarely_moves_explodes_under_quantiles_alone(mode: str, stops: bool) -> None:
    action = VELOCITIES.copy()
    action[:, 7] = np.arange(1000) >= 995  # q01 = q99 = 0, and 1 five times
    given = stats(action=action)
    faults, notes = split(comparison.near_constant(given, given, {"ACTION": mode}))
    assert bool(faults) is stops and not notes
    if stops:
        # The same by LeRobot's formula, with its epsilon.
        assert "0..1 becomes 2e+08 when normalised" in faults[0]


def test_a_number_that_never_moves_is_harmless_and_a_long_tail_a_note() -> None:
    still, tail = VELOCITIES.copy(), VELOCITIES.copy()
    still[:, 3] = 0.25
    tail[0, 3] = 20.0
    for action, count in ((still, 0), (tail, 1)):
        given = stats(action=action)
        faults, notes = split(comparison.near_constant(given, given, {"ACTION": "QUANTILES"}))
        assert (len(faults), len(notes)) == (0, count)


def compare(mine: np.ndarray, theirs: np.ndarray) -> tuple[list[str], list[str]]:
    checkpoint = stats(action=theirs)
    return split(comparison.compare_statistics(stats(action=mine), checkpoint, lambda _: mine))


def test_degrees_are_named_and_rad_per_second_is_asked_about() -> None:
    faults, _ = compare(scaled(VELOCITIES, 57.3), VELOCITIES)
    assert len(faults) == 8 and "spreads 57.3 times as far" in faults[0] and "degrees and radians" in faults[0]
    faults, notes = compare(scaled(VELOCITIES, 3.0), VELOCITIES)
    assert any("all joints spread about 3 times as far" in line and "is the data in rad/s?" in line for line in notes)
    _, notes = compare(scaled(VELOCITIES, 1 / 3), VELOCITIES)
    assert any("is the checkpoint's in rad/s?" in line for line in notes)


def test_another_robot_lies_outside_and_another_task_partly() -> None:
    faults, _ = compare(VELOCITIES + 2.0, VELOCITIES)
    assert faults == [
        "action: 100% of the numbers lie outside of the checkpoint's q01..q99; is it another robot or another "
        "quantity? train from policy.path=null"
    ]
    moved = VELOCITIES.copy()
    moved[:, 0] += 2.0
    assert compare(moved, VELOCITIES) == ([], ["action[0]: 100% of the data lie outside of the checkpoint's q01..q99"])


def test_vectors_of_other_sizes_are_not_compared_and_that_is_said() -> None:
    assert compare(VELOCITIES, VELOCITIES[:, :7]) == (
        [],
        ["action: 8 numbers, the checkpoint normalises 7; they are not compared"],
    )


def test_spaces_and_rates_must_agree_and_laws_should() -> None:
    data = {"action_space": "joint_velocity", "control_hz": 15, "execution_law": "stiff_position"}
    assert split(comparison.compare_facts(data, dict(data))) == ([], [])
    assert split(comparison.compare_facts(data, {})) == ([], [])
    other = {"action_space": "joint_position", "control_hz": 10.0, "execution_law": "droid_hybrid"}
    faults, notes = split(comparison.compare_facts(data, other))
    assert [line.partition(":")[0] for line in faults] == ["action space", "rate"]
    assert notes[0].startswith("execution law: stiff_position in the data, droid_hybrid in the checkpoint")


def test_facts_of_a_policy_come_from_the_data_and_are_read_back(tmp_path: Any) -> None:
    config = SimpleNamespace(
        type="act", chunk_size=16, n_action_steps=8,
        normalization_mapping={"ACTION": SimpleNamespace(value="QUANTILES")},
        input_features={"observation.images.wrist_left": 0, "observation.state": 0},
    )  # fmt: skip
    features = {
        "observation.images.wrist_left": {"shape": (180, 320, 3)},
        "observation.images.unused": {"shape": (8, 8, 3)},
        "observation.state": {"shape": (8,), "names": STATE_NAMES},
        "action": {"shape": (8,), "names": None},
    }
    root = tmp_path / "data"
    (root / "meta").mkdir(parents=True)
    record = '{"suite": "franka", "action_space": "joint_velocity", "control_hz": 15.0, "env": {"robot": "fr3"}}'
    (root / "meta/rlspec.json").write_text(record)
    meta = SimpleNamespace(features=features, root=root, fps=15)
    facts = describe_policy(config, meta, stats(state=JOINTS, action=VELOCITIES), dataset="pick")
    write_facts(tmp_path, facts, step=7)
    found = read_facts(tmp_path)
    assert found == {**facts, "step": 7}
    expected = {
        "model": "act", "action_space": "joint_velocity", "control_hz": 15.0, "execution_law": "stiff_position",
        "horizon": 16, "n_action_steps": 8, "robot": "fr3", "state_names": STATE_NAMES, "step": 7,
        "cameras": {"observation.images.wrist_left": [180, 320]}, "normalization": {"ACTION": "QUANTILES"},
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert found["norm_stats_sha256"] == statistics_hash(found["norm_stats"])
    np.testing.assert_allclose(found["norm_stats"]["action"]["q99"], np.quantile(VELOCITIES, 0.99, axis=0))
    (tmp_path / "rlspec.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_facts(tmp_path)
    assert read_facts(tmp_path / "data") == {}
