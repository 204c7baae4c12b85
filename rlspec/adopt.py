"""Make a public checkpoint a policy of ours: `python -m rlspec.adopt source=openpi path=DIR out=DIR`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from rlspec.config.command import CommandLine
from rlspec.config.schema import Key
from rlspec.entry import command

NOT_YET = {
    "openvla_oft": "its Llama is changed to see both ways, with the state and a stop token among its tokens, and its "
    "head reads the last layer alone; none of ours does: train policy=vla_adapter, which has an L1 head too",
}
CAMERAS = {"openpi": ("base_0_rgb", "left_wrist_0_rgb"), "vla_adapter": ("image", "image2")}
ALONE = {"norm_stats": "openpi", "state": "openpi", "action": "openpi", "dataset": "vla_adapter"}


def _names(cameras: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for name in cameras or ():
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise ValueError(f"{name!r} is no name of a camera: letters, digits and _")
    return cameras


class AdoptCommand(CommandLine):
    """Weights and statistics of a public checkpoint become a folder for policy.path=, rlspec.serve and LeRobot."""

    command = "adopt"
    synopsis = ("source=openpi|vla_adapter path=DIR out=DIR [key=value ...]",)
    example = "source=openpi"

    source: Annotated[
        Literal["openpi", "vla_adapter", "openvla_oft"],
        Key(
            "openpi: a pi0.5 in PyTorch, as its convert_jax_model_to_pytorch.py writes it; vla_adapter: as it is "
            "published, with its adapters merged",
            "NAME",
        ),
    ]
    path: Annotated[Path, AfterValidator(Path.expanduser), Key("of the checkpoint", "DIR")]
    out: Annotated[Path, AfterValidator(Path.expanduser), Key("of the policy", "DIR")]
    norm_stats: Annotated[
        Path | None, Key("openpi's norm_stats.json (default: the only one below path/assets)", "FILE")
    ] = None
    dataset: Annotated[str | None, Key("of vla_adapter, for its statistics (default: the only one)", "NAME")] = None
    cameras: Annotated[
        tuple[str, ...] | None,
        AfterValidator(_names),
        Key("that it sees, by your data's names (default: openpi's two, or LIBERO's)", "A,B"),
    ] = None
    state: Annotated[int | None, Key("of openpi: numbers of a state (default: all of the statistics)")] = Field(
        None, ge=1
    )
    action: Annotated[int | None, Key("of openpi: numbers of an action (likewise)")] = Field(None, ge=1)

    @model_validator(mode="after")
    def _can_be_had(self) -> AdoptCommand:
        if self.source in NOT_YET:
            raise ValueError(f"source={self.source}: not possible: {NOT_YET[self.source]}")
        for key, source in ALONE.items():
            if source != self.source and getattr(self, key) is not None:
                raise ValueError(f"{key}={getattr(self, key)}: of source={source} alone; drop it")
        if self.source == "vla_adapter" and len(self.cameras or CAMERAS["vla_adapter"]) != 2:
            raise ValueError(
                f"cameras={','.join(self.cameras or ())}: VLA-Adapter sees two, the scene's and the wrist's"
            )
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

    cameras, out = line.cameras or CAMERAS[line.source], shlex.quote(str(line.out))
    if line.source == "vla_adapter":
        from rlspec.vla.policies import vla_adapter

        found = vla_adapter.VlaAdapterCheckpoint.read(line.path, line.dataset)
        vla_adapter.adopt(found, line.out, cameras=cameras)
        head = vla_adapter.settings(found)["head"]  # and the profile's name
        further = f"policy={head} policy.path={out} policy.norm_stats=checkpoint"
        said = f"a policy of type rlspec_adapter; train it with {further}"
    else:
        from rlspec.vla.policies import openpi

        given = openpi.Checkpoint.read(line.path, line.norm_stats, state=line.state, action=line.action)
        openpi.adopt(given, line.out, cameras=cameras)
        said = f"a policy of type rlspec_pi05; train it with policy=pi05 policy.path={out}"
    Display().line(f"{line.out}: {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
