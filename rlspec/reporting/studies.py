"""What `python -m rlspec.diagnose run=RUN` left in a run: spectra by layer and head, notes, pictures."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlspec.reporting.drawing import Chart, draw_heat_map, draw_lines
from rlspec.reporting.reading import RunRecord, items, mapping, number, read_mapping
from rlspec.reporting.series import Line

FOLDER = "diagnostics"
MOST_PICTURES = 1_500_000  # bytes of all pictures of a run's studies
_MOST_OPEN = 3  # k_p of the most open filter that the study of spectra knows
_LEAST = 1e-7  # of a singular value over the norm: float32 knows no smaller one
MOST_HEADS = 64  # columns of a heat map
_SOURCES = {"momentum": "momentum", "gradient": "gradient"}  # of spectra, the first one that is there


@dataclass(frozen=True)
class StudySection:
    """What the page shows of one study.

    Attributes:
        title: With what was looked into.
        notes: Its sentences.
        legend, charts: Drawn from its numbers.
        picture: Its own, as a data URI; empty where the page draws, or it does not fit.
    """

    name: str
    title: str
    notes: list[str]
    legend: list[tuple[str, int]] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    picture: str = ""


def read_studies(run: RunRecord) -> list[StudySection]:
    """Of every study in a run the one of the newest checkpoint."""
    found, room = [], MOST_PICTURES
    folders = [run.folder / FOLDER, *sorted((run.folder / FOLDER).glob("*/"), key=_step)]
    newest = {path.stem: path for folder in folders for path in folder.glob("*.json")}
    for _, path in sorted(newest.items()):
        content = read_mapping(path, run.problems)
        blocks = next((rows for source in _SOURCES if (rows := _blocks(content.get(source)))), [])
        legend, charts = _spectra(blocks, _filter(run.recipe), content) if path.stem == "spectra" else ([], [])
        picture = path.with_suffix(".png")
        source = ""
        if not charts and picture.is_file() and 4 * picture.stat().st_size // 3 <= room:
            source = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
            room -= len(source)
        notes = [str(note) for note in items(content.get("notes"))]
        if notes or charts or source:
            title = str(content.get("title") or path.stem)
            if path.parent.name not in (FOLDER, *re.split(r"[ ,:]+", title)):
                title += f" ({path.parent.name})"
            found.append(StudySection(path.stem, title, notes, legend, charts, source))
    return found


def _step(folder: Path) -> int:
    """Of a checkpoint that was looked into; best/ stands before all of known steps."""
    step = folder.name.rpartition("-")[2]
    return int(step) if step.isdecimal() else -1


def _blocks(rows: Any) -> list[dict[str, Any]]:
    whole = [mapping(row) for row in items(rows)]
    placed = [row for row in whole if all(isinstance(row.get(name), int) for name in ("layer", "block"))]
    return [row for row in placed if row.get("role")]


def _filter(recipe: Mapping[str, Any]) -> tuple[str, str]:
    """The name of the high-pass filter with the recipe's k_p, and what is said of it."""
    optim = mapping(recipe.get("optim"))
    roles = [mapping(each).get("rule") for each in mapping(optim.get("roles")).values()]
    if not any("pion" in str(rule) for rule in (optim.get("name"), optim.get("rule"), *roles)):
        return "auto", "k_p auto would pass; the run has no gate"
    steps = number(optim.get("promotion_steps"))
    if steps is None:
        return "auto", "auto passes"
    name = f"k_p={min(int(steps), _MOST_OPEN)}"
    return name, f"{name} passes" + ("" if name == f"k_p={steps:g}" else f"; the run's k_p {steps:g} passes more")


def _spectra(
    blocks: Sequence[Mapping[str, Any]], named: tuple[str, str], content: Mapping[str, Any]
) -> tuple[list[tuple[str, int]], list[Chart]]:
    """Singular values by role, and for each role stable rank and pass energy by layer and head."""
    roles: dict[str, list[Mapping[str, Any]]] = {}
    for block in blocks:
        roles.setdefault(str(block["role"]), []).append(block)
    source = next((name for name in _SOURCES if content.get(name)), "")
    lines = [_spectrum(role, found, style) for style, (role, found) in enumerate(roles.items())]
    charts = [
        draw_lines(
            f"singular values of the {source}, over its Frobenius norm",
            [line for line in lines if line is not None],
            log=True,
            log_x=True,
            along="direction",
            about="Geometric means over the blocks of a role.",
        )
    ]
    headed = {role: found for role, found in roles.items() if any(block["block"] for block in found)}
    chosen, words = named
    passing = f"directions that {words}"
    for role, found in headed.items():
        charts.append(_by_head(f"{role}: {passing}", found, chosen))
    single = {role: found for role, found in roles.items() if role not in headed}
    charts.append(_by_layer(f"whole matrices: {passing}", single, chosen))
    charts.append(_by_layer("stable rank, mean over heads", roles, "stable"))
    legend = [(line.label, line.style) for line in lines if line is not None]
    return legend, [chart for chart in charts if chart is not None]


def _spectrum(role: str, blocks: Sequence[Mapping[str, Any]], style: int) -> Line | None:
    known = [[number(value) or 0.0 for value in items(block.get("singular_values"))] for block in blocks]
    longest = min(map(len, known), default=0)
    if not longest:
        return None
    table = np.array([values[:longest] for values in known], dtype=np.float64)
    shown = np.logical_and.accumulate(
        (table > _LEAST).all(axis=0)
    )  # a direction that some block does not have ends the line
    means = np.exp(np.log(table[:, shown]).mean(axis=0), dtype=np.float64)
    return Line(role, np.arange(1, len(means) + 1, dtype=np.float64), means, style=style)


def _value(block: Mapping[str, Any], name: str) -> float:
    value = number(block.get(name) if name in block else mapping(block.get("passes")).get(name))
    return np.nan if value is None else value


def _by_head(title: str, blocks: Sequence[Mapping[str, Any]], name: str) -> Chart | None:
    layers = sorted({block["layer"] for block in blocks})
    heads = min(MOST_HEADS, 1 + max(block["block"] for block in blocks))
    table = np.full((len(layers), heads), np.nan)
    for block in blocks:
        if 0 <= block["block"] < heads:
            table[layers.index(block["layer"]), block["block"]] = _value(block, name)
    rows, columns = [f"layer {layer}" for layer in layers], [str(head) for head in range(heads)]
    return draw_heat_map(title, table, rows, columns, along="head", about="0: the head is gated.", limits=(0.0, None))


def _by_layer(title: str, roles: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> Chart | None:
    layers = sorted({block["layer"] for found in roles.values() for block in found})
    table = np.full((len(roles), len(layers)), np.nan)
    for row, found in enumerate(roles.values()):
        for column, layer in enumerate(layers):
            values = np.array([_value(block, name) for block in found if block["layer"] == layer])
            if np.isfinite(values).any():
                table[row, column] = np.nanmean(values)
    columns = ["none" if layer < 0 else str(layer) for layer in layers]
    return draw_heat_map(title, table, list(roles), columns, along="layer", limits=(0.0, None))
