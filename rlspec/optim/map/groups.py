"""Which groups contain which: whether a rule bears the symmetry of a parameter.

A rule that moves its update as the gradient moves, under O x O, does so under every smaller group too, such as the
S_ff x O(d) of an MLP; the other way round it breaks the symmetry: AdamW's S x S does not bear the O(d) of embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlspec.errors import ConfigError
from rlspec.optim.composition import Rule

CONTAINED = {"O": "OSPD-", "S": "SPD-", "P": "P-", "D": "D-", "-": "-"}
"""Group on one side -> those that it contains: O rotations and reflections, S signed permutations, P permutations,
D signs, - none."""

GAUGE = "GL(r)"
"""Of LoRA pairs: B A stays as it is when a matrix goes from one factor to the other. It is none of the others."""

_UNCUT = {"S_heads": "heads", "S_experts": "stacked"}


@dataclass(frozen=True)
class BlockLayout:
    """How a parameter is cut into blocks, which all have the same update, so that they may change places.

    Attributes:
        rows: of a block; 0: a vector.
        cols: of a block.
        heads: axis on which heads are cut; None: they are not.
        stacked: whether the first axis counts matrices.
    """

    rows: int
    cols: int
    heads: int | None = None
    stacked: bool = False


def check_group(group: str, name: str) -> None:
    """Refuse a group that nobody could compare with a rule's.

    Raises:
        ConfigError: naming the word and what is allowed.
    """
    if group.startswith(GAUGE):
        return
    for word in group.replace(" x ", ", ").split(", "):
        if word != "shift" and _acts(word) is None:
            raise ConfigError(
                f"{name}: group {group!r}: {word!r} is none of O(d), O(head), S_name (permutations), signs, SO(2), "
                "shift and -; write rows x columns, for example 'S_ff, signs x O(d)'"
            )


def rule_group(rule: Rule, cut: BlockLayout) -> str:
    """The group under which the rule's update of such a block moves as the gradient does, rows x columns."""
    if rule.kind == "pair":
        return GAUGE
    first, _, second = rule.symmetry.partition(" x ")
    if rule.sides == "short x long" and cut.rows > cut.cols:
        first, second = second, first
    return f"{first} x {second}" if cut.rows else first


def broken(group: str, rule: Rule, cut: BlockLayout) -> tuple[str, ...]:
    """What of a parameter's group the rule does not bear: words of the group, empty where it bears all."""
    if group.startswith(GAUGE):
        return () if rule.kind == "pair" else (GAUGE,)
    found: list[str] = []
    sides = rule_group(rule, cut).split(" x ")
    for axis, (words, side) in enumerate(zip(group.split(" x "), sides, strict=False)):
        for word in words.split(", "):
            if word == "shift":
                missing = not rule.centered
            else:
                missing = not _is_cut(word, axis, cut) and (_acts(word) or "-") not in CONTAINED.get(side, "")
            found += [word] if missing else []
    return tuple(found)


def _is_cut(word: str, axis: int, cut: BlockLayout) -> bool:
    """Whether blocks of their own bear a permutation, whatever the rule does inside."""
    kind = _UNCUT.get(word)
    return cut.stacked if kind == "stacked" else kind == "heads" and cut.heads == axis


def _acts(word: str) -> str | None:
    """The smallest of the groups in `CONTAINED` that contains what a word stands for."""
    if word.startswith(("O(", "SO(")):
        return "O"
    if word.startswith("S_") or word == "S":
        return "P"
    return {"signs": "D", "-": "-"}.get(word)
