"""Keys of messages: what the server says of itself is what the robot understands, and what is malformed is refused."""

from __future__ import annotations

from typing import Any

import pytest

from rlspec.contract.actions import ACTION_SPACES
from rlspec.contract.features import CAMERAS, image_key
from rlspec.contract.messages import (
    OPENPI_CAMERAS,
    SECTION,
    Terms,
    blind_metadata,
    camera_by_key,
    camera_key,
    counts_from_zero,
    fault_of_terms,
    terms_of,
)
from rlspec.contract.wire import pack, unpack
from rlspec.deploy.policy.sources import read_contract
from rlspec.serving.policy import PolicySpec, openpi_metadata

CAMERA_SIZES = {"exterior_1_left": (180, 320), "wrist_left": (90, 160), "front": (64, 48)}


def spec(action_space: str) -> PolicySpec:
    rate = ACTION_SPACES[action_space].control_hz
    return PolicySpec("test", action_space, rate, "droid_hybrid", 16, 8, CAMERA_SIZES, takes_prefix=True)


@pytest.mark.parametrize("action_space", ACTION_SPACES)
def test_the_robot_understands_what_the_server_says(action_space: str) -> None:
    metadata = unpack(pack(openpi_metadata(spec(action_space))))
    assert metadata[SECTION].keys() == Terms.__annotations__.keys()
    assert fault_of_terms(metadata[SECTION]) is None
    contract = read_contract(metadata, "test", action_space=None, rate=None)
    assert (contract.action_space, contract.control_hz) == (action_space, ACTION_SPACES[action_space].control_hz)
    assert (contract.law, contract.horizon, contract.n_action_steps) == ("droid_hybrid", 16, 8)
    assert contract.takes_prefix and not contract.prompt_required
    assert {camera_by_key(key): size for key, size in contract.cameras.items()} == CAMERA_SIZES


def test_policies_in_the_robots_own_process_speak_the_same() -> None:
    metadata = blind_metadata("wave", "joint_position", 15.0, horizon=16, n_action_steps=8, law="ruckig")
    assert metadata[SECTION].keys() <= Terms.__annotations__.keys()
    assert fault_of_terms(metadata[SECTION]) is None
    contract = read_contract(metadata, "test", action_space=None, rate=None)
    assert (contract.horizon, contract.n_action_steps, contract.law, contract.cameras) == (16, 8, "ruckig", {})


def test_foreign_servers_have_no_terms_and_get_openpis_cameras() -> None:
    assert terms_of({"image_resolution": [224, 224]}) == {}
    assert fault_of_terms(None) is None
    contract = read_contract({}, "test", action_space="joint_velocity", rate=None)
    assert contract.cameras == OPENPI_CAMERAS
    assert {camera_by_key(key) for key in OPENPI_CAMERAS} == {"exterior_1_left", "wrist_left"}


@pytest.mark.parametrize("camera", [*CAMERAS, "front"])
def test_a_cameras_key_leads_back_to_it(camera: str) -> None:
    assert camera_by_key(camera_key(camera)) == camera
    assert camera_by_key(image_key(camera)) == camera


def test_roboarena_counts_exterior_cameras_from_zero() -> None:
    keys = ["observation/exterior_image_0_left", "observation/exterior_image_1_left", "observation/wrist_image_left"]
    assert counts_from_zero(keys)
    assert not counts_from_zero(keys[1:])
    named = [camera_by_key(key, from_zero=True) for key in keys]
    assert named == list(CAMERAS)


GOOD: dict[str, Any] = {"action_space": "joint_velocity", "control_hz": 15}


@pytest.mark.parametrize(
    "wrong",
    [
        {"action_space": None},
        {"action_space": "sideways"},
        {"action_space": ["joint_velocity"]},
        *({"control_hz": value} for value in (None, 0, -1, 1001, True, "15", float("nan"))),
        {"execution_law": 3},
        *({name: value} for name in ("horizon", "n_action_steps") for value in ("many", -1, 1.5, 10**6, [8])),
        *({"cameras": value} for value in ("front", [1], {"front": 3}, {"front": [1]}, {"front": [0, 9]}, {1: [9, 9]})),
        {"cameras": {"front": [10**6, 10**6]}},
        *({name: "yes"} for name in ("prompt_required", "takes_prefix")),
    ],
    ids=str,
)
def test_malformed_terms_are_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    fault = fault_of_terms(GOOD | wrong)
    assert fault is not None and fault.startswith(f"{SECTION}.{name} ")
    assert "\n" not in fault and len(fault) < 160


def test_terms_may_leave_out_what_they_need_not_say_and_hold_more() -> None:
    assert fault_of_terms(GOOD) is None
    assert fault_of_terms(GOOD | {"cameras": {"front": None}, "horizon": None, "of_tomorrow": object()}) is None
    assert fault_of_terms([]) == f"{SECTION} is no map"
