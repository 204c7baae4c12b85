"""Generate demonstrations: `python -m rlspec.collect env=NAME episodes=N out=DIR`, as a LeRobotDataset v3.

Or with format=droid_raw as raw DROID recordings, folder by folder, as a DROID workstation leaves them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlspec.config.arguments import split_setting
from rlspec.config.values import read_value
from rlspec.entry import run_command
from rlspec.errors import ConfigError

if TYPE_CHECKING:
    from rlspec.config.vla_schema import Demonstrations, Env, Recordings

USAGE = """\
usage: python -m rlspec.collect env=NAME [task=NAME[,NAME]] [episodes=N] [out=DIR] [seed=N] [workers=N]
                                [noise=X] [noise_share=X] [video=true|false] [env.KEY=VALUE ...]
       python -m rlspec.collect format=droid_raw [env=franka_droid] [failures=X] [lab=NAME] [key=value ...]

  The environment's scripted expert demonstrates its tasks; successes become a LeRobotDataset v3 (images, state, action,
  exact statistics). The same command goes on with what was stopped, and finds what is complete.

  env=NAME        an environment of recipes/env
  task=NAME       one of its tasks, several with commas; default: all that the environment's recipe names
  episodes=N      successful ones, per task (default 200)
  out=DIR         default checkpoints/data/<suite>-<tasks>-<hash of the settings>
  seed=N          of the first attempt (default 0)
  workers=N       processes (default 2)
  noise=X         disturb executed actions with this standard deviation; the labels stay clean (default 0)
  noise_share=X   share of the steps that are disturbed (default 0.3)
  video=true      MP4 (H.264) instead of images
  env.KEY=VALUE   options of the environment, for example env.image_size=128

  format=droid_raw  raw DROID recordings of the Franka instead (trajectory.h5, metadata, MP4 of three cameras, three
                    instructions each), for python -m rlspec.convert source=droid_raw; without video=, and with
  failures=X        failed episodes besides, as a share of the successful ones (default 0)
  idle_steps=[A,B]  fewest and most steps before the operator moves the robot (default [4,12])
  lab=NAME          the laboratory's name in folders and ids (default SIM)
"""
_COMMON = ("episodes", "seed", "workers", "noise", "noise_share")
_OWN = {"lerobot": ("video",), "droid_raw": ("failures", "lab", "idle_steps")}  # settings of one format
_KEYS = ("format", "env", "task", "out", *_COMMON, *_OWN["lerobot"], *_OWN["droid_raw"])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for a mistake of the user, 130 after Ctrl-C."""
    return run_command(argv, lambda: USAGE, _collect)


def _collect(arguments: Sequence[str]) -> int:
    env, settings, out = parse(arguments)
    from rlspec.config.vla_schema import Recordings
    from rlspec.display import Display

    folder = Path("checkpoints/data")
    if isinstance(settings, Recordings):
        from rlspec.vla.droid.generator import default_recordings_name, generate_recordings

        generate_recordings(env, settings, out or folder / default_recordings_name(env, settings), Display())
        return 0
    from rlspec.vla.data.demonstrations import collect, default_name

    collect(env, settings, out or folder / default_name(env, settings), Display())
    return 0


def parse(arguments: Sequence[str]) -> tuple[Env, Demonstrations | Recordings, Path | None]:
    """Environment, settings (their type says the format) and folder (None: the default one).

    Raises:
        ConfigError: An unknown key, name or value, with the nearest one.
    """
    given, options = _split(arguments)
    kind = _format(given)
    if kind == "droid_raw":
        given.setdefault("env", "franka_droid")
    env = _environment(given, options)
    names = (*_COMMON, *_OWN[kind])
    return env, _settings({key: given[key] for key in names if key in given}, kind), _folder(given.get("out"))


def _format(given: dict[str, str]) -> str:
    from rlspec.errors import nearest

    kind = given.get("format", "lerobot")
    if kind not in _OWN:
        raise ConfigError(f"format={kind}: unknown; {nearest(kind, _OWN)}")
    for other, keys in _OWN.items():
        if other != kind and (foreign := next((key for key in keys if key in given), None)):
            raise ConfigError(f"{foreign}={given[foreign]}: only with format={other}; leave it out")
    return kind


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Plain keys as text, and what is below `env.` by its type."""
    from rlspec.errors import nearest

    given: dict[str, str] = {}
    options: dict[str, Any] = {}
    for argument in arguments:
        key, value = split_setting(argument, "episodes=200")
        if key.startswith("env."):
            options[key.removeprefix("env.").removeprefix("options.")] = read_value(value)
        elif key in _KEYS:
            given[key] = value
        else:
            raise ConfigError(f"{argument}: unknown key; {nearest(key, (*_KEYS, 'env.KEY'))}")
    return given, options


def _environment(given: dict[str, str], options: dict[str, Any]) -> Env:
    from rlspec.config.load import load_group
    from rlspec.config.paths import list_group
    from rlspec.config.vla_schema import Env
    from rlspec.errors import nearest

    name = given.get("env")
    if name is None:
        raise ConfigError(f"env: required; add env=NAME; allowed: {', '.join(list_group('env'))}")
    env = Env.model_validate(load_group("env", name))
    env.options.update(options)
    import rlspec_envs
    from rlspec_envs.errors import EnvironmentUnavailable

    try:
        known = rlspec_envs.list_tasks(env.suite)
    except EnvironmentUnavailable as error:
        raise ConfigError(f"env={name}: {error}") from None
    if "task" in given:
        env.tasks = given["task"].split(",")
    for task in env.tasks:
        if task not in known:
            raise ConfigError(f"task={task}: {env.suite} has no such task; {nearest(task, known)}")
    return env


def _settings(given: dict[str, str], kind: str) -> Demonstrations | Recordings:
    from pydantic import ValidationError

    from rlspec.config.messages import explain, join_lines
    from rlspec.config.vla_schema import Demonstrations, Recordings

    schema = Recordings if kind == "droid_raw" else Demonstrations
    try:
        # Through JSON, where a list may become a tuple although the schema is strict.
        return schema.model_validate_json(json.dumps({key: read_value(value) for key, value in given.items()}))
    except ValidationError as error:
        raise ConfigError(join_lines(explain(error, schema))) from None


def _folder(text: str | None) -> Path | None:
    if text == "":
        raise ConfigError("out=: no folder; write out=DIR, or leave it out")
    return None if text is None else Path(text).expanduser()


if __name__ == "__main__":
    sys.exit(main())
