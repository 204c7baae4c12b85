"""Policies without a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from serving_cases import SPEC

from rlspec.contract.actions import ACTION_SPACES
from rlspec.errors import ConfigError, DataError
from rlspec.serving.builtin import HoldBatchPolicy, ReplayPolicy, ZerosPolicy, load_actions
from rlspec.serving.policy import Observation

STATE = np.array([0.1, -0.7, 0.2, -2.0, 0.3, 1.5, 0.4, 0.25])


def observation(session: int = 1) -> Observation:
    return Observation({}, STATE, "", session)


def test_hold_returns_the_present_joints() -> None:
    (actions,) = HoldBatchPolicy(replace(SPEC, action_space="joint_position")).infer([observation()])
    np.testing.assert_allclose(actions, np.tile(STATE, (10, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("space", "gripper"), [("joint_velocity", 0.25), ("cartesian_velocity", 0.25), ("delta_eef", -0.5)]
)
def test_hold_does_not_move_and_keeps_the_gripper(space: str, gripper: float) -> None:
    (actions,) = HoldBatchPolicy(replace(SPEC, action_space=space)).infer([observation()])
    assert actions.shape == (10, ACTION_SPACES[space].size)
    assert not actions[:, :-1].any()
    np.testing.assert_allclose(actions[:, -1], gripper)


def test_hold_knows_no_pose() -> None:
    with pytest.raises(ConfigError, match="cannot act in cartesian_position"):
        HoldBatchPolicy(replace(SPEC, action_space="cartesian_position"))


def test_zeros() -> None:
    first, second = ZerosPolicy(SPEC).infer([observation(), observation(2)])
    assert first.shape == second.shape == (10, 8)
    assert not first.any()


RECORDED = np.arange(20 * 8, dtype=np.float32).reshape(20, 8)


def test_replay_goes_on_from_where_each_session_is() -> None:
    policy = ReplayPolicy(replace(SPEC, action_space="joint_position"), RECORDED)
    one, other = policy.infer([observation(1), observation(2)])
    np.testing.assert_array_equal(one, RECORDED[:10])
    np.testing.assert_array_equal(other, RECORDED[:10])
    np.testing.assert_array_equal(policy.infer([observation(1)])[0], RECORDED[8:18])
    policy.forget(2)
    np.testing.assert_array_equal(policy.infer([observation(2)])[0], RECORDED[:10])
    np.testing.assert_array_equal(policy.infer([observation(1)])[0], RECORDED[[16, 17, 18, 19, 19, 19, 19, 19, 19, 19]])


def test_replay_of_velocities_ends_at_rest() -> None:
    policy = ReplayPolicy(SPEC, RECORDED)
    policy.infer([observation()])
    policy.infer([observation()])
    (last,) = policy.infer([observation()])
    np.testing.assert_array_equal(last[:4], RECORDED[16:])
    assert not last[4:, :7].any()
    assert set(last[4:, 7]) == {RECORDED[-1, 7]}


def test_actions_are_read_from_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RECORDED)
    np.savez(tmp_path / "a.npz", actions=RECORDED)
    rows = [
        {"header": {}},
        *({"tick": i, "requested": row.tolist()} for i, row in enumerate(RECORDED)),
        {"requested": None},
    ]
    (tmp_path / "ticks.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    for name in ("a.npy", "a.npz", "ticks.jsonl"):
        np.testing.assert_array_equal(load_actions(tmp_path / name, "joint_position"), RECORDED)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "holds no recorded actions; give .npy"),
        (b"junk", "holds no recorded actions; give .npy"),
        (b"PK\x03\x04 cut off", "holds no recorded actions"),
        (b"\x93NUMPY\x01\x00 cut off", "holds no recorded actions"),
        (np.zeros((3, 7)), r"shape \(3, 7\)"),
        (np.zeros((0, 8)), r"shape \(0, 8\)"),
        (np.full((3, 8), np.inf), "finite"),
        (np.array([{}], dtype=object), "holds no recorded actions"),
    ],
)
def test_files_that_hold_no_actions_are_refused(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "a.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(DataError, match=words):
        load_actions(path, "joint_position")


@pytest.mark.parametrize("path", ["/etc/passwd", __file__, "/bin/sh", "/dev/null", "/"])
def test_a_foreign_file_is_named_without_advice_to_unpickle_it(path: str) -> None:
    with pytest.raises(DataError) as caught:
        load_actions(Path(path), "joint_position")
    assert str(caught.value).startswith(f"policy=replay:{path}: ")
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize("text", ["1\n", "[1]\n", '{"requested": "x"}\n', "not json\n", '{"requested": [1, [2]]}\n'])
def test_a_log_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "ticks.jsonl").write_text(text)
    with pytest.raises(DataError, match="holds no recorded actions"):
        load_actions(tmp_path / "ticks.jsonl", "joint_position")
