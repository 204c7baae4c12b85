"""Print the table of update rules: `python -m rlspec.rules all`, or `python -m rlspec.rules NAME` for one of them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlspec.config.paths import headline, list_group
from rlspec.entry import run_command
from rlspec.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rlspec.optim.composition import Rule

USAGE = """\
usage: python -m rlspec.rules all | markdown | NAME

Prints the update rules: for each its composition, the symmetry that it respects, its state, its source. Choose one by
optim=NAME in a recipe, per role by optim.roles={ROLE: NAME}, in Python by build_optimizer(model, rule=NAME).

  all        every rule
  markdown   the same as a Markdown table
  NAME       one optimizer of recipes/optim, with the options of its rule and their defaults
"""

MATRIX = (2048, 6144)
"""Shape on which the state is counted: Qwen3-1.7B's mlp.down_proj."""
PAIR_RANK = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(argv, lambda: USAGE, run)


def run(arguments: Sequence[str]) -> int:
    """Print what is asked for.

    Raises:
        ConfigError: on an unknown name.
    """
    renderers = {"all": text, "markdown": markdown}
    known = list_group("optim")
    name = arguments[0]
    if len(arguments) > 1 or name not in (*renderers, *known):
        raise ConfigError(f"{' '.join(arguments)}: no rule; {nearest(name, [*renderers, *known])}")
    from rlspec.optim import RULES

    sys.stdout.write(renderers[name](list(RULES.values())) if name in renderers else describe(RULES, name))
    return 0


def composition(rule: Rule) -> str:
    """The line of the table in words: what happens to the gradient, in order."""
    if rule.kind == "pair":
        return "pair of LoRA factors"
    if rule.kernel is not None:
        return "elementwise"
    words = [stage.function.__name__ for stage in rule.before]
    words += [rule.momentum.__name__] if rule.momentum is not None else []
    line = " . ".join(words + [stage.function.__name__ for stage in rule.stages])
    return f"elementwise: {line}" if rule.kind == "elementwise" else line


def state_share(rule: Rule) -> float:
    """State of a matrix of shape `MATRIX`, or a LoRA pair of it, in float32 values per weight (AdamW: 2)."""
    rows, cols = MATRIX
    settings = {name: value for name, value in rule.options.items() if value is not inspect.Parameter.empty}
    if rule.kind != "pair":
        return rule.state_values(1, rows, cols, settings) / (rows * cols)
    values = rule.state_values(1, PAIR_RANK, cols, settings, "a") + rule.state_values(1, rows, PAIR_RANK, settings, "b")
    return values / (PAIR_RANK * (rows + cols))


def _cells(rule: Rule) -> tuple[str, ...]:
    sides = "" if rule.sides == "rows x columns" else f" ({rule.sides})"
    symmetry = "GL(rank)" if rule.kind == "pair" else rule.symmetry + sides
    return rule.name, composition(rule), symmetry, f"{state_share(rule):.2f}", rule.source


HEADERS = ("rule", "composition", "symmetry", "state", "source")


def text(rules: Sequence[Rule]) -> str:
    """Aligned columns for a terminal."""
    rows = [HEADERS, *map(_cells, rules)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADERS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [
        "",
        "symmetry: updates move with gradients: O rotations, S signed permutations, P permutations, D signs, - none",
        f"state: float32 values per weight of a {MATRIX[0]} x {MATRIX[1]} matrix, or of factors of rank {PAIR_RANK}",
    ]
    return "\n".join(lines + notes) + "\n"


def markdown(rules: Sequence[Rule]) -> str:
    """The same as a Markdown table."""
    lines = ["| " + " | ".join(HEADERS) + " |", "|---|---|---|---:|---|"]
    lines += ["| `" + "` | ".join([cells[0], " | ".join(cells[1:])]) + " |" for cells in map(_cells, rules)]
    return "\n".join(lines) + "\n"


def describe(rules: dict[str, Rule], name: str) -> str:
    """One optimizer of the recipes: what it is, its stages and their options."""
    from rlspec.config.load import load_group

    rule = rules[load_group("optim", name)["name"]]
    lines = [f"{name}: {headline(name, 'optim')}", ""]
    lines += [f"{title:12} {value}" for title, value in zip(HEADERS, _cells(rule), strict=True)]
    for stage in rule.all_stages:
        about = (inspect.getdoc(stage.function) or "").partition("\n")[0]
        lines += ["", f"{stage.function.__name__.lstrip('_')}: {about}"]
        for option, default in stage.options.items():
            own = default is not inspect.Parameter.empty
            lines.append(f"  optim.options.{option}={default}" if own else f"  optim.{option}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
