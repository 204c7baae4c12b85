"""The table of update rules in words."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from rlspec.optim.composition import Rule
from rlspec.optim.papers import PAPERS, Paper

MATRIX = (2048, 6144)
"""Shape on which the state is counted: Qwen3-1.7B's mlp.down_proj."""
PAIR_RANK = 16
HEADERS = ("rule", "composition", "symmetry", "state", "source")


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


def papers_markdown() -> str:
    """Of every rule that is not as in its paper: what `settings="paper"` sets, and what differs even so."""
    lines = ["| rule | settings of its paper | differs even so, or is not stated |", "|---|---|---|"]
    for name, paper in PAPERS.items():
        settings = ", ".join(f"{key} {_said(value)}" for key, value in sorted(paper.settings.items()))
        lines.append(f"| `{name}` | {settings or 'ours'} | {paper.remains} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def describe(rule: Rule, title: str) -> str:
    """One rule: what it is, its stages and their options, below a title."""
    lines = [title, ""]
    lines += [f"{header:12} {value}" for header, value in zip(HEADERS, _cells(rule), strict=True)]
    paper = PAPERS.get(rule.name, Paper())
    lines += [f"{'paper has':12} {key} {_said(value)}" for key, value in sorted(paper.settings.items())]
    lines += [f"{'paper':12} {paper.remains}"] if paper.remains else []
    for stage in rule.all_stages:
        about = (inspect.getdoc(stage.function) or "").partition("\n")[0]
        lines += ["", f"{stage.function.__name__.lstrip('_')}: {about}"]
        for option, default in stage.options.items():
            own = default is not inspect.Parameter.empty
            lines.append(f"  optim.options.{option}={default}" if own else f"  optim.{option}")
    return "\n".join(lines) + "\n"
