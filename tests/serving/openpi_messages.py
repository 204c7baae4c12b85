"""Messages as openpi's and RoboArena's clients send them, and how the recorded bytes of them were made.

Run in an environment with openpi-client 0.1.2 (numpy<2), the repository root as working directory:

    python tests/serving/openpi_messages.py tests/serving/recorded

Nothing here imports rlspec: the recordings are an oracle.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

RECORDED = Path(__file__).parent / "recorded"
SIZES = {
    "down": ((36, 64), (22, 22)),
    "tall": ((50, 20), (24, 32)),
    "up": ((9, 16), (20, 20)),
    "odd": ((7, 5), (10, 9)),
}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Edges, ramps and noise; the same in every version of NumPy."""
    rows, columns, colours = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    values = rows * 7 + columns * 5 + colours * 50 + (rows * columns * (seed + 3)) % 61
    return (values % 256).astype(np.uint8)


def droid_observation(height: int = 6, width: int = 8) -> dict[str, Any]:
    """What openpi's examples/droid/main.py sends, with smaller pictures."""
    return {
        "observation/exterior_image_1_left": picture(height, width),
        "observation/wrist_image_left": picture(height, width, seed=1),
        "observation/joint_position": np.linspace(-1.0, 1.0, 7),
        "observation/gripper_position": np.array([0.25]),
        "prompt": "put the marker in the cup",
    }


def roboarena_observation(height: int = 6, width: int = 8) -> dict[str, Any]:
    """What RoboArena's scripts/test_policy_server.py sends, with two exterior cameras."""
    return {
        "observation/wrist_image_left": picture(height, width, seed=1),
        "observation/exterior_image_0_left": picture(height, width),
        "observation/exterior_image_1_left": picture(height, width, seed=2),
        "session_id": "38DSA3hd3",
        "observation/joint_position": np.arange(7, dtype=np.float32) / 8,
        "observation/cartesian_position": np.zeros(6, dtype=np.float32),
        "observation/gripper_position": np.ones(1, dtype=np.float32),
        "prompt": "test",
        "endpoint": "infer",
    }


def messages() -> dict[str, Any]:
    """By name; each is recorded in a file of its own."""
    return {
        "droid": droid_observation(),
        "roboarena": roboarena_observation(),
        "roboarena_reset": {"endpoint": "reset"},
        "reply": {
            "actions": np.linspace(-1, 1, 80, dtype=np.float32).reshape(10, 8),
            "server_timing": {"infer_ms": 12.25, "prev_total_ms": 20.5},
        },
        "metadata": {"image_resolution": [224, 224], "needs_wrist_camera": True, "action_space": "joint_position"},
        "arrays": {
            "bool": np.array([True, False]),
            "scalar": np.array(1.5),
            "empty": np.zeros((0, 3), np.float32),
            "big_endian": np.arange(3, dtype=">i4"),
            "float16": np.array([0.5, -2.0], np.float16),
            "int64": np.array([2**40, -1]),
            "uint64": np.array([2**63], np.uint64),
            "special": np.array([np.nan, np.inf, -np.inf]),
            "text": np.array(["asdf", "qwertz", "\u00e4"]),
            "bytes": np.array([b"ab", b"c"]),
            "nested": {"list": [np.array([1, 2], np.int16), {"deep": np.ones((2, 2), np.uint8)}]},
            "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
            "strided": np.arange(12, dtype=np.int32)[::3],
        },
        "scalars": {
            "bool": np.bool_(True),
            "float32": np.float32(0.1),
            "float64": np.float64(0.1),
            "int8": np.int8(-5),
            "uint64": np.uint64(2**63),
            "text": np.str_("asdf"),
            "plain": [1, -1.5, None, True, b"raw", "text"],
        },
    }


def record(folder: Path) -> None:
    from openpi_client import image_tools, msgpack_numpy

    folder.mkdir(exist_ok=True)
    for name, message in messages().items():
        (folder / f"{name}.msgpack").write_bytes(msgpack_numpy.packb(message))
    resized = {name: image_tools.resize_with_pad(picture(*source), *target) for name, (source, target) in SIZES.items()}
    np.savez_compressed(folder / "resized.npz", **resized)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
