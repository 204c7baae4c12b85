"""What lerobot-train would silently ignore of its command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lerobot.configs import parser

from rlspec.errors import UserError

SECTIONS = ("optimizer", "scheduler")
_KEPT = "--optimizer.grad_clip_norm"  # which resuming takes from the command line


def refuse_ignored_settings(arguments: Sequence[str]) -> None:
    """Refuse settings of an optimizer or scheduler that LeRobot would replace.

    With `use_policy_training_preset`, which is on by default, it takes those of the policy; where it resumes, the
    stored state brings its own. A train_config.json that LeRobot stored may have both: what it has is the preset.

    Args:
        arguments: of the process, without its name; those of other programs have no such settings.

    Raises:
        UserError: naming the settings and the remedy. (LeRobot's parser hides the text of a ValueError.)
    """
    given = [text.partition("=")[0] for text in arguments if text.startswith(tuple(f"--{name}" for name in SECTIONS))]
    given = [name for name in given if name.partition(".")[0].removeprefix("--") in SECTIONS]
    file = _read(parser.parse_arg("config_path", arguments))
    if _flag("resume", arguments, file, False):
        _refuse_resumed([name for name in given if name.startswith("--optimizer") and name != _KEPT])
        return
    if "checkpoint_path" not in file:
        given += [f"{name} of the config file" for name in SECTIONS if file.get(name)]
    if given and _flag("use_policy_training_preset", arguments, file, True):
        raise UserError(
            f"lerobot-train would ignore {', '.join(given)}: with use_policy_training_preset=true it takes the "
            "policy's own optimizer and scheduler; add --use_policy_training_preset=false and give both (for example "
            "--optimizer.type=spectral --scheduler.type=cosine_decay_with_warmup), or change the policy's preset "
            "(for example --policy.optimizer_lr)"
        )


def _refuse_resumed(given: Sequence[str]) -> None:
    if given:
        raise UserError(
            f"lerobot-train would ignore {', '.join(given)}: a resumed optimizer has the settings in its state; leave "
            "them out, or start a new run from the weights: --policy.path=.../pretrained_model without --resume"
        )


def _flag(name: str, arguments: Sequence[str], file: dict[str, Any], default: bool) -> bool:
    said = parser.parse_arg(name, arguments)
    value = file.get(name, default) if said is None else yaml.safe_load(said)
    return bool(value)


def _read(path: str | None) -> dict[str, Any]:
    """A local config file; others, and broken ones, are LeRobot's to complain about."""
    if path is None or not Path(path).is_file():
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
