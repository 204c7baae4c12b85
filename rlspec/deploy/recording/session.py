"""`python -m rlspec.collect robot=NAME teleop=NAME`: episodes on a robot, one run after the other.

What is recorded lies on the disk tick by tick (a run's log and pictures), so that a process that is killed or a disk
that is full loses nothing; data sets are made of the runs, and made again when the same command goes on.

    OUT/runs/0001/         log and pictures of a run
    OUT/episodes.jsonl     what became of each
    OUT/droid_raw/, OUT/lerobot/   made of them
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rlspec.config.schema import SEEDS, Key
from rlspec.deploy.log.reader import RunLog, read_log
from rlspec.deploy.outcome import DeploymentOutcome
from rlspec.deploy.run import deploy
from rlspec.deploy.series import SeriesCommand, SeriesJournal, settings_of_run
from rlspec.deploy.settings import Settings
from rlspec.display import Display
from rlspec.errors import INTERRUPTED, DataError

RUNS, LIST = "runs", "episodes.jsonl"
_ANSWERS = {"y": "success", "n": "failure", "r": "rerecord"}


class RecordCommand(SeriesCommand):
    """A human drives a robot with a LeRobot teleoperator, through the safety filter, and every run is kept, as a raw
    DROID recording or in a LeRobotDataset v3. With a policy (server=, checkpoint=) it acts, and whoever moves the
    device takes over; those steps are marked as interventions. Other keys are those of python -m rlspec.deploy. The
    same command goes on.
    """  # noqa: D205

    command = "collect"
    synopsis = ("robot=NAME teleop=NAME [server=URL | checkpoint=DIR] [episodes=N] [key=value ...]",)
    example = "episodes=20"
    below = {"teleop": "teleop_options"}

    teleop: Annotated[str, Key("gamepad, keyboard_ee, phone, or a plugin of LeRobot", "NAME")]
    teleop_options: Annotated[dict[str, Any], Key("options of that device", "KEY=VALUE")] = {}
    format: Annotated[Literal["lerobot", "droid_raw"], Key("of what is made of the runs")] = "droid_raw"
    episodes: Annotated[int, Key("to be kept, failures included")] = Field(10, ge=1)
    seed: Annotated[int, Key("of a simulation's scenes")] = Field(0, ge=0, lt=SEEDS)
    lab: Annotated[str, Key("the laboratory's name in folders and ids")] = Field("LAB", pattern=r"^[A-Za-z0-9_-]+$")
    out: Annotated[Path | None, Key("(default checkpoints/recordings/<robot>-<hash of the settings>)", "DIR")] = None


@dataclass(frozen=True)
class Kept:
    """A run that is an episode."""

    run: Path
    success: bool


KeepRaw = Callable[[RunLog, Path, str, bool], None]
"""Writes a run as a raw DROID episode: its log, the recordings' folder, the laboratory, whether it succeeded."""


