"""Make a public checkpoint a policy of ours: `python -m rlspec.adopt source=openpi path=DIR out=DIR`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from rlspec.config.command import CommandLine
from rlspec.config.schema import Key
from rlspec.entry import command

NOT_YET = {
    "vla_adapter": "its backbone sees through DINOv2 and SigLIP fused (Prismatic), and ours through one tower; its "
    "head alone is of no use: train policy=vla_adapter",
    "openvla_oft": "its backbone is OpenVLA's, with two fused towers and a changed attention, which none of ours is; "
    "train policy=vla_adapter, which has an L1 head too",
}


def _names(cameras: tuple[str, ...]) -> tuple[str, ...]:
    for name in cameras:
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise ValueError(f"{name!r} is no name of a camera: letters, digits and _")
    return cameras


class AdoptCommand(CommandLine):
    """Weights and statistics of a public checkpoint become a folder for policy.path=, rlspec.serve and LeRobot."""

    command = "adopt"
    synopsis = ("source=openpi path=DIR out=DIR [norm_stats=FILE] [key=value ...]",)
    example = "source=openpi"

    source: Annotated[
        Literal["openpi", "vla_adapter", "openvla_oft"],
        Key("openpi: a pi0.5 in PyTorch, as its convert_jax_model_to_pytorch.py writes it", "openpi"),
    ]
    path: Annotated[Path, AfterValidator(Path.expanduser), Key("of the checkpoint", "DIR")]
    out: Annotated[Path, AfterValidator(Path.expanduser), Key("of the policy", "DIR")]
    norm_stats: Annotated[
        Path | None, Key("openpi's norm_stats.json (default: the only one below path/assets)", "FILE")
    ] = None
    cameras: Annotated[tuple[str, ...], AfterValidator(_names), Key("that it sees, by your data's names", "A,B")] = (
        "base_0_rgb",
        "left_wrist_0_rgb",
    )
    state: Annotated[int | None, Key("numbers of a state (default: as many as the statistics have)")] = Field(
        None, ge=1
    )
    action: Annotated[int | None, Key("numbers of an action (likewise)")] = Field(None, ge=1)

    @model_validator(mode="after")
    def _can_be_had(self) -> AdoptCommand:
        if self.source in NOT_YET:
            raise ValueError(f"source={self.source}: not possible: {NOT_YET[self.source]}")
        if not self.path.is_dir():
            raise ValueError(f"path={self.path}: no such folder")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(f"out={self.out}: there is something; choose another folder")
        return self


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command(AdoptCommand, _adopt, argv)


def _adopt(line: AdoptCommand) -> int:
    from rlspec.display import Display
    from rlspec.vla.policies.openpi import Checkpoint, adopt

    given = Checkpoint.read(line.path, line.norm_stats, state=line.state, action=line.action)
    adopt(given, line.out, cameras=line.cameras)
    Display().line(f"{line.out}: a policy of type rlspec_pi05; train it with policy=pi05 policy.path={line.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
