"""`what=noise`: how much of the gradient is signal, by role, head, direction and filter.

Parts are drawn alike, so their gradients g_k are samples of one distribution. Half of the parts propose directions and
the other half judges them: a direction is not its own witness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlspec.diagnostics.measures.passing import ADAMW, MUON, SPECTRAL, filtered, pass_energy
from rlspec.diagnostics.measures.ranks import singular_values, stable_rank
from rlspec.diagnostics.result import StudyResult, Table, mean
from rlspec.diagnostics.studies.spectra import SHUT
from rlspec.diagnostics.subject import Subject, blocks_of, layer_of
from rlspec.errors import ConfigError
from rlspec.optim.map.spec import ParameterSpec

_FEWEST = 3  # judges for which nothing can be said of one direction
DIRECTIONS = 8
"""Leading singular directions that are judged one by one."""

FILTERS = (*SPECTRAL, ADAMW)


@dataclass(frozen=True)
class BlockNoise:
    """Of one block: a head, an expert, or the whole matrix.

    Attributes:
        name: of the parameter.
        role: of the parameter.
        layer: its number, -1 without one.
        block: its number in the parameter.
        snr: signal over noise of one part, `||E g||^2 / E||g - E g||^2`, unbiased; below 0 where nothing is there.
        directions: the same along each leading direction of the other half of the parts.
        agreement: filter -> cosine between the updates that it makes of the two halves, which is about the share of
            signal in their energy; NaN where it is shut.
        gain: filter -> what one half's update wins of the other half's loss per unit of Frobenius norm, to first order,
            over what the unfiltered gradient wins; NaN where it is shut or the gradient wins nothing.
        passed: filter -> directions that pass, of the whole mean.
        stable: stable rank of the whole mean.
    """

    name: str
    role: str
    layer: int
    block: int
    snr: float
    directions: tuple[float, ...]
    agreement: Mapping[str, float]
    gain: Mapping[str, float]
    passed: Mapping[str, float]
    stable: float


def study(subject: Subject) -> StudyResult:
    """Signal-to-noise of the gradient over parts."""
    found = measure(subject)
    steps = subject.step_parts
    tables = [
        Table(f"signal over noise of {len(subject.parts)} {subject.unit}; a step has {steps}", _by_role(found, steps)),
        Table(
            "how far the two halves agree on an update: its cosine, by filter; - where nothing passes",
            agreements(found),
        ),
        Table("what one half's update of a given RMS wins on the other half; the gradient itself 1", _wins(found)),
    ]
    heads = _by_head(found, steps)
    if heads:
        tables.append(Table("by head, all layers: signal over noise of a step", heads))
    notes = [
        "step: above 1 the step's gradient is more signal than noise; d1, d2, ...: along the leading directions that "
        "the other half of the parts proposes, from eight parts on",
        "agreement is about the share of signal in an update's energy, from half of the parts",
        _verdict(found, steps),
    ]
    return StudyResult(
        tables, notes, {"blocks": [_numbers(each) for each in found]}, _drawing(found, steps), (13.0, 4.6)
    )


@dataclass
class _Sums:
    """What passes over the parts leave of one parameter's blocks."""

    spec: ParameterSpec
    halves: list[Tensor] = field(default_factory=list)  # sums of gradients, even and odd parts
    squares: Tensor | None = None  # sum of ||g_k||^2 per block
    bases: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # leading U, V of each half
    projected: list[list[Tensor]] = field(default_factory=lambda: [[], []])  # u^T g v of the half that judges


def measure(subject: Subject) -> list[BlockNoise]:
    """Two passes over the parts: means and sizes, then the projections on directions.

    Keeps two sums of the model's size, whatever the number of parts.

    Raises:
        ConfigError: There are fewer than four parts.
    """
    parts = len(subject.parts)
    if parts < 4:
        raise ConfigError(f"parts={parts}: halves need two each; give parts=4 or more")
    sums = {spec.name: _Sums(spec) for spec in subject.specs()}
    for index, (_, gradients) in enumerate(subject.gradients("noise, first pass")):
        for name, kept in sums.items():
            if name in gradients:
                _add(kept, blocks_of(kept.spec, gradients[name]).double(), index % 2)
    for kept in sums.values():
        kept.bases = [_leading(half) for half in kept.halves]
    for index, (_, gradients) in enumerate(subject.gradients("noise, second pass")):
        for name, kept in sums.items():
            if name in gradients and kept.bases:
                u, v = kept.bases[1 - index % 2]
                value = ((u.mT @ blocks_of(kept.spec, gradients[name]).double()) * v.mT).sum(-1)
                kept.projected[index % 2].append(value)
    return [block for kept in sums.values() if kept.halves for block in _judge(kept, parts)]


