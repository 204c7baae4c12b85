"""Serve a policy to robots: a WebSocket that openpi's and RoboArena's clients understand."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from rlspec.checkpoint import find_weights
from rlspec.contract.actions import ACTION_SPACES, DROID_HYBRID, EXECUTION_LAWS, JOINT_POSITION, JOINT_VELOCITY
from rlspec.contract.features import camera_of
from rlspec.contract.messages import MAX_HORIZON, MAX_HZ, OPEN_LOOP_STEPS
from rlspec.contract.pictures import OPENPI_SIZE
from rlspec.contract.records import POLICY_RECORD
from rlspec.entry import run_command
from rlspec.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from rlspec.serving.lerobot_policy import Meaning
    from rlspec.serving.policy import BatchPolicy
    from rlspec.serving.settings import ServerSettings

USAGE = f"""\
usage: python -m rlspec.serve checkpoint=WHAT [key=value ...]
       python -m rlspec.serve policy=hold|zeros|replay:FILE [key=value ...]

  checkpoint=WHAT       a run directory (its newest checkpoint), a checkpoint in one, a LeRobot policy (folder, hub id)
  policy=hold           no model: the present joints; zeros: all numbers zero; replay:FILE: recorded actions (.npy,
                        .npz with `actions`, .jsonl tick log), to try a robot's side

where:
  host=ADDRESS          default 127.0.0.1; any other address wants a token
  port=N                default 8000; 0 takes a free one
  token_file=FILE       clients must show the token in it (or in the variable RLSPEC_TOKEN, or token=TEXT)
  tls_cert=FILE tls_key=FILE   serve wss://
  insecure=true         allow an address that others can reach without a token

what the actions mean (where the checkpoint does not say it; {POLICY_RECORD} in it does):
  action_space=NAME     {", ".join(ACTION_SPACES)}
  control_hz=N          actions per second
  execution_law=NAME    {", ".join(EXECUTION_LAWS)}
  n_action_steps=N      how many actions of an answer are meant to be carried out
  camera.NAME=KEY       key of messages for a camera of the policy, for example camera.front=observation/image
  prompt=TEXT           instruction for requests that have none
  device=auto|cpu|cuda  default auto
  threads=N             CPU threads of a large policy (default: all)
  horizon=N             actions in an answer of policy=... (default 16)

how:
  max_batch=8           requests answered in one forward pass      batch_window_ms=2   wait for others' requests
  max_sessions=16       robots at a time                           max_queue=32        requests that may wait
  deadline_ms=10000     longest time for an answer                 max_message_mb=16   largest message
  handshake_s=10 read_s=10 idle_s=1800 ping_s=20                   patience with slow clients
  grace_s=10            for requests in flight, at SIGTERM or Ctrl-C
  roboarena=true        metadata for RoboArena's client, which refuses keys that it does not know
"""
_POLICY_KEYS = (
    *("checkpoint", "policy", "action_space", "control_hz", "execution_law", "n_action_steps"),
    *("prompt", "device", "threads", "horizon", "token_file"),
)
_CAMERA = "camera."
_MEANING = ("action_space", "control_hz", "execution_law")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 after SIGTERM, 130 after Ctrl-C, 2 for a mistake of the user."""
    return run_command(argv, lambda: USAGE, _serve)


def _serve(arguments: list[str]) -> int:
    given, cameras = split(arguments)
    settings = server_settings(given)
    from rlspec.serving.settings import check_settings, tls_context

    check_settings(settings)
    tls_context(settings)  # before a model is loaded for minutes
    policy = build_policy(given, cameras)
    from rlspec.serving.run import serve_policy

    return serve_policy(policy, settings)


