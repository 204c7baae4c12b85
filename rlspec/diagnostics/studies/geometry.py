"""`what=geometry`: how hidden states spread and how widely heads look, over a run's checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlspec.diagnostics.measures.attention import attention_entropies
from rlspec.diagnostics.measures.representation import (
    alpha_req,
    diffusion_entropy,
    diffusion_information,
    matrix_nuclear_norm,
    median_distance,
    rankme,
)
from rlspec.diagnostics.result import StudyResult, Table, mean, watched
from rlspec.diagnostics.subject import Subject, layer_of, load_weights

PARTS, STATES, CLOUD = 16, 2048, 512
"""Parts that are run; states that are kept of them; points of the diffusion operator, which has their square."""

_NARROW = 0.1  # entropy below which a head looks at next to nothing


def study(subject: Subject) -> StudyResult:
    """The same parts through every checkpoint of the run, or through the one model that there is."""
    steps: list[int | None] = list(subject.checkpoints) or [None]
    rows: list[dict[str, Any]] = []
    heads: dict[str, list[float]] = {}
    sigma = 0.0
    for step in watched(steps, subject.display, "geometry: checkpoints"):
        if step is not None:
            load_weights(subject.model, subject.checkpoints[step])
        states, labels, heads = collect(subject)
        cloud = states[:CLOUD]
        sigma = sigma or median_distance(cloud) / 2 or 1.0
        entropies = [value for values in heads.values() for value in values]
        rows.append(
            {
                "step": "-" if step is None else str(step),
                "states": len(states),
                "RankMe": rankme(states),
                "alpha-ReQ": alpha_req(states),
                "diffusion entropy": diffusion_entropy(cloud, sigma),
                "told by labels": diffusion_information(cloud, labels[:CLOUD], sigma),
                "nuclear norm": matrix_nuclear_norm(states),
                "attention entropy": mean(entropies),
                "narrowest head": min((value for value in entropies if not math.isnan(value)), default=math.nan),
            }
        )
    narrow = [
        f"{name} {head}" for name, values in heads.items() for head, value in enumerate(values) if value < _NARROW
    ]
    notes = [
        f"of width {states.shape[1]}, before the output layer. Diffusion entropy in bits, at most "
        f"{math.log2(max(2, len(cloud) - 1)):.1f}, with sigma {sigma:.3g} (half the first median distance); told by "
        "labels: bits that the next token or the task tells of the states",
        "attention entropy: over that of even weights, mean over queries; a head near 0 has collapsed to single keys",
        *([f"heads below {_NARROW}: {', '.join(narrow)}"] if narrow else []),
    ]
    if len(steps) < 2:
        notes.append("one checkpoint: a course over training needs run=DIR with several (checkpoints.keep_last)")
    numbers = {"steps": rows, "heads": heads}
    return StudyResult([Table("geometry", rows)], notes, numbers, _drawing(rows, heads), (13.0, 4.6))


def collect(subject: Subject) -> tuple[Tensor, Tensor, dict[str, list[float]]]:
    """States (N, width) and labels (N,), evenly thinned, and each attention's mean entropy per head."""
    states, labels = [], []
    with torch.no_grad(), attention_entropies(subject.model) as found:
        for part in subject.parts[:PARTS]:
            points, marks = subject.represent(part.batch)
            states.append(points)
            labels.append(marks)
    cloud, marks = torch.cat(states), torch.cat(labels)
    generator = torch.Generator().manual_seed(0)  # the same points at every checkpoint
    chosen = torch.randperm(len(cloud), generator=generator)[:STATES].to(cloud.device)
    heads = {name: torch.stack(values).nanmean(0).tolist() for name, values in found.items()}
    return cloud[chosen], marks[chosen], heads


def _drawing(rows: Sequence[Mapping[str, Any]], heads: Mapping[str, Sequence[float]]) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        names = ["RankMe", "alpha-ReQ", "diffusion entropy", "nuclear norm", "attention entropy"]
        steps = [row["step"] for row in rows]
        for number, name in enumerate(names):
            first = rows[0][name] or math.nan
            left.plot(steps, [row[name] / first for row in rows], marker="o", ms=4, color=f"C{number}", label=name)
        left.set(xlabel="step", ylabel="over its first value")
        left.set_title("hidden states over training", fontsize=10)
        left.legend(fontsize=7)
        left.grid(alpha=0.3)
        widest = max(map(len, heads.values()), default=1)
        picture = torch.full((max(1, len(heads)), widest), torch.nan)
        for row, values in enumerate(heads.values()):
            picture[row, : len(values)] = torch.tensor(values)
        image = right.imshow(picture.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1)
        labels = [f"{_part(name)} {layer_of(name + '.')}" for name in heads]
        every = max(1, len(labels) // 24)
        right.set_yticks(range(0, len(labels), every), labels[::every], fontsize=6)
        right.set_xlabel("head")
        right.set_title("attention entropy of the last checkpoint, 1: even weights", fontsize=10)
        figure.colorbar(image, ax=right)

    return draw


def _part(name: str) -> str:
    """The word of a module's path that tells parts of a model apart."""
    words = [word for word in name.split(".") if not word.isdigit() and word not in ("model", "layers", "blocks")]
    return words[0] if words else name
