"""From command-line arguments to a checked `Recipe`, by Hydra's compose API.

Hydra and the schema are imported when they are needed, and nothing here imports torch, transformers or trl.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlspec.checkpoint import CHECKPOINTS, find_weights, list_checkpoints, named_folder
from rlspec.config.adapters import base_of, holds_adapters, with_stored
from rlspec.config.kinds import BC, RLVR_GROUPS, VLA_GROUPS, groups_of, schema_of
from rlspec.config.overrides import Arguments, check_option, parse_arguments, several_values
from rlspec.config.paths import is_recipe_file, list_group, recipes_folder, resolve_path
from rlspec.config.resolvers import bf16_where_fast, packaged
from rlspec.config.rules import known_rules
from rlspec.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from rlspec.config.rlvr_schema import Recipe
    from rlspec.config.schema import AnyRecipe
    from rlspec.config.vla_schema import VlaRecipe

_TURN = threading.Lock()
_PRIMARY = "rlspec_primary"  # name of a config that is made in memory
_KEPT = ("lr", "plugins")  # of an optimizer when another takes its place


def load_recipe(arguments: Sequence[str]) -> Recipe:
    """Resolve and check a recipe of reinforcement learning or supervised fine-tuning on problems.

    Args:
        arguments: `recipe=NAME` or `recipe=FILE.yaml`, then overrides in Hydra's grammar. `model=` and `data=` also
            take a hub id or a local path; `data.path=FILE` without `data=` switches to `data=local`.

    Raises:
        ConfigError: One line per mistake, at most five.
    """
    recipe = load_any_recipe(arguments)
    if _is_robots(recipe):
        raise ConfigError(f"recipe={recipe.recipe}: it trains a robot's policy; this command is for language models")
    return recipe


def load_vla_recipe(arguments: Sequence[str]) -> VlaRecipe:
    """Resolve and check a recipe of a robot's policy.

    Raises:
        ConfigError: One line per mistake, at most five.
    """
    recipe = load_any_recipe(arguments)
    if not _is_robots(recipe):
        raise ConfigError(f"recipe={recipe.recipe}: it trains a language model; this command is for robots' policies")
    return recipe


def load_any_recipe(arguments: Sequence[str]) -> Recipe | VlaRecipe:
    """Resolve and check a recipe of any kind.

    Raises:
        ConfigError: One line per mistake, at most five.
        CheckpointError: It starts from a run without a whole checkpoint.
    """
    parsed = parse_arguments(arguments)
    values = resolve(parsed)
    sections = [(section, part) for part in ("model", "policy") if isinstance(section := values.get(part), dict)]
    for section, part in sections:
        # A stored recipe stays readable when its start is gone: who evaluates what it made needs none.
        with suppress(*((CheckpointError, ConfigError) if is_recipe_file(parsed.recipe) else ())):
            _name_starts(section, part)
    return check_recipe(values)


def _name_starts(section: dict[str, Any], part: str) -> None:
    """The run from which a recipe starts, or a path into it, gives way to its newest whole checkpoint.

    That run may go on: what was started from it says from what.
    """
    for key in ("path", "init"):
        if isinstance(section.get(key), str) and section[key].strip():
            section[key] = _named_start(section[key], f"{part}.{key}")
    if part == "model":
        _name_adapters(section)


def _named_start(given: str, key: str) -> str:
    path = resolve_path(given)
    missing = not path.exists() and bool(list_checkpoints(path.parent))
    if missing or named_folder(path) != path or (path / CHECKPOINTS).is_dir():
        return find_weights(str(path), key=key)
    return given


def _name_adapters(model: dict[str, Any]) -> None:
    """A model that is adapters gives way to their base with them, and section `lora` has what they have."""
    given = model.get("path")
    lora = model.get("lora")
    if isinstance(given, str) and given.strip() and holds_adapters(folder := Path(given).expanduser()):
        lora = lora if isinstance(lora, dict) else {}
        if lora.get("path") is not None:
            raise ConfigError(f"model={given}: holds adapters, and model.lora.path names others; give their base here")
        lora = {**lora, "path": str(folder)}
        model |= base_of(folder) | {"lora": lora}
    if isinstance(lora, dict) and isinstance(lora.get("path"), str) and lora["path"].strip():
        path = _named_start(lora["path"], "model.lora.path")
        place = resolve_path(path)
        model["lora"] = with_stored({**lora, "path": str(place) if place.is_dir() else path})


def check_recipe(values: Mapping[str, Any]) -> Recipe | VlaRecipe:
    """Validate a resolved mapping: names and types, knobs of TRL and LeRobot, then rules across sections.

    Raises:
        ConfigError: One line per mistake, at most five.
    """
    from pydantic import ValidationError

    from rlspec.config.checks import broken_rules
    from rlspec.config.messages import explain, join_lines
    from rlspec.config.vla_checks import broken_vla_rules

    schema = schema_of(values.get("algorithm") == BC or "policy" in values)
    try:
        # Through JSON, where a list may become a tuple although the schema is strict.
        recipe = schema.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError(join_lines(explain(error, schema))) from None
    lines = broken_vla_rules(recipe) if _is_robots(recipe) else broken_rules(recipe)
    if lines:
        raise ConfigError(join_lines(lines))
    return recipe


def _is_robots(recipe: Recipe | VlaRecipe) -> TypeIs[VlaRecipe]:
    from rlspec.config.vla_schema import VlaRecipe

    return isinstance(recipe, VlaRecipe)


def dump_recipe(recipe: AnyRecipe) -> str:
    """A resolved recipe as YAML that `recipe=FILE.yaml` accepts."""
    import yaml

    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    return text


def load_group(group: str, name: str) -> dict[str, Any]:
    """One option of a group: its section, or a whole profile for `model` and `policy`.

    Raises:
        ConfigError: There is no such option.
    """
    check_option(group, name)
    resolved = _compose(_PRIMARY, [], _only({group: name}, VLA_GROUPS if group in VLA_GROUPS else RLVR_GROUPS))
    return resolved if group in ("model", "policy") else resolved[group]


def resolve(parsed: Arguments) -> dict[str, Any]:
    """Compose a parsed command line into plain values, unchecked.

    Raises:
        ConfigError: An override that Hydra cannot read or apply.
    """
    if (rule := parsed.value("optim.rule")) is not None:
        parsed.default("optim.name", rule)
        if "optim" not in parsed.groups:  # it was the rule's that the recipe begins with
            parsed.default("optim.adamw_lr_scale", "1.0")
    assignments = [override.assignment(parsed.robotic) for override in parsed.overrides]
    if is_recipe_file(parsed.recipe):
        values = _compose(_PRIMARY, assignments, _read_resolved(parsed))
    else:
        chosen = [f"~{group}" if name == "null" else f"{group}={name}" for group, name in parsed.groups.items()]
        values = _compose(parsed.recipe, chosen + assignments)
    _measure_what_is_trained_on(values, parsed)
    _measure_as_often_as_said(values, parsed)
    if parsed.rewards is not None:
        values["reward"] = _read_list("reward", parsed.rewards)
    if values.get("algorithm") == "sft":
        _drop_rollout_knobs(values, parsed)
    return values


_MEASURED_ON = {"math": "math500"}  # data sets whose usual test bears another name


def _measure_what_is_trained_on(values: dict[str, Any], parsed: Arguments) -> None:
    """A profile's data sets of evaluation belong to its own problems: for others it is their held-out part."""
    chosen, evaluation = parsed.groups.get("data"), values.get("evaluation")
    if chosen is None or not isinstance(evaluation, dict) or parsed.value("evaluation.data") is not None:
        return
    measured = evaluation.get("data") or []
    if chosen not in measured and _MEASURED_ON.get(chosen) not in measured:
        evaluation["data"] = []


