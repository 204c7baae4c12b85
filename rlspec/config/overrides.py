"""The command line: which recipe, which group options, which overrides; every name checked before Hydra is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlspec.config.gguf_header import is_gguf
from rlspec.config.kinds import algorithm_of, groups_of, is_robotic, schema_of
from rlspec.config.paths import GROUPS, is_recipe_file, list_group, list_recipes
from rlspec.config.rules import import_plugins, list_optimizers, unknown_optimizer
from rlspec.errors import ConfigError, nearest

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~|)(?P<key>[A-Za-z_][\w.\-]*)(?:=(?P<value>.*))?", re.DOTALL)
_ALSO = {
    "model": "; or a hub id (owner/name), a local folder or FILE.gguf",
    "policy": "; or a hub id (owner/name), or a local folder",
    "dataset": "; or a hub id (owner/name), or a local folder",
    "data": f"; or a local file ({', '.join(DATA_SUFFIXES)})",
    "reward": "; or a function of your own, module:function",
}
_WORDS = {"null": None, "true": True, "false": False}


@dataclass
class CommandOverride:
    """One argument: `key=value`, `+key=value`, `++key=value` or `~key`."""

    sign: str
    key: str
    value: str | None = None

    def __str__(self) -> str:
        return f"{self.sign}{self.key}" + ("" if self.value is None else f"={self.value}")

    def assignment(self, robotic: bool) -> str:
        """The same in Hydra's grammar, able to add a key: what a recipe leaves at its default is not in its YAML."""
        from rlspec.config.messages import takes_text
        from rlspec.config.rewards import is_text_option

        value, key = self.value, self.key
        text = takes_text(key, schema_of(robotic)) or is_text_option(key)
        if value is not None and text and not _is_quoted(value):
            value = quote(value)
        return str(CommandOverride(self.sign or "++", self.key, value))


@dataclass
class Arguments:
    """A command line, sorted."""

    recipe: str
    algorithm: str | None = None
    robotic: bool = False
    groups: dict[str, str] = field(default_factory=dict)  # option of each group that was chosen
    overrides: list[CommandOverride] = field(default_factory=list)
    rewards: str | None = None  # several rewards, as they stand on the command line

    def value(self, key: str) -> str | None:
        """What the command line assigns to a dotted key, as it stands there."""
        return next((each.value for each in reversed(self.overrides) if each.key == key), None)

    def default(self, key: str, value: str) -> None:
        """Assign a key, unless the command line does."""
        if self.value(key) is None:
            self.overrides.append(CommandOverride("", key, value))


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Sort a command line and check every name in it.

    Raises:
        ConfigError: One line per mistake, at most five.
    """
    overrides = [_parse_override(argument) for argument in arguments]
    for override in overrides:
        if override.key == "launch" and re.fullmatch(r"\w+", override.value or ""):
            override.key = "launch.by"  # one word for the launcher
    recipe = _find_recipe(overrides)
    parsed = Arguments(recipe, algorithm_of(recipe), is_robotic(recipe))
    groups = groups_of(parsed.robotic)
    for override in overrides:
        if override.key in GROUPS and override.key not in groups:
            raise ConfigError(f"{override}: recipe={recipe} has no such group; it has {', '.join(groups)}")
        if override.key in groups and override.value == "":
            raise ConfigError(
                f"{override}: no value; {nearest('', list_group(override.key))}{_ALSO.get(override.key, '')}"
            )
        if override.key == "reward" and override.value and override.value.startswith("["):
            parsed.rewards = override.value
        elif override.key in groups and override.value and not override.value.startswith("{") and override.sign != "~":
            parsed.groups[override.key] = override.value
        elif override.key != "recipe":
            parsed.overrides.append(override)
    if parsed.robotic:
        _switch_source(parsed, "policy", option="pretrained", key="policy.path")
        _switch_type(parsed)
        _switch_source(parsed, "dataset", option="lerobot", key="dataset.repo_id", folder_key="dataset.root")
    else:
        _switch_model(parsed)
        _switch_data(parsed)
        _switch_reward(parsed)
    _refuse_another_place(parsed)
    import_plugins(re.findall(r"[\w.]+", parsed.value("optim.plugins") or ""))  # they may bring what is chosen
    for group, name in parsed.groups.items():
        check_option(group, name)
    if parsed.value("trainer.num_train_epochs") is not None:
        parsed.default("trainer.max_steps", "-1")  # a profile's number of steps would win
    _check_overrides(parsed)
    return parsed


def check_option(group: str, name: str) -> None:
    """Raises ConfigError where a group has no such option; a recipe may do without a simulator."""
    if (group, name) == ("env", "null"):
        return
    if "," in name:
        raise ConfigError(f"{group}={name}: {several_values(f'recipe=NAME {group}={name}')}")
    if group == "optim":
        if name not in list_optimizers():
            raise ConfigError(unknown_optimizer(name))
        return
    names = list_group(group)
    if name not in names:
        raise ConfigError(f"{group}={name}: unknown; {nearest(name, names)}{_ALSO.get(group, '')}")


def several_values(arguments: str) -> str:
    """The end of a message about values with commas between them, which Hydra's --multirun would take."""
    return f"one value only; several are compared: python -m rlspec.compare {arguments}"