def _add(kept: _Sums, blocks: Tensor, half: int) -> None:
    if kept.squares is None:
        kept.halves = [torch.zeros_like(blocks), torch.zeros_like(blocks)]
        kept.squares = torch.zeros(len(blocks), dtype=blocks.dtype, device=blocks.device)
    kept.halves[half] += blocks
    kept.squares += blocks.square().sum((1, 2))


def _leading(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Leading singular vectors (batch, rows, r) and (batch, cols, r), by the short side's Gram matrix."""
    flip = blocks.shape[1] < blocks.shape[2]
    tall = blocks.mT if flip else blocks
    rank = min(DIRECTIONS, tall.shape[2])
    vectors = torch.linalg.eigh(tall.mT @ tall)[1].flip(2)[:, :, :rank]
    others = torch.nn.functional.normalize(tall @ vectors, dim=1)
    return (vectors, others) if flip else (others, vectors)


def _judge(kept: _Sums, parts: int) -> list[BlockNoise]:
    assert kept.squares is not None
    total = kept.halves[0] + kept.halves[1]
    energy = (total / parts).square().sum((1, 2))
    noise = (kept.squares - parts * energy) / (parts - 1)
    snr = signal_to_noise(energy, noise, parts)
    directions = _directions([torch.stack(each) for each in kept.projected])
    updates = {name: [_update(half, name) for half in kept.halves] for name in FILTERS}
    agreement = {name: (first * second).sum(1) for name, (first, second) in updates.items()}
    gain = _gains(kept.halves, updates)
    values = singular_values(total)
    passed = {name: pass_energy(values, name) for name in SPECTRAL}
    passed[ADAMW] = stable_rank(singular_values(total.sign()))
    stable = stable_rank(values)
    return [
        BlockNoise(
            kept.spec.name, kept.spec.label, layer_of(kept.spec.name), index, float(snr[index]),
            tuple(directions[index].tolist()), _at(agreement, index), _at(gain, index),
            _at(passed, index), float(stable[index]),
        )
        for index in range(len(total))
    ]  # fmt: skip


def signal_to_noise(mean_square: Tensor, variance: Tensor, samples: int) -> Tensor:
    """`(||mean||^2 - tr(cov) / K) / tr(cov)`: of one sample, without the bias of the mean's own noise.

    Args:
        mean_square: squared norm of the mean of the samples.
        variance: trace of their covariance, unbiased.
        samples: K.
    """
    return torch.where(variance > 0, (mean_square - variance / samples) / variance.clamp(min=1e-300), torch.nan)


def _directions(halves: Sequence[Tensor]) -> Tensor:
    """Signal over noise along each direction, (batch, r): mean over the halves that judged, each (K, batch, r).

    Of K normal samples of variance s, E[1 / variance] is (K - 1) / ((K - 3) s), by which the ratio is corrected.
    """
    found = []
    for values in halves:
        judges = len(values)
        if judges <= _FEWEST:  # the expectation of 1 / variance is infinite
            return torch.full_like(values[0], torch.nan)
        ratio = values.mean(0).square() / values.var(0).clamp(min=1e-300)
        found.append(torch.where(values.var(0) > 0, (judges - 3) / (judges - 1) * ratio - 1 / judges, torch.nan))
    return torch.stack(found).mean(0)


def _update(half: Tensor, name: str) -> Tensor:
    """A filter's update of each block at unit Frobenius norm, (batch, values); NaN where it lets nothing pass."""
    update = filtered(half, name).flatten(1).double()
    norm = update.norm(dim=1, keepdim=True)
    floor = 0.0 if name in (MUON, ADAMW) else SHUT**0.5
    return torch.where(norm > floor, update / norm.clamp(min=1e-300), torch.nan)


def _gains(halves: Sequence[Tensor], updates: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Per filter, (batch,): mean over both ways of `<G_B, U_A> / <G_B, G_A / ||G_A||>`."""
    first, second = (half.flatten(1) for half in halves)
    own = (first * second).sum(1)
    plain = own / first.norm(dim=1).clamp(min=1e-300) + own / second.norm(dim=1).clamp(min=1e-300)
    plain = torch.where(plain > 0, plain, torch.nan)
    return {name: ((second * a).sum(1) + (first * b).sum(1)) / plain for name, (a, b) in updates.items()}


def _at(values: Mapping[str, Tensor], index: int) -> dict[str, float]:
    return {name: float(value[index]) for name, value in values.items()}


def _by_role(found: Sequence[BlockNoise], steps: int) -> list[dict[str, Any]]:
    rows = []
    for role, blocks in grouped(found).items():
        row: dict[str, Any] = {"role": role, "blocks": len(blocks), "one part": mean(each.snr for each in blocks)}
        row["step"] = steps * row["one part"]
        row["worst"] = steps * min(each.snr for each in blocks)
        for index in range(min(4, len(blocks[0].directions))):
            row[f"d{index + 1}"] = steps * mean(each.directions[index] for each in blocks)
        rows.append(row)
    return rows


def agreements(found: Sequence[BlockNoise]) -> list[dict[str, Any]]:
    """A row per role: mean cosine of each filter, and the share of blocks for which k_p = 0 is shut."""
    rows = []
    for role, blocks in grouped(found).items():
        cosines = {name: mean(each.agreement[name] for each in blocks) for name in FILTERS}
        shut = sum(each.passed["k_p=0"] < SHUT for each in blocks) / len(blocks)
        rows.append({"role": role, **cosines, "k_p=0 shut": f"{shut:.0%}"})
    return rows


def _wins(found: Sequence[BlockNoise]) -> list[dict[str, Any]]:
    groups = grouped(found).items()
    return [
        {"role": role, **{name: mean(each.gain[name] for each in blocks) for name in FILTERS}}
        for role, blocks in groups
    ]


def _by_head(found: Sequence[BlockNoise], steps: int) -> list[dict[str, Any]]:
    """A row per role that is cut into heads: one column per head, mean over layers."""
    rows = []
    for role, blocks in grouped(found).items():
        heads = max(each.block for each in blocks) + 1
        if 1 < heads <= 16:
            values = [steps * mean(each.snr for each in blocks if each.block == head) for head in range(heads)]
            rows.append({"role": role, **{f"head {head}": value for head, value in enumerate(values)}})
    widest = max((len(row) for row in rows), default=0)
    names = [f"head {head}" for head in range(widest - 1)]
    return [{"role": row["role"], **{name: row.get(name) for name in names}} for row in rows]


def grouped(found: Sequence[BlockNoise]) -> dict[str, list[BlockNoise]]:
    """By role, in the model's order."""
    groups: dict[str, list[BlockNoise]] = {}
    for each in found:
        groups.setdefault(each.role, []).append(each)
    return groups


def _verdict(found: Sequence[BlockNoise], steps: int) -> str:
    ratios = {role: steps * mean(each.snr for each in blocks) for role, blocks in grouped(found).items()}
    noisy = [role for role, ratio in ratios.items() if ratio < 1]
    if still := [role for role, ratio in ratios.items() if ratio != ratio]:
        return f"no gradient: {', '.join(still)}" + (f"; more noise than signal: {', '.join(noisy)}" if noisy else "")
    if not noisy:
        return "every role's step is more signal than noise: there is little for a high-pass filter to remove"
    return f"more noise than signal in a step: {', '.join(noisy)}"


def _numbers(each: BlockNoise) -> dict[str, Any]:
    return vars(each)


def _drawing(found: Sequence[BlockNoise], steps: int) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for number, (role, blocks) in enumerate(grouped(found).items()):
            style = {"color": f"C{number % 10}", "ls": ("-", "--", ":", "-.")[number // 10 % 4]}
            longest = min(len(each.directions) for each in blocks)
            values = [steps * mean(each.directions[index] for each in blocks) for index in range(longest)]
            left.plot(range(1, longest + 1), values, marker="o", ms=3, label=role, **style)
            cosines = [mean(each.agreement[name] for each in blocks) for name in FILTERS]
            right.plot(range(len(FILTERS)), cosines, marker="o", ms=3, label=role, **style)
        left.axhline(1, color="0.3", lw=0.8, ls=":")
        left.set_yscale("symlog", linthresh=1)
        left.set(xlabel="leading direction", ylabel="signal over noise of a step")
        left.set_title("along directions that the other half proposes; above the line signal prevails", fontsize=10)
        right.axhline(0.5, color="0.3", lw=0.8, ls=":")
        right.set_xticks(range(len(FILTERS)), FILTERS, fontsize=8)
        right.set(ylim=(-0.1, 1.05), ylabel="cosine between the halves' updates")
        right.set_title("how far both halves of the batch want the same update", fontsize=10)
        for axis in (left, right):
            axis.grid(alpha=0.3)
        left.legend(fontsize=6, ncols=1 + len(grouped(found)) // 12)

    return draw
