"""Exported logs are LeRobotDatasets whose action is what was sent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from run_logs import record, write

from rlspec.contract.features import JOINT_STATE
from rlspec.contract.records import DATA_KEYS
from rlspec.deploy.log.export import export_logs
from rlspec.errors import DataError


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "ticks.jsonl").read_text().splitlines()]


def test_two_runs_become_two_episodes_with_pictures_and_requests(tmp_path: Path) -> None:
    first = record(tmp_path / "first", ticks=30, images=True)
    second = record(tmp_path / "second", ticks=8, seed=1, images=True)
    marked = lines_of(tmp_path / "first")
    marked[5]["intervention"] = True  # tick 4
    write(tmp_path / "first", marked)
    lines = lines_of(tmp_path / "second")
    for path in sorted((tmp_path / "second/frames/wrist_left").iterdir())[4:6]:
        path.unlink()  # a camera slower than the loop
    del lines[6]  # and a line lost: tick 5
    write(tmp_path / "second", lines)
    export = export_logs([tmp_path / "first", tmp_path / "second"], tmp_path / "out")
    assert (export.episodes, export.frames) == (2, 29 + 6)
    assert sum("1 ticks left out" in problem for problem in export.problems) == 2
    assert sum("1 ticks are missing" in problem for problem in export.problems) == 1

    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("local/deployment", root=tmp_path / "out", video_backend="pyav")
    assert (data.num_episodes, data.num_frames, data.fps, data.meta.robot_type) == (2, 35, 15, "mujoco")
    assert tuple(data.features["observation.state"]["names"]) == JOINT_STATE
    closure = None
    for index, tick in enumerate(first[1:]):
        frame = data[index]
        closure = tick["closure_sent"] if tick["closure_sent"] is not None else closure
        state = [*tick["state"]["joints"], tick["state"]["closure"]]
        np.testing.assert_allclose(frame["observation.state"], state, atol=1e-6)
        np.testing.assert_allclose(frame["action"], [*tick["sent"], closure], atol=1e-6)
        assert bool(frame["has_request"]) == (tick["requested"] is not None)
        np.testing.assert_allclose(frame["requested"], tick["requested"] or np.zeros(8), atol=1e-6)
        assert frame["observation.images.wrist_left"].shape == (3, 24, 32)
    assert [index for index in range(35) if bool(data[index]["intervention"])] == [3]
    assert frame["task"] == lines_of(tmp_path / "first")[0]["header"]["prompt"]
    assert float(data[28]["action"][1]) != float(data[28]["observation.state"][1])
    assert not bool(data[20]["has_request"]), "tick 21 was held: what had been sent before stands in"
    np.testing.assert_array_equal(data[20]["action"], data[18]["action"])
    with_picture, without = data[29 + 2], data[29 + 3]
    assert (with_picture["observation.images.wrist_left"] == without["observation.images.wrist_left"]).all()
    assert (with_picture["observation.images.exterior_1_left"] != without["observation.images.exterior_1_left"]).any()

    record_file = json.loads((tmp_path / "out/meta/rlspec.json").read_text())
    assert set(DATA_KEYS) <= set(record_file)
    assert record_file["action_space"] == "joint_position"
    assert record_file["requested_action_space"] == "joint_velocity"
    assert record_file["execution_law"] == "stiff_position"
    assert [episode["frames"] for episode in record_file["episodes"]] == [29, 6]
    assert record_file["episodes"][0]["source"] == "first"
    assert second[0]["sent"] is None


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "run", ticks=4)
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="exists; choose another folder"):
        export_logs([tmp_path / "run"], tmp_path / "there")
    lines = lines_of(tmp_path / "run")
    for tick in lines[1:-1]:
        tick["sent"] = None
    lines[0]["header"]["mode"] = "shadow"
    write(tmp_path / "shadow", lines)
    with pytest.raises(DataError, match=r"nothing was sent to the robot \(mode=shadow\)"):
        export_logs([tmp_path / "shadow"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    lines = lines_of(tmp_path / "run")
    lines[0]["header"]["control_hz"] = 20.0
    write(tmp_path / "faster", lines)
    with pytest.raises(DataError, match="another rate or action space"):
        export_logs([tmp_path / "run", tmp_path / "faster"], tmp_path / "out")
