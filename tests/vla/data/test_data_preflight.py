"""Data, policy and environment that do not fit are one line each, with what to change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import Toy

from rlspec.config.vla_schema import Dataset
from rlspec.contract.features import STATE
from rlspec.errors import DataError
from rlspec.vla.data.opening import open_dataset
from rlspec.vla.data.preflight import EnvFacts, checkpoint_statistics, preflight


class Feature:
    def __init__(self, *shape: int) -> None:
        self.shape = shape


class Policy:
    """As much of a LeRobot policy's config as is looked at."""

    def __init__(self, **inputs: Feature) -> None:
        images = {f"observation.images.{camera}": Feature(3, 24, 32) for camera in Toy.cameras}
        given = {name.replace("__", "."): feature for name, feature in inputs.items()}
        self.input_features = {**images, "observation.state": Feature(4), **given}
        self.output_features = {"action": Feature(3)}
        self.empty_cameras = 0


FACTS = EnvFacts.of(Toy())


@pytest.fixture
def meta(images: Path) -> Any:
    return open_dataset(Dataset(name="toy"), root=images).meta


def test_what_fits_passes_silently(meta: Any) -> None:
    stats = {key: meta.stats[key] for key in ("action", "observation.state")}
    assert preflight(meta, policy=Policy(), checkpoint=stats, env=FACTS) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"cameras": {"front": (24, 32, 3), "top": (24, 32, 3)}}, "camera observation.images.side: .*dataset.rename="),
        ({"cameras": {"front": (48, 64, 3), "side": (24, 32, 3)}}, "32x24 pixels in the data, 64x48 .*image_size=24"),
        ({"state": 8}, "observation.state: 4 numbers in the data, 8 in the environment"),
        (
            {"low": np.zeros(7), "high": np.ones(7)},
            r"action: 3 numbers in the data, 7 in the environment \(delta_eef\)",
        ),
        (
            {"action_space": "joint_position"},
            "delta_eef in the data, joint_position .*env.options.action_space=delta_eef",
        ),
        ({"control_hz": 15.0}, "rate: 10 Hz in the data, 15 Hz in the environment; set env.options.control_hz=10"),
    ],
)
def test_an_environment_that_differs(meta: Any, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(DataError, match=line) as error:
        preflight(meta, env=replace(FACTS, **changes))
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        (Policy(observation__images__wrist=Feature(3, 8, 8)), "it reads observation.images.wrist, .*dataset.rename="),
        (Policy(observation__state=Feature(6)), "observation.state: 4 numbers, the policy has 6; take"),
    ],
)
def test_a_policy_that_differs(meta: Any, policy: Policy, line: str) -> None:
    with pytest.raises(DataError, match=line):
        preflight(meta, policy=policy)


def test_a_policy_for_other_pixels_is_a_note(meta: Any) -> None:
    notes = preflight(meta, policy=Policy(observation__images__side=Feature(3, 512, 512)))
    assert notes == ["observation.images.side: 32x24 pixels, the policy was made for 512x512"]


def test_the_remedy_for_a_cameras_name_works(images: Path) -> None:
    facts = replace(FACTS, cameras={"front": (24, 32, 3), "top": (24, 32, 3)})
    section = Dataset(name="toy", rename={"observation.images.side": "observation.images.top"})
    assert preflight(open_dataset(section, root=images).meta, env=facts) == []


def test_actions_beyond_the_environments_limits_are_a_note(meta: Any) -> None:
    tight = replace(FACTS, low=np.full(3, -0.1, np.float32), high=np.array([0.1, 0.1, 1], np.float32))
    notes = preflight(meta, env=tight)
    assert len(notes) == 2
    assert "the environment cuts it to -0.1..0.1" in notes[0]


def test_an_unknown_origin_is_a_note(images: Path, copy_of: Callable[[Path], Path]) -> None:
    root = copy_of(images)
    (root / "meta/rlspec.json").unlink()
    opened = open_dataset(Dataset(name="toy"), root=root).meta
    notes = preflight(opened, env=replace(FACTS, control_hz=20.0))
    assert [note.partition(":")[0] for note in notes] == ["rate", "action space"]


