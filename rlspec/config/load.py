"""From command-line arguments to a checked `Recipe`, by Hydra's compose API.

Hydra and the schema are imported when they are needed, and nothing here imports torch, transformers or trl.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlspec.config.paths import GROUPS, list_group, list_recipes, nearest, recipes_folder
from rlspec.errors import ConfigError

if TYPE_CHECKING:
    from rlspec.config.schema import Recipe

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~|)(?P<key>[A-Za-z_][\w.\-]*)(?:=(?P<value>.*))?", re.DOTALL)
_PRIMARY = "rlspec_primary"  # name of a config that is made in memory


@dataclass
class Override:
    """One argument: `key=value`, `+key=value`, `++key=value` or `~key`."""

    sign: str
    key: str
    value: str | None

    def __str__(self) -> str:
        # Keys that a recipe leaves at the schema's default are not in its YAML: let every assignment add them.
        sign = self.sign or "++"
        return f"{sign}{self.key}" + ("" if self.value is None else f"={self.value}")


@dataclass
class Arguments:
    """A command line, sorted."""

    recipe: str
    groups: dict[str, str] = field(default_factory=dict)  # option of each group that was chosen
    overrides: list[Override] = field(default_factory=list)

    def sets(self, key: str) -> bool:
        """Whether the command line assigns this dotted key."""
        return any(override.key == key for override in self.overrides)

    def default(self, key: str, value: str) -> None:
        """Assign a key, unless the command line does; the value is taken literally."""
        if not self.sets(key):
            self.overrides.append(Override("", key, quote(value)))


def load_recipe(arguments: Sequence[str]) -> Recipe:
    """Resolve and check a recipe.

    Args:
        arguments: `recipe=NAME` or `recipe=FILE.yaml`, then overrides in Hydra's grammar. `model=` and `data=` also take
            a hub id or a local path; `data.path=FILE` without `data=` switches to `data=local`.

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
    from rlspec.config.passthrough import check_trainer
    from rlspec.config.schema import Recipe

    try:
        # Through JSON, where a list may become a tuple although the schema is strict.
        recipe = Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError(join_lines(explain(error))) from None
    lines = check_trainer(recipe.algorithm, recipe.trainer, engine=recipe.rollout.engine) + broken_rules(recipe)
    if lines:
        raise ConfigError(join_lines(lines))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """A resolved recipe as YAML that `recipe=FILE.yaml` accepts."""
    import yaml

    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    return text.replace("${", "\\${")  # not an interpolation