def _measure_as_often_as_said(values: dict[str, Any], parsed: Arguments) -> None:
    """Fewer samples than a profile's pass@k need leave those k out that the command line does not ask for."""
    from rlspec.config.rlvr_schema import Evaluation

    evaluation = values.get("evaluation")
    if not isinstance(evaluation, dict) or parsed.value("evaluation.samples") is None:
        return
    samples, known = evaluation.get("samples"), evaluation.get("k", Evaluation().k)
    if parsed.value("evaluation.k") is None and isinstance(samples, int) and isinstance(known, list):
        evaluation["k"] = [k for k in known if k <= samples] or [1]


def _read_list(key: str, text: str) -> Any:
    """A list in Hydra's grammar, which would take one behind a group's name for several options of the group."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"{key}={text}").value()
    except HydraException as error:
        raise ConfigError(_explain_hydra(error)) from None


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


def _only(chosen: Mapping[str, str], groups: Sequence[str]) -> dict[str, Any]:
    """A primary config that consists of some group options."""
    names = {group: name for group, name in chosen.items() if name != "null"}
    return {"defaults": [{group: names.get(group)} for group in groups]}


def _read_resolved(parsed: Arguments) -> dict[str, Any]:
    """A resolved recipe's file, with the sections of the group options that were chosen in place of its own.

    A new optimizer keeps the step size of the old one, unless a new profile brings its own.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path, groups = Path(parsed.recipe), parsed.groups
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"recipe={path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or "defaults" in values:
        made = "make one: python -m rlspec.train recipe=NAME key=value --print > mine.yaml"
        raise ConfigError(f"recipe={path}: not a resolved recipe (a mapping without defaults); {made}")
    optim = values.get("optim")
    if isinstance(optim, dict) and "name" in optim:
        optim.setdefault("rule", optim["name"])  # stored before presets and rules were told apart
    if groups:
        chosen = _compose(_PRIMARY, [], _only(groups, groups_of(parsed.robotic)))
        for section in ("model", "data", "reward", "env", "dataset", "policy"):
            if "name" in chosen.get(section, {}) or groups.get(section) == "null":
                values.pop(section, None)
        if "optim" in groups and isinstance(values.get("optim"), dict):
            values["optim"] = {key: values["optim"][key] for key in _KEPT if key in values["optim"]}
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

    for resolver in (packaged, bf16_where_fast):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
    store = ConfigStore.instance()
    for rule in set(known_rules()) - set(list_group("optim")):  # each is an option, as if it had a file
        store.store(name=rule, group="optim", node={"name": rule, "rule": rule})
    if primary is not None:
        store.store(name=_PRIMARY, node=dict(primary))
    try:
        with _hydra_of_our_own(), initialize_config_dir(str(recipes_folder()), version_base="1.3"):
            composed = compose(name, overrides=list(overrides))
        return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain_hydra(error)) from None


