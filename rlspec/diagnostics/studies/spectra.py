"""`what=spectra`: how many directions gradients and momenta have, and how many each filter would pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlspec.diagnostics.measures.passing import ADAMW, SPECTRAL, normalised, pass_energy
from rlspec.diagnostics.measures.ranks import effective_rank, energy_rank, singular_values, stable_rank
from rlspec.diagnostics.result import StudyResult, Table, mean
from rlspec.diagnostics.subject import Subject, blocks_of, layer_of
from rlspec.optim.map.spec import ParameterSpec
from rlspec.optim.stages.filters import gate_threshold

SHUT = 0.5
"""A filter that passes less than this of a block's directions is shut for it: not even one comes through."""

_DRAWN = 128  # directions of a spectrum in the picture


@dataclass(frozen=True)
class BlockSpectrum:
    """Of one block of one parameter: a head, an expert, or the whole matrix."""

    name: str
    role: str
    layer: int
    block: int
    shape: tuple[int, int]
    values: Tensor  # singular values, descending
    passed: Mapping[str, float]  # filter -> directions

    @property
    def ranks(self) -> dict[str, float]:
        """Stable, effective and energy rank."""
        measures = {"stable": stable_rank, "effective": effective_rank, "energy": energy_rank}
        return {name: float(measure(self.values)) for name, measure in measures.items()}


def study(subject: Subject) -> StudyResult:
    """Spectra of the mean gradient, and of the stored optimizer's momentum where there is one."""
    specs = subject.specs()
    sources = {"gradient": spectra_of(specs, subject.mean_gradient("spectra"), {})}
    if subject.momenta:
        sources["momentum"] = spectra_of(specs, subject.momenta, subject.variances)
    sources = {name: found for name, found in sources.items() if found}
    tables = [Table(_title(name, subject), by_role(found)) for name, found in sources.items()]
    numbers = {name: [_numbers(each) for each in found] for name, found in sources.items()}
    notes = [
        "stable, effective, energy: ranks, of full. Then directions that each filter passes, mean over blocks; 0: the "
        "gate is shut",
        *(note for name, found in sources.items() for note in _shut(name, found)),
    ]
    if not subject.momenta:
        notes.append("momentum: none is stored with these weights; run= or checkpoint= of a training run has one")
    return StudyResult(tables, notes, numbers, _drawing(sources), (13.0, 4.4 * len(sources)))


def spectra_of(
    specs: Sequence[ParameterSpec], tensors: Mapping[str, Tensor], variances: Mapping[str, Tensor]
) -> list[BlockSpectrum]:
    """Of every block; AdamW's update is momentum over root variance where that is known, else the sign."""
    found = []
    for spec in specs:
        if spec.name not in tensors:
            continue
        tensor = tensors[spec.name].detach()
        update = tensor.sign() if spec.name not in variances else tensor / (variances[spec.name].sqrt() + 1e-8)
        blocks = blocks_of(spec, tensor)
        values = singular_values(blocks).cpu()
        passed = {name: pass_energy(values, name) for name in SPECTRAL}
        passed[ADAMW] = stable_rank(singular_values(blocks_of(spec, update))).cpu()
        for index in range(len(blocks)):
            found.append(
                BlockSpectrum(
                    spec.name, spec.label, layer_of(spec.name), index, (blocks.shape[1], blocks.shape[2]),
                    values[index],
                    {name: float(energy[index]) for name, energy in passed.items()},
                )
            )  # fmt: skip
    return found


def by_role(found: Sequence[BlockSpectrum]) -> list[dict[str, Any]]:
    """A row per role: means over its blocks."""
    rows = []
    for role, blocks in grouped(found).items():
        rows.append(
            {
                "role": role,
                "blocks": len(blocks),
                "shape": " x ".join(map(str, blocks[0].shape)),
                **{name: mean(each.ranks[name] for each in blocks) for name in ("stable", "effective", "energy")},
                "of": min(blocks[0].shape),
                **{name: mean(each.passed[name] for each in blocks) for name in blocks[0].passed},
            }
        )
    return rows


