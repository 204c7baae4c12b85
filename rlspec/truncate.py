"""Cut a checkpoint's change of the weights: `python -m rlspec.truncate before=DIR after=DIR out=DIR keep=0.9`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import model_validator

from rlspec.config.command import CommandLine
from rlspec.config.schema import Key
from rlspec.entry import command


class TruncateCommand(CommandLine):
    """Keeps the largest singular directions of every matrix's change between two checkpoints of one model, writes the
    model that has only those, and prints what was kept (The Malignant Tail). Measure it like any checkpoint, by
    python -m rlspec.evaluate, beside the one that was not cut and beside part=tail, the control.
    """  # noqa: D205

    command = "truncate"
    synopsis = ("before=DIR after=DIR out=DIR keep=SHARE|rank=N [part=tail]",)
    example = "keep=0.9"

    before: Annotated[str, Key("the weights that training began with")]
    after: Annotated[str, Key("a run or one of its checkpoints")]
    out: Annotated[Path, Key("a new folder")]
    keep: Annotated[float | None, Key("the least directions that hold this share of the change's square", "SHARE")] = (
        None
    )
    rank: Annotated[int | None, Key("so many directions of each matrix", "N")] = None
    part: Annotated[Literal["top", "tail"], Key("tail: what the other cuts off")] = "top"

    @model_validator(mode="after")
    def _one_size(self) -> TruncateCommand:
        if (self.keep is None) == (self.rank is None):
            raise ValueError("give exactly one of keep= and rank=")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep:g}: must be a share above 0 and up to 1")
        if self.rank is not None and self.rank < 0:
            raise ValueError(f"rank={self.rank}: must be 0 or more")
        return self


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command(TruncateCommand, _truncate, argv)


def _truncate(line: TruncateCommand) -> int:
    from rlspec.diagnostics.truncation import truncate_checkpoint

    keep = line.rank if line.keep is None else float(line.keep)
    assert keep is not None
    cuts = truncate_checkpoint(line.before, line.after, line.out, keep, line.part)
    width = max((len(cut.name) for cut in cuts), default=0)
    for cut in cuts:
        shape = " x ".join(map(str, cut.shape))
        sys.stdout.write(
            f"{cut.name:{width}}  {shape:>14}  {cut.rank:>5} directions  {cut.energy:7.2%} of {cut.change:.3g}\n"
        )
    measure = f"python -m rlspec.evaluate checkpoint={shlex.quote(str(line.out))}"
    sys.stdout.write(f"{len(cuts)} matrices cut; measure by: {measure}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
