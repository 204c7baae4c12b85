"""Before training: every gold must be accepted against itself, and near misses refused. Failures are listed."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlspec.rlvr.grading.compare import gold_text
from rlspec.rlvr.grading.expression import OverBudget
from rlspec.rlvr.grading.mutations import mutate
from rlspec.rlvr.grading.normalize import normalize
from rlspec.rlvr.grading.plain import plain_number
from rlspec.rlvr.grading.pool import GraderPool
from rlspec.rlvr.grading.verdict import Reason

_ONE_NUMBER = re.compile(r"[-+]?(?:\\?\$)?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that cannot be trained on: its `identity` was not accepted, or a `mutation: <kind>` was not refused."""

    index: int
    gold: str
    check: str
    answer: str
    reason: Reason


@dataclass(frozen=True)
class PreflightReport:
    """What the grader makes of a column of golds.

    Attributes:
        accepted: indices of usable rows, ascending.
        failures: one entry for each check that failed; a row may have several.
        rows: number of golds.
        mutated: number of wrong answers tried.
        unmutated: rows for which no certainly wrong answer could be made (they need only pass the identity).
        seconds: wall time of the grading.
        reasons: how often each reason was given.
    """

    accepted: list[int]
    failures: list[Failure]
    rows: int
    mutated: int
    unmutated: int
    seconds: float
    reasons: Counter[Reason] = field(default_factory=Counter)

    @property
    def verdicts_per_second(self) -> float:
        """Verdicts per second of wall time, generating the mutations included."""
        return sum(self.reasons.values()) / self.seconds if self.seconds else 0.0


def preflight(golds: Sequence[str], *, pool: GraderPool | None = None, mutations_per_row: int = 2) -> PreflightReport:
    r"""Grade `\boxed{gold}` and a few wrong answers for every gold.

    Args:
        golds: bare answers, GSM8K solutions with `####`, or solutions with a box.
        pool: where to grade; None starts one for this call.
        mutations_per_row: at most this many wrong answers for every gold.
    """
    if pool is None:
        with GraderPool(warm=not only_plain(golds)) as own:
            return preflight(golds, pool=own, mutations_per_row=mutations_per_row)
    start = time.perf_counter()
    checks: list[tuple[int, str, str]] = []  # (row, check, answer)
    unmutated = 0
    for row, gold in enumerate(golds):
        checks.append((row, "identity", gold_text(gold) or ""))
        wrong = _mutations(gold, mutations_per_row)
        unmutated += not wrong
        checks.extend((row, f"mutation: {kind}", answer) for kind, answer in wrong)
    verdicts = pool.grade_many([(f"\\boxed{{{answer}}}", golds[row]) for row, _, answer in checks])
    failures = [
        Failure(row, golds[row], check, answer, verdict.reason)
        for (row, check, answer), verdict in zip(checks, verdicts, strict=True)
        if verdict.correct is not (check == "identity")
    ]
    failed = {failure.index for failure in failures}
    return PreflightReport(
        accepted=[row for row in range(len(golds)) if row not in failed],
        failures=failures,
        rows=len(golds),
        mutated=len(checks) - len(golds),
        unmutated=unmutated,
        seconds=time.perf_counter() - start,
        reasons=Counter(verdict.reason for verdict in verdicts),
    )


def only_plain(golds: Sequence[str]) -> bool:
    """Whether every gold is a plain number, so that grading never needs computer algebra (`GraderPool(warm=False)`)."""
    texts = (gold_text(gold) for gold in golds)
    return all(text is not None and plain_number(normalize(text)) is not None for text in texts)


def read_as_one_number(golds: Sequence[str]) -> list[str]:
    """The bare golds, each once, whose commas are read as thousands: `100,200` may have been meant as two numbers."""
    texts = dict.fromkeys(gold_text(gold) or "" for gold in golds)
    return [text for text in texts if _ONE_NUMBER.match(text)]


def _mutations(gold: str, limit: int) -> list[tuple[str, str]]:
    try:
        return [(variant.kind, variant.answer) for variant in mutate(gold, limit)]
    except OverBudget:
        return []  # an outsized gold: the identity decides
