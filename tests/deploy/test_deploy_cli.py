"""`python -m rlspec.deploy`: mistakes are one line, a run is a log and a summary, and nothing heavy is imported."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlspec.config.paths import list_robots
from rlspec.deploy.__main__ import main
from rlspec.deploy.policy.sources import read_contract
from rlspec.deploy.robots.franky import FrankyRobot
from rlspec.deploy.settings import Settings, load_robot
from rlspec.errors import ConfigError

ROBOTS = ["dry_run", "franka_fr3", "franka_panda", "franka_sim", "mujoco"]
DRY = "robot=dry_run policy=hold"
SHADOW = ("robot=franka_fr3", "mode=shadow", "host=1.2.3.4", "policy=hold")
BOX = ("safety.workspace_low=[-0.3,-0.5,0]", "safety.workspace_high=[0.8,0.5,1.2]")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("policy=hold", "robot: required; add robot=NAME; allowed: dry_run, franka_fr3,"),
        ("robot=franka_fr policy=hold", "robot=franka_fr: unknown; did you mean franka_fr3?"),
        (f"{DRY} robot.anything=1", "robot.anything=1: robot=dry_run has no such option; it has no options"),
        ("robot=mujoco policy=hold robot.randomize=none", "robot.randomize=none: robot=mujoco has no such option; did"),
        ("robot=mujoco policy=hold robot.camera_hz=0", "robot.camera_hz=0: must be a number > 0"),
        ("robot=dry_run", "no policy: give one of server=ws://HOST:PORT, checkpoint=DIR, policy=expert|hold"),
        (f"{DRY} server=ws://a:1", "server and policy exclude each other"),
        (f"{DRY} second=3", "second=3: unknown key; did you mean seconds?"),
        (f"{DRY} watchdog..stop=1", "watchdog..stop=1: unknown key;"),
        (f"{DRY} seconds=0", "seconds=0: must be a number > 0"),
        (f"{DRY} seconds=soon", "seconds=soon: must be a number > 0"),
        (f"{DRY} hos=1.2.3.4", "hos=1.2.3.4: unknown key; did you mean host?"),
        (f"{DRY} schedule=rtc", "schedule=rtc: must be a mapping"),
        (f"{DRY} scheduler=open", "schedule.name=open: must be open_loop, ensemble, rtc"),
        (f"{DRY} watchdog.stop=1", "watchdog.stop=1: unknown key; did you mean stop_after?"),
        (f"{DRY} safety.joint_margin=2", "safety.joint_margin=2: must be a number >= 0 and <= 0.5"),
        (f"{DRY} gripper.binary=maybe", "gripper.binary=maybe: must be true or false"),
        (f"{DRY} mode=real", "mode=real: robot=dry_run is simulated"),
        (f"{DRY} mode=shadow", "mode=shadow: robot=dry_run connects to nothing"),
        (f"{DRY} go", "'go' is no setting: write key=value"),
        (f"{DRY} action_space=joints", "action_space=joints: must be joint_position, joint_velocity,"),
        (f"{DRY} action_space=cartesian_position", "policy=hold: it holds joints or speeds"),
        (f"{DRY} schedule.n_action_steps=99", "n_action_steps=99: policy=hold predicts 8 actions"),
        ("robot=franka_fr3 policy=hold", "robot=franka_fr3: no address; add host=IP"),
        ("robot=franka_fr3 policy=hold host=1.2.3.4", "safety.workspace_low, safety.workspace_high: not both set"),
        (
            "robot=franka_fr3 policy=hold host=1.2.3.4 safety.workspace_low=[-0.1,-0.5,0]",
            "safety.workspace_low, safety.workspace_high: not both set",
        ),
        ("robot=nowhere.yaml policy=hold", "robot=nowhere.yaml: cannot be read ("),
        (
            "robot=franka_fr3 policy=hold host=1.2.3.4 robot.gripper_stroke=[230,13]",
            "robot.gripper_stroke: the position when open comes first",
        ),
        ("robot=franka_sim policy=hold host=172.16.0.2", "host=172.16.0.2: robot=franka_sim runs on this machine"),
        ("robot=franka_fr3 policy=hold host=1.2.3.4 mode=sim", "mode=sim: robot=franka_fr3 is real"),
        ("robot=franka_fr3 policy=expert host=1.2.3.4", "policy=expert: not for robot=franka_fr3"),
        ("robot=mujoco policy=hold law=ruckig", "law=ruckig: robot=mujoco runs "),
        ("robot=mujoco policy=hold task=pick_plase", "robot=mujoco: "),
        (
            "robot=mujoco policy=hold robot.mood=red",
            "robot.mood=red: robot=mujoco has no such option; allowed: arm, camera_hz,",
        ),
        ("robot=dry_run server=ws://127.0.0.1:9", "ws://127.0.0.1:9: cannot connect"),
        ("robot=dry_run checkpoint=nowhere", "the policy server does not serve after "),
    ],
)
def test_mistakes_are_one_line(arguments: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments.split(), f"out={tmp_path}/run"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    usage = capsys.readouterr().out
    assert all(robot in usage for robot in ROBOTS)


def test_all_settings_are_printed_with_meaning_and_unit(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["robot=mujoco", "policy=expert", "token=secret", "law=ruckig", "safety.max_step=0.05", *BOX]
    assert main([*given, "--print"]) == 0
    text = capsys.readouterr().out
    shown = yaml.safe_load(text)
    settings = Settings.read(given)
    assert shown == settings.model_dump(mode="json", exclude={"print", "token"}) and "secret" not in text
    assert (shown["safety"]["max_step"], shown["safety"]["velocity_share"]) == (0.05, 1.0)
    assert "  max_step: 0.05  # Radians that a joint's target moves in one tick (DROID: 0.2)\n" in text
    assert "  blend: 4  # `rtc`: actions over which the old chunk fades into the new one\n" in text
    names = {name for section in (shown, *shown.values()) if isinstance(section, dict) for name in section}
    found = re.findall(r"^ *'?(\w+)'?:.* # |^ *# .*\n *'?(\w+)'?:", text, re.MULTILINE)
    explained = {name for either in found for name in either}
    assert len(names) > 60 and names - explained == set()


def test_every_robot_of_the_recipes_is_valid() -> None:
    assert list_robots() == ROBOTS
    for robot in ROBOTS:
        settings = Settings.checked({"robot": load_robot(robot), "policy": "hold", "mode": "dry_run"})
        assert settings.robot.name == robot


def test_settings_arrive() -> None:
    given = (
        "robot=franka_fr3 host=10.0.0.2 server=ws://a:1 scheduler=rtc schedule.blend=2 rate=1e1 "
        "safety.workspace_low=[-0.1,-0.2,0] safety.workspace_high=[0.7,0.5,0.9] "
        "robot.camera_keys.observation/a.b=wrist_left watchdog.heartbeat=null "
        "robot.cameras.wrist_left=realsense:012 robot.force_threshold=20.0 token=123 frames=true"
    )
    settings = Settings.read([*given.split(), "prompt=put = away: [x]"])
    assert (settings.robot.host, settings.schedule.name, settings.schedule.blend) == ("10.0.0.2", "rtc", 2)
    assert (settings.rate, settings.token, settings.prompt) == (10.0, "123", "put = away: [x]")
    assert settings.safety.workspace_low == [-0.1, -0.2, 0]
    assert settings.robot.camera_keys == {"observation/a.b": "wrist_left"}
    assert settings.robot.cameras == {"wrist_left": "realsense:012"}
    assert settings.robot.options == {"force_threshold": 20.0}
    assert settings.watchdog.heartbeat is None
    assert settings.effective_mode == "real"


def test_the_box_of_a_robots_file_holds_where_the_command_line_does_not_say(tmp_path: Path) -> None:
    file = tmp_path / "ours.yaml"
    box = "box: {low: [-0.1, -0.4, 0.01], high: [0.7, 0.4, 0.9]}\n"
    file.write_text("name: ours\ndriver: franky\nhost: 1.2.3.4\noptions: {gripper: robotiq}\n" + box)
    safety = Settings.read([f"robot={file}", "policy=hold"]).safety
    assert (safety.workspace_low, safety.workspace_high) == ([-0.1, -0.4, 0.01], [0.7, 0.4, 0.9])
    assert (safety.hand_length, safety.velocity_share) == (0.177, 0.75)
    safety = Settings.read([f"robot={file}", "policy=hold", "safety.hand_length=0.2", *BOX]).safety
    assert (safety.workspace_low, safety.hand_length) == ([-0.3, -0.5, 0], 0.2)
    assert (
        Settings.read(["robot=franka_fr3", "mode=shadow", "host=1.2.3.4", "policy=hold"]).safety.hand_length == 0.1034
    )


def test_robotiq_settings_arrive() -> None:
    given = "robot.gripper=robotiq robot.gripper_stroke=[3,228] robot.payload_mass=0.3 robot.payload_centre=[0,0,0.05]"
    robot = Settings.read([*SHADOW, *given.split()]).robot
    made = robot.found.make(robot)
    assert isinstance(made, FrankyRobot)
    assert (made.settings.gripper, made.settings.gripper_stroke) == ("robotiq", (3, 228))
    assert (made.settings.payload_mass, list(made.settings.payload_centre)) == (0.3, [0, 0, 0.05])
    measured = Settings.read(
        ["robot=franka_fr3", "mode=shadow", "host=1.2.3.4", "policy=hold", "robot.gripper_stroke=null"]
    )
    found = measured.robot.found.make(measured.robot)
    assert isinstance(found, FrankyRobot) and found.settings.gripper_stroke is None


def test_whole_numbers_in_a_list_stay_whole() -> None:
    given = ("robot.image_size=[90,160]", "robot.workspace=[0,0.5,0,1]")
    robot = Settings.read(["robot=mujoco", "policy=hold", *given]).robot
    assert (robot.options["image_size"], robot.options["workspace"]) == ([90, 160], [0, 0.5, 0, 1])
    assert robot.found.check(robot.options, "mujoco").model_dump()["image_size"] == (90, 160)


def contract(ours: dict[str, Any] | None, **given: Any) -> Any:
    metadata = {} if ours is None else {"rlspec": ours}
    return read_contract(metadata, "ws://a:1", **{"action_space": None, "rate": None, **given})


def test_contract() -> None:
    ours = {"action_space": "joint_velocity", "control_hz": 15.0, "horizon": 16, "n_action_steps": 8, "cameras": {}}
    assert (contract(ours).action_space, contract(ours).control_hz, contract(ours).cameras) == (
        "joint_velocity",
        15,
        {},
    )
    with pytest.raises(ConfigError, match="action_space=delta_eef: ws://a:1 acts in joint_velocity"):
        contract(ours, action_space="delta_eef")
    with pytest.raises(ConfigError, match="rate=20: ws://a:1 was trained at 15 Hz"):
        contract(ours, rate=20.0)
    with pytest.raises(ConfigError, match="does not say what its actions mean: add action_space="):
        contract(None)
    openpi = contract(None, action_space="joint_velocity")
    assert openpi.control_hz == 15
    assert openpi.cameras["observation/wrist_image_left"] == (224, 224)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ticks.jsonl").read_text().splitlines()]


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot=dry_run", "policy=expert", "seconds=1.2", f"out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "time: 1.2 s are over" in printed
    assert "lateness   p50" in printed
    header, *ticks, footer = lines_of(tmp_path)
    assert header["header"]["robot"] == "dry_run"
    assert header["header"]["control_hz"] == 15
    assert len(header["header"]["limits"]["low"]) == 7
    assert footer["footer"]["outcome"] == "time"
    assert footer["footer"]["ticks"] == len(ticks)
    keys = {"tick", "time", "wall", "state", "observation_age_ms", "inference_ms", "action_age_ms", "chunk", "index"}
    keys |= {"requested", "target", "sent", "closure_sent", "reasons", "phase", "event", "late_ms"}
    assert all(keys <= set(tick) for tick in ticks)
    assert set(ticks[5]["state"]) >= {"joints", "velocities", "closure", "mode"}
    assert len(ticks[5]["requested"]) == 8
    assert len(ticks[5]["sent"]) == 7
    assert {"run", "stop"} <= {tick["phase"] for tick in ticks}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "safety.workspace_high=[0.4,1,1]",
            "outside of the workspace box, from -1.00 -1.00 -1.00 to +0.40 +1.00 +1.00",
        ),
        ("safety.joint_margin=0.5", ""),
    ],
)
def test_an_arm_that_does_not_stand_where_it_may_is_said(
    setting: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["robot=dry_run", "policy=hold", "seconds=0.2", setting, f"out={tmp_path}"]) == 0
    printed = "".join(capsys.readouterr())
    assert said in printed and ("WARNING" in printed) == bool(said)


def test_a_real_robot_is_not_started_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The confirmation, on a robot that stands for the real one."""
    from rlspec.deploy import run
    from rlspec.deploy.build import make_dry_run
    from rlspec.display import Display

    monkeypatch.setattr(run, "make_robot", make_dry_run)
    settings = Settings.read(["robot=franka_fr3", "host=1.2.3.4", "policy=hold", *BOX, f"out={tmp_path}/run"])
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    with pytest.raises(ConfigError, match="nobody can confirm here; run it on a terminal, or add yes=true"):
        run.deploy(settings, Display(quiet=True))
    assert not (tmp_path / "run").exists()
    willing = settings.model_copy(update={"yes": True, "seconds": 0.2})
    assert run.deploy(willing, Display(quiet=True)).exit_code == 0


