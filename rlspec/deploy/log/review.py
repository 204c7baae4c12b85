"""What is done with the log of a run afterwards: summary=, export=, replay= of `python -m rlspec.deploy`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from rlspec.display import Display
from rlspec.errors import ConfigError, DataError, nearest


def review(arguments: Sequence[str], display: Display) -> int:
    """Run one of them; returns the exit code.

    Raises:
        ConfigError: A key is unknown or missing.
        DataError: There is no usable log.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    name = next(name for name in REVIEWS if name in given)
    run, allowed = REVIEWS[name]
    for key in given:
        if key not in (name, *allowed):
            raise ConfigError(f"{key}={given[key]}: unknown key of {name}=; {nearest(key, allowed)}")
    run(given.pop(name), given, display)
    return 0


def is_review(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for one of them."""
    return any(argument.partition("=")[0] in REVIEWS for argument in arguments)


def summarise(folder: Path, display: Display) -> None:
    """Draw a run that has just ended, where matplotlib is installed; a robot's computer may do without."""
    if importlib.util.find_spec("matplotlib") is None:
        display.line(f"summary    elsewhere: python -m rlspec.deploy summary={folder}")
        return
    from rlspec.deploy.log.summary import write_summary

    try:
        _, page = write_summary(folder)
    except (DataError, OSError) as error:  # the run is over and logged: its picture is not worth a failure
        display.warn(f"no summary: {error}")
        return
    display.line(f"summary    {page}")


def _summary(path: str, given: dict[str, str], display: Display) -> None:
    from rlspec.deploy.log.summary import write_summary

    out = given.get("out")
    picture, page = write_summary(Path(path).expanduser(), Path(out).expanduser() if out else None)
    display.line(f"{picture}\n{page}")


def _export(paths: str, given: dict[str, str], display: Display) -> None:
    if "out" not in given:
        raise ConfigError("export=: no folder; add out=DIR")
    video = given.get("video", "false")
    if video not in ("true", "false"):
        raise ConfigError(f"video={video}: true or false is expected")
    from rlspec.deploy.log.export import export_logs

    runs = [Path(path).expanduser() for path in paths.split(",")]
    done = export_logs(runs, Path(given["out"]).expanduser(), video=video == "true")
    for problem in done.problems:
        display.warn(problem)
    display.line(f"{given['out']}: {done.episodes} episodes, {done.frames} frames; action is what was sent")


def _replay(path: str, given: dict[str, str], display: Display) -> None:
    from rlspec.deploy.log.replay import replay_log

    for line in replay_log(Path(path).expanduser(), law=given.get("law")).lines():
        display.line(line)


REVIEWS: dict[str, tuple[Callable[[str, dict[str, str], Display], None], tuple[str, ...]]] = {
    "summary": (_summary, ("out",)),
    "export": (_export, ("out", "video")),
    "replay": (_replay, ("law",)),
}
"""Key of the command line -> what runs, and the keys that go with it."""
