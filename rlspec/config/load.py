"""From command-line arguments to a checked `Recipe`, by Hydra's compose API.

Hydra and the schema are imported when they are needed, and nothing here imports torch, transformers or trl.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlspec.config.overrides import Arguments, check_option, parse_arguments
from rlspec.config.paths import GROUPS, is_recipe_file, recipes_folder
from rlspec.errors import ConfigError

if TYPE_CHECKING:
    from rlspec.config.schema import Recipe

_PRIMARY = "rlspec_primary"  # name of a config that is made in memory


def load_recipe(arguments: Sequence[str]) -> Recipe:
    """Resolve and check a recipe.

    Args:
        arguments: `recipe=NAME` or `recipe=FILE.yaml`, then overrides in Hydra's grammar. `model=` and `data=` also
            take a hub id or a local path; `data.path=FILE` without `data=` switches to `data=local`.

    Raises:
        ConfigError: One line per mistake, at most five.
    """
    return check_recipe(resolve(parse_arguments(arguments)))


def check_recipe(values: Mapping[str, Any]) -> Recipe:
    """Validate a resolved mapping: names and types, TRL's knobs, then rules across sections.

    Raises:
        ConfigError: One line per mistake, at most five.
    """
    from pydantic import ValidationError

    from rlspec.config.checks import broken_rules
    from rlspec.config.messages import explain, join_lines
    from rlspec.config.schema import Recipe

    try:
        # Through JSON, where a list may become a tuple although the schema is strict.
        recipe = Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError(join_lines(explain(error))) from None
    lines = broken_rules(recipe)
    if lines:
        raise ConfigError(join_lines(lines))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """A resolved recipe as YAML that `recipe=FILE.yaml` accepts."""
    import yaml

    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    return text


def load_group(group: str, name: str) -> dict[str, Any]:
    """One option of a group: the section `data` or `optim`, or a whole profile for `model`.

    Raises:
        ConfigError: There is no such option.
    """
    check_option(group, name)
    resolved = _compose(_PRIMARY, [], _only({group: name}))
    return resolved if group == "model" else resolved[group]


def resolve(parsed: Arguments) -> dict[str, Any]:
    """Compose a parsed command line into plain values, unchecked.

    Raises:
        ConfigError: An override that Hydra cannot read or apply.
    """
    assignments = [override.assignment for override in parsed.overrides]
    if is_recipe_file(parsed.recipe):
        values = _compose(_PRIMARY, assignments, _read_resolved(Path(parsed.recipe), parsed.groups))
    else:
        values = _compose(parsed.recipe, [f"{group}={name}" for group, name in parsed.groups.items()] + assignments)
    if values.get("algorithm") == "sft":
        _drop_rollout_knobs(values, parsed)
    return values


def _drop_rollout_knobs(values: dict[str, Any], parsed: Arguments) -> None:
    """Imitation samples nothing: a profile's knobs for rollouts only set how long evaluations may answer."""
    from rlspec.config.sources import read_knobs

    trainer = values.get("trainer")
    if not isinstance(trainer, dict):
        return
    evaluation = values.setdefault("evaluation", {})
    if "max_completion_length" in trainer and evaluation.get("max_new_tokens") is None:
        evaluation["max_new_tokens"] = trainer["max_completion_length"]
    for name in read_knobs("GRPOConfig").keys() - read_knobs("SFTConfig").keys():
        if parsed.value(f"trainer.{name}") is None:
            trainer.pop(name, None)


def _only(groups: Mapping[str, str]) -> dict[str, Any]:
    """A primary config that consists of some group options."""
    return {"defaults": [{group: groups.get(group)} for group in GROUPS]}


def _read_resolved(path: Path, groups: Mapping[str, str]) -> dict[str, Any]:
    """A resolved recipe's file, with the sections of the group options that were chosen in place of its own.

    A new optimizer keeps the step size of the old one, unless a new profile brings its own.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"recipe={path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or "defaults" in values:
        raise ConfigError(f"recipe={path}: not a resolved recipe (a mapping without defaults)")
    if groups:
        chosen = _compose(_PRIMARY, [], _only(groups))
        for section in ("model", "data"):
            if "name" in chosen.get(section, {}):
                values.pop(section, None)
        if "model" in groups and isinstance(values.get("evaluation"), dict):
            values["evaluation"].pop("max_new_tokens", None)  # came with the old profile
        values = OmegaConf.to_container(OmegaConf.merge(values, chosen))
    return values  # type: ignore[return-value]


def _compose(name: str, overrides: Sequence[str], primary: Mapping[str, Any] | None = None) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if primary is not None:
        ConfigStore.instance().store(name=_PRIMARY, node=dict(primary))
    try:
        with initialize_config_dir(str(recipes_folder()), version_base="1.3"):
            composed = compose(name, overrides=list(overrides))
        return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain_hydra(error)) from None


def _explain_hydra(error: Exception) -> str:
    """Hydra's complaint as one line that names the override."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "Ambiguous value" in lines[0]:
        given = lines[0].rpartition("'++")[2].rstrip("'")
        key, _, value = given.partition("=")
        return f"{given}: one value only; write {key}=[{value}] where a list is meant"
    override = getattr(error, "override", None)
    if not isinstance(override, str):
        return lines[0]
    return f"{override.removeprefix('++')}: not understood ({lines[0]}); quote special characters: \"key='...'\""


__all__ = ["check_recipe", "dump_recipe", "load_group", "load_recipe", "parse_arguments", "resolve"]
