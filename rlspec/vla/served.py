"""A trained policy for the server: its weights, and what its actions mean."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlspec.checkpoint import find_weights
from rlspec.contract.actions import ACTION_SPACES, EXECUTION_LAWS
from rlspec.contract.features import camera_of
from rlspec.contract.messages import MAX_HZ
from rlspec.contract.records import POLICY_RECORD
from rlspec.cores import cores
from rlspec.errors import CheckpointError, ConfigError, nearest
from rlspec.serving.lerobot_policy import LeRobotPolicy, Meaning, read_spec
from rlspec.serving.policy import BatchPolicy
from rlspec.serving.settings import ServedPolicy

_MEANING = ("action_space", "control_hz", "execution_law")


def trained_policy(wanted: ServedPolicy) -> BatchPolicy:
    """The policy that `checkpoint=` names, ready to answer.

    Raises:
        ConfigError: What it is asked for does not fit it.
        CheckpointError: It cannot be loaded, or does not answer.
    """
    folder = find_weights(wanted.checkpoint or "")
    meaning = read_meaning(folder, wanted)
    sys.stdout.write(f"loading {folder}\n")
    sys.stdout.flush()
    from rlspec.vla.evaluation.policy_actor import PolicySource, load_policy
    from rlspec.vla.policies.guidance import enable_guidance

    threads = wanted.threads or cores()
    actor = load_policy(PolicySource(folder, device=wanted.device, threads=threads))
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


def read_meaning(folder: str, wanted: ServedPolicy) -> Meaning:
    """What the actions mean, by the checkpoint's record and, where it does not say it, by the command line.

    Raises:
        ConfigError: Neither says it, or they contradict each other.
    """
    record = _read_record(Path(folder) / POLICY_RECORD)
    given = {name: value for name in _MEANING if (value := getattr(wanted, name)) is not None}
    missing = [name for name in _MEANING if not record.get(name) and name not in given]
    if missing:
        words = " ".join(f"{name}=..." for name in missing)
        raise ConfigError(f"checkpoint={folder}: does not say what its actions mean; add {words} (see --help)")
    said = {name: record.get(name) or given[name] for name in _MEANING}
    for name, value in given.items():
        if value != said[name]:
            raise ConfigError(f"{name}={_plain(value)}: the checkpoint was trained with {said[name]}; leave it out")
    return Meaning(
        model="/".join(Path(folder).parts[-3:]).lstrip("/"),
        action_space=_known("action_space", said["action_space"], ACTION_SPACES),
        control_hz=_rate(said["control_hz"]),
        execution_law=_known("execution_law", said["execution_law"], EXECUTION_LAWS),
        wire_keys=wanted.wire_keys,
        sizes=_camera_sizes(record.get("cameras")),
        norm_stats_sha256=record.get("norm_stats_sha256"),
        horizon=wanted.horizon,
        n_action_steps=wanted.n_action_steps,
        prompt=wanted.prompt,
    )


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _known(key: str, name: Any, table: Any) -> str:
    if name not in table:
        raise ConfigError(f"{key}={name}: {nearest(str(name), table)}")
    return str(name)


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_HZ:
        raise ConfigError(f"control_hz={value}: wants more than 0 and at most {MAX_HZ}")
    return float(value)


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