def start(tmp_path: Path, *arguments: str, stdin: int | None = None) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "rlspec.deploy", "robot=dry_run", "policy=expert", f"out={tmp_path}/run", *arguments],
        stdin=stdin if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("run "):
            return process
    raise AssertionError("it did not run")


def test_ctrl_c(tmp_path: Path) -> None:
    process = start(tmp_path, "seconds=60")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "user: e-stop: signal SIGINT" in out
    assert lines_of(tmp_path / "run")[-1]["footer"]["exit_code"] == 130


def test_space_on_the_terminal(tmp_path: Path) -> None:
    terminal, theirs = pty.openpty()
    process = start(tmp_path, "seconds=60", stdin=theirs)
    os.write(terminal, b" ")
    out, _ = process.communicate(timeout=30)
    os.close(terminal)
    os.close(theirs)
    assert process.returncode == 130
    assert "e-stop: key ' '" in out


def test_sigkill_leaves_a_readable_log(tmp_path: Path) -> None:
    process = start(tmp_path, "seconds=60")
    end = time.monotonic() + 20
    while len((tmp_path / "run" / "ticks.jsonl").read_bytes().splitlines()) < 20 and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.wait()
    header, *ticks = lines_of(tmp_path / "run")
    assert "header" in header
    assert [tick["tick"] for tick in ticks] == list(range(ticks[-1]["tick"] + 1))
    assert len(ticks) > 14


def test_import_is_light() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import rlspec.deploy.__main__, rlspec.deploy.run\n"
        "names = ('torch', 'lerobot', 'gymnasium', 'pandas', 'franky', 'mujoco', 'matplotlib', 'transformers')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
