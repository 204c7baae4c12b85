"""The symmetry map as a table: plain text for a terminal, Markdown and JSON for a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlspec.optim.map.symmetry import ParameterSpec, SymmetryMap

HEADERS = {
    "role": "role",
    "group": "group",
    "split": "split",
    "rule": "rule",
    "shape": "shape",
    "tensors": "tensors",
    "matrices": "matrices",
    "parameters": "parameters",
    "state_bytes": "state bytes",
}
_NUMBERS = ("tensors", "matrices", "parameters", "state_bytes")


@dataclass
class Row:
    """Parameters that are alike.

    Attributes:
        role: what they do, with their part of the model where that is not language.
        group: symmetry group, rows x columns.
        split: `whole`, or what is cut and along which axis.
        rule: what updates them.
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
        """The row as text."""
        values: dict[str, Any] = vars(self) | {"shape": " x ".join(map(str, self.shape)) or "scalar"}
        return {key: f"{values[key]:,}" if key in _NUMBERS else str(values[key]) for key in HEADERS}


def table_rows(mapping: SymmetryMap) -> list[Row]:
    """One row per kind of parameter, in the model's order."""
    rows: dict[Any, Row] = {}
    for spec in mapping:
        key = (spec.label, spec.group, spec.split, spec.rule, spec.shape)
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


def render_text(mapping: SymmetryMap) -> str:
    """Aligned columns and the coverage line."""
    cells = [HEADERS, *(row.cells() for row in table_rows(mapping))]
    widths = {key: max(len(row[key]) for row in cells) for key in HEADERS}
    return "\n".join([*(_aligned(row, widths) for row in cells), coverage(mapping)])


def render_markdown(mapping: SymmetryMap) -> str:
    """A Markdown table, the coverage line and the names of frozen parameters."""
    lines = [_piped(HEADERS), _piped({key: "---:" if key in _NUMBERS else "---" for key in HEADERS})]
    lines += [_piped(row.cells()) for row in table_rows(mapping)]
    lines += ["", coverage(mapping)]
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
            "shape": spec.shape,
        }
        for spec in mapping
    ]
    content = {
        "rows": [vars(row) for row in table_rows(mapping)],
        "coverage": coverage(mapping),
        "parameters": parameters,
        "frozen": [{"name": name, "parameters": numel} for name, numel in mapping.frozen],
    }
    return json.dumps(content, indent=2) + "\n"


RENDERERS = {".txt": lambda mapping: render_text(mapping) + "\n", ".md": render_markdown, ".json": render_json}
"""File suffix -> text."""


def _aligned(row: Mapping[str, str], widths: Mapping[str, int]) -> str:
    cells = (row[key].rjust(widths[key]) if key in _NUMBERS else row[key].ljust(widths[key]) for key in HEADERS)
    return "  ".join(cells).rstrip()


def _piped(row: Mapping[str, str]) -> str:
    return "| " + " | ".join(row[key] for key in HEADERS) + " |"
