"""What a saved policy says about itself: `rlspec.json` beside its config.json and weights, in every checkpoint.

The policy server reads it for its metadata, the robot's loop refuses what does not agree with it, and a run that starts
from the policy compares its data with it. Keys (null: not known):

    format              1
    model               LeRobot's type of the policy, for example rlspec_adapter
    step                optimizer step of the weights
    action_space        key of rlspec.contract.actions.ACTION_SPACES
    action_names        names of an action's numbers, in order
    control_hz          actions per second
    execution_law       key of rlspec.contract.actions.EXECUTION_LAWS that the training data was recorded with
    horizon             actions of a chunk
    n_action_steps      of these, how many are executed
    state_names         names of observation.state's numbers, in order
    cameras             {feature: [height, width]}: observation.images.<name> of the policy, with the data's size
    prompt_required     whether the policy reads the instruction
    normalization       {"STATE": mode, "ACTION": mode, "VISUAL": mode} by LeRobot's names
    norm_stats          {"observation.state": {mean, std, min, max, q01, q99}, "action": ...} that it normalises by
    norm_stats_sha256   of norm_stats as JSON without blanks and with sorted keys
    robot, suite        of the training data
    dataset             its name in the recipe
    version             of rlspec
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlspec import __version__
from rlspec.checkpoint import write_json_atomically
from rlspec.contract.actions import ACTION_SPACES, STIFF_POSITION
from rlspec.contract.features import ACTION, STATE, is_image, picture_shape
from rlspec.contract.policies import action_steps, chunk_length
from rlspec.contract.records import DATA_RECORD, POLICY_RECORD
from rlspec.errors import CheckpointError

FORMAT = 1
KINDS = ("mean", "std", "min", "max", "q01", "q99")

Stats = Mapping[str, Mapping[str, Any]]


def read_record(root: Path | str | None) -> dict[str, Any]:
    """What a data set's meta/rlspec.json says; empty where there is none."""
    if root is None or not (path := Path(root) / DATA_RECORD).is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "execution_law" not in content and content.get("suite") == "franka":
        content["execution_law"] = STIFF_POSITION  # demonstrations, which never were a robot's
    return content


def describe_policy(config: Any, meta: Any, stats: Stats, *, dataset: str) -> dict[str, Any]:
    """The facts of a policy that is trained on a data set; without its step.

    Args:
        config: LeRobot's config of the policy.
        meta: of the data, under the policy's names.
        stats: what the policy normalises by.
        dataset: name in the recipe.
    """
    record = read_record(getattr(meta, "root", None))
    features = meta.features
    rate = record.get("control_hz", getattr(meta, "fps", None))
    norm_stats = plain_statistics(stats)
    return {
        "format": FORMAT,
        "model": config.type,
        "action_space": record.get("action_space"),
        "action_names": _names(features.get(ACTION), record.get("action_space")),
        "control_hz": None if rate is None else float(rate),
        "execution_law": record.get("execution_law"),
        "horizon": chunk_length(config),
        "n_action_steps": action_steps(config),
        "state_names": _names(features.get(STATE), None),
        "cameras": {
            name: list(picture_shape(features[name])[:2])
            for name in config.input_features or {}
            if is_image(name) and name in features
        },
        "prompt_required": True,
        "normalization": {name: _mode(mode) for name, mode in (config.normalization_mapping or {}).items()},
        "norm_stats": norm_stats,
        "norm_stats_sha256": statistics_hash(norm_stats),
        "robot": record.get("robot") or record.get("env", {}).get("robot"),
        "suite": record.get("suite"),
        "dataset": dataset,
        "version": __version__,
    }


def _mode(mode: Any) -> str:
    return str(getattr(mode, "value", mode))


def _names(feature: Mapping[str, Any] | None, space: str | None) -> list[str] | None:
    """Names of a vector's numbers as the data or the action space has them."""
    if space in ACTION_SPACES:
        return list(ACTION_SPACES[space].names)
    given = (feature or {}).get("names")
    if isinstance(given, Mapping):  # LeRobot's older form: {"axes": [...]}
        given = next(iter(given.values()), None)
    return [str(name) for name in given] if given else None


def plain_statistics(stats: Stats) -> dict[str, dict[str, list[float]]]:
    """Those of state and action, as JSON holds them."""
    return {
        name: {kind: np.asarray(stats[name][kind], np.float64).reshape(-1).tolist() for kind in kinds}
        for name in (STATE, ACTION)
        if name in stats and (kinds := [kind for kind in KINDS if kind in stats[name]])
    }


def statistics_hash(norm_stats: Mapping[str, Any]) -> str:
    """SHA-256 of statistics as JSON."""
    text = json.dumps(norm_stats, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_facts(folder: Path, facts: Mapping[str, Any], *, step: int) -> None:
    """Write rlspec.json beside a policy."""
    write_json_atomically(folder / POLICY_RECORD, {**facts, "step": step})


def read_facts(folder: Path | str) -> dict[str, Any]:
    """What a policy's folder says; empty where it says nothing.

    Raises:
        CheckpointError: The file is damaged or of another format.
    """
    path = Path(folder) / POLICY_RECORD
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use another checkpoint") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: written in another format than {FORMAT}; use the rlspec that wrote it")
    return content
