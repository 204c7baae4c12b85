"""Print the symmetry map of a model or policy: `python -m rlspec.symmetry model=...`, without weights or training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from rlspec.config.command import CommandLine
from rlspec.config.schema import Key
from rlspec.entry import command
from rlspec.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from rlspec.optim.map.spec import SymmetryMap


def _writable(path: Path | None) -> Path | None:
    if path is None:
        return None
    path = path.expanduser()
    if path.suffix not in (".md", ".json", ".txt"):
        raise ValueError("the suffix chooses the format; allowed: .md, .json, .txt")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}")
    return path


class SymmetryCommand(CommandLine):
    """Prints which role, symmetry group, split and update rule every parameter of a model gets, whether the rule bears
    the group, and what the optimizer's state takes. No weights are read.

    model=tiny, qwen3_0.6b, ...  a profile of recipes/model, a hub id or a local folder with config.json
    optim=adamw, muon, vla_pion  a preset of recipes/optim or a rule (default: muon)
    key=value                    any key of a recipe, for example optim.split=whole or +model.lora.r=16
    """  # noqa: D205

    command = "symmetry"
    synopsis = ("model=NAME|policy=NAME [optim=NAME] [key=value ...] [out=FILE.md|FILE.json|FILE.txt]",)
    example = "model=tiny"
    below = {"policy": "policy_fields"}
    recipe = True

    policy: Annotated[
        Literal["rlspec_adapter", "rlspec_flow", "rlspec_smolvla", "rlspec_pi05", "smolvla", "pi0", "pi05"] | None,
        Key("as its config makes it: one of ours, or LeRobot's own smolvla, pi0, pi05", "NAME"),
    ] = None
    policy_fields: Annotated[
        dict[str, Any], Key("changes its config, for example policy.train_expert_only=false", "KEY=VALUE")
    ] = {}
    roles: Annotated[
        str | None,
        Key("a preset: symmetric (each role its group's update) or vla (Muon, Pion for actions)", "NAME"),
    ] = None
    out: Annotated[
        Path | None, AfterValidator(_writable), Key("also write the table; the suffix chooses the format", "FILE")
    ] = None
    overrides: list[str] = []

    @model_validator(mode="after")
    def _a_model(self) -> SymmetryCommand:
        if self.policy is None and not any(override.startswith("model=") for override in self.overrides):
            raise ValueError("no model given: add model=NAME, for example model=tiny, or policy=NAME")
        return self


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command(SymmetryCommand, _symmetry, argv)


def _symmetry(line: SymmetryCommand) -> int:
    from rlspec.config.load import load_recipe
    from rlspec.config.optim import map_settings

    names = {override.partition("=")[0] for override in line.overrides}
    given = [] if "recipe" in names else ["recipe=grpo_math", *([] if "optim" in names else ["optim=muon"])]
    recipe = load_recipe([*given, *line.overrides])
    model: nn.Module
    if line.policy is not None:
        from rlspec.vla.meta_policy import build_meta_policy

        model = build_meta_policy(line.policy, line.policy_fields)
    else:
        from rlspec.rlvr.models.meta_model import build_meta_model

        model = build_meta_model(recipe.model)
    from rlspec.optim import symmetry_map
    from rlspec.optim.map.render import RENDERERS, render_text

    chosen = map_settings(recipe.optim)
    chosen["roles"] = line.roles or chosen["roles"]
    mapping: SymmetryMap = symmetry_map(model, **chosen)
    lines = [render_text(mapping), *unused_line(model), state_line(mapping, symmetry_map(model, rule="adamw"))]
    sys.stdout.write("\n".join(lines) + "\n")
    if line.out is not None:
        _write(line.out, RENDERERS[line.out.suffix](mapping))
    return 0


def unused_line(model: nn.Module) -> list[str]:
    """What a policy says that no loss of its reaches, if it says so."""
    unused: dict[str, int] = getattr(model, "unused_parameters", {})
    if not unused:
        return []
    return [f"unused: no loss reaches {sum(unused.values()):,} parameters, which are frozen: {', '.join(unused)}"]


def state_line(mapping: SymmetryMap, baseline: SymmetryMap) -> str:
    """What the optimizer's state takes, by rule, and what it would take with AdamW for everything."""
    rules = dict.fromkeys(spec.rule for spec in mapping)
    sizes = {rule: sum(spec.state_bytes for spec in mapping if spec.rule == rule) for rule in rules}
    total, alone = sum(sizes.values()), sum(spec.state_bytes for spec in baseline)
    parts = ", ".join(f"{rule} {size:,}" for rule, size in sizes.items())
    return f"state: {total / 1e9:.2f} GB ({parts} bytes); AdamW for everything: {alone / 1e9:.2f} GB ({alone:,} bytes)"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out={path}: cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
