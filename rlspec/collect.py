"""Demonstrations: generated, `python -m rlspec.collect env=NAME`, or recorded, `python -m rlspec.collect robot=NAME`.

As a LeRobotDataset v3, or with format=droid_raw as raw DROID recordings, as a DROID workstation leaves them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from rlspec.config.command import CommandLine, one_of
from rlspec.config.paths import list_group, show
from rlspec.config.schema import SEEDS, Key
from rlspec.config.vla_schema import Demonstrations, Env, Recordings
from rlspec.entry import command
from rlspec.errors import ConfigError

if TYPE_CHECKING:
    from rlspec.deploy.log.reader import RunLog
    from rlspec.deploy.recording.session import RecordCommand

_OWN = {"lerobot": ("video",), "droid_raw": ("failures", "lab", "idle_steps")}  # keys of one format


class CollectCommand(CommandLine):
    """The environment's scripted expert demonstrates its tasks; successes become a LeRobotDataset v3 (images, state,
    action, exact statistics), or with format=droid_raw raw DROID recordings of the Franka (trajectory.h5, metadata,
    MP4 of three cameras, three instructions each), for python -m rlspec.convert source=droid_raw. The same command goes
    on with what was stopped, and finds what is complete.
    """  # noqa: D205

    command = "collect"
    synopsis = (
        "env=NAME [task=NAME[,NAME]] [key=value ...]",
        "format=droid_raw [env=franka_droid] [key=value ...]",
        "robot=NAME teleop=NAME [server=URL | checkpoint=DIR] [key=value ...]",
    )
    example = "episodes=200"
    below = {"env": "env_options"}

    format: Annotated[Literal["lerobot", "droid_raw"], Key("of what is written")] = "lerobot"
    env: Annotated[str | None, one_of(lambda: list_group("env")), Key("an environment of recipes/env", "NAME")] = None
    env_options: Annotated[
        dict[str, Any], Key("options of the environment, for example env.image_size=128", "KEY=VALUE")
    ] = {}
    task: Annotated[
        list[str] | None, Key("of its tasks, several with commas (default: all that the recipe names)", "NAME")
    ] = None
    episodes: Annotated[int, Key("successful ones, per task")] = Field(200, ge=1)
    out: Annotated[Path | None, Key("(default checkpoints/data/<suite>-<tasks>-<hash of the settings>)", "DIR")] = None
    seed: Annotated[int, Key("of the first attempt")] = Field(0, ge=0, lt=SEEDS)
    workers: Annotated[int, Key("processes")] = Field(2, ge=1)
    noise: Annotated[float, Key("disturb executed actions with this standard deviation; the labels stay clean")] = (
        Field(0.0, ge=0)
    )
    noise_share: Annotated[float, Key("share of the steps that are disturbed")] = Field(0.3, ge=0, le=1)
    video: Annotated[bool, Key("MP4 (H.264) instead of images", "true", group="with format=lerobot")] = False
    failures: Annotated[
        float, Key("failed episodes besides, as a share of the successful ones", group="with format=droid_raw")
    ] = Field(0.0, ge=0, le=10)
    idle_steps: Annotated[
        tuple[int, int], Key("fewest and most steps before the operator moves the robot", "[A,B]")
    ] = (4, 12)
    lab: Annotated[str, Key("the laboratory's name in folders and ids")] = Field("SIM", pattern=r"^[A-Za-z0-9_-]+$")

    @model_validator(mode="after")
    def _keys_of_the_format(self) -> CollectCommand:
        for other, keys in _OWN.items():
            if other != self.format and (foreign := sorted(self.model_fields_set & {*keys})):
                raise ValueError(
                    f"{foreign[0]}={show(getattr(self, foreign[0]))}: only with format={other}; leave it out"
                )
        if self.env is None and self.format != "droid_raw":
            raise ValueError(f"env: required; add env=NAME; allowed: {', '.join(list_group('env'))}")
        return self

    @property
    def settings(self) -> Demonstrations | Recordings:
        """What is generated; the type says the format."""
        schema = Recordings if self.format == "droid_raw" else Demonstrations
        return schema(**{key: getattr(self, key) for key in schema.model_fields})

    def environment(self) -> Env:
        """The environment with the tasks and options asked for.

        Raises:
            ConfigError: It is not installed, or has no such task.
        """
        from rlspec.config.load import load_group
        from rlspec.config.vla_checks import no_such_task, without_expert

        name = self.env or "franka_droid"
        env = Env.model_validate(load_group("env", name))
        env.options.update({key.removeprefix("options."): value for key, value in self.env_options.items()})
        import rlspec_envs
        from rlspec_envs.errors import EnvironmentUnavailable

        try:
            known = rlspec_envs.list_tasks(env.suite)
        except EnvironmentUnavailable as error:
            raise ConfigError(f"env={name}: {error}") from None
        env.tasks = self.task or env.tasks
        for task in env.tasks:
            if task not in known:
                raise ConfigError(f"task={task}: {no_such_task(env.suite, task, known)}")
        for fault in without_expert(env, f"env={name}"):
            raise ConfigError(fault)
        return env


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for a mistake of the user, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(argument.startswith("robot=") for argument in arguments):
        from rlspec.deploy.recording.session import RecordCommand

        return command(RecordCommand, _record, arguments)
    return command(CollectCommand, _collect, arguments)


def _record(line: RecordCommand) -> int:
    from rlspec.deploy.recording.session import RecordingSession
    from rlspec.display import Display

    return RecordingSession(line, Display(), _keep_raw).run()


def _keep_raw(log: RunLog, out: Path, lab: str, success: bool) -> None:
    """A robot's run as a raw DROID episode, unless it is there already."""
    from rlspec.deploy.recording.droid import STEP_START, droid_episode
    from rlspec.vla.droid.raw_writer import EpisodeName, write_raw
    from rlspec.vla.droid.schema import OURS

    episode = droid_episode(log, success=success)
    milliseconds = float(episode.arrays[STEP_START][0])
    began, own = datetime.fromtimestamp(milliseconds / 1000), log.folder.name
    while (target := out / lab / (name := EpisodeName(lab, began, success)).folder).exists():
        told = json.loads((target / f"metadata_{name.uuid}.json").read_text(encoding="utf-8"))
        if told[OURS]["run"] == own:
            return
        began += timedelta(seconds=1)  # names are by the second
    staging = target.with_name(f".incomplete-{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    about = {"run": own, "policy": log.header.get("metadata"), "teleop": log.header.get("teleop")}
    write_raw(staging, name, episode, about)
    os.replace(staging, target)


def _collect(line: CollectCommand) -> int:
    env, settings = line.environment(), line.settings
    from rlspec.display import Display

    folder = Path("checkpoints/data")
    out = None if line.out is None else line.out.expanduser()
    if isinstance(settings, Recordings):
        from rlspec.vla.droid.generator import default_recordings_name, generate_recordings

        generate_recordings(env, settings, out or folder / default_recordings_name(env, settings), Display())
        return 0
    from rlspec.vla.data.demonstrations import collect, default_name

    collect(env, settings, out or folder / default_name(env, settings), Display())
    return 0


if __name__ == "__main__":
    sys.exit(main())
