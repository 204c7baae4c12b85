"""calibrate=camera on rendered boards whose pose is known, and on what it must refuse."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from rlspec.deploy.__main__ import main
from rlspec.deploy.arm.interfaces import Frame, RobotState
from rlspec.deploy.arm.kinematics import HOME, flange
from rlspec.deploy.calibration.board import Board, BoardView
from rlspec.deploy.calibration.hand_eye import camera_pose
from rlspec.deploy.robots.dry_run import DryRunRobot
from rlspec.deploy.settings import Settings
from rlspec.errors import ConfigError

SIZE = (480, 640)
MATRIX = np.array([[560.0, 0.0, 330.0], [0.0, 555.0, 235.0], [0.0, 0.0, 1.0]])
SQUARES, SQUARE, MARKER = (14, 9), 0.02, 0.016


def pose(place: Any, angles: Any) -> np.ndarray:
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = Rotation.from_euler("xyz", angles).as_matrix(), place
    return made


def flange_pose(joints: np.ndarray) -> np.ndarray:
    made = np.eye(4)
    made[:3, 3], made[:3, :3] = flange(joints)
    return made


MIDDLE = pose([-0.14, -0.09, 0.0], [0.0, 0.0, 0.0])  # from the board's middle to its corner
ON_HAND = pose([0.02, -0.01, 0.11], [0.05, -0.1, 0.3]) @ MIDDLE  # the board, in the flange's frame
# A camera that looks at the hand at HOME from 55 cm below it, and one at the hand.
IN_ROOM = flange_pose(HOME) @ pose([0.03, 0.02, 0.11], [0.05, -0.1, 0.3]) @ pose([0.0, 0.0, -0.55], [0.0, 0.0, 0.0])
AT_HAND = pose([0.06, 0.01, 0.05], [0.1, -0.05, 1.5])
ON_TABLE = flange_pose(HOME) @ AT_HAND @ pose([0.0, 0.02, 0.45], [0.1, 0.1, 0.0]) @ MIDDLE


@cache
def printed() -> np.ndarray:
    return np.asarray(Board(SQUARES, SQUARE, MARKER, "5X5_100").board.generateImage((1120, 720), marginSize=0))


def render(board: np.ndarray, blur: float = 0.0) -> np.ndarray:
    """The board at a pose in the camera's frame, RGB, noisy; drawn at twice the size, so that edges are soft."""
    scale = np.diag([SQUARES[0] * SQUARE / 1120, SQUARES[1] * SQUARE / 720, 1.0])
    twice = np.diag([2.0, 2.0, 1.0])
    way = twice @ MATRIX @ np.column_stack([board[:3, 0], board[:3, 1], board[:3, 3]]) @ scale
    drawn = cv2.warpPerspective(printed(), way, (2 * SIZE[1], 2 * SIZE[0]), borderValue=170, flags=cv2.INTER_AREA)
    image = cv2.resize(drawn, (SIZE[1], SIZE[0]), interpolation=cv2.INTER_AREA)
    if blur:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    noise = np.random.default_rng(0).normal(0.0, 2.0, image.shape)
    return np.repeat(np.clip(image + noise, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def in_room(joints: np.ndarray) -> np.ndarray:
    return np.linalg.inv(IN_ROOM) @ flange_pose(joints) @ ON_HAND


def at_hand(joints: np.ndarray) -> np.ndarray:
    return np.linalg.inv(flange_pose(joints) @ AT_HAND) @ ON_TABLE


def tilted(count: int, reach: float = 0.25) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    share = np.array([0.15, 0.15, 0.15, 0.3, 1.0, 1.0, 1.5])
    return [HOME + reach * share * random.uniform(-1, 1, 7) for _ in range(count)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def guide(
    monkeypatch: pytest.MonkeyPatch, joints: list[np.ndarray], seen: Callable[[np.ndarray], np.ndarray], *blurs: float
) -> None:
    """Somebody at the terminal, and an arm that is elsewhere at every Enter."""
    monkeypatch.setattr("sys.stdin", Terminal("\n" * len(joints)))
    left = list(joints)
    now: dict[str, Any] = {}

    def read(self: DryRunRobot) -> RobotState:
        now["joints"] = left.pop(0)
        now["blur"] = blurs[len(joints) - len(left) - 1] if len(joints) - len(left) <= len(blurs) else 0.0
        return RobotState(0.0, now["joints"], np.zeros(7), 0.0, "user_stopped")

    def frames(self: DryRunRobot) -> dict[str, Frame]:
        image = render(seen(now["joints"]), now["blur"])
        return dict.fromkeys(("exterior_1_left", "wrist_left"), Frame(self.clock.now(), image))

    monkeypatch.setattr(DryRunRobot, "read", read)
    monkeypatch.setattr(DryRunRobot, "frames", frames)


def calibrated(file: Path, camera: str, *more: str) -> int:
    if not file.exists():
        file.write_text("name: ours\ndriver: dry_run\ncameras: {exterior_1_left: synthetic, wrist_left: synthetic}\n")
    return main(["calibrate=camera", f"robot={file}", f"camera={camera}", *more])


@pytest.mark.parametrize(
    ("camera", "seen", "truth"), [("exterior_1_left", in_room, IN_ROOM), ("wrist_left", at_hand, AT_HAND)]
)
@pytest.mark.parametrize("lens", [pytest.param("", marks=pytest.mark.slow), "lens=[560,555,330,235]"])
def test_the_pose_is_found_and_written_as_droid_has_it(
    camera: str, seen: Any, truth: np.ndarray, lens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 8 if lens else 12
    guide(monkeypatch, tilted(count), seen)
    file = tmp_path / "ours.yaml"
    assert calibrated(file, camera, f"poses={count}", *([lens] if lens else [])) == 0
    found = yaml.safe_load(file.read_text())["extrinsics"][camera]
    within = 0.006 if lens else 0.012  # metres; a lens that is fitted to twelve views is a little off along its axis
    np.testing.assert_allclose(found[:3], truth[:3, 3], atol=within)
    turn = Rotation.from_euler("xyz", found[3:]).inv() * Rotation.from_matrix(truth[:3, :3])
    assert turn.magnitude() < 0.01
    assert Settings.read([f"robot={file}", "policy=hold"]).robot.extrinsics[camera] == found


def test_one_camera_after_the_other_goes_into_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, lens = tmp_path / "ours.yaml", "lens=[560,555,330,235]"
    for camera, seen in (("exterior_1_left", in_room), ("wrist_left", at_hand)):
        guide(monkeypatch, tilted(6), seen)
        assert calibrated(file, camera, "poses=6", lens) == 0
    assert set(yaml.safe_load(file.read_text())["extrinsics"]) == {"exterior_1_left", "wrist_left"}


def test_pictures_that_do_not_serve_are_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away = HOME + np.array([1.5, 0, 0, 0, 0, 0, 0])
    good = tilted(6)
    guide(monkeypatch, [away, good[0], *good], in_room, 0.0, 2.5)
    assert calibrated(tmp_path / "ours.yaml", "exterior_1_left", "poses=6", "lens=[560,555,330,235]") == 0
    told = capsys.readouterr().out
    refused = ("no board is seen", "of its corners are seen", "it is blurred")
    assert sum(told.count(words) for words in refused) == 2 and "1/6  no board is seen: light it evenly" in told


@pytest.mark.parametrize("blur", [0.0, 0.6])
def test_a_sharp_board_is_seen(blur: float) -> None:
    found = Board(SQUARES, SQUARE, MARKER, "5X5_100").find(render(in_room(HOME), blur))
    assert isinstance(found, BoardView) and len(found.corners) > 80


def test_a_board_that_is_seen_in_part_is_not_enough() -> None:
    image = render(in_room(HOME))
    image[:, 215:] = 0
    assert "corners are seen, 12 are needed" in str(Board(SQUARES, SQUARE, MARKER, "5X5_100").find(image))


@pytest.mark.parametrize("blur", [2.5, 4.0, 8.0])
def test_a_blurred_board_is_not_used(blur: float) -> None:
    board, image = Board(SQUARES, SQUARE, MARKER, "5X5_100"), render(in_room(HOME))
    assert isinstance(board.find(cv2.GaussianBlur(image, (0, 0), blur)), str)


def test_where_corners_can_still_be_guessed_in_a_blurred_picture_that_is_what_is_told() -> None:
    large = cv2.resize(render(in_room(HOME)), None, fx=3, fy=3, interpolation=cv2.INTER_LINEAR)
    assert "it is blurred" in str(Board(SQUARES, SQUARE, MARKER, "5X5_100").find(cv2.GaussianBlur(large, (0, 0), 2.0)))


NOTHING = np.zeros((480, 640, 3), np.uint8)
NOISE = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)


@pytest.mark.parametrize("image", [NOTHING, NOISE])
def test_where_no_board_is_none_is_seen(image: np.ndarray) -> None:
    assert "no board is seen" in str(Board(SQUARES, SQUARE, MARKER, "5X5_100").find(image))


def refusal(capsys: pytest.CaptureFixture[str], file: Path) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "extrinsics" not in file.read_text()
    return error


def test_a_hand_that_was_not_turned_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide(monkeypatch, tilted(6, reach=0.02), in_room)
    assert calibrated(tmp_path / "ours.yaml", "exterior_1_left", "poses=6", "lens=[560,555,330,235]") == 2
    assert "the hand was turned by" in refusal(capsys, tmp_path / "ours.yaml")


def test_a_board_that_slipped_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poses = tilted(8)
    slipped = lambda joints: in_room(joints) @ pose([0.06 * (joints is poses[5]), 0, 0], [0, 0, 0])  # noqa: E731
    guide(monkeypatch, poses, slipped)
    assert calibrated(tmp_path / "ours.yaml", "exterior_1_left", "poses=8", "lens=[560,555,330,235]") == 2
    assert "the board moved by" in refusal(capsys, tmp_path / "ours.yaml")


def turned(*angles: tuple[float, float, float]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Flanges turned by angles from the first, and what a camera at the hand then sees, exactly."""
    flanges = [pose([0.4, 0.0, 0.4], [np.pi, 0, 0]) @ pose([0.01 * i, 0.0, 0.0], a) for i, a in enumerate(angles)]
    return flanges, [np.linalg.inv(each @ AT_HAND) @ ON_TABLE for each in flanges]


def test_turns_about_two_axes_tell_the_pose_exactly() -> None:
    flanges, boards = turned((0, 0, 0), (0.4, 0, 0), (0, 0.4, 0), (-0.4, 0, 0), (0, -0.4, 0), (0.2, 0.2, 0))
    found = camera_pose(flanges, boards, at_hand=True)
    np.testing.assert_allclose(found.pose, AT_HAND, atol=1e-9)
    assert found.metres < 1e-9 and found.radians < 1e-6
    boards[3] = boards[3] @ pose([0, 0, 0], [0, 0, 0.06])
    assert 0.005 < camera_pose(flanges, boards, at_hand=True).radians < 0.06, "the board was turned once"


@pytest.mark.parametrize(
    "angles",
    [
        pytest.param([(x, 0, 0) for x in np.linspace(-0.5, 0.5, 6)], id="about one axis"),
        pytest.param([(0, 0, 0), (0.15, 0, 0), (0, 0.15, 0), (-0.15, 0, 0), (0, -0.15, 0), (0.1, 0.1, 0)], id="little"),
    ],
)
def test_turns_about_one_axis_or_by_little_are_refused(angles: list[tuple[float, float, float]]) -> None:
    flanges, boards = turned(*angles)
    with pytest.raises(ConfigError, match="the hand was turned by .* degrees at most, or about one axis only"):
        camera_pose(flanges, boards, at_hand=True)


def test_a_lens_that_is_fitted_has_no_third_radial_term() -> None:
    """Boards near the middle do not tell it, and it would bend the picture's edges at will."""
    board = Board(SQUARES, SQUARE, MARKER, "5X5_100")
    corners = np.asarray(board.board.getChessboardCorners(), np.float64)
    views = []
    for joints in tilted(8):
        seen = in_room(joints)
        pixels, _ = cv2.projectPoints(corners, cv2.Rodrigues(seen[:3, :3])[0], seen[:3, 3], MATRIX, None)
        views.append(BoardView(corners, pixels.reshape(-1, 2)))
    lens = board.lens(views, SIZE)
    assert lens.distortion[4] == 0.0 and lens.error < 0.01
    np.testing.assert_allclose(lens.matrix, MATRIX, atol=0.5)


def test_too_few_views_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 views are too few, 6 are needed"):
        camera_pose([np.eye(4)] * 5, [np.eye(4)] * 5, at_hand=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "camera=exterior_9_left",
            "camera=exterior_9_left: robot=ours has no such camera; did you mean",
        ),
        ("camera=wrist_left poses=3", "poses=3: must be a whole number >= 6"),
        ("camera=wrist_left marker=0.03", "marker=0.03: must be smaller than a square"),
        ("camera=wrist_left dictionary=9X9", "dictionary=9X9: OpenCV has none of that name"),
        ("", "camera: required"),
    ],
)
def test_mistakes_are_one_line(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text("name: ours\ndriver: dry_run\ncameras: {exterior_1_left: synthetic, wrist_left: synthetic}\n")
    assert main(["calibrate=camera", f"robot={file}", *arguments.split()]) == 2
    assert message in refusal(capsys, file)