class RecordingSession:
    """One series of episodes; `run` it.

    Args:
        line: The command.
        display: Shows lines.
        keep_raw: For format=droid_raw.
        run: Carries out a run.
    """

    def __init__(
        self,
        line: RecordCommand,
        display: Display,
        keep_raw: KeepRaw,
        run: Callable[[Settings, Display], DeploymentOutcome] | None = None,
    ) -> None:
        self.line, self._display, self._keep_raw = line, display, keep_raw
        self._run_one = run or (lambda settings, display: deploy(settings, display, summary=False))
        self.out = (line.out or self._usual_folder()).expanduser()
        self.journal = SeriesJournal(self.out / LIST)
        checked = self.settings(1)  # a mistake is told before anything is made
        has_judge = "task" in checked.robot.found.options.model_fields
        self._asks = sys.stdin is not None and sys.stdin.isatty() and not has_judge

    def _usual_folder(self) -> Path:
        """The same for the same command, and another for every other."""
        told = self.line.model_dump(mode="json", exclude={"episodes", "format", "out"})
        return Path("checkpoints/recordings") / self.line.usual_folder(dict(sorted(told.items())))

    def settings(self, number: int) -> Settings:
        """Of one run.

        Raises:
            ConfigError: They are no settings of a deployment.
        """
        line = self.line
        given = [
            f"robot={line.robot}",
            *line.overrides,
            f"teleop={line.teleop}",
            f"out={self.out / RUNS / f'{number:04d}'}",
        ]
        settings = settings_of_run(given, line.seed + number - 1)
        yes = settings.yes or number > 1  # whoever has confirmed once is there
        return settings.model_copy(update={"teleop_options": line.teleop_options, "frames": True, "yes": yes})

    def run(self) -> int:
        """Record until there are enough episodes or somebody stops; returns the exit code.

        Raises:
            UserError: A run cannot begin, or nothing can be written.
        """
        try:
            return self._run()
        except OSError as error:
            where = error.filename or self.out
            raise DataError(
                f"{where}: {error.strerror}; nothing that was recorded is lost: make room, and the same command goes on"
            ) from None

    def _run(self) -> int:
        (self.out / RUNS).mkdir(parents=True, exist_ok=True)
        self._take_in_what_was_left()
        code = 0
        while not code and len(self.kept()) < self.line.episodes:
            number = self._next_number()
            self._display.line(
                f"episode {len(self.kept()) + 1}/{self.line.episodes}, into {self.out / RUNS / f'{number:04d}'}"
            )
            if self._asks and not self._ready():
                code = INTERRUPTED
                break
            outcome = self._run_one(self.settings(number), self._display)
            code = outcome.exit_code
            self._judge(number, outcome.end, outcome.reason)
        self._finish()
        return code

    def kept(self) -> list[Kept]:
        """The episodes, in order."""
        return [
            Kept(self.out / RUNS / line["run"], line["verdict"] == "success")
            for line in self.journal.lines()
            if line["verdict"] in ("success", "failure")
        ]

    def _next_number(self) -> int:
        numbers = [int(path.name) for path in (self.out / RUNS).iterdir() if path.name.isdecimal()]
        return max(numbers, default=0) + 1

    def _take_in_what_was_left(self) -> None:
        """Runs that nobody came to judge: their process was killed, or the disk was full."""
        known = {line["run"] for line in self.journal.lines()}
        for folder in sorted((self.out / RUNS).iterdir()):
            if folder.name in known or not folder.name.isdecimal():
                continue
            try:
                footer = read_log(folder).footer
            except DataError:
                footer = {"outcome": "empty", "reason": "it ended before its first tick"}
            end = str(footer.get("outcome", "killed"))
            self._judge(int(folder.name), end, str(footer.get("reason", "its process was killed")))

    def _judge(self, number: int, end: str, reason: str) -> None:
        """Write down what became of a run; whoever drives may have said it with a button."""
        run = f"{number:04d}"
        verdict = end if end in ("success", "failure", "rerecord") else "nothing" if not self._was_sent(run) else ""
        if not verdict:
            verdict = self._ask(run, reason) if self._asks else "failure"
        self.journal.add({"run": run, "verdict": verdict, "end": end, "reason": reason})
        self._display.line(f"{run}: {verdict} ({reason})")
        if self.line.format == "droid_raw" and verdict in ("success", "failure"):
            self._keep_raw(read_log(self.out / RUNS / run), self.out / "droid_raw", self.line.lab, verdict == "success")

    def _was_sent(self, run: str) -> bool:
        try:
            return any(tick.get("sent") for tick in read_log(self.out / RUNS / run).ticks)
        except DataError:
            return False

    def _ready(self) -> bool:
        self._display.line("  set the scene up, then press Enter (q: enough)")
        return sys.stdin.readline().strip().lower() not in ("q", "quit")

    def _ask(self, run: str, reason: str) -> str:
        while True:
            self._display.line(f"  {run} ended: {reason}. Success? y, n, or r: record it again")
            typed = sys.stdin.readline()
            if not typed or typed.strip().lower() in _ANSWERS:
                return _ANSWERS.get(typed.strip().lower(), "failure")

    def _finish(self) -> None:
        """Make the data set, or bring it up to date."""
        kept = self.kept()
        successes = sum(each.success for each in kept)
        self._display.line(f"{len(kept)} episodes, {successes} of them successes")
        if not kept:
            return
        if self.line.format == "droid_raw":
            for each in kept:  # those that a full disk had left out
                self._keep_raw(read_log(each.run), self.out / "droid_raw", self.line.lab, each.success)
            raw = shlex.quote(str(self.out / "droid_raw"))
            self._display.line(f"python -m rlspec.convert source=droid_raw path={raw} out=DATA")
            return
        from rlspec.deploy.log.export import export_logs

        made, new, old = self.out / "lerobot", self.out / ".lerobot-new", self.out / ".lerobot-old"
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        name = f"local/{self.out.name}"
        done = export_logs([each.run for each in kept], new, repo_id=name, successes=[each.success for each in kept])
        for problem in done.problems:
            self._display.warn(problem)
        if made.exists():
            made.rename(old)
        new.rename(made)
        shutil.rmtree(old, ignore_errors=True)
        self._display.line(f"{made}: {done.episodes} episodes, {done.frames} frames")