def _refuse_another_place(parsed: Arguments) -> None:
    """A run that is resumed by its folder stays in it."""
    resume = parsed.value("resume") or "auto"
    for key in ("output_dir", "run"):
        value = parsed.value(key)
        if resume not in ("auto", "null") and value not in (None, "null"):
            raise ConfigError(f"{key}={value}: no effect with resume={resume}, which goes on there; leave it out")


def safe_name(text: str) -> str:
    """Letters, digits, dot, dash and underscore, for names that end up in a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.").lower() or "local"


def quote(value: str) -> str:
    """A text as a quoted string of Hydra's grammar, where a backslash counts only before a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"'{escaped}'"


def _is_quoted(value: str) -> bool:
    return value == "null" or value.startswith("${") or (len(value) > 1 and value[0] in "'\"" and value[-1] == value[0])


def _parse_override(argument: str) -> CommandOverride:
    match = _OVERRIDE.fullmatch(argument)
    if match is None or (match["value"] is None and match["sign"] != "~"):
        raise ConfigError(f"{argument!r} is no override: write key=value, for example optim.lr=2e-6")
    return CommandOverride(match["sign"], match["key"], match["value"])


def _find_recipe(overrides: Sequence[CommandOverride]) -> str:
    """The recipe's name or file; a run that is resumed brings its own."""
    given = {override.key: override.value for override in overrides if override.value}
    name, resume = given.get("recipe"), given.get("resume", "auto")
    if name is None and resume != "auto":
        folder = Path(resume.strip("'\"")).expanduser()
        stored = [each / "recipe.yaml" for each in (folder, *folder.resolve().parents[:2])]
        name = next((str(path) for path in stored if path.is_file()), None)
        if name is None:
            raise ConfigError(f"resume={resume}: no run's recipe.yaml there; add recipe=NAME, or correct the folder")
    if name is None:
        raise ConfigError(f"no recipe given: add recipe=NAME; allowed: {', '.join(list_recipes())}; or a .yaml file")
    if is_recipe_file(name):
        if not Path(name).is_file():
            raise ConfigError(f"recipe={name}: there is no such file")
    elif "," in name:
        raise ConfigError(f"recipe={name}: {several_values(f'recipe={name}')}")
    elif name not in list_recipes():
        raise ConfigError(f"recipe={name}: unknown; {nearest(name, list_recipes())}; or a .yaml file")
    return name


def _switch_model(parsed: Arguments) -> None:
    """`model=owner/name`, `model=/folder` and `model=FILE.gguf` select the profile `hub`."""
    name = parsed.groups.get("model", "")
    path = name.strip("'\"")
    if name and name not in list_group("model") and ("/" in path or is_gguf(path) or Path(path).is_dir()):
        parsed.groups["model"] = "hub"
        parsed.default("model.path", name)
    if parsed.groups.get("model") == "hub" and (path := (parsed.value("model.path") or "").strip("'\"")):
        parsed.default("model.name", safe_name(_called(path)))


