"""`what=advice`: a rule and a k_p for every role, from how far two halves of the batch agree on its update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from rlspec.diagnostics.measures.passing import ADAMW, MUON
from rlspec.diagnostics.result import StudyResult, Table, mean
from rlspec.diagnostics.studies.noise import BlockNoise, grouped, measure
from rlspec.diagnostics.studies.spectra import SHUT
from rlspec.diagnostics.subject import Subject
from rlspec.optim.map.symmetry import SPECTRAL_ROLES

ENOUGH = 0.5
"""Agreement from which an update is more signal than noise."""

SOME = 0.15
"""Agreement below which a gate is not advised: in small matrices chance gives as much."""

BETTER = 1.3
"""By so much a gate has to agree more than Muon to be worth the directions that it leaves out."""

HIGH_PASS = ("k_p=3", "k_p=2", "k_p=1", "k_p=0")  # from the most open to the most closed


@dataclass(frozen=True)
class Advice:
    """For one role: rule, k_p of Pion's gate (None: it has none), and why."""

    role: str
    rule: str
    promotion_steps: int | None
    reason: str

    @property
    def setting(self) -> dict[str, Any]:
        """As a value of the recipe's `optim.roles`."""
        gate = {} if self.promotion_steps is None else {"promotion_steps": self.promotion_steps}
        return {"rule": self.rule, **gate}


def study(subject: Subject) -> StudyResult:
    """Judge every role of matrices; all others keep AdamW."""
    found = measure(subject)
    groups = grouped(found)
    judged = [each for each in found if not _is_still(each)]
    if not judged:
        raise subject.no_gradient()
    moved = grouped(judged)
    advice = [_of_matrices(role, blocks) for role, blocks in moved.items()]
    rest = dict.fromkeys(spec.label for spec in subject.vectors() if spec.label not in groups)
    advice += [Advice(role, ADAMW, None, "no matrix: entries have no common basis") for role in rest]
    rows = [{"role": each.role, "rule": each.rule, "k_p": _gate(each), "because": each.reason} for each in advice]
    notes = [
        f"from {len(subject.parts)} {subject.unit}: its halves have {len(subject.parts) // 2} each, a step of the "
        f"recipe {subject.step_parts}",
        "agreement: cosine between the updates that two halves of the batch make, about the share of signal in them",
        *_left_out([role for role in groups if role not in moved], subject.too_large()),
    ]
    if words := override(advice):
        notes.append(f"to use it: {words}")
    numbers = {"roles": {each.role: {**each.setting, "reason": each.reason} for each in advice}}
    size = (11.0, 1.6 + 0.3 * len(moved))
    return StudyResult([Table("advice", rows)], notes, numbers, _drawing(judged, advice), size)


def _left_out(still: Sequence[str], large: Sequence[str]) -> list[str]:
    named = (("no gradient, so no advice", still), ("too large to be looked at, so no advice", large))
    return [f"{why}: {', '.join(roles)}" for why, roles in named if roles]


def advise(agreement: Mapping[str, float], shut: Mapping[str, float]) -> tuple[str, str]:
    """The filter, and why.

    Args:
        agreement: filter -> cosine between halves, NaN where it is shut.
        shut: filter -> share of blocks for which it is shut.
    """
    muon = agreement[MUON]
    if muon >= ENOUGH:
        return MUON, f"all directions may move: Muon's update agrees to {muon:.0%} between halves, so noise is small"
    open_ones = [name for name in HIGH_PASS if shut[name] <= 0.5 and agreement[name] == agreement[name]]
    for name in open_ones:
        if agreement[name] >= ENOUGH:
            return name, f"agrees to {agreement[name]:.0%} between halves, Muon's to {muon:.0%}: the rest is noise"
    best = max(open_ones, key=lambda name: agreement[name], default=None)
    if best is not None and agreement[best] >= max(SOME, BETTER * max(muon, agreement[ADAMW])):
        larger = (1 - agreement[best]) / agreement[best]
        others = f"Muon {muon:.0%}, AdamW {agreement[ADAMW]:.0%}"
        return (
            best,
            f"agrees best, to {agreement[best]:.0%} ({others}); {larger:.1f} times the batch would be half signal",
        )
    if agreement[ADAMW] > muon:
        return (
            ADAMW,
            f"no gate agrees much more than AdamW ({agreement[ADAMW]:.0%}, Muon {muon:.0%}): noise is everywhere",
        )
    return MUON, f"no gate agrees much more than Muon ({muon:.0%}): closing directions would win nothing"


def _is_still(block: BlockNoise) -> bool:
    """Whether a half of the parts had no gradient."""
    return block.agreement[MUON] != block.agreement[MUON]


def _of_matrices(role: str, blocks: Sequence[BlockNoise]) -> Advice:
    if role.rpartition(":")[2].startswith("lora."):
        return Advice(role, ADAMW, None, "a factor of a product: optim=lora_muon moves both by what they make together")
    if role.rpartition(":")[2].partition(".")[0] not in SPECTRAL_ROLES:
        return Advice(role, ADAMW, None, "rows are tokens or outputs of their own: no rotation of them is a symmetry")
    names = blocks[0].agreement
    agreement = {name: mean(each.agreement[name] for each in blocks) for name in names}
    shut = {name: sum(each.passed[name] < SHUT for each in blocks) / len(blocks) for name in names}
    name, reason = advise(agreement, shut)
    if name in (MUON, ADAMW):
        return Advice(role, name, None, reason)
    return Advice(role, "pion", int(name.partition("=")[2]), f"{name} {reason}")


def override(advice: Sequence[Advice]) -> str:
    """The advice on matrices as an argument of `rlspec.train`; what is AdamW's by default is left out, all may be."""
    settings = []
    for each in advice:
        role = each.role.rpartition(":")[2].partition(".")[0]
        if each.rule != ADAMW or role in SPECTRAL_ROLES:
            pairs = ", ".join(f"{key}: {value}" for key, value in each.setting.items())
            key = each.role.replace(":", r"\:")  # Hydra's grammar
            settings.append(f"{key}: {{{pairs}}}")
    return f'optim=muon "optim.roles={{{", ".join(settings)}}}"' if settings else ""


def _gate(each: Advice) -> str:
    return "-" if each.promotion_steps is None else str(each.promotion_steps)


def _drawing(found: Sequence[BlockNoise], advice: Sequence[Advice]) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        groups = grouped(found)
        names = list(found[0].agreement)
        for row, (role, blocks) in enumerate(groups.items()):
            values = [mean(each.agreement[name] for each in blocks) for name in names]
            axis.scatter(values, [row] * len(values), c=[f"C{number}" for number in range(len(names))], s=28, zorder=3)
            chosen = next(each for each in advice if each.role == role)
            name = chosen.rule if chosen.promotion_steps is None else f"k_p={chosen.promotion_steps}"
            axis.scatter(values[names.index(name)], row, s=160, facecolors="none", edgecolors="k", zorder=4)
        for number, name in enumerate(names):
            axis.scatter([], [], color=f"C{number}", s=28, label=name)
        axis.scatter([], [], s=160, facecolors="none", edgecolors="k", label="advised")
        axis.axvline(ENOUGH, color="0.3", lw=0.8, ls=":")
        axis.set_yticks(range(len(groups)), list(groups), fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel("agreement between halves of the batch: share of signal in the update")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))

    return draw
