"""Before training: every gold can be read, is accepted against itself, near misses are refused, no two contradict.

Failures are listed.
"""

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
from rlspec.rlvr.grading.plain import is_decimal, plain_number
from rlspec.rlvr.grading.pool import GraderPool
from rlspec.rlvr.grading.readable import is_readable
from rlspec.rlvr.grading.verdict import Reason

_ONE_NUMBER = re.compile(r"[-+]?(?:\\?\$)?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that cannot be trained on.

    Attributes:
        index: of the row.
        gold: as it stands there.
        check: what failed: `readable`, `identity`, `mutation: <kind>` (it was not refused), or `same problem as row N`.
        answer: what was graded; the other row's gold where two contradict.
        reason: why.
    """

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


def preflight(
    golds: Sequence[str],
    *,
    problems: Sequence[str] | None = None,
    pool: GraderPool | None = None,
    mutations_per_row: int = 2,
) -> PreflightReport:
    r"""Grade `\boxed{gold}` and a few wrong answers for every gold that can be read.

    Args:
        golds: bare answers, GSM8K solutions with `####`, or solutions with a box.
        problems: their problems, to find rows with the same one and golds that contradict; None: not looked for.
        pool: where to grade; None starts one for this call.
        mutations_per_row: at most this many wrong answers for every gold.
    """
    if pool is None:
        with GraderPool(warm=not only_plain(golds)) as own:
            return preflight(golds, problems=problems, pool=own, mutations_per_row=mutations_per_row)
    start = time.perf_counter()
    checks, unmutated, failures = _checks(golds, mutations_per_row)
    verdicts = pool.grade_many([(f"\\boxed{{{answer}}}", golds[row]) for row, _, answer in checks])
    failures += [
        Failure(row, golds[row], check, answer, verdict.reason)
        for (row, check, answer), verdict in zip(checks, verdicts, strict=True)
        if verdict.correct is not (check == "identity")
    ]
    if problems is not None:
        failures += _contradictions(golds, problems, pool)
    failures.sort(key=lambda failure: failure.index)
    failed = {failure.index for failure in failures}
    return PreflightReport(
        accepted=[row for row in range(len(golds)) if row not in failed],
        failures=failures,
        rows=len(golds),
        mutated=sum(check != "identity" for _, check, _ in checks),
        unmutated=unmutated,
        seconds=time.perf_counter() - start,
        reasons=Counter(verdict.reason for verdict in verdicts),
    )


def _checks(golds: Sequence[str], mutations_per_row: int) -> tuple[list[tuple[int, str, str]], int, list[Failure]]:
    """Row, check and answer of everything to be graded, how many rows have no mutation, and the unreadable rows."""
    checks: list[tuple[int, str, str]] = []
    failures: list[Failure] = []
    unmutated = 0
    for row, gold in enumerate(golds):
        text = gold_text(gold)
        if text is not None and not is_readable(text):
            failures.append(Failure(row, gold, "readable", text, "gold_unreadable"))
            continue
        checks.append((row, "identity", text or ""))
        wrong = _mutations(gold, mutations_per_row)
        unmutated += not wrong
        checks.extend((row, f"mutation: {kind}", answer) for kind, answer in wrong)
    return checks, unmutated, failures


def _contradictions(golds: Sequence[str], problems: Sequence[str], pool: GraderPool) -> list[Failure]:
    """Rows whose problem is another row's too while neither gold is accepted for the other's."""
    first: dict[str, int] = {}
    pairs: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row, (problem, gold) in enumerate(zip(problems, golds, strict=True)):
        earlier = first.setdefault(" ".join(problem.split()), row)
        one, other = gold_text(golds[earlier]), gold_text(gold)
        if one is not None and other is not None and one != other:
            pairs.setdefault((one, other), []).append((earlier, row))
    verdicts = pool.grade_answers([pair for texts in pairs for pair in (texts, texts[::-1])])
    failures = []
    for rows, forth, back in zip(pairs.values(), verdicts[::2], verdicts[1::2], strict=True):
        if forth.correct or back.correct:
            continue
        for earlier, row in rows:
            for here, there in ((earlier, row), (row, earlier)):
                check = f"same problem as row {there}"
                failures.append(Failure(here, golds[here], check, gold_text(golds[there]) or "", "gold_contradicted"))
    return failures


def only_plain(golds: Sequence[str]) -> bool:
    """Whether every gold is a plain number, so that grading never needs computer algebra (`GraderPool(warm=False)`)."""
    texts = (gold_text(gold) for gold in golds)
    return all(text is not None and (is_decimal(text) or plain_number(normalize(text)) is not None) for text in texts)


def read_as_one_number(golds: Sequence[str]) -> list[str]:
    """The bare golds, each once, whose commas are read as thousands: `100,200` may have been meant as two numbers."""
    texts = dict.fromkeys(gold_text(gold) or "" for gold in golds)
    return [text for text in texts if _ONE_NUMBER.match(text)]


def _mutations(gold: str, limit: int) -> list[tuple[str, str]]:
    try:
        return [(variant.kind, variant.answer) for variant in mutate(gold, limit)]
    except OverBudget:
        return []  # an outsized gold: the identity decides
