"""Every training problem is checked before training: what its answer is judged by, and its prompt's length.

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

from rlspec.checkpoint import write_text_atomically
from rlspec.errors import CheckpointError, DataError
from rlspec.rlvr.data.problems import Problem, content_id
from rlspec.rlvr.verifiers.verifier import Fault, Verifiers
from rlspec.run_directory import PREFLIGHT, PROBLEMS
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
    check: str  # what failed: a verifier's check, or `length`
    reason: str  # the verifier's reason code, or the length in tokens and the limit
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


def check_same_problems(problems: Sequence[Problem], run: Run) -> None:
    """A resumed run draws its prompts by their place: other problems, or another order, would be another run.

    Raises:
        CheckpointError: With the first difference.
    """
    path = run.directory.path / PROBLEMS
    ids, processes = [problem.id for problem in problems], run.process.num_processes
    answers = [content_id(json.dumps([each.answer, each.columns], sort_keys=True, default=str)) for each in problems]
    if run.point is not None and path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["ids"] != ids:
            pairs = enumerate(zip(stored["ids"], ids, strict=False), start=1)
            row = next((row for row, (then, now) in pairs if then != now), min(len(ids), len(stored["ids"])) + 1)
            raise CheckpointError(
                f"{run.directory.path}: its run had {len(stored['ids'])} problems to train on, now it has {len(ids)}, "
                f"and problem {row} is another one; restore the data set, or start a new run without resume"
            )
        if stored.get("answers", answers) != answers:
            pairs = enumerate(zip(stored["answers"], answers, strict=True), start=1)
            row = next(row for row, (then, now) in pairs if then != now)
            raise CheckpointError(
                f"{run.directory.path}: its run had another answer, or other columns, for problem {row} "
                f"({problems[row - 1].problem[:60]!r}); restore the data set, or start a new run without resume"
            )
        if stored["processes"] != processes and run.process.is_main_process:
            was = f"{stored['processes']} process" + ("es" if stored["processes"] > 1 else "")
            run.display.warn(f"the run began with {was} and goes on with {processes}: answers are sampled otherwise")
    if run.process.is_main_process:
        write_text_atomically(path, json.dumps({"ids": ids, "answers": answers, "processes": processes}))


def keep_checked(
    problems: list[Problem],
    run: Run,
    *,
    verifiers: Verifiers,
    prompt_length: PromptLength,
    longest: int,
    limit: int | None,
) -> list[Problem]:
    """The problems that pass, in their order; the others are listed in the run's directory.

    The main process checks once and for all: the others, and a resumed run, drop what its report lists, so that a
    verdict that timed out here and not there cannot give two orders of problems.
    """
    report = run.directory.path / PREFLIGHT
    if run.process.is_main_process and (run.point is None or not report.is_file()):
        checked = check_problems(
            problems, verifiers=verifiers, prompt_length=prompt_length, max_prompt_length=longest, limit=limit
        )
        checked.write(report)
        run.display.line(f"{checked.describe()}" + (f"; list: {report}" if checked.dropped else ""))
    run.process.wait_for_everyone()
    dropped = {json.loads(line)["id"] for line in report.read_text(encoding="utf-8").splitlines()}
    return [problem for problem in problems if problem.id not in dropped][:limit]


def check_problems(
    problems: Sequence[Problem],
    *,
    verifiers: Verifiers,
    prompt_length: PromptLength | None = None,
    max_prompt_length: int | None = None,
    limit: int | None = None,
) -> Checked:
    """Check problems in their order, until `limit` of them have passed.

    Args:
        problems: the candidates.
        verifiers: what answers will be judged by.
        prompt_length: prompt's length in tokens, template included; None: lengths are not checked.
        max_prompt_length: longest prompt that is kept.
        limit: number of problems wanted; None: all that pass.

    Raises:
        DataError: no problem passes.
    """
    kept: list[Problem] = []
    dropped: list[Dropped] = []
    candidates = iter(problems)
    # All at once keeps every process of a pool busy; where a few are wanted, most would be graded for nothing.
    while len(kept) != limit and (chunk := list(islice(candidates, CHUNK if limit else None))):
        for problem, found in zip(chunk, verifiers.check(chunk), strict=True):
            if len(kept) == limit:
                break
            fault = found or _length_fault(problem, prompt_length, max_prompt_length)
            if fault is None:
                kept.append(problem)
            else:
                entry = (fault.check, fault.reason, fault.tried)
                dropped.append(Dropped(problem.id, problem.problem, problem.answer, *entry))
    checked = Checked(kept, dropped)
    if not kept:
        raise DataError(f"none of {len(dropped)} problems can be trained on{checked.reasons()}")
    if dropped:
        log.warning(checked.describe())
    for line in verifiers.remarks(kept):
        log.warning(line)
    return checked


def _length_fault(problem: Problem, prompt_length: PromptLength | None, longest: int | None) -> Fault | None:
    if prompt_length is None or longest is None or (length := prompt_length(problem)) <= longest:
        return None
    return Fault("length", f"too long: {length} tokens, at most {longest}")
