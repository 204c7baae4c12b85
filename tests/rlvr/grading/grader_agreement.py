r"""How far other graders agree with ours on MATH-500, by kind of notation and kind of mistake, as a markdown table.

    python tests/rlvr/grading/grader_agreement.py MATH500.jsonl [answers of each sort per gold, default 8]

Columns: rlspec, math-verify, and whichever of these Python finds (PYTHONPATH): `math_equivalence` (Hendrycks' MATH),
`grading.grader` (PRM800K, needs pylatexenc), sympy's own LaTeX reader (needs lark). The golds are compared with
themselves (`\boxed{}` around both for math-verify), with equivalent spellings and with certainly wrong answers.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlspec.rlvr.grading import equivalents, grade_answer, mutate

Grader = Callable[[str, str], bool]
SECONDS = 3

# Kinds of equivalent spelling and of mistake, by group; a kind in no group is its own.
GROUPS = {
    "TeX layout": ("dollars around", "spaces around", "full stop", "thin spaces", "no space after comma", "left"),
    "TeX shorthand": (r"\frac43", r"\frac 43", r"\dfrac", r"\tfrac", r"\sqrt2", "a/b", "over"),
    "number formats": ("trailing", "commas", "{,}", r",\!", "leading zero", "mixed number"),
    "scientific": ("e-notation", "E-notation", "times ten", "x 10^"),
    "units": (r"\$", r"\%", "degrees", "unit", "euro sign", "pound sign", "celsius", "currency"),
    "names": ("x=", "x =", "points", "angle", "value", "index", "one name", "name of all", "named"),
    "typed without TeX": ("typed", "full-width", "double sign"),
    "order of terms": ("commuted",),
    "sets and lists": ("as list", "as set", "and", ", and", "union of sets", "other order"),
    "regions": ("interval as relation", "union as relations", "relation"),
    "arrays": ("array",),
    "words": ("text", "word", "mbox", "letter", "not", "choice"),
}
MISTAKES = {
    "a digit": ("digit", "two up"),
    "a sign": ("sign",),
    "a part or an element left out": ("dropped", "left out"),
    "another order": ("reversed", "exchanged", "transposed"),
    "another bracket or container": ("bracket", "tuple", "as set", "as list", "( as [", "] as )"),
    "another relation or joint": ("turned", "<", "or as and"),
    "another unit or currency": ("unit", "currency"),
    "another exponent's sign": ("e as e-",),
    "another word": ("letter", "not", "choice"),
}


class Pair(NamedTuple):
    """An answer to be compared with a gold, and whether it equals it."""

    group: str
    answer: str
    gold: str
    same: bool


def pairs(golds: list[str], per_gold: int) -> Iterator[Pair]:
    """Every gold against itself, and evenly spread equivalents and mutations of it."""
    for gold in golds:
        yield Pair("identity", gold, gold, True)
        for one in _spread(equivalents(gold), per_gold):
            yield Pair(_group(one.kind, GROUPS), one.answer, gold, True)
        for one in _spread(mutate(gold), per_gold):
            yield Pair(_group(one.kind.rpartition(": ")[2], MISTAKES), one.answer, gold, False)


def _spread(items: list[Any], wanted: int) -> list[Any]:
    return items[:: max(1, -(-len(items) // wanted))]


def _group(kind: str, groups: dict[str, tuple[str, ...]]) -> str:
    exact = next((group for group, kinds in groups.items() if kind in kinds), None)
    return exact or next((group for group, kinds in groups.items() if any(part in kind for part in kinds)), kind)


def ours(answer: str, gold: str) -> bool:
    """rlspec."""
    return grade_answer(answer, gold).correct is True


def math_verify(answer: str, gold: str) -> bool:
    """math-verify with both sides boxed, as verl calls it."""
    from math_verify import parse, verify

    sides = [parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer)]
    return bool(verify(*sides, timeout_seconds=None))


def sympy_latex(answer: str, gold: str) -> bool:
    """sympy's LaTeX reader (lark) and simplification."""
    import sympy
    from sympy.parsing.latex import parse_latex

    one, other = (parse_latex(text, backend="lark") for text in (answer, gold))
    return bool(one == other or sympy.simplify(one - other) == 0)


def peers() -> dict[str, Grader]:
    """The graders that can be imported, ours first."""
    found: dict[str, Grader] = {"rlspec": ours, "math-verify": math_verify}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        for name, module, function in (
            ("Hendrycks", "math_equivalence", "is_equiv"),
            ("PRM800K", "grading.grader", "grade_answer"),
        ):
            try:
                found[name] = getattr(importlib.import_module(module), function)
            except ImportError:
                continue
    if importlib.util.find_spec("lark"):
        found["sympy"] = sympy_latex
    return found


def verdict(grader: Grader, answer: str, gold: str) -> bool:
    """Its verdict; a failure or more than `SECONDS` is a refusal."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        return bool(grader(answer, gold))
    except Exception:  # of whatever kind: it gave no reward
        return False
    finally:
        signal.alarm(0)


def _too_long(*_: object) -> None:
    raise TimeoutError


def table(golds: list[str], per_gold: int) -> list[str]:
    """Rows of markdown: how many of a group's pairs each grader judges rightly; then every wrong answer accepted."""
    graders = peers()
    asked: Counter[tuple[bool, str]] = Counter()
    right: Counter[tuple[bool, str, str]] = Counter()
    fooled: list[str] = []
    for pair in pairs(golds, per_gold):
        asked[pair.same, pair.group] += 1
        for name, grader in graders.items():
            agrees = verdict(grader, pair.answer, pair.gold) is pair.same
            right[pair.same, pair.group, name] += agrees
            if not agrees and not pair.same:
                fooled.append(f"- {name} accepts `{pair.answer}` for `{pair.gold}` ({pair.group})")
    lines = [f"| kind | pairs | {' | '.join(graders)} |", "|---" * (len(graders) + 2) + "|"]
    for same, title in ((True, "right answer, accepted"), (False, "wrong answer, refused")):
        groups = [group for group in asked if group[0] is same]
        for key in groups:
            lines.append(f"| {key[1]} | {asked[key]} | {' | '.join(str(right[*key, name]) for name in graders)} |")
        sums = [sum(right[*key, name] for key in groups) for name in graders]
        total = sum(asked[key] for key in groups)
        lines.append(f"| **{title}** | {total} | {' | '.join(f'**{count}**' for count in sums)} |")
    return [*lines, "", *sorted(fooled)]


def main(arguments: list[str]) -> None:
    """Print the table."""
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    lines = Path(arguments[0]).read_text(encoding="utf-8").splitlines()
    golds = list(dict.fromkeys(json.loads(line)["answer"] for line in lines))
    print("\n".join(table(golds, int(arguments[1]) if arguments[1:] else 8)))


if __name__ == "__main__":
    main(sys.argv[1:])
