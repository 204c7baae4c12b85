"""Print the table of update rules: `python -m rlspec.rules all`, or `python -m rlspec.rules NAME` for one of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator

from rlspec.config.command import CommandLine
from rlspec.config.paths import headline, list_group
from rlspec.config.rules import list_optimizers, preset
from rlspec.config.schema import Key
from rlspec.entry import command
from rlspec.errors import nearest

_ALL = ("all", "markdown", "papers")


def _known(name: str) -> str:
    known = [*_ALL, *list_optimizers()]
    if name not in known:
        raise ValueError(f"no rule; {nearest(name, known)}")
    return name


class RulesCommand(CommandLine):
    """Prints the update rules: for each its composition, the symmetry that it respects, its state, its source. Choose
    one by optim=NAME in a recipe, per role by optim.roles={ROLE: NAME}, in Python by build_optimizer(model, rule=NAME).
    """  # noqa: D205

    command = "rules"
    synopsis = ("all | markdown | papers | NAME",)
    positional = "name"
    extra = "optim"

    name: Annotated[
        str,
        AfterValidator(_known),
        Key(
            "all: every rule; markdown: as a Markdown table; papers: what differs there; NAME: one rule or preset",
            "NAME",
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command(RulesCommand, _rules, argv)


def _rules(line: RulesCommand) -> int:
    from rlspec.optim import RULES
    from rlspec.optim.rule_table import describe, markdown, papers_markdown, text

    if line.name == "papers":
        sys.stdout.write(papers_markdown())
        return 0
    if line.name in _ALL:
        render = markdown if line.name == "markdown" else text
        sys.stdout.write(render(list(RULES.values())))
        return 0
    found = line.name in list_group("optim")
    rule = RULES[preset(line.name)["rule"] if found else line.name]
    sys.stdout.write(describe(rule, f"{line.name}: {headline(line.name, 'optim') if found else rule.source}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