def load_group(group: str, name: str) -> dict[str, Any]:
    """One option of a group: the section `data` or `optim`, or a whole profile for `model`.

    Raises:
        ConfigError: There is no such option.
    """
    if name not in list_group(group):
        raise ConfigError(f"{group}={name}: unknown; {nearest(name, list_group(group))}")
    resolved = _compose(_PRIMARY, [], {"defaults": [{each: name if each == group else None} for each in GROUPS]})
    return resolved if group == "model" else resolved[group]


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Sort a command line into recipe, group options and overrides, and check all names against what exists.

    Raises:
        ConfigError: One line per mistake, at most five.
    """
    overrides = [_parse_override(argument) for argument in arguments]
    recipes = [override.value for override in overrides if override.key == "recipe"]
    if not recipes:
        raise ConfigError(f"no recipe given: add recipe=NAME; {nearest('', list_recipes())}")
    parsed = Arguments(_check_recipe_name(str(recipes[-1])))
    for override in overrides:
        if override.key in GROUPS and override.value is not None and not override.value.startswith("{"):
            parsed.groups[override.key] = override.value
        elif override.key != "recipe":
            parsed.overrides.append(override)
    _check_keys(parsed.overrides)
    _switch_model(parsed)
    _switch_data(parsed)
    for group, name in parsed.groups.items():
        if name not in list_group(group):
            raise ConfigError(f"{group}={name}: unknown; {nearest(name, list_group(group))}{_ALSO.get(group, '')}")
    return parsed


_ALSO = {
    "model": "; or a hub id (owner/name), or a local folder",
    "data": f"; or a local file ({', '.join(DATA_SUFFIXES)})",
}


def _parse_override(argument: str) -> Override:
    match = _OVERRIDE.fullmatch(argument)
    if match is None or (match["value"] is None and match["sign"] != "~"):
        raise ConfigError(f"{argument!r} is no override: write key=value, for example optim.lr=2e-6")
    return Override(match["sign"], match["key"], match["value"])


def _check_recipe_name(name: str) -> str:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ConfigError(f"recipe={name}: there is no such file")
    elif name not in list_recipes():
        raise ConfigError(f"recipe={name}: unknown; {nearest(name, list_recipes())}; or a .yaml file")
    return name


def _check_keys(overrides: Sequence[Override]) -> None:
    """Answer a misspelt key before Hydra is imported."""
    from rlspec.config.messages import join_lines, unknown_override

    lines = [line for override in overrides if (line := unknown_override(override.key))]
    if lines:
        raise ConfigError(join_lines(lines))


def _switch_model(parsed: Arguments) -> None:
    """`model=owner/name` and `model=/folder` select the profile `hub`."""
    name = parsed.groups.get("model")
    if name is not None and name not in list_group("model") and ("/" in name or Path(name).is_dir()):
        parsed.groups["model"] = "hub"
        parsed.default("model.path", name)
        parsed.default("model.name", safe_name(Path(name).name))


def _switch_data(parsed: Arguments) -> None:
    """`data=FILE`, and `data.path=FILE` without `data=`, select `data=local`."""
    name = parsed.groups.get("data")
    if name is not None and name not in list_group("data") and ("/" in name or name.endswith(DATA_SUFFIXES)):
        parsed.groups["data"] = "local"
        parsed.default("data.path", name)
    path = next((o.value for o in parsed.overrides if o.key == "data.path" and o.value), None)
    if path is None:
        return
    local = path.strip("'\"").endswith(DATA_SUFFIXES)
    if local and "data" not in parsed.groups and not parsed.recipe.endswith((".yaml", ".yml")):
        parsed.groups["data"] = "local"
    if parsed.groups.get("data") == "local":
        parsed.default("data.name", safe_name(Path(path.strip("'\"")).stem))


def safe_name(text: str) -> str:
    """Letters, digits, dot, dash and underscore, for names that end up in a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.").lower() or "local"


def quote(value: str) -> str:
    """A text as a quoted string of Hydra's grammar."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"


def resolve(parsed: Arguments) -> dict[str, Any]:
    """Compose a parsed command line into plain values, unchecked.

    Raises:
        ConfigError: An override that Hydra cannot read or apply.
    """
    if parsed.recipe.endswith((".yaml", ".yml")):
        return _compose(_PRIMARY, parsed.overrides, _read_resolved(Path(parsed.recipe), parsed.groups))
    groups = [Override(" ", group, name) for group, name in parsed.groups.items()]
    return _compose(parsed.recipe, groups + parsed.overrides)


def _read_resolved(path: Path, groups: Mapping[str, str]) -> dict[str, Any]:
    """A resolved recipe's file, with sections replaced by the group options that were chosen.

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
    if not groups:
        return values
    chosen = _compose(_PRIMARY, [], {"defaults": [{group: groups.get(group)} for group in GROUPS]})
    for group in ("model", "data"):
        if "name" in chosen.get(group, {}):
            values.pop(group, None)
    return OmegaConf.to_container(OmegaConf.merge(values, chosen))  # type: ignore[return-value]


def _compose(name: str, overrides: Sequence[Override], primary: Mapping[str, Any] | None = None) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if primary is not None:
        ConfigStore.instance().store(name=_PRIMARY, node=dict(primary))
    arguments = [str(override).lstrip() for override in overrides]
    try:
        with initialize_config_dir(str(recipes_folder()), version_base="1.3"):
            composed = compose(name, overrides=arguments)
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing and name != _PRIMARY or overrides and missing:
            raise ConfigError("\n".join(f"{key}: required; add {key}=..." for key in missing))
        return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"override not understood: {lines[0] if lines else type(error).__name__}"