def split(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Settings by key, and keys of messages by camera.

    Raises:
        ConfigError: An unknown key, with the nearest one, or no value.
    """
    from rlspec.config.arguments import split_setting
    from rlspec.errors import nearest
    from rlspec.serving.settings import ServerSettings

    known = (*_POLICY_KEYS, *(field.name for field in fields(ServerSettings)))
    given: dict[str, str] = {}
    cameras: dict[str, str] = {}
    for argument in arguments:
        key, value = split_setting(argument, "checkpoint=DIR")
        if not value:
            raise ConfigError(f"{key}=: no value; leave it out, or give one")
        if key.startswith(_CAMERA) and key != _CAMERA:
            cameras[key.removeprefix(_CAMERA)] = value
        elif key in known:
            given[key] = value
        else:
            raise ConfigError(f"{argument}: unknown key; {nearest(key, (*known, 'camera.NAME'))}")
    if ("checkpoint" in given) == ("policy" in given):
        raise ConfigError("checkpoint: required, or policy=hold|zeros|replay:FILE instead of it")
    return given, cameras


def server_settings(given: Mapping[str, str]) -> ServerSettings:
    """Settings of the server in their types; the token from wherever it is.

    Raises:
        ConfigError: A value of another type, or a file that cannot be read.
    """
    from rlspec.serving.settings import ServerSettings

    types = get_type_hints(ServerSettings)
    values = {key: _typed(key, given[key], types[key]) for key in types if key in given}
    settings = ServerSettings(**values)
    if "token_file" in given:
        if "token" in given:
            raise ConfigError("token and token_file: give one of them")
        return replace(settings, token=_read_token(Path(given["token_file"]).expanduser()))
    if settings.token is None and (token := os.environ.get("RLSPEC_TOKEN")):
        return replace(settings, token=token)
    return settings


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file={path}: cannot be read: {error}") from error
    if not token:
        raise ConfigError(f"token_file={path}: is empty")
    return token


def _typed(key: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{key}={text}: wants true or false")
        return text.lower() == "true"
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{key}={text}: wants {'a whole number' if kind is int else 'a number'}") from None


def build_policy(given: Mapping[str, str], cameras: Mapping[str, str]) -> BatchPolicy:
    """The policy that is served.

    Raises:
        ConfigError: What it is asked for does not fit it.
        CheckpointError: It cannot be loaded.
    """
    if "policy" in given:
        return _built_in(given, cameras)
    if "horizon" in given:
        raise ConfigError(f"horizon={given['horizon']}: a checkpoint has its own; n_action_steps=N is the part to do")
    return _trained(given, cameras)


def _built_in(given: Mapping[str, str], cameras: Mapping[str, str]) -> BatchPolicy:
    from rlspec.errors import nearest
    from rlspec.serving.builtin import BUILT_IN, HoldPolicy, ReplayPolicy, ZerosPolicy, load_actions
    from rlspec.serving.policy import PolicySpec

    name, _, file = given["policy"].partition(":")
    if name not in BUILT_IN or (name == "replay") != bool(file):
        raise ConfigError(f"policy={given['policy']}: {nearest(name, ('hold', 'zeros', 'replay:FILE'))}")
    default = JOINT_POSITION if name == "hold" else JOINT_VELOCITY
    space = _known_space(given.get("action_space", default))
    horizon = _count("horizon", given.get("horizon", "16"), MAX_HORIZON)
    spec = PolicySpec(
        model=given["policy"] if not file else f"replay of {Path(file).name}",
        action_space=space,
        control_hz=_rate(given.get("control_hz", str(ACTION_SPACES[space].control_hz))),
        execution_law=_known_law(given.get("execution_law", DROID_HYBRID)),
        horizon=horizon,
        n_action_steps=_count(
            "n_action_steps", given.get("n_action_steps", str(min(OPEN_LOOP_STEPS, horizon))), horizon
        ),
        cameras={camera: OPENPI_SIZE for camera in cameras},
        wire_keys=dict(cameras),
        prompt=given.get("prompt"),
    )
    if name == "replay":
        return ReplayPolicy(spec, load_actions(Path(file).expanduser(), space))
    return HoldPolicy(spec) if name == "hold" else ZerosPolicy(spec)


def _trained(given: Mapping[str, str], cameras: Mapping[str, str]) -> BatchPolicy:
    folder = find_weights(given["checkpoint"])
    meaning = read_meaning(folder, given, cameras)
    threads = _count("threads", given.get("threads", str(os.cpu_count() or 1)), 4096)
    device = given.get("device", "auto")
    sys.stdout.write(f"loading {folder}\n")
    sys.stdout.flush()
    from rlspec.serving.lerobot_policy import LeRobotPolicy, read_spec
    from rlspec.vla.evaluation.policy_actor import PolicySource, load_policy
    from rlspec.vla.policies.guidance import enable_guidance

    actor = load_policy(PolicySource(folder, device=device, threads=threads))
    digest = meaning.norm_stats_sha256 or hash_statistics(folder)
    meaning = replace(meaning, model=f"{actor.config.type} {meaning.model}", norm_stats_sha256=digest)
    spec = replace(read_spec(actor.config, meaning), takes_prefix=enable_guidance(actor.policy))
    policy = LeRobotPolicy(actor.policy, actor.preprocessor, actor.postprocessor, spec)
    try:
        policy.warm_up()
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: cannot answer a made-up observation: {reason}") from error
    return policy


def read_meaning(folder: str, given: Mapping[str, str], cameras: Mapping[str, str]) -> Meaning:
    """What the actions mean, by the checkpoint's record and, where it does not say it, by the command line.

    Raises:
        ConfigError: Neither says it, or they contradict each other.
    """
    from rlspec.serving.lerobot_policy import Meaning

    record = _read_record(Path(folder) / POLICY_RECORD)
    missing = [name for name in _MEANING if not record.get(name) and name not in given]
    if missing:
        wanted = " ".join(f"{name}=..." for name in missing)
        raise ConfigError(f"checkpoint={folder}: does not say what its actions mean; add {wanted} (see --help)")
    said = {name: str(record.get(name) or given[name]) for name in _MEANING}
    for name in _MEANING:
        if name in given and _comparable(given[name]) != _comparable(said[name]):
            raise ConfigError(f"{name}={given[name]}: the checkpoint was trained with {said[name]}; leave it out")
    steps = given.get("n_action_steps")
    return Meaning(
        model="/".join(Path(folder).parts[-3:]).lstrip("/"),
        action_space=_known_space(said["action_space"]),
        control_hz=_rate(said["control_hz"]),
        execution_law=_known_law(said["execution_law"]),
        wire_keys=cameras,
        sizes=_camera_sizes(record.get("cameras")),
        norm_stats_sha256=record.get("norm_stats_sha256"),
        n_action_steps=None if steps is None else _count("n_action_steps", steps, MAX_HORIZON),
        prompt=given.get("prompt"),
    )


def _camera_sizes(cameras: Any) -> dict[str, tuple[int, int]]:
    """Camera -> (height, width) of the data that a policy was trained on."""
    sizes = cameras if isinstance(cameras, dict) else {}
    return {camera_of(key): (int(size[0]), int(size[1])) for key, size in sizes.items()}


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: is no map")
    return record


def hash_statistics(folder: str) -> str | None:
    """SHA-256 of the numbers that a saved policy normalises by; None where its folder does not say."""
    from rlspec.vla.data.facts import plain_statistics, statistics_hash
    from rlspec.vla.data.preflight import checkpoint_statistics

    statistics = checkpoint_statistics(folder) if Path(folder).is_dir() else None
    return None if statistics is None else statistics_hash(plain_statistics(statistics))


def _known_space(name: str) -> str:
    return _known("action_space", name, ACTION_SPACES)


def _known_law(name: str) -> str:
    return _known("execution_law", name, EXECUTION_LAWS)


def _known(key: str, name: str, table: Mapping[str, Any]) -> str:
    from rlspec.errors import nearest

    if name not in table:
        raise ConfigError(f"{key}={name}: {nearest(name, table)}")
    return name


def _rate(text: str) -> float:
    rate: float = _typed("control_hz", text, float)
    if not 0 < rate <= MAX_HZ:
        raise ConfigError(f"control_hz={text}: wants more than 0 and at most {MAX_HZ}")
    return rate


def _count(key: str, text: str, most: int) -> int:
    count: int = _typed(key, text, int)
    if not 1 <= count <= most:
        raise ConfigError(f"{key}={text}: wants 1 to {most}")
    return count


def _comparable(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
