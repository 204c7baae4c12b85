"""LeRobot's own commands on the simulated arm: record, replay, teleoperate, roll a policy out."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlspec.deploy.arm.interfaces import Command as Sent
from rlspec.deploy.robots.mujoco import MujocoRobot

HOME = [0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0]
ROBOT = ("--robot.type=franka_rlspec", "--robot.backend=mujoco", "--robot.image_height=48", "--robot.image_width=64")
EXPERT = ("--teleop.type=franka_rlspec_expert",)
Run = Callable[..., None]

pytestmark = pytest.mark.slow


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """`command("record", *arguments)` runs lerobot-record in this process, the plugin named on its command line."""
    from draccus.wrappers import docstring

    describe = functools.cache(docstring.get_attribute_docstring)
    monkeypatch.setattr(docstring, "get_attribute_docstring", describe)  # help texts, read from source every time

    def run(name: str, *arguments: str) -> None:
        main = importlib.import_module(f"lerobot.scripts.lerobot_{name}").main
        plugin = "--robot.discover_packages_path=rlspec.deploy.lerobot"
        monkeypatch.setattr(sys, "argv", [f"lerobot-{name}", plugin, *ROBOT, *arguments])
        main()

    yield run


@pytest.fixture
def robots(monkeypatch: pytest.MonkeyPatch) -> list[MujocoRobot]:
    """The simulated robots that a command makes; each keeps what it was sent and whether its task was done."""
    made: list[Any] = []
    begin, command, close = MujocoRobot.connect, MujocoRobot.command, MujocoRobot.close

    def connect(self: Any, *arguments: Any, **options: Any) -> Any:
        limits = begin(self, *arguments, **options)
        self.sent, self.states = [], []
        made.append(self)
        return limits

    def keep(self: Any, order: Sent) -> None:
        self.sent.append(order.joints)
        self.states.append(self.read())
        command(self, order)

    def note(self: Any) -> None:
        if self._connected:
            self.done = self.success
        close(self)

    monkeypatch.setattr(MujocoRobot, "connect", connect)
    monkeypatch.setattr(MujocoRobot, "command", keep)
    monkeypatch.setattr(MujocoRobot, "close", note)
    return made


def test_record_replay_and_teleoperate(command: Run, robots: list[Any], tmp_path: Path) -> None:
    data = ("--dataset.repo_id=local/demo", f"--dataset.root={tmp_path / 'demo'}")
    command(
        "record",
        *(*EXPERT, *data, "--dataset.fps=15", "--dataset.num_episodes=1", "--dataset.episode_time_s=20"),
        *("--dataset.single_task=put the cube on the plate", "--dataset.video=false", "--dataset.push_to_hub=false"),
        "--play_sounds=false",
    )
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/demo", root=tmp_path / "demo", video_backend="pyav")
    assert dataset.features["action"]["names"] == [*(f"joint_{i}.pos" for i in range(1, 8)), "gripper.pos"]
    assert dataset.features["observation.images.wrist_left"]["shape"] == (48, 64, 3)
    assert dataset.num_frames == len(robots[0].sent)
    assert robots[0].done, f"{dataset.num_frames} frames did not do for the task"

    command("replay", *data, "--dataset.episode=0", "--play_sounds=false")
    np.testing.assert_allclose(robots[1].sent, robots[0].sent, atol=1e-4)
    assert robots[1].done, "the recorded actions do the task again"

    command("teleoperate", *EXPERT, "--fps=15", "--teleop_time_s=2")
    assert len(robots[2].sent) > 3


@pytest.mark.parametrize("backend", ["franky_sim", "franky"])
def test_record_through_the_real_driver(command: Run, tmp_path: Path, backend: str) -> None:
    """A wave on franky-sim: as the backend of that name, and as an arm at an address."""
    pytest.importorskip("franky_sim")
    from rlspec.deploy.robots.franky_sim import SimulatorProcess

    simulator = SimulatorProcess() if backend == "franky" else None
    address = [f"--robot.host={simulator.host}", "--robot.realtime=false", "--robot.images=false"] if simulator else []
    if simulator:  # an arm is not moved without a box
        address += ["--robot.workspace_low=[-1,-1,-1]", "--robot.workspace_high=[1,1,1]"]
    try:
        command(
            "record",
            *(f"--robot.backend={backend}", *address, *EXPERT, "--teleop.motion=wave", "--teleop.period_s=4"),
            *("--dataset.repo_id=local/wave", f"--dataset.root={tmp_path / 'wave'}", "--dataset.single_task=wave"),
            *("--dataset.fps=15", "--dataset.num_episodes=1", "--dataset.episode_time_s=6", "--dataset.video=false"),
            *("--dataset.push_to_hub=false", "--play_sounds=false"),
        )
    finally:
        if simulator is not None:
            simulator.close()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/wave", root=tmp_path / "wave", video_backend="pyav")
    columns = dataset.hf_dataset.with_format("numpy")
    asked, measured = np.stack(columns["action"]), np.stack(columns["observation.state"])
    assert len(asked) > 45
    # Measured as asked for, some time later: a busy machine simulates more slowly than time passes.
    swing = np.ptp(asked, axis=0)
    joint = int(np.argmax(swing[:7]))
    assert swing[joint] > 0.09
    assert np.ptp(measured[:, joint]) > 0.6 * swing[joint]
    lags = [np.abs(measured[lag:, joint] - asked[: len(asked) - lag, joint]).mean() for lag in range(len(asked) // 2)]
    assert min(lags) < 0.2 * swing[joint]  # a spring follows, and does not reach


def test_rollout_of_a_tiny_policy(command: Run, robots: list[Any], tmp_path: Path) -> None:
    write_policy(tmp_path / "policy")
    command(
        "rollout",
        *("--strategy.type=base", f"--policy.path={tmp_path / 'policy'}", "--fps=15", "--duration=3"),
        "--task=put the cube on the plate",
    )
    sent = np.array(robots[0].sent)
    assert len(sent) > 150, "its own actions, and LeRobot's way home"
    assert np.abs(sent - HOME).max() < 0.5
    assert np.abs(robots[0].states[-1].joints - robots[0].states[0].joints).max() < 0.05


def write_policy(folder: Path) -> None:
    """An untrained ACT whose actions lie around the home pose."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    config = ACTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
            "observation.images.wrist_left": PolicyFeature(FeatureType.VISUAL, (3, 48, 64)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (8,))},
        chunk_size=8,
        n_action_steps=8,
        dim_model=32,
        n_heads=2,
        dim_feedforward=64,
        n_encoder_layers=1,
        use_vae=False,
        pretrained_backbone_weights=None,
        device="cpu",
        push_to_hub=False,
    )
    import torch

    torch.manual_seed(0)
    vector = {"mean": torch.tensor([*HOME, 0.0]), "std": torch.full((8,), 0.05)}
    pixels = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    stats = {"observation.state": vector, "action": vector, "observation.images.wrist_left": pixels}
    before, after = make_pre_post_processors(config, dataset_stats=stats)
    for part in (ACTPolicy(config), before, after):
        part.save_pretrained(folder)