def grouped(found: Sequence[BlockSpectrum]) -> dict[str, list[BlockSpectrum]]:
    """By role, in the model's order."""
    groups: dict[str, list[BlockSpectrum]] = {}
    for each in found:
        groups.setdefault(each.role, []).append(each)
    return groups


def _title(source: str, subject: Subject) -> str:
    if source == "gradient":
        return f"gradient of {len(subject.parts)} {subject.unit}"
    return "momentum of the stored optimizer"


def _numbers(each: BlockSpectrum) -> dict[str, Any]:
    return {
        "name": each.name,
        "role": each.role,
        "layer": each.layer,
        "block": each.block,
        "shape": list(each.shape),
        "norm": float(each.values.norm()),
        **each.ranks,
        "passes": dict(each.passed),
        "singular_values": normalised(each.values)[:_DRAWN].tolist(),
    }


def _shut(source: str, found: Sequence[BlockSpectrum]) -> Iterator[str]:
    """Say for which roles a filter does nothing in most blocks."""
    for name in ("k_p=0", "k_p=1", "k_p=2"):
        shut = []
        for role, blocks in grouped(found).items():
            count = sum(each.passed[name] < SHUT for each in blocks)
            if 2 * count > len(blocks):
                shut.append(f"{role} {count} of {len(blocks)}")
        if shut:
            yield f"{source}, {name}: shut in most blocks of {', '.join(shut)}"


def _drawing(sources: Mapping[str, Sequence[BlockSpectrum]]) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(sources), 2, squeeze=False, width_ratios=(1.25, 1))
        for (spectrum, heat), (source, found) in zip(grid, sources.items(), strict=True):
            _draw_spectra(spectrum, source, found)
            draw_heat(figure, heat, found, source)

    return draw


def _draw_spectra(axis: Any, source: str, found: Sequence[BlockSpectrum]) -> None:
    for number, (role, blocks) in enumerate(grouped(found).items()):
        longest = min(_DRAWN, min(len(each.values) for each in blocks))
        values = torch.stack([normalised(each.values)[:longest] for each in blocks]).clamp(min=1e-6)
        style = ("-", "--", ":", "-.")[number // 10 % 4]
        axis.plot(range(1, longest + 1), values.log().mean(0).exp(), style, color=f"C{number % 10}", label=role)
    for steps in range(4):
        axis.axhline(gate_threshold(steps), color="0.4", lw=0.7, ls=":")
        axis.annotate(f"k_p={steps}", (1, gate_threshold(steps)), (2, 2), textcoords="offset points", fontsize=7)
    axis.set(xscale="log", yscale="log", ylim=(1e-4, 1.2), xlabel="direction", ylabel="singular value / Frobenius norm")
    axis.set_title(f"{source}: what lies above a dotted line passes that gate", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6, ncols=1 + len(grouped(found)) // 12, loc="lower left")


def draw_heat(figure: Figure, axis: Any, found: Sequence[BlockSpectrum], source: str) -> None:
    """Mean stable rank, role by layer."""
    roles, layers = list(grouped(found)), sorted({each.layer for each in found})
    picture = torch.full((len(roles), len(layers)), torch.nan)
    for row, role in enumerate(roles):
        for column, layer in enumerate(layers):
            here = [each.ranks["stable"] for each in found if each.role == role and each.layer == layer]
            picture[row, column] = mean(here)
    image = axis.imshow(picture.log2().numpy(), aspect="auto", cmap="viridis")
    for row, column in torch.cartesian_prod(torch.arange(len(roles)), torch.arange(len(layers))).tolist():
        if len(layers) <= 12 and bool(picture[row, column].isfinite()):
            axis.text(
                column, row, f"{float(picture[row, column]):.1f}", ha="center", va="center", fontsize=6, color="w"
            )
    axis.set_yticks(range(len(roles)), roles, fontsize=6)
    axis.set_xticks(range(len(layers)), ["-" if layer < 0 else str(layer) for layer in layers], fontsize=7)
    axis.set_xlabel("layer")
    axis.set_title(f"{source}: stable rank (mean over blocks)", fontsize=10)
    figure.colorbar(image, ax=axis, label="log2")
