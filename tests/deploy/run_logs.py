"""Makes the log of a deployment, as the loop writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rlspec.deploy.arm.interfaces import Command
from rlspec.deploy.robots.mujoco import MujocoRobot
from rlspec.deploy.robots.mujoco_expert import MujocoExpert

HZ = 15.0
EXPIRES = 0.3
STEP = 0.05  # radians per tick that the pretended filter lets through


def record(
    folder: Path, *, ticks: int = 60, law: str = "stiff_position", seed: int = 0, images: bool = False
) -> list[dict[str, Any]]:
    """Write folder/ticks.jsonl of the expert at work; returns its ticks.

    Tick 0 only looks, ticks 20 to 22 are held; elsewhere targets further than `STEP` from the measured joints are cut.
    """
    robot = MujocoRobot(seed=seed, images=images, image_size=(24, 32), camera_hz=HZ)
    robot.connect(law, HZ)
    expert = MujocoExpert(robot, "joint_velocity", 4, HZ)
    lines: list[dict[str, Any]] = []
    chunk: list[np.ndarray] = []
    sent, closure_sent = None, None
    for tick in range(ticks):
        state = robot.read()
        line = {
            "tick": tick,
            "time": robot.clock.now(),
            "wall": f"2026-01-01T00:00:{tick / HZ:06.3f}+00:00",
            "state": {
                "joints": state.joints.tolist(),
                "velocities": state.velocities.tolist(),
                "closure": state.closure,
                "mode": state.mode,
            },
            **dict.fromkeys(("inference_ms", "action_age_ms", "chunk", "index", "requested", "target", "sent")),
            "observation_age_ms": 4.0,
            "closure_sent": None,
            "reasons": [],
            "phase": "start" if tick == 0 else "hold" if 20 <= tick < 23 else "run",
            "event": "no fresh action" if tick == 20 else "",
            "late_ms": 0.25 * (tick % 4),
        }
        if line["phase"] == "run":
            if not chunk:
                chunk = list(expert.infer({}))
            action = chunk.pop(0)
            target = state.joints + 0.2 * action[:7]
            sent = state.joints + np.clip(target - state.joints, -STEP, STEP)
            changed, closure_sent = float(action[7] > 0.5) != closure_sent, float(action[7] > 0.5)
            line |= {
                **{"requested": action.tolist(), "target": target.tolist(), "chunk": tick // 4, "index": tick % 4},
                **{"action_age_ms": 1000 * (tick % 4) / HZ, "inference_ms": 30.0 + tick // 4},
                **{"closure_sent": closure_sent if changed else None},
                **{"reasons": [] if (sent == target).all() else ["slew"]},
            }
        if sent is not None:
            line["sent"] = sent.tolist()
            robot.command(Command(sent, np.zeros(7), EXPIRES))
            robot.grip(closure_sent)
        lines.append(line)
        if images:
            _keep(folder, tick, robot)
        robot.clock.sleep_until((tick + 1) / HZ)
    footer = {"outcome": "success" if robot.success else "time", "reason": "60 ticks <done>", "exit_code": 0}
    header = {
        **{"robot": "mujoco", "mode": "sim", "action_space": "joint_velocity", "law": law, "control_hz": HZ},
        **{"prompt": robot.instruction, "versions": {"a": "1"}},
        "settings": {
            "robot": {"model": "fr3", "options": {"task": "pick_place", "seed": seed}},
            "safety": {"expires": EXPIRES},
        },
    }
    robot.close()
    write(folder, [{"header": header}, *lines, {"footer": footer}])
    return lines


def write(folder: Path, lines: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ticks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _keep(folder: Path, tick: int, robot: MujocoRobot) -> None:
    from PIL import Image

    for camera, frame in robot.frames().items():
        path = folder / "frames" / camera / f"{tick:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame.image).save(path, quality=95)
