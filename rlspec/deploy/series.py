"""What every series of runs has, trials and recordings: the command's keys, a run's settings, and a journal of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from rlspec.config.command import CommandLine
from rlspec.config.schema import SEEDS, Key
from rlspec.deploy.settings import Settings


class SeriesCommand(CommandLine):
    """Keys of its own; all others are those of python -m rlspec.deploy."""

    recipe = True

    robot: Annotated[str, Key("as in python -m rlspec.deploy", "NAME")]
    overrides: list[str] = []

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Self:
        """The command; what is below robot is the deployment's.

        Raises:
            ConfigError: One line per mistake.
        """
        below = [argument for argument in arguments if argument.startswith("robot.")]
        return cls._read([each for each in arguments if each not in below], {"overrides": below} if below else {})

    def usual_folder(self, told: Any) -> Path:
        """The same for the same command, and another for every other: told is what makes the difference."""
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]
        return Path(f"{Path(self.robot).stem}-{digest}")


def settings_of_run(given: Sequence[str], seed: int) -> Settings:
    """The settings of one run, with a seed where its robot has scenes.

    Raises:
        ConfigError: They are no settings of a deployment.
    """
    settings = Settings.read(given)
    if "seed" in settings.robot.found.options.model_fields:
        settings = Settings.read([*given, f"seed={seed % SEEDS}"])
    return settings


class SeriesJournal:
    """A file with a line of JSON per run, which a power cut may leave with half a line at its end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[dict[str, Any]]:
        """Those that were written whole."""
        texts = self._path.read_text(encoding="utf-8").split("\n") if self._path.exists() else [""]
        return [json.loads(text) for text in texts[:-1]]  # what follows the last line break was cut off

    def add(self, line: dict[str, Any]) -> None:
        """Write a line, and wait until it is on the disk.

        Raises:
            OSError: The disk does not take it.
        """
        if self._path.exists() and not (whole := self._path.read_text(encoding="utf-8")).endswith("\n"):
            self._path.write_text(whole[: whole.rfind("\n") + 1], encoding="utf-8")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
