"""A ChArUco board in a picture: where it is seen from the camera, or why it cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.errors import ConfigError, RobotError

Array = NDArray[np.float64]

_LEAST_CORNERS = 12  # of a picture
_SHARP = 0.1  # variance of the Laplacian over the picture's, within the board: sharp ones are at 1, noise alone at 0.02


@dataclass(frozen=True)
class BoardView:
    """What one picture shows of the board: corners on it (n, 3) in metres, and in the picture (n, 2) in pixels."""

    corners: Array
    pixels: Array


@dataclass(frozen=True)
class Lens:
    """Of a camera: matrix (3, 3) in pixels, distortion (n,), and the root mean square error of its fit in pixels."""

    matrix: Array
    distortion: Array
    error: float


class Board:
    """A board of known size.

    Args:
        squares: Along its long and its short side.
        square: Side of a square, metres.
        marker: Side of a marker, metres.
        dictionary: Of the markers, as OpenCV calls it without DICT_.

    Raises:
        ConfigError: There is no such board.
        RobotError: OpenCV is not installed.
    """

    def __init__(self, squares: tuple[int, int], square: float, marker: float, dictionary: str) -> None:
        try:
            import cv2
        except ImportError:
            raise RobotError("calibrate=camera: OpenCV is missing; pip install opencv-python-headless") from None
        number = getattr(cv2.aruco, f"DICT_{dictionary}", None)
        if number is None:
            raise ConfigError(f"dictionary={dictionary}: OpenCV has none of that name; for example 5X5_100")
        if not 0 < marker < square:
            raise ConfigError(f"marker={marker}: must be smaller than a square, which is {square} m")
        self._cv2: Any = cv2
        self.board = cv2.aruco.CharucoBoard(squares, square, marker, cv2.aruco.getPredefinedDictionary(number))
        self._detector = cv2.aruco.CharucoDetector(self.board)

    def find(self, image: NDArray[np.uint8]) -> BoardView | str:
        """The board in an RGB picture (H, W, 3), or why it cannot be used."""
        grey = self._cv2.cvtColor(np.ascontiguousarray(image), self._cv2.COLOR_RGB2GRAY)
        pixels, numbers, *_ = self._detector.detectBoard(grey)
        count = 0 if numbers is None else len(numbers)
        if count == 0:
            return "no board is seen: light it evenly, bring it nearer, or hold it still"
        if count < _LEAST_CORNERS:
            return f"{count} of its corners are seen, {_LEAST_CORNERS} are needed: bring all of it into the picture"
        found = np.asarray(pixels, np.float64).reshape(-1, 2)
        if self._sharpness(grey, found) < _SHARP:
            return "it is blurred: hold it still, focus the camera, or light it better"
        corners = np.asarray(self.board.getChessboardCorners(), np.float64)[np.asarray(numbers).reshape(-1)]
        return BoardView(corners, found)

    def _sharpness(self, grey: NDArray[np.uint8], pixels: Array) -> float:
        (left, top), (right, bottom) = pixels.min(0).astype(int), np.ceil(pixels.max(0)).astype(int)
        part = grey[top : bottom + 1, left : right + 1].astype(np.float64)
        spread = float(part.var())
        return float(self._cv2.Laplacian(part, self._cv2.CV_64F).var()) / spread if spread > 0 else 0.0

    def lens(self, views: list[BoardView], size: tuple[int, int]) -> Lens:
        """A camera's lens from its views of the board; size: (height, width)."""
        flags = self._cv2.CALIB_FIX_K3
        corners = [view.corners.astype(np.float32) for view in views]
        pixels = [view.pixels.astype(np.float32) for view in views]
        error, matrix, distortion, *_ = self._cv2.calibrateCamera(corners, pixels, size[::-1], None, None, flags=flags)
        return Lens(np.asarray(matrix, np.float64), np.asarray(distortion, np.float64).reshape(-1), float(error))

    def known_lens(self, views: list[BoardView], matrix: Array) -> Lens:
        """A lens that is known, and how well the views agree with it."""
        bare = Lens(matrix, np.zeros(5), 0.0)
        errors = np.concatenate([self._misses(view, bare) for view in views])
        return Lens(matrix, bare.distortion, float(np.sqrt((errors**2).sum(1).mean())))

    def _misses(self, view: BoardView, lens: Lens) -> Array:
        _, turn, place = self._cv2.solvePnP(view.corners, view.pixels, lens.matrix, lens.distortion)
        pixels, _ = self._cv2.projectPoints(view.corners, turn, place, lens.matrix, lens.distortion)
        return np.asarray(pixels).reshape(-1, 2) - view.pixels

    def pose(self, view: BoardView, lens: Lens) -> Array:
        """The board in the camera's frame (x right, y down, z ahead), (4, 4)."""
        _, turn, place = self._cv2.solvePnP(view.corners, view.pixels, lens.matrix, lens.distortion)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self._cv2.Rodrigues(turn)[0], np.asarray(place).reshape(3)
        return pose
