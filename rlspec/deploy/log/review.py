"""What is done with the log of a run afterwards: summary=, export=, replay= of `python -m rlspec.deploy`."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import model_validator

from rlspec.config.command import CommandLine
from rlspec.config.schema import Key
from rlspec.display import Display
from rlspec.errors import DataError

_REVIEWS = {"summary": ("out",), "export": ("out", "video"), "replay": ("law",)}  # and the keys that go with them


class ReviewCommand(CommandLine):
    """What is done with the folder of a run afterwards."""

    command = "deploy"
    synopsis = ("summary=RUN [out=DIR]", "replay=RUN [law=NAME]", "export=RUN[,RUN] out=DIR [video=true]")
    example = "summary=DIR"

    summary: Annotated[Path | None, Key("a picture and a page of its log", "RUN")] = None
    replay: Annotated[
        Path | None, Key("sends what was sent to the simulated arm, and shows by how much the motion differs", "RUN")
    ] = None
    export: Annotated[list[Path] | None, Key("a LeRobotDataset v3 whose action is what was sent", "RUN")] = None
    out: Annotated[Path | None, Key("where it goes", "DIR")] = None
    law: Annotated[str | None, Key("of the replay (default: the log's)", "NAME")] = None
    video: Annotated[bool, Key("MP4 instead of images", "true")] = False

    @classmethod
    def is_meant(cls, arguments: Sequence[str]) -> bool:
        """Whether the command line asks for one of them."""
        return any(argument.partition("=")[0] in _REVIEWS for argument in arguments)

    @model_validator(mode="after")
    def _one_review(self) -> ReviewCommand:
        given = sorted(self.model_fields_set)
        name = next((name for name in _REVIEWS if name in given), "summary")
        if foreign := [key for key in given if key not in (name, *_REVIEWS[name])]:
            raise ValueError(f"{foreign[0]}= does nothing with {name}=; leave it out")
        if self.export is not None and self.out is None:
            raise ValueError("export=: no folder; add out=DIR")
        return self


def review(line: ReviewCommand, display: Display) -> int:
    """Run one of them; returns the exit code.

    Raises:
        DataError: There is no usable log.
    """
    out = None if line.out is None else line.out.expanduser()
    if line.export is not None:
        from rlspec.deploy.log.export import export_logs

        assert out is not None, "the schema has looked"
        done = export_logs([path.expanduser() for path in line.export], out, video=line.video)
        for problem in done.problems:
            display.warn(problem)
        display.line(f"{line.out}: {done.episodes} episodes, {done.frames} frames; action is what was sent")
    elif line.replay is not None:
        from rlspec.deploy.log.replay import replay_log

        for text in replay_log(line.replay.expanduser(), law=line.law).lines():
            display.line(text)
    else:
        from rlspec.deploy.log.summary import write_summary

        assert line.summary is not None, "one of them is there"
        picture, page = write_summary(line.summary.expanduser(), out)
        display.line(f"{picture}\n{page}")
    return 0


def summarise(folder: Path, display: Display) -> None:
    """Draw a run that has just ended, where matplotlib is installed; a robot's computer may do without."""
    if importlib.util.find_spec("matplotlib") is None:
        display.line(f"summary    elsewhere: python -m rlspec.deploy summary={shlex.quote(str(folder))}")
        return
    from rlspec.deploy.log.summary import write_summary

    try:
        _, page = write_summary(folder)
    except (DataError, OSError) as error:  # the run is over and logged: its picture is not worth a failure
        display.warn(f"no summary: {error}")
        return
    display.line(f"summary    {page}")
