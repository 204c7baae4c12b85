"""The box of a room, by hand: `python -m rlspec.deploy calibrate=workspace` writes the robot's own file.

Somebody guides the arm to the ends of where it may be; nothing is commanded (the connection reads only).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rlspec.config.schema import Key
from rlspec.deploy.arm.interfaces import Robot, RobotState
from rlspec.deploy.arm.kinematics import HOME, POINTS, hand_points, points
from rlspec.deploy.robots.drivers import RobotSettings
from rlspec.deploy.robots.options import WorkspaceBox
from rlspec.deploy.settings import RobotCommand
from rlspec.display import Display
from rlspec.errors import ConfigError, RobotError

Array = NDArray[np.float64]

TABLE = "the tip of the closed hand on the table"
STEPS = (
    TABLE,
    "the tip over the table's near left corner",
    "the tip over its near right corner",
    "the tip over its far right corner",
    "the tip over its far left corner",
    "the hand as high as it may go",
)
"""Where the arm is guided to, in this order."""

_LEAST = 0.1  # metres that a box must be wide to be meant
_HAND_HELD = 0.02  # rad/s below which the arm is held still


class CalibrateCommand(RobotCommand):
    """Guide the arm to the table and the ends of its room; the box around elbow, wrist and hand goes into its file.

    Nothing moves by itself: press the guiding button at the hand (on an FR3, with FCI active, switch to programming in
    Desk for this).
    """

    command = "deploy"
    synopsis = ("calibrate=workspace robot=NAME [host=IP] [out=FILE]",)
    example = "clearance=0.01"

    calibrate: Annotated[Literal["workspace"], Key("what is calibrated")]
    out: Annotated[Path | None, Key("the robot's file (default NAME.yaml, or the one given as robot=)", "FILE")] = None
    clearance: Annotated[float, Key("metres that the hand's tip keeps from the table")] = Field(0.005, ge=0, le=0.2)


def calibrate(line: CalibrateCommand, display: Display, *, file: Path | None = None) -> int:
    """Guide, compute, write; returns the exit code.

    Args:
        line: The command.
        display: Asks.
        file: The robot's own, if it was given as one.

    Raises:
        ConfigError: Nobody is there to guide, or the poses make no box.
        RobotError: The robot cannot be read.
    """
    out = check_file(line.out, file, line.robot.name)
    robot = line.robot.found.make(line.robot)
    with looking(robot, line.robot.law):
        display.heading(f"{robot.name}: {len(STEPS)} poses; hold the arm still, then press Enter (q: give up)")
        poses = guide(robot, lambda step, text: ask(display, "workspace", step, len(STEPS), text))
    box = enclosing_box(poses, line.robot.hand_length, line.clearance)
    write_robot(out, line.robot, box=box.model_dump())
    use = f"python -m rlspec.deploy robot={shlex.quote(str(out))} ..."
    display.line(f"box from {_show(box.low)} to {_show(box.high)} m; {use}")
    if outside := outside_at_home(box, line.robot.hand_length):
        display.warn(f"DROID's reset pose is not in this box: its {outside} is outside; a run cannot begin there")
    return 0


@contextmanager
def looking(robot: Robot, law: str) -> Iterator[None]:
    """Connected to read only."""
    try:
        robot.connect(law, 15.0, read_only=True)
        yield
    finally:
        robot.close()


def held_still(robot: Robot, text: str, ask_for: Callable[[str], None]) -> RobotState:
    """What the robot measured once somebody has guided it and holds it still.

    Args:
        robot: Connected.
        text: What is wanted.
        ask_for: Shows it, and returns when the arm is there.

    Raises:
        RobotError: The arm cannot be read.
    """
    wanted = text
    while True:
        ask_for(wanted)
        state = robot.read()
        if state.mode == "disconnected":
            raise RobotError(f"{robot.name} disconnected: {state.error}; connect it and begin anew")
        if float(np.abs(state.velocities).max()) <= _HAND_HELD:
            return state
        wanted = f"{text}; it still moves: hold it"


def guide(robot: Robot, ask: Callable[[int, str], None]) -> list[Array]:
    """The joints (7,) at each of `STEPS`.

    Args:
        robot: Connected.
        ask: Shows where to guide the arm, and returns when it is there.

    Raises:
        RobotError: The arm cannot be read.
    """
    return [np.array(held_still(robot, step, partial(ask, number)).joints) for number, step in enumerate(STEPS, 1)]


def enclosing_box(poses: Sequence[Array], hand_length: float, clearance: float) -> WorkspaceBox:
    """The box for joints at `STEPS`: what the safety filter looks at was inside, and it ends above the table.

    Raises:
        ConfigError: The poses make no box.
    """
    places = points(np.stack(poses), hand_points(hand_length))  # (poses, 3, points)
    low, high = places.min(axis=(0, 2)), places.max(axis=(0, 2))
    table = float(places[STEPS.index(TABLE), 2, POINTS.index("tcp")])
    low[2] = table + clearance
    tips = places[:, :, POINTS.index("tcp")]
    for axis, name in enumerate("xyz"):
        if (width := np.ptp(tips[:, axis])) < _LEAST:
            where = f"within {100 * width:.0f} cm along {name} at all poses"
            raise ConfigError(f"calibrate=workspace: the tip was {where}; guide it to the corners")
    return WorkspaceBox(low=[round(float(x), 4) for x in low], high=[round(float(x), 4) for x in high])


def outside_at_home(box: WorkspaceBox, hand_length: float) -> str:
    """Which of `POINTS` is outside of the box at DROID's reset pose; empty: none."""
    places = points(HOME, hand_points(hand_length)).T
    out = ((places < box.low) | (places > box.high)).any(axis=1)
    return POINTS[int(np.argmax(out))] if out.any() else ""


def check_file(given: Path | None, file: Path | None, name: str) -> Path:
    """Where the robot's description goes: what was given, the file that it came from, or one of its name.

    Raises:
        ConfigError: It would overwrite another one.
    """
    out = given or file or Path(f"{name}.yaml")
    if out.exists() and out != file:
        raise ConfigError(
            f"out={out}: exists; take another file, or robot={shlex.quote(str(out))} to calibrate it anew"
        )
    return out


def write_robot(path: Path, robot: RobotSettings, **found: Any) -> None:
    """The robot as it was described, with what was found."""
    import yaml

    described: dict[str, Any] = robot.model_dump(exclude_defaults=True) | found
    head = "# A robot and its room, by python -m rlspec.deploy calibrate=...; use it as robot=THIS_FILE.yaml\n"
    try:
        path.write_text(head + yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out={path}: cannot be written ({error.strerror}); take another file") from None


def ask(display: Display, what: str, number: int, count: int, text: str) -> None:
    """Show what is wanted and wait for Enter.

    Raises:
        ConfigError: Nobody is there, or they give up.
    """
    if not sys.stdin.isatty():
        raise ConfigError(f"calibrate={what}: nobody can guide the arm from here; run it on a terminal")
    display.line(f"  {number}/{count}  {text}, Enter:")
    if (typed := sys.stdin.readline()) == "" or typed.strip().lower() == "q":
        raise ConfigError(f"calibrate={what}: given up; nothing was written")


def _show(values: Sequence[float]) -> str:
    return " ".join(f"{value:+.3f}" for value in values)