def checkpoint(meta: Any, key: str, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    stats = {name: {kind: np.array(value) for kind, value in meta.stats[name].items()} for name in (key,)}
    change(stats[key])
    return stats


def test_other_units_stop_the_run(meta: Any) -> None:
    def degrees(stats: dict[str, Any]) -> None:
        for name in ("mean", "std", "q01", "q99"):
            stats[name][1] *= 57.3

    with pytest.raises(DataError, match=r"observation.state\[1\]: spreads 0.0175 times as far .*convert the units"):
        preflight(meta, checkpoint=checkpoint(meta, "observation.state", degrees))


def test_a_number_that_the_checkpoint_never_saw_move_stops_the_run(meta: Any) -> None:
    with pytest.raises(DataError, match=r"observation.state\[0\]: constant in the checkpoint's data"):
        preflight(
            meta, checkpoint=checkpoint(meta, "observation.state", lambda stats: stats["std"].__setitem__(0, 0.0))
        )


def test_a_number_that_stands_still_in_the_data_is_a_note(meta: Any) -> None:
    # The gripper of the toy is always closed.
    notes = preflight(meta, checkpoint=checkpoint(meta, "action", lambda stats: stats["std"].__setitem__(2, 0.5)))
    assert notes == ["action[2]: constant in the data, not in the checkpoint's"]


def test_data_outside_of_the_checkpoints_range_is_a_note(meta: Any) -> None:
    def narrow(stats: dict[str, Any]) -> None:
        stats["q01"][0], stats["q99"][0] = stats["q10"][0], stats["q50"][0]

    (note,) = preflight(meta, checkpoint=checkpoint(meta, "observation.state", narrow))
    share = int(note.partition("%")[0].rpartition(" ")[2])
    assert note.endswith("of the data lie outside of the checkpoint's q01..q99")
    assert 45 <= share <= 75


def test_renamed_numbers_are_compared_too(images: Path, meta: Any) -> None:
    # Under other names the values are still found in the files.
    root = open_dataset(Dataset(name="toy", rename={"observation.state": "observation.x"}), root=images)
    back = open_dataset(Dataset(name="toy", rename={"executed_action": "old", "action": "observation.y"}), root=images)
    assert preflight(back.meta, checkpoint={"observation.state": meta.stats["observation.state"]}) == []
    assert root.meta.renamed == {"observation.state": "observation.x"}


def test_statistics_of_a_saved_policy_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    assert checkpoint_statistics(tmp_path) is None
    name = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    save_file({"observation.state.mean": np.ones(4), "action.q01": np.zeros(3)}, tmp_path / name)
    found = checkpoint_statistics(tmp_path)
    assert found is not None
    assert json.dumps({key: list(each) for key, each in found.items()}) == (
        '{"action": ["q01"], "observation.state": ["mean"]}'
    )


def test_statistics_of_another_robot_are_at_fault_and_not_the_data(meta: Any) -> None:
    own = {key: {kind: np.array(value) for kind, value in meta.stats[key].items()} for key in ("action", STATE)}
    key = "policy.norm_stats=other.json"
    assert preflight(meta, chosen=(key, own)) == []
    remedy = "they do not belong to this data: take those of its robot, or set policy.norm_stats=null"
    moved = {STATE: {kind: np.rad2deg(value) for kind, value in own[STATE].items()}, "action": own["action"]}
    with pytest.raises(DataError) as caught:
        preflight(meta, chosen=(key, moved), checkpoint=moved)
    assert str(caught.value).startswith(f"{key}: {STATE}[") and str(caught.value).endswith(remedy)
    assert "convert the units" not in str(caught.value)
    away = {
        STATE: own[STATE],
        "action": {kind: value + 100.0 * (kind != "std") for kind, value in own["action"].items()},
    }
    with pytest.raises(DataError, match=f"{key}: most of action lies outside of their q01..q99; {remedy}"):
        preflight(meta, chosen=(key, away))
    fewer = {STATE: {kind: value[:2] for kind, value in own[STATE].items()}}
    with pytest.raises(DataError, match=f"{key}: 2 numbers of {STATE}, the data has 4"):
        preflight(meta, chosen=(key, fewer))
