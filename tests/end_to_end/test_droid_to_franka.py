"""From recordings to a robot that moves, as a user runs it: train, serve, deploy through the real driver."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("franky")
pytest.importorskip("franky_sim")

from rlspec.deploy.arm.robot_limits import velocity_bounds  # noqa: E402
from rlspec.deploy.robots.franky_sim import SimulatorProcess  # noqa: E402

HOME = "0,-0.628,0,-2.513,0,1.885,0"  # DROID's reset pose
Q, DQ = slice(2, 9), slice(9, 16)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", *words]


def run(*words: str, timeout: float = 240) -> str:
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of recipe=vla_droid on recordings that it has generated and converted."""
    folder = tmp_path_factory.mktemp("droid")
    run(
        "rlspec.train",
        *("recipe=vla_droid", "dataset.recordings.episodes=2", "dataset.recordings.workers=1"),
        *("env.options.image_size=[36,64]", "training.steps=4", "training.batch_size=4", "device=cpu"),
        *("evaluation.before=false", "evaluation.after=false", "report.tensorboard=false"),
        *(f"dataset.root={folder / 'data'}", f"output_dir={folder}", "run=run"),
    )
    return folder / "run"


@contextmanager
def served(checkpoint: Path) -> Iterator[str]:
    """A server for a checkpoint; yields its address."""
    words = command("rlspec.serve", f"checkpoint={checkpoint}", "port=0", "threads=1")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            shown, found = "", None
            assert process.stdout is not None
            while found is None:
                line = process.stdout.readline()
                assert line, f"the server ended: {shown}"
                shown += line
                found = re.search(r"wss?://[\w.:]+", line)
            yield found[0]
        finally:
            process.terminate()
            process.communicate()
    assert process.returncode == 0


def read_log(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return lines[0]["header"], lines[1:-1], lines[-1]["footer"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [5, 30])
def test_a_policy_learnt_from_recordings_moves_a_franka_within_its_limits(
    policy: Path, seconds: int, tmp_path: Path
) -> None:
    simulator = SimulatorProcess()
    try:
        simulator.order(f"place {HOME}")
        with served(policy) as url:
            shown = run(
                "rlspec.deploy",
                *("robot=franka_sim", f"host={simulator.host}", f"server={url}", f"seconds={seconds}"),
                *("prompt=put the cube on the plate", f"out={tmp_path}"),
            )
        record = simulator.record()
    finally:
        simulator.close()
    assert f"{seconds} s are over" in shown
    header, ticks, footer = read_log(tmp_path / "ticks.jsonl")
    numbers = [tick["tick"] for tick in ticks]
    assert (header["action_space"], header["control_hz"]) == ("joint_velocity", 15.0)
    assert numbers == sorted(set(numbers)) and len(ticks) == footer["ticks"]
    assert footer["ticks"] + footer["missed_ticks"] >= 15 * seconds
    assert footer["outcome"] == "time" and footer["recoveries"] == 0
    sent = np.array([tick["sent"] for tick in ticks if tick["sent"]])
    assert len(sent) > 0.8 * 15 * seconds, "a robot that was hardly told anything"

    # What the arm itself measured, every millisecond, against the limits that its driver reports.
    limits = {name: np.array(header["limits"][name]) for name in ("low", "high")}
    joints, velocities = record[:, Q], record[:, DQ]
    assert np.ptp(joints, axis=0).max() > 0.01, "the arm did not move"
    assert np.all(joints >= limits["low"]) and np.all(joints <= limits["high"])
    low, high = velocity_bounds(_limits(header), joints)
    assert np.all(velocities >= low) and np.all(velocities <= high)
    assert np.abs(velocities[-50:]).max() < 0.01, "it does not stand at the end"


def _limits(header: dict[str, Any]) -> Any:
    from rlspec.deploy.arm.robot_limits import RobotLimits

    told = header["limits"]
    arrays = {name: np.array(told[name]) for name in ("low", "high", "velocity", "acceleration", "jerk", "envelope")}
    return RobotLimits(model=told["model"], source=told["source"], **arrays)


def test_the_scripted_expert_completes_its_task_through_the_loop(tmp_path: Path) -> None:
    shown = run("rlspec.deploy", "robot=mujoco", "policy=expert", "seconds=20", f"out={tmp_path}")
    assert "the task is done" in shown
    _, ticks, footer = read_log(tmp_path / "ticks.jsonl")
    assert footer["outcome"] == "success" and footer["ticks"] == len(ticks)
    assert any(tick["closure_sent"] == 1.0 for tick in ticks), "the hand never closed"
