"""Evaluation protocols of LIBERO: what has to be equal before two success rates may be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SETTLE_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
"""Rest with an open gripper: objects are stored slightly above their support and fall during the first steps."""


@dataclass(frozen=True)
class Profile:
    """How episodes of a suite are started, bounded and shown.

    Attributes:
        name: `openpi` or `lerobot`.
        max_steps: Control steps per episode and suite, settling steps not counted.
        replan_steps: Actions executed of each predicted chunk (the policy's matter, recorded with results).
        trials: Episodes per task; trial i starts from stored initial state i.
        seed: Base seed of everything that the stored states do not cover.
        settle_steps: Steps with `SETTLE_ACTION` after an initial state was set.
        rotate: Images are rotated by 180 degrees (robosuite's rows start at the bottom).
        gripper_open, gripper_close: Sign of the seventh action number.
        source: Where the figures come from.
    """

    name: str
    max_steps: Mapping[str, int]
    replan_steps: int
    trials: int
    seed: int
    source: str
    settle_steps: int = 10
    rotate: bool = True
    gripper_open: float = -1.0
    gripper_close: float = 1.0
    settle_action: tuple[float, ...] = field(default=SETTLE_ACTION)

    def describe(self) -> dict[str, Any]:
        """Return the profile as JSON-safe values."""
        return asdict(self) | {"max_steps": dict(self.max_steps), "settle_action": list(self.settle_action)}


PROFILES: Mapping[str, Profile] = {
    "openpi": Profile(
        name="openpi",
        max_steps={
            "libero_spatial": 220,
            "libero_object": 280,
            "libero_goal": 300,
            "libero_10": 520,
            "libero_90": 400,
        },
        replan_steps=5,
        trials=50,
        seed=7,
        source="openpi examples/libero/main.py",
    ),
    "lerobot": Profile(
        name="lerobot",
        max_steps={
            "libero_spatial": 280,
            "libero_object": 280,
            "libero_goal": 300,
            "libero_10": 520,
            "libero_90": 400,
        },
        replan_steps=10,
        trials=10,
        seed=1000,
        source="lerobot 0.6.1 envs/libero.py; its documented evaluation of pi0.5: 10 actions per chunk, 10 episodes",
    ),
}


def get_profile(name: str) -> Profile:
    """Return the protocol `name`; `ValueError` names the known ones."""
    if name not in PROFILES:
        raise ValueError(f"unknown LIBERO profile {name!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[name]
