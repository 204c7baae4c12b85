"""`what=weights`: the spectra of the weights, and how much of their hidden width feed-forward layers use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from rlspec.diagnostics.measures.heavy_tails import eigenvalues, farms, hill
from rlspec.diagnostics.measures.ranks import effective_rank, singular_values, stable_rank, utilisation
from rlspec.diagnostics.result import StudyResult, Table, mean, watched
from rlspec.diagnostics.subject import Subject, layer_of
from rlspec.optim.map.spec import ParameterSpec

HIDDEN = ("mlp.down", "mlp.fc2")
"""Roles of the matrices that read a feed-forward part's hidden layer."""

_WIDE, _MOST_WIDE = 1024, 8  # of layers wider than this only so many are looked at: each keeps a width x width matrix
_LARGEST_FIT = 1 << 22  # values of a matrix up to which the plain fit is made too


def study(subject: Subject) -> StudyResult:
    """Of every matrix as a whole, whatever blocks its rule sees."""
    specs = [spec for spec in subject.specs() if len(spec.shape) == 2]
    weights = dict(subject.model.named_parameters())
    found = [_of_matrix(spec, weights[spec.name].detach()) for spec in watched(specs, subject.display, "weights")]
    used = _utilisations(subject)
    tables = [Table("weights, means over layers", _by_role(found)), Table("use of feed-forward layers' width", used)]
    notes = [
        "alpha: exponent of the spectrum's tail by FARMS, smaller is heavier; trained layers are mostly between 2 and "
        "6. plain: the same fit to the whole matrix, which depends on its shape. D: distance of the fit",
        "hard: participation ratio over width, soft: perplexity over width, both: their harmonic mean",
    ]
    drawn = _drawing(found, used)
    return StudyResult(tables, notes, {"matrices": found, "utilisation": used}, drawn, (13.0, 4.6))


def _of_matrix(spec: ParameterSpec, weight: Tensor) -> dict[str, Any]:
    values = singular_values(weight)
    fit = farms(weight)
    plain = hill(eigenvalues(weight)).alpha if weight.numel() <= _LARGEST_FIT else math.nan
    return {
        "name": spec.name,
        "role": spec.label,
        "layer": layer_of(spec.name),
        "shape": list(spec.shape),
        "spectral": float(values.max()),
        "rms": float(weight.square().mean().sqrt()),
        "stable": float(stable_rank(values)),
        "effective": float(effective_rank(values)),
        "alpha": fit.alpha,
        "D": fit.distance,
        "plain": plain,
    }


def _by_role(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for role in dict.fromkeys(each["role"] for each in found):
        mine = [each for each in found if each["role"] == role]
        row: dict[str, Any] = {"role": role, "matrices": len(mine), "shape": " x ".join(map(str, mine[0]["shape"]))}
        row |= {key: mean(each[key] for each in mine) for key in ("spectral", "rms", "stable", "effective")}
        row["of"] = min(mine[0]["shape"])
        row |= {key: mean(each[key] for each in mine) for key in ("alpha", "D", "plain")}
        rows.append(row)
    return rows


def _utilisations(subject: Subject) -> list[dict[str, Any]]:
    """Hard and soft utilisation of what each second matrix of a feed-forward part reads, over the subject's parts."""
    readers = [spec for spec in subject.mapping if spec.role in HIDDEN]
    if any(spec.shape[1] > _WIDE for spec in readers):
        step = max(1, math.ceil(len(readers) / _MOST_WIDE))
        readers = readers[::step]
    rows = []
    with covariances(subject.model, [spec.name.rpartition(".")[0] for spec in readers]) as kept, torch.no_grad():
        for part in watched(subject.parts, subject.display, "weights: activations"):
            subject.represent(part.batch)
    for spec in readers:
        covariance = kept[spec.name.rpartition(".")[0]]
        if covariance is None:
            continue
        shares = utilisation(torch.linalg.eigvalsh(covariance).clamp(min=0))
        hard, soft, both = (float(share) for share in shares)
        row = {"role": spec.label, "layer": layer_of(spec.name), "width": spec.shape[1]}
        rows.append({**row, "hard": hard, "soft": soft, "both": both})
    return rows


@contextmanager
def covariances(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor | None]]:
    """Collect the covariance (width, width) of what modules read while the body runs; None of those that were not run.

    It is filled in when the body ends.
    """
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}
    result: dict[str, Tensor | None] = dict.fromkeys(names)

    def see(name: str, given: Tensor) -> None:
        rows = given.detach().flatten(0, -2).double()
        count, total, square = sums.get(name, (0, 0.0, 0.0))
        sums[name] = (count + len(rows), total + rows.sum(0), square + rows.T @ rows)

    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_pre_hook(lambda _, given, name=name: see(name, given[0])) for name in names
    ]
    try:
        yield result
    finally:
        for handle in handles:
            handle.remove()
    for name, (count, total, square) in sums.items():
        centre = total / count
        result[name] = square / count - torch.outer(centre, centre)


def _drawing(found: Sequence[Mapping[str, Any]], used: Sequence[Mapping[str, Any]]) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        roles = list(dict.fromkeys(each["role"] for each in found))
        for number, role in enumerate(roles):
            points = sorted((each["layer"], each["alpha"]) for each in found if each["role"] == role)
            style = ("-", "--", ":", "-.")[number // 10 % 4]
            left.plot(*zip(*points, strict=True), style, marker="o", ms=3, color=f"C{number % 10}", label=role)
        left.set(xlabel="layer (-1: none)", ylabel="exponent of the tail (FARMS)")
        left.set_title("smaller is heavier: better trained", fontsize=10)
        left.legend(fontsize=6, ncols=1 + len(roles) // 10)
        for number, role in enumerate(dict.fromkeys(each["role"] for each in used)):
            mine = [each for each in used if each["role"] == role]
            for name, style in (("hard", "--"), ("soft", ":"), ("both", "-")):
                layers, values = [each["layer"] for each in mine], [each[name] for each in mine]
                right.plot(layers, values, style, marker="o", ms=3, color=f"C{number}", label=f"{role} {name}")
        right.set(xlabel="layer", ylabel="share of the width", yscale="log")
        right.set_title("use of feed-forward layers' width", fontsize=10)
        if used:
            right.legend(fontsize=7)
        for axis in (left, right):
            axis.grid(alpha=0.3)

    return draw
