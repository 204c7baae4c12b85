"""Where a camera is: `python -m rlspec.deploy calibrate=camera` writes it into the robot's own file, as DROID keeps it.

Somebody guides the arm; nothing is commanded. For a camera in the room a ChArUco board is fixed to the hand, for the
one at the hand the board lies on the table. The result is a pose (x, y, z, roll, pitch, yaw) by OpenCV's axes: in the
base frame, or in the flange's for the camera at the hand.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rlspec.config.schema import Key
from rlspec.contract.droid import pose_of
from rlspec.contract.features import EXTERIOR_1, WRIST
from rlspec.deploy.arm.interfaces import Robot
from rlspec.deploy.arm.kinematics import flange
from rlspec.deploy.calibration.board import Board, BoardView, Lens
from rlspec.deploy.calibration.hand_eye import LEAST_VIEWS, CameraPose, camera_pose
from rlspec.deploy.calibration.workspace import ask, check_file, held_still, looking, write_robot
from rlspec.deploy.settings import RobotCommand
from rlspec.display import Display
from rlspec.errors import ConfigError, RobotError, nearest

Array = NDArray[np.float64]

_PATIENCE = 2.0  # seconds for a picture that was taken after Enter
_WORST_PIXELS, _WORST_METRES = 1.5, 0.01


class CalibrateCameraCommand(RobotCommand):
    """Guide the arm through a dozen poses that a camera sees a ChArUco board in; its pose goes into the robot's file.

    For a camera in the room fix the board to the hand, for wrist_left lay it on the table. Tilt the hand to all sides.
    Print the board as DROID's: 14 x 9 squares of 20 mm with markers of 16 mm, dictionary 5X5_100.
    """

    command = "deploy"
    synopsis = ("calibrate=camera robot=NAME camera=NAME [host=IP] [out=FILE]",)
    example = "poses=15"

    calibrate: Annotated[Literal["camera"], Key("what is calibrated")]
    camera: Annotated[str, Key(f"of the robot, for example {EXTERIOR_1}", "NAME")]
    poses: Annotated[int, Key("that the arm is guided to")] = Field(12, ge=LEAST_VIEWS, le=100)
    squares: Annotated[tuple[int, int], Key("of the board, along its long and its short side", "[A,B]")] = (14, 9)
    square: Annotated[float, Key("side of a square, metres")] = Field(0.02, gt=0)
    marker: Annotated[float, Key("side of a marker, metres")] = Field(0.016, gt=0)
    dictionary: Annotated[str, Key("of the markers", "NAME")] = "5X5_100"
    lens: Annotated[
        tuple[float, float, float, float] | None,
        Key("focal lengths and centre in pixels, where the maker says (default: fitted to the views)", "[FX,FY,CX,CY]"),
    ] = None
    out: Annotated[Path | None, Key("the robot's file (default NAME.yaml, or the one given as robot=)", "FILE")] = None


def calibrate_camera(line: CalibrateCameraCommand, display: Display, *, file: Path | None = None) -> int:
    """Guide, compute, write; returns the exit code.

    Args:
        line: The command.
        display: Asks.
        file: The robot's own, if it was given as one.

    Raises:
        ConfigError: Nobody is there to guide, or the views do not tell the pose.
        RobotError: The robot or its camera cannot be read.
    """
    out = check_file(line.out, file, line.robot.name)
    board = Board(line.squares, line.square, line.marker, line.dictionary)
    robot = line.robot.found.make(line.robot)
    known = list(robot.camera_shapes or line.robot.cameras)
    if line.camera not in known:
        raise ConfigError(f"camera={line.camera}: robot={robot.name} has no such camera; {nearest(line.camera, known)}")
    with looking(robot, line.robot.law):
        display.heading(f"{robot.name}, {line.camera}: {line.poses} poses; hold still, then press Enter (q: give up)")
        flanges, views, size = watch(
            robot, line.camera, board, line.poses, lambda number, text: ask(display, "camera", number, line.poses, text)
        )
    found, lens = solve_views(board, flanges, views, size, line)
    pose = [round(float(value), 5) for value in pose_of(found.pose[:3, 3], found.pose[:3, :3])]
    write_robot(out, line.robot, extrinsics={**line.robot.extrinsics, line.camera: pose})
    focal = f"focal lengths {lens.matrix[0, 0]:.0f}, {lens.matrix[1, 1]:.0f} pixels, error {lens.error:.2f} pixels"
    display.line(f"{line.camera} at {pose} ({'flange' if line.camera == WRIST else 'base'} frame); {focal}")
    apart = f"{1000 * found.metres:.1f} mm, {np.degrees(found.radians):.2f} degrees"
    display.line(f"in all views the board is where it should be, within {apart}")
    display.line(f"python -m rlspec.deploy robot={shlex.quote(str(out))} ...")
    return 0


def watch(
    robot: Robot, camera: str, board: Board, poses: int, ask_for: Callable[[int, str], None]
) -> tuple[list[Array], list[BoardView], tuple[int, int]]:
    """Poses of the flange (4, 4), what the camera then saw of the board, and the picture's (height, width).

    Args:
        robot: Connected.
        camera: Of the robot.
        board: That is looked for.
        poses: How many.
        ask_for: Shows the number and what is wanted, and returns when the arm is there.

    Raises:
        RobotError: The arm or the camera cannot be read.
    """
    flanges: list[Array] = []
    views: list[BoardView] = []
    size = (0, 0)
    while len(views) < poses:
        text = "the board in the picture, the hand tilted to another side"
        while True:
            state = held_still(robot, text, partial(ask_for, len(views) + 1))
            image = _picture_after(robot, camera)
            found = board.find(image)
            if isinstance(found, BoardView):
                break
            text = found
        size = (image.shape[0], image.shape[1])
        pose = np.eye(4)
        pose[:3, 3], pose[:3, :3] = flange(state.joints)
        flanges.append(pose)
        views.append(found)
    return flanges, views, size


def _picture_after(robot: Robot, camera: str) -> NDArray[np.uint8]:
    """A picture that was taken from now on: the one at hand may show the arm on its way."""
    clock = robot.clock
    asked = clock.now()
    while clock.now() < asked + _PATIENCE:
        frame = robot.frames().get(camera)
        if frame is not None and frame.time >= asked:
            return frame.image
        clock.sleep_until(clock.now() + 0.02)
    raise RobotError(f"camera {camera} delivers nothing; check its cable and `robot.cameras`")


def solve_views(
    board: Board, flanges: list[Array], views: list[BoardView], size: tuple[int, int], line: Any
) -> tuple[CameraPose, Lens]:
    """The camera's pose and lens.

    Raises:
        ConfigError: The views do not agree, with each other or with the lens that was given.
    """
    if line.lens is None:
        lens = board.lens(views, size)
    else:
        fx, fy, cx, cy = line.lens
        lens = board.known_lens(views, np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]))
    if lens.error > _WORST_PIXELS:
        remedy = f"measure the printed squares{', or leave lens= out' if line.lens else ''}"
        raise ConfigError(f"calibrate=camera: corners are {lens.error:.1f} pixels from where they should be; {remedy}")
    found = camera_pose(flanges, [board.pose(view, lens) for view in views], at_hand=line.camera == WRIST)
    if found.metres > _WORST_METRES:
        where = "on the table" if line.camera == WRIST else "on the hand"
        raise ConfigError(
            f"calibrate=camera: the board moved by {1000 * found.metres:.0f} mm between the views; fix it {where}, and "
            "look whether the camera is firm"
        )
    return found, lens