def _called(path: str) -> str:
    """The last part of a hub id, a folder or a file."""
    if is_gguf(path):
        return Path(path).stem
    return Path(path).resolve().name if Path(path).is_dir() else Path(path).name


def _switch_type(parsed: Arguments) -> None:
    """`policy.type=act` without `policy=` selects a policy of LeRobot's own from random weights: a profile's fields
    are those of another type.
    """  # noqa: D205
    kind = (parsed.value("policy.type") or "").strip("'\"")
    ours = kind.startswith("rlspec_") or kind in ("", "null")
    if "policy" not in parsed.groups and not ours and not is_recipe_file(parsed.recipe):
        parsed.groups["policy"] = "scratch"
        parsed.default("policy.name", safe_name(kind))


def _switch_source(parsed: Arguments, group: str, *, option: str, key: str, folder_key: str | None = None) -> None:
    """`policy=owner/name`, `dataset=/folder` and so on select the option that loads what is named."""
    name = parsed.groups.get(group, "")
    path = name.strip("'\"")
    is_folder = Path(path).expanduser().is_dir()
    if name and name not in list_group(group) and ("/" in path or is_folder):
        parsed.groups[group] = option
        parsed.default(folder_key if folder_key and is_folder else key, name)
        parsed.default(f"{group}.name", safe_name(Path(path).name))


def _switch_data(parsed: Arguments) -> None:
    """`data=FILE`, and `data.path=FILE` without `data=`, select `data=local`."""
    name = parsed.groups.get("data", "")
    if name and name not in list_group("data") and ("/" in name or _is_data_file(name.strip("'\""))):
        parsed.groups["data"] = "local"
        parsed.default("data.path", name)
    path = (parsed.value("data.path") or "").strip("'\"")
    if _is_data_file(path) and "data" not in parsed.groups and not is_recipe_file(parsed.recipe):
        parsed.groups["data"] = "local"
    if path and parsed.groups.get("data") == "local":
        parsed.default("data.name", safe_name(Path(path).stem))


def _switch_reward(parsed: Arguments) -> None:
    """`reward=module:function` selects the option that calls what is named."""
    name = parsed.groups.get("reward", "")
    if ":" in name:
        parsed.groups["reward"] = "function"
        parsed.default("reward.name", name)


def _is_data_file(name: str) -> bool:
    return name.lower().endswith(DATA_SUFFIXES)


def _check_overrides(parsed: Arguments) -> None:
    """Answer misspelt keys and plain values of the wrong type without Hydra, which takes half a second to import."""
    from rlspec.config.messages import holds, join_lines, wrong_override
    from rlspec.config.passthrough import check_knob, elsewhere
    from rlspec.config.synonyms import same_meaning

    lines = []
    algorithm, schema = parsed.algorithm, schema_of(parsed.robotic)
    for override in parsed.overrides:
        scalars = list(_scalar(override.value))
        line = wrong_override(override.key, scalars, schema)
        section, _, name = override.key.partition(".")
        if algorithm is not None and not parsed.robotic and override.value is not None and "." not in name:
            word = name or section
            if line is None and section == "trainer" and scalars:
                line = check_knob(algorithm, name, scalars[0])
            elif not holds(override.key, schema) and not same_meaning(word, lambda key: holds(key, schema)):
                line = elsewhere(override.key, scalars[0] if scalars else override.value) or line
        if line:
            lines.append(line)
    if lines:
        raise ConfigError(join_lines(lines))


def _scalar(value: str | None) -> Iterator[str | int | float | bool | None]:
    """The value of a plain word or number; nothing for what only Hydra's grammar can read."""
    if value is None:
        return
    if value.lower() in _WORDS:
        yield _WORDS[value.lower()]
    elif re.fullmatch(r"[+-]?(0|[1-9]\d*)", value):
        yield int(value)
    elif re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?|[+-]?\.\d+([eE][+-]?\d+)?", value):
        yield float(value)
    elif re.fullmatch(r"[A-Za-z_]\w*", value) and value.lower() not in ("nan", "inf"):
        yield value
