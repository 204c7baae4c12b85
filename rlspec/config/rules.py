"""Names of update rules and presets, told without torch unless a recipe brings rules of its own."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rlspec.config.paths import list_group, recipes_folder
from rlspec.errors import ConfigError, nearest

_TABLE = "rlspec.optim.rules"


@cache
def built_in_rules() -> tuple[str, ...]:
    """Names of the table in `rlspec.optim.rules`, read off its source: to import it takes torch."""
    return tuple(str(call.args[0].value) for call in _rule_calls() if isinstance(call.args[0], ast.Constant))


def _rule_calls() -> list[ast.Call]:
    spec = importlib.util.find_spec(_TABLE)
    assert spec is not None and spec.origin is not None
    return [
        node
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Rule" and node.args
    ]


@cache
def pair_rules() -> frozenset[str]:
    """Rules of the table that update both factors of a LoRA layer together and nothing else."""
    calls = [call for call in _rule_calls() if any(word.arg == "pair" for word in call.keywords)]
    return frozenset(str(call.args[0].value) for call in calls if isinstance(call.args[0], ast.Constant))


def known_rules() -> tuple[str, ...]:
    """Every rule there is: the table's and, once it is loaded, those that were registered."""
    table = sys.modules.get(_TABLE)
    return built_in_rules() if table is None else tuple(table.RULES)


def known_options() -> frozenset[str]:
    """Every option that any rule has; torch comes with them."""
    table = importlib.import_module(_TABLE)
    return frozenset(name for rule in table.RULES.values() for name in rule.options)


def list_optimizers() -> list[str]:
    """Names for `optim=`: presets, and rules without a preset of their name."""
    return sorted({*list_group("optim"), *known_rules()})


@cache
def preset(name: str) -> dict[str, Any]:
    """The settings of a file of recipes/optim."""
    import yaml

    values: dict[str, Any] = yaml.safe_load((recipes_folder() / "optim" / f"{name}.yaml").read_text(encoding="utf-8"))
    return values


def import_plugins(plugins: Sequence[str]) -> None:
    """Import the modules that register a recipe's own rules; torch comes with them.

    Raises:
        ConfigError: a module is missing, fails, or registers nothing.
    """
    if not plugins:
        return
    rules = importlib.import_module(_TABLE)
    if os.getcwd() not in sys.path:  # an installed command has its own folder there instead
        sys.path.append(os.getcwd())
    for name in plugins:
        before = set(rules.RULES)
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a user's module raises
            missing = isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]
            reason = "no such module here" if missing else f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"optim.plugins={name}: cannot be imported ({' '.join(reason.split())}); install it, or start from its "
                "folder"
            ) from None
        owners = [owner for owner in rules.REGISTERED.values() if owner == name or owner.startswith(f"{name}.")]
        if not owners and set(rules.RULES) == before:
            raise ConfigError(
                f"optim.plugins={name}: registers no rule; call rlspec.optim.rules.register(Rule(...)) in it, or leave "
                "it out"
            )


def unknown_optimizer(name: str) -> str:
    """The line for an `optim=` that there is not."""
    known = nearest(name, list_optimizers(), most=64)
    return f"optim={name}: unknown; {known}; or a rule of your own, with optim.plugins=[MODULE]"
