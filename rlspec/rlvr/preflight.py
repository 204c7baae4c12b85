"""Every training problem is checked before training: its gold answer by the grader, its prompt by its length.

What fails is listed with the reason and dropped, never silently: a gold that the grader does not accept against itself
would punish the right answer, and one that it accepts after a mutation would reward a wrong one.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from rlspec.errors import DataError
from rlspec.rlvr.data import Problem
from rlspec.rlvr.grading import GraderPool, preflight, read_as_one_number
from rlspec.run_directory import PREFLIGHT
from rlspec.runtime.starting import Run

log = logging.getLogger(__name__)
PromptLength = Callable[[Problem], int]  # in tokens
CHUNK = 512  # problems checked at once where only the first few are wanted


@dataclass(frozen=True)
class Dropped:
    """A problem that is not trained on."""

    id: str
    problem: str
    answer: str  # gold
    check: str  # what failed: `answer`, `identity`, `mutation: <kind>` or `length`
    reason: str  # the grader's reason code, or the length in tokens and the limit
    tried: str = ""  # the answer that was graded; empty for other checks


@dataclass(frozen=True)
class Checked:
    """The problems that passed, in their order, and those that did not."""

    problems: list[Problem]
    dropped: list[Dropped]

    def describe(self) -> str:
        """One line with counts and reasons."""
        total = len(self.problems) + len(self.dropped)
        return f"{len(self.problems)} of {total} problems passed the preflight" + self.reasons()

    def reasons(self) -> str:
        """What the dropped problems failed, with counts; empty without any."""
        counts = Counter(f"{drop.check} ({drop.reason.partition(':')[0]})" for drop in self.dropped)
        listed = ", ".join(f"{count} {what}" for what, count in counts.most_common())
        return f"; dropped: {listed}" if listed else ""

    def write(self, path: Path) -> None:
        """The dropped problems as JSON lines."""
        lines = (json.dumps(asdict(drop), ensure_ascii=False) + "\n" for drop in self.dropped)
        path.write_text("".join(lines), encoding="utf-8")


def keep_checked(
    problems: list[Problem], run: Run, *, pool: GraderPool, prompt_length: PromptLength, longest: int, limit: int | None
) -> list[Problem]:
    """The problems that pass, in their order; the others are listed in the run's directory.

    The main process checks once and for all: the others, and a resumed run, drop what its report lists, so that a
    verdict that timed out here and not there cannot give two orders of problems.
    """
    report = run.directory.path / PREFLIGHT
    if run.process.is_main_process and (run.point is None or not report.is_file()):
        checked = check_problems(
            problems, pool=pool, prompt_length=prompt_length, max_prompt_length=longest, limit=limit
        )
        checked.write(report)
        run.display.line(f"{checked.describe()}" + (f"; list: {report}" if checked.dropped else ""))
    run.process.wait_for_everyone()
    dropped = {json.loads(line)["id"] for line in report.read_text(encoding="utf-8").splitlines()}
    return [problem for problem in problems if problem.id not in dropped][:limit]


def check_problems(
    problems: Sequence[Problem],
    *,
    pool: GraderPool,
    prompt_length: PromptLength | None = None,
    max_prompt_length: int | None = None,
    limit: int | None = None,
    mutations_per_gold: int = 2,
) -> Checked:
    """Check problems in their order, until `limit` of them have passed.

    Args:
        problems: the candidates.
        pool: grades each gold against itself and against mutations of it.
        prompt_length: prompt's length in tokens, template included; None: lengths are not checked.
        max_prompt_length: longest prompt that is kept.
        limit: number of problems wanted; None: all that pass.
        mutations_per_gold: wrong answers tried for every distinct gold.

    Raises:
        DataError: no problem passes.
    """
    kept: list[Problem] = []
    dropped: list[Dropped] = []
    verdicts: dict[str, tuple[str, str, str] | None] = {}
    candidates = iter(problems)
    # All at once keeps every process of the pool busy; where a few are wanted, most would be graded for nothing.
    while len(kept) != limit and (chunk := list(islice(candidates, CHUNK if limit else None))):
        _grade_golds(chunk, verdicts, pool, mutations_per_gold)
        for problem in chunk:
            if len(kept) == limit:
                break
            fault = _answer_fault(problem, verdicts) or _length_fault(problem, prompt_length, max_prompt_length)
            if fault is None:
                kept.append(problem)
            else:
                dropped.append(Dropped(problem.id, problem.problem, problem.answer, *fault))
    checked = Checked(kept, dropped)
    if not kept:
        raise DataError(f"none of {len(dropped)} problems can be trained on{checked.reasons()}")
    if dropped:
        log.warning(checked.describe())
    if joined := read_as_one_number([problem.answer for problem in kept]):
        log.warning("%d golds with commas, such as %s, are read as one number", len(joined), joined[0])
    return checked


def _grade_golds(
    problems: Sequence[Problem],
    verdicts: dict[str, tuple[str, str, str] | None],
    pool: GraderPool,
    mutations_per_gold: int,
) -> None:
    """Add to `verdicts` the first fault of every gold that is new: many problems share their gold."""
    golds = list(dict.fromkeys(p.answer for p in problems if p.answer and p.answer not in verdicts))
    verdicts.update(dict.fromkeys(golds))
    for failure in preflight(golds, pool=pool, mutations_per_row=mutations_per_gold).failures if golds else []:
        if verdicts[failure.gold] is None:
            verdicts[failure.gold] = (failure.check, failure.reason, failure.answer)


def _answer_fault(problem: Problem, verdicts: dict[str, tuple[str, str, str] | None]) -> tuple[str, str, str] | None:
    return verdicts[problem.answer] if problem.answer else ("answer", "missing", "")


def _length_fault(
    problem: Problem, prompt_length: PromptLength | None, longest: int | None
) -> tuple[str, str, str] | None:
    if prompt_length is None or longest is None or (length := prompt_length(problem)) <= longest:
        return None
    return "length", f"too long: {length} tokens, at most {longest}", ""
