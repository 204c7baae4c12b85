"""A replayed log moves the simulated arm as it was recorded; other laws, other robots and gaps show as deviations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from run_logs import record, write

from rlspec.deploy.log.replay import replay_log
from rlspec.errors import DataError


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "ticks.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("law", ["stiff_position", "droid_hybrid"])
def test_a_log_of_the_simulation_is_repeated(law: str, tmp_path: Path) -> None:
    ticks = record(tmp_path, law=law, seed=2)
    replay = replay_log(tmp_path)
    assert (replay.law, replay.ticks, replay.reflex) == (law, len(ticks), "")
    np.testing.assert_array_equal(replay.measured, [tick["state"]["joints"] for tick in ticks])
    assert np.ptp(replay.measured, axis=0).max() > 0.5
    # The scene is the same: cube and grasp included. JSON keeps every digit of these numbers.
    assert replay.largest.max() < 1e-9
    assert replay.success == (lines_of(tmp_path)[-1]["footer"]["outcome"] == "success")


def test_another_law_shows_as_a_deviation_of_the_size_of_its_lag(tmp_path: Path) -> None:
    record(tmp_path, law="stiff_position", ticks=30)
    replay = replay_log(tmp_path, law="droid_hybrid")
    assert replay.law == "droid_hybrid"
    assert 0.01 < replay.largest.max() < 0.5
    assert (replay.rms <= replay.largest + 1e-12).all()
    assert f"largest {replay.largest[1]:.4f} rad" in replay.lines()[2]


def test_a_log_of_a_real_robot_is_replayed_from_its_pose(tmp_path: Path) -> None:
    """Its scene is unknown; a scene of one's own stands in, and states that are missing are not compared."""
    record(tmp_path, ticks=25, seed=4)  # jittered home pose of another scene than the replay's
    lines = lines_of(tmp_path)
    lines[0]["header"]["robot"] = "franka_fr3"
    lines[0]["header"]["settings"]["robot"]["options"] = {"treatment": "of the driver"}
    for tick in lines[1:-1]:
        tick["time"] += 1000.0  # another clock
    lines[9]["state"] = None
    write(tmp_path, lines)
    replay = replay_log(tmp_path)
    assert np.isnan(replay.measured[8]).all()
    assert np.isfinite(replay.largest).all()
    assert replay.largest.max() < 1e-6


def test_a_stop_in_the_log_stops_the_replay(tmp_path: Path) -> None:
    record(tmp_path, ticks=20)
    lines = lines_of(tmp_path)
    for tick in lines[8:-1]:
        tick |= {"sent": None, "closure_sent": None, "phase": "stop"}
    write(tmp_path, lines)
    replay = replay_log(tmp_path)
    assert np.abs(np.diff(replay.replayed[-6:], axis=0)).max() < 1e-3
    assert replay.largest.max() > 0.1


def test_what_cannot_be_replayed_is_refused(tmp_path: Path) -> None:
    record(tmp_path, ticks=3)
    lines = lines_of(tmp_path)
    lines[0]["header"]["law"] = "ruckig"
    write(tmp_path, lines)
    with pytest.raises(DataError, match="law=ruckig is not there in MuJoCo; choose law=droid_hybrid"):
        replay_log(tmp_path)
    assert replay_log(tmp_path, law="stiff_position").ticks == 3
    for tick in lines[1:-1]:
        tick["sent"] = None
    write(tmp_path, lines)
    with pytest.raises(DataError, match="nothing was sent"):
        replay_log(tmp_path, law="stiff_position")
