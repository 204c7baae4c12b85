"""The symmetry map as a table: plain text for a terminal, Markdown and JSON for a file."""

from __future__ import annotations

import json
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rlspec.optim.map.spec import ParameterSpec, SymmetryMap

HEADERS = {
    "role": "role",
    "group": "group",
    "split": "split",
    "rule": "rule",
    "contained": "contained",
    "shape": "shape",
    "tensors": "tensors",
    "matrices": "matrices",
    "parameters": "parameters",
    "state_bytes": "state bytes",
}
TEXT_WIDTH = 100
"""Of a terminal: there columns that would go beyond are left out, from the last one; files have all."""

_NOT_CONTAINED = (
    "warning: contained no: these steps depend on the basis that the weights are written in, though the loss does not, "
    "as AdamW's do; a run may train well all the same, and optim=symmetric has the fewest such rows"
)
_NUMBERS = ("tensors", "matrices", "parameters", "state_bytes")


@dataclass
class Row:
    """Parameters that are alike.

    Attributes:
        role: what they do, with their part of the model where that is not language.
        group: symmetry group, rows x columns.
        split: `whole`, or what is cut and along which axis.
        rule: what updates them.
        lr_scale: factor of the learning rate.
        rule_group: the group that the rule bears.
        broken: what of `group` the rule breaks.
        shape: of each.
        tensors: how many there are.
        matrices: how many blocks a spectral rule updates, 0 for an elementwise rule.
        parameters: values in all.
        state_bytes: optimizer state in all.
    """

    role: str
    group: str
    split: str
    rule: str
    lr_scale: float
    rule_group: str
    broken: tuple[str, ...]
    shape: tuple[int, ...]
    tensors: int = 0
    matrices: int = 0
    parameters: int = 0
    state_bytes: int = 0

    def add(self, spec: ParameterSpec) -> None:
        """Count one more parameter."""
        self.tensors += 1
        self.matrices += spec.matrices
        self.parameters += spec.numel
        self.state_bytes += spec.state_bytes

    def cells(self) -> dict[str, str]:
        """The row as text; `contained` says whether the rule's group contains the role's, and which it is."""
        values: dict[str, Any] = vars(self) | {"shape": " x ".join(map(str, self.shape)) or "scalar"}
        values["rule"] = self.rule if self.lr_scale == 1 else f"{self.rule} at {self.lr_scale:g} x lr"
        values["contained"] = f"{'no' if self.broken else 'yes'}, {self.rule_group}"
        return {key: f"{values[key]:,}" if key in _NUMBERS else str(values[key]) for key in HEADERS}


_ALIKE = tuple(entry.name for entry in fields(Row) if entry.name not in _NUMBERS)


def table_rows(mapping: SymmetryMap) -> list[Row]:
    """One row per kind of parameter, in the model's order."""
    rows: dict[Any, Row] = {}
    for spec in mapping:
        key = tuple(getattr(spec, "label" if name == "role" else name) for name in _ALIKE)
        rows.setdefault(key, Row(*key)).add(spec)
    return list(rows.values())


def coverage(mapping: SymmetryMap) -> str:
    """What is trained, by what, and what is not, in one line."""
    rows = table_rows(mapping)
    spectral = sum(row.parameters for row in rows if row.matrices)
    total = sum(row.parameters for row in rows)
    share = f" ({100 * spectral / total:.1f}%)" if total else ""
    return (
        f"coverage: {len(mapping)} trainable tensors with {total:,} parameters, each claimed once; "
        f"{spectral:,}{share} in {sum(row.matrices for row in rows):,} matrices with a spectral rule; "
        f"optimizer state {sum(row.state_bytes for row in rows):,} bytes; "
        f"frozen: {len(mapping.frozen)} tensors with {sum(numel for _, numel in mapping.frozen):,} parameters"
    )


def breaks(mapping: SymmetryMap) -> list[str]:
    """One warning for each rule and each symmetry that it breaks, naming the roles."""
    roles: dict[tuple[str, str, str], dict[str, None]] = defaultdict(dict)
    for row in table_rows(mapping):
        for word in row.broken:
            roles[row.rule, row.rule_group, word][row.role] = None
    return [
        f"warning: rule {rule} ({group}) breaks {word} of {', '.join(labels)}"
        for (rule, group, word), labels in roles.items()
    ]


def _said(mapping: SymmetryMap) -> list[str]:
    return [*breaks(mapping), *(f"note: {note}" for note in mapping.notes)]


def _explained(mapping: SymmetryMap) -> list[str]:
    said = _said(mapping)
    return [_NOT_CONTAINED, *said] if breaks(mapping) else said


def render_text(mapping: SymmetryMap) -> str:
    """Aligned columns, as many as fit into `TEXT_WIDTH`, what rules break, and the coverage line."""
    cells = [HEADERS, *(row.cells() for row in table_rows(mapping))]
    widths = dict(_fitting({key: max(len(row[key]) for row in cells) for key in HEADERS}))
    warnings = [
        line for entry in _explained(mapping) for line in textwrap.wrap(entry, TEXT_WIDTH, subsequent_indent="  ")
    ]
    return "\n".join([*(_aligned(row, widths) for row in cells), *warnings, coverage(mapping)])


def _fitting(widths: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Columns of a terminal: those up to `contained` always."""
    used, needed = 0, True
    for key, width in widths.items():
        used += width + 2
        if not needed and used - 2 > TEXT_WIDTH:
            return
        needed = needed and key != "contained"
        yield key, width


def render_markdown(mapping: SymmetryMap) -> str:
    """A Markdown table, what rules break, the coverage line and the names of frozen parameters."""
    lines = [_piped(HEADERS), _piped({key: "---:" if key in _NUMBERS else "---" for key in HEADERS})]
    lines += [_piped(row.cells()) for row in table_rows(mapping)]
    lines += ["", *(f"- {line}" for line in _explained(mapping)), "", coverage(mapping)]
    if mapping.frozen:
        lines += ["", "Frozen: " + ", ".join(f"`{name}`" for name, _ in mapping.frozen)]
    return "\n".join(lines) + "\n"


def render_json(mapping: SymmetryMap) -> str:
    """Rows, every parameter by name, and the frozen ones."""
    parameters = [
        {
            "name": spec.name,
            "role": spec.role,
            "modality": spec.modality,
            "split": spec.split,
            "rule": spec.rule,
            "lr_scale": spec.lr_scale,
            "rule_group": spec.rule_group,
            "broken": spec.broken,
            "shape": spec.shape,
        }
        for spec in mapping
    ]
    content = {
        "rows": [vars(row) for row in table_rows(mapping)],
        "warnings": breaks(mapping),
        "notes": mapping.notes,
        "coverage": coverage(mapping),
        "parameters": parameters,
        "frozen": [{"name": name, "parameters": numel} for name, numel in mapping.frozen],
    }
    return json.dumps(content, indent=2) + "\n"


RENDERERS = {".txt": lambda mapping: render_text(mapping) + "\n", ".md": render_markdown, ".json": render_json}
"""File suffix -> text."""


def _aligned(row: Mapping[str, str], widths: Mapping[str, int]) -> str:
    cells = (row[key].rjust(widths[key]) if key in _NUMBERS else row[key].ljust(widths[key]) for key in widths)
    return "  ".join(cells).rstrip()


def _piped(row: Mapping[str, str]) -> str:
    return "| " + " | ".join(row[key] for key in HEADERS) + " |"