@contextmanager
def _hydra_of_our_own() -> Iterator[None]:
    """Hydra has one state per process: threads take turns, and what a caller's @hydra.main keeps there comes back."""
    from hydra.core.global_hydra import GlobalHydra

    with _TURN:
        instance = GlobalHydra.instance()
        callers, instance.hydra = instance.hydra, None
        try:
            yield
        finally:
            GlobalHydra.instance().hydra = callers  # another instance by now: Hydra puts back a copy of its own


def _explain_hydra(error: Exception) -> str:
    """Hydra's complaint as one line that names the override."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "Ambiguous value" in lines[0]:
        given = lines[0].rpartition("'++")[2].rstrip("'")
        key, _, value = given.partition("=")
        return f"{given}: {several_values(f'recipe=NAME {given}')}; a list is {key}=[{value}]"
    if absent := re.search(r"Interpolation key '(.+)' not found", lines[0]):
        return f"${{{absent[1]}}}: no such key, or one at its default; add {absent[1]}=VALUE"
    if absent := re.search(r"Could not delete .*'(.+)' does not exist", lines[0]):
        return f"~{absent[1]}: no such key, or one at its default already; leave it out"
    override = getattr(error, "override", None)
    if not isinstance(override, str):
        return lines[0]
    return f"{override.removeprefix('++')}: not understood ({lines[0]}); quote special characters: \"key='...'\""


__all__ = [
    "check_recipe",
    "dump_recipe",
    "load_any_recipe",
    "load_group",
    "load_recipe",
    "load_vla_recipe",
    "parse_arguments",
    "resolve",
]
