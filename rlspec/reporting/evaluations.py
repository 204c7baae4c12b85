"""What the evaluations of a run left: answers with verdicts, films, and tables of rates."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlspec.reporting.reading import items, mapping, number
from rlspec.reporting.text import shorten

MOST_PROBLEMS = 24
MOST_CHARACTERS = 1500  # of one answer
FILM_TYPES = {".mp4": "video/mp4", ".gif": "image/gif"}
Verdict = Literal["right", "wrong", "mixed"]


@dataclass(frozen=True)
class ShownAnswer:
    """One completion with its verdict."""

    mode: str  # greedy, or sample N
    text: str
    correct: bool
    reason: str
    extracted: str


@dataclass
class ShownProblem:
    """A problem with some of its answers.

    Attributes:
        problem, gold: Its text and the right answer.
        answers: The greedy one, the first right and the first wrong sample.
        right, total: Of all answers to it.
        earlier: Whether the greedy answer before training was right; None: not known.
    """

    problem: str
    gold: str
    answers: list[ShownAnswer] = field(default_factory=list)
    right: int = 0
    total: int = 0
    earlier: bool | None = None

    @property
    def verdict(self) -> Verdict:
        """Over all its answers."""
        return "right" if self.right == self.total else "mixed" if self.right else "wrong"

    @property
    def greedy(self) -> bool | None:
        """Whether the greedy answer is right."""
        return next((answer.correct for answer in self.answers if answer.mode == "greedy"), None)


@dataclass(frozen=True)
class Answers:
    """Some problems of an evaluation, of each verdict as many as there are or fit.

    Attributes:
        label: Of the evaluation.
        shown: Problems.
        total: How many there are.
        unreadable: Lines that are no answer.
    """

    label: str
    shown: list[ShownProblem]
    total: int
    unreadable: int


@dataclass(frozen=True)
class ShownFilm:
    """A film inside of the page."""

    name: str
    outcome: str
    kind: Literal["video", "image"]
    source: str  # data URI

    @property
    def success(self) -> bool:
        """As its name says."""
        return self.outcome == "success"


@dataclass(frozen=True)
class Films:
    """Films of an evaluation, as many as fit; `left_out` names the others."""

    label: str
    shown: list[ShownFilm]
    left_out: list[str]


@dataclass(frozen=True)
class RateTable:
    """Rates by task, by factor of a perturbation, or by whatever an evaluation tells apart."""

    title: str
    rows: list[tuple[str, str, str, str]]  # name, successes, rate with interval, failures


def order_of(label: str) -> tuple[int, int, str]:
    """Later evaluations last: before, step-N, after, and what was measured by hand."""
    head, _, rest = label.partition("-")
    if head == "step" and rest.partition("-")[0].isdecimal():
        return 1, int(rest.partition("-")[0]), label
    return {"before": 0, "after": 3}.get(head, 2), 0, label


def read_answers(folder: Path) -> list[Answers]:
    """The newest answers to each set of problems, with what the greedy answer was before training."""
    newest: dict[str, Path] = {}
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: order_of(path.stem)):
        newest[_set_of(path.stem)] = path
    found = []
    for name, path in newest.items():
        problems, unreadable = _problems(path)
        before = path.with_name(f"before-{name}.jsonl")
        earlier = _problems(before)[0] if before.is_file() and before != path else {}
        for key, problem in problems.items():
            problem.earlier = earlier[key].greedy if key in earlier else None
        if problems:
            found.append(Answers(path.stem, _chosen(list(problems.values())), len(problems), unreadable))
    return found


def _set_of(stem: str) -> str:
    """`after-gsm8k` and `step-40-gsm8k` are answers to gsm8k."""
    head, _, rest = stem.partition("-")
    return rest.partition("-")[2] if head == "step" else rest if head in ("before", "after") else stem


def _problems(path: Path) -> tuple[dict[str, ShownProblem], int]:
    found: dict[str, ShownProblem] = {}
    unreadable = 0
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            try:
                row = json.loads(line)
                key = str(row["id"])
                text, correct = str(row["completion"]), bool(row["correct"])
            except (ValueError, KeyError, TypeError, RecursionError):
                unreadable += bool(line.strip())
                continue
            problem = found.setdefault(
                key,
                ShownProblem(shorten(str(row.get("problem", "")), MOST_CHARACTERS), shorten(str(row.get("gold")), 200)),
            )
            problem.total += 1
            problem.right += correct
            mode = str(row.get("mode"))
            if mode == "greedy" or all(each.correct != correct or each.mode == "greedy" for each in problem.answers):
                problem.answers.append(_answer(row, mode, text, correct))
    return found, unreadable


def _answer(row: Mapping[str, Any], mode: str, text: str, correct: bool) -> ShownAnswer:
    extracted = "" if row.get("extracted") is None else shorten(str(row["extracted"]), 200)
    shown = mode if mode == "greedy" else f"sample {mode}"
    return ShownAnswer(
        shown, shorten(text, MOST_CHARACTERS), correct, shorten(str(row.get("reason", "")), 60), extracted
    )


def _chosen(problems: list[ShownProblem]) -> list[ShownProblem]:
    """As many of each verdict, in their own order; where one has fewer, others take its places."""
    by_verdict = [[each for each in problems if each.verdict == verdict] for verdict in ("wrong", "mixed", "right")]
    chosen: list[ShownProblem] = []
    for place in range(max(map(len, by_verdict))):
        chosen += [group[place] for group in by_verdict if place < len(group)]
        if len(chosen) >= MOST_PROBLEMS:
            break
    kept = {id(each) for each in chosen[:MOST_PROBLEMS]}
    return [each for each in problems if id(each) in kept]


def read_films(folder: Path, room: int) -> list[Films]:
    """Films of the newest evaluation that has any, as many as fit into `room` bytes of the page.

    Successes and failures take turns.
    """
    filmed = [path for path in folder.glob("*/videos") if any(_films(path))]
    if not filmed:
        return []
    newest = max(filmed, key=lambda path: order_of(path.parent.name))
    shown, left_out = [], []
    for path in _taking_turns(list(_films(newest))):
        size = 4 * path.stat().st_size // 3
        if size > room:
            left_out.append(path.name)
            continue
        room -= size
        data = base64.b64encode(path.read_bytes()).decode()
        name, outcome = _name_and_outcome(path)
        kind: Literal["video", "image"] = "video" if path.suffix == ".mp4" else "image"
        shown.append(ShownFilm(name, outcome, kind, f"data:{FILM_TYPES[path.suffix]};base64,{data}"))
    return [Films(newest.parent.name, shown, left_out)]


def _films(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.suffix in FILM_TYPES and not path.name.startswith("."))


def _name_and_outcome(path: Path) -> tuple[str, str]:
    """`push-cube-003-timeout.mp4` is of episode 3 of push-cube."""
    head, _, outcome = path.stem.rpartition("-")
    task, _, index = head.rpartition("-")
    return f"{task}, episode {int(index)}" if index.isdecimal() and task else path.stem, outcome


def _taking_turns(paths: list[Path]) -> list[Path]:
    groups = [
        [path for path in paths if (_name_and_outcome(path)[1] == "success") is wanted] for wanted in (True, False)
    ]
    return [group[place] for place in range(max(map(len, groups))) for group in groups if place < len(group)]


def rate_tables(metrics: Mapping[str, Any]) -> list[RateTable]:
    """Every mapping of an evaluation's metrics whose values are rates, those one level deeper included.

    So tasks, suites and the factors of a perturbation need no names here.
    """
    found = []
    for name, group in metrics.items():
        rows = [_rate_row(label, rate) for label, rate in _rates(mapping(group))]
        if rows and not (name == "suites" and len(rows) == 1):
            found.append(RateTable(name, rows))
    return found


def _rates(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, value in group.items():
        if number(mapping(value).get("success_rate")) is not None:
            yield f"{prefix}{name}", value
        elif not prefix:
            yield from _rates(mapping(value), f"{name}: ")


def _rate_row(name: str, rate: Mapping[str, Any]) -> tuple[str, str, str, str]:
    failures = ", ".join(f"{kind} {count}" for kind, count in mapping(rate.get("failures")).items())
    counts = f"{rate['successes']}/{rate['episodes']}" if "successes" in rate and "episodes" in rate else ""
    return str(name), counts, with_interval(rate.get("success_rate"), rate.get("ci95")), failures


def percent(value: Any) -> str:
    """A share in percent; empty for what is no number."""
    share = number(value)
    return "" if share is None else f"{100 * share:.1f}%"


def interval_words(interval: Any) -> str:
    """The ends of a 95% interval in percent; empty where there is none."""
    ends = [number(end) for end in items(interval)]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return ""
    return f"95% CI {100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def with_interval(value: Any, interval: Any) -> str:
    """A share in percent, with its interval where there is one."""
    words = interval_words(interval).removeprefix("95% CI ")
    return f"{percent(value)} [{words.replace(' to ', ', ')}]" if words and percent(value) else percent(value)
