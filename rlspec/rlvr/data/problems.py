r"""Problems with verifiable answers: generated, from local files, or from the hub, all as `Problem`.

Gold answers are read from a column that holds the answer itself, a GSM8K solution (text after ``####``) or a MATH
solution (the last balanced ``\boxed{}``). Nothing is dropped silently: each removal is counted in the log.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from operator import attrgetter
from typing import Any

from rlspec.config.paths import resolve_path
from rlspec.config.rlvr_schema import Columns, Data
from rlspec.errors import ConfigError, DataError
from rlspec.rlvr.data import arithmetic, words
from rlspec.rlvr.grading.extract import extract_answer
from rlspec.rlvr.tables import SUFFIXES, Row, cell_text, read_rows

log = logging.getLogger(__name__)

# Levels by name of a data set, and what gives text, answer, worked solution and level of its problems.
_GENERATORS: Mapping[str, tuple[Iterable[int], Callable[..., Iterable[tuple[str, str, str, int]]]]] = {
    "arithmetic": (arithmetic.LEVELS, arithmetic.solved),
    "words": (words.LEVELS, words.generate),
}

# What data sets in wide use call their columns, the surest names first.
_USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "problem": ("problem", "question", "prompt", "query", "instruction", "input"),
    "answer": (
        *("answer", "reward_model.ground_truth", "ground_truth", "final_answer", "expected_answer", "gold", "target"),
        *("label", "solution", "output", "response"),
    ),
}


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        problem: its text, without instruction or template.
        answer: the gold answer; empty where the source has none (the preflight drops it).
        solution: a worked solution, where the source has one.
        level: difficulty, where the source states it.
        id: hash of the problem's text, 16 hexadecimal digits: the same text has the same id everywhere. Where whole
            rows count, rows that repeat a text with other columns have a hash of theirs behind it.
        other_golds: what other rows with the same text call the answer.
        columns: the whole row, for verifiers that need more than a gold.
    """

    problem: str
    answer: str
    solution: str | None
    level: int | None
    id: str
    other_golds: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def text_id(self) -> str:
        """The part of its id that stands for its text."""
        return self.id.partition("-")[0]


def read_problems(data: Data, *, whole_rows: bool = False) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems of a recipe's section `data`; the same lists when asked again."""
    return _read_once(data.model_dump_json(exclude={"limit"}), whole_rows)


def read_for_training(data: Data, *, whole_rows: bool = False) -> tuple[list[Problem], list[Problem]]:
    """`read_problems`, of which there has to be something to train on.

    Raises:
        DataError: There is not.
    """
    train, held_out = read_problems(data, whole_rows=whole_rows)
    if not train:
        raise DataError(f"data={data.name} is for evaluation only: it has no training part")
    return train, held_out


@cache
def _read_once(settings: str, whole_rows: bool) -> tuple[list[Problem], list[Problem]]:
    data = Data.model_validate_json(settings)
    values = data.model_dump(exclude={"limit", "columns"})
    for key in ("path", "test_path"):
        if values[key] is not None:
            values[key] = str(resolve_path(values[key]))
    return load_problems(columns=data.columns, whole_rows=whole_rows, **values)


def load_problems(
    *,
    name: str,
    path: str | None = None,
    test_path: str | None = None,
    subset: str | None = None,
    split: str = "train",
    test_split: str | None = "test",
    test_fraction: float = 0.2,
    columns: Columns | None = None,
    levels: Sequence[int] | None = None,
    seed: int = 0,
    whole_rows: bool = False,
) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems, in the source's order, without a text that is in both.

    A single local file has no splits: its held-out part is `test_path` or, without one, `test_fraction` of its
    problems by content hash. With ``split == test_split`` a data set is for evaluation only and has no training part.

    Args:
        name: the data set's name in messages.
        path: hub id, local file or local folder of a data set; None: generated, by `name` (one of `GENERATED`).
        test_path: local file with held-out problems.
        subset: configuration of a hub data set.
        split: part to train on.
        test_split: held-out part; None: hold out `test_fraction`.
        test_fraction: held-out share, in (0, 1).
        columns: names of the columns.
        levels: keep only problems of these levels; None: all.
        seed: seed of generated problems and of the hold-out by hash.
        whole_rows: rows of the same text are the same problem only if their other columns are the same too.

    Raises:
        DataError: something cannot be read; one line with the remedy.
    """
    if path is None:
        return hold_out(_generated(name, levels, seed), test_fraction, seed)
    parse = partial(parse_rows, columns=columns or Columns(), whole_rows=whole_rows)
    read = partial(_read, parse=parse, subset=subset, levels=levels, name=name)
    if test_path is None and split == test_split:
        return [], read(path, test_split)
    everything = read(path, split)
    if test_path is not None:
        test = read(test_path, None)
    elif test_split is not None and not is_single_file(path):
        test = read(path, test_split)
    else:
        return hold_out(everything, test_fraction, seed)
    return _without_overlap(everything, test, name), test


def _read(
    source: str,
    split: str | None,
    *,
    parse: Callable[..., list[Problem]],
    subset: str | None,
    levels: Sequence[int] | None,
    name: str,
) -> list[Problem]:
    rows = read_rows(source, subset=subset, split=split, name=name)
    return select_levels(_unique(parse(rows, source=source), source), levels, source)


def is_single_file(path: str) -> bool:
    """Whether `path` names one local file, which therefore has no splits."""
    return path.lower().endswith(SUFFIXES)


def _generated(name: str, levels: Sequence[int] | None, seed: int) -> list[Problem]:
    known, generate = _GENERATORS[name]
    unknown = sorted(set(levels or ()) - set(known))
    if unknown or (levels is not None and not levels):
        raise ConfigError(f"data.levels: {name} has levels {list(known)}, not {unknown or levels}")
    return [Problem(*fields, id=content_id(fields[0])) for fields in generate(levels or known, seed)]


def hold_out(problems: list[Problem], test_fraction: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Split by a hash of each problem's text and `seed`, so that a problem's part does not depend on the others.

    Where whole rows count and texts are so few that a part stays empty (a game's one prompt), rows are split.
    """
    for identity in _text_of, _row_of:
        train: list[Problem] = []
        test: list[Problem] = []
        for problem in problems:
            digest = hashlib.sha256(f"{seed}:{identity(problem)}".encode()).digest()
            share = int.from_bytes(digest[:8], "big") / 2**64
            (test if share < test_fraction else train).append(problem)
        if train and test:
            return train, test
    raise DataError(f"data.test_fraction={test_fraction} of {len(problems)} problems leaves one part empty")


_text_of, _row_of = attrgetter("text_id"), attrgetter("id")


def content_id(text: str) -> str:
    """Hash of a problem's text up to white space."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def parse_rows(rows: Iterable[Row], columns: Columns, source: str, *, whole_rows: bool = False) -> list[Problem]:
    """Rows of a table as problems. Raises DataError with the row's place for a missing column or a wrong type."""
    problems = []
    first: dict[str, Mapping[str, Any]] = {}  # row of each text
    for place, row in rows:
        cell = partial(_cell, row, columns=columns, place=place)
        text = cell_text(_question(cell(columns.problem), place), columns.problem, place)
        answer = cell_text(cell(columns.answer), columns.answer, place, numbers=True) if columns.answer else ""
        solution = cell_text(cell(columns.solution), columns.solution, place) if columns.solution else None
        gold, extracted = extract_gold(answer)
        if not text.strip():
            raise DataError(f"{place}: column {columns.problem!r} is empty")
        level = _level(cell(columns.level), columns.level, place) if columns.level else None
        solution = solution or (answer if extracted else None)
        identity = content_id(text)
        if whole_rows and first.setdefault(identity, row) != row:
            identity += "-" + content_id(json.dumps(row, sort_keys=True, default=str))
        problems.append(Problem(text, gold, solution, level, identity, columns=row))
    if not problems:
        raise DataError(f"{source} holds no problems")
    return problems


def _cell(row: Mapping[str, Any], name: str, *, columns: Columns, place: str) -> Any:
    try:
        return _find(row, name)
    except LookupError:
        there = ", ".join(map(str, row)) or "none"
        raise DataError(f"{place}: no column {name!r}; the columns are {there} (set {_remedy(row, columns)})") from None


def _find(row: Mapping[str, Any], name: str) -> Any:
    """A column, or what stands in one: `reward_model.ground_truth`. Raises LookupError where there is none."""
    value: Any = row
    for key in [name] if name in row else name.split("."):
        if not isinstance(value, Mapping):
            raise LookupError(name)
        value = value[key]
    return value


def _holds(row: Mapping[str, Any], name: str) -> bool:
    try:
        _find(row, name)
    except LookupError:
        return False
    return True


def _remedy(row: Mapping[str, Any], columns: Columns) -> str:
    """What to say for columns that are not there, where the row has ones of names in wide use."""
    found = {}
    for key, names in _USUAL_NAMES.items():
        name = getattr(columns, key)
        if name and not _holds(row, name):
            found[key] = next((usual for usual in names if _holds(row, usual)), None)
    return " ".join(f"data.columns.{key}={name}" for key, name in found.items() if name) or "data.columns.*"


def _question(value: Any, place: str) -> Any:
    """Text, also as the one message of a conversation."""
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        return value
    if [message.get("role") for message in value] != ["user"]:
        raise DataError(
            f"{place}: a prompt of {len(value)} messages; only one of the user is read: the rest belongs into "
            "model.system_prompt or model.instruction"
        )
    return value[0].get("content")


def _level(value: Any, column: str, place: str) -> int | None:
    """``5`` or ``"Level 5"`` as 5; a level without a number (MATH's ``"Level ?"``) as None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if value is None or isinstance(value, str):
        digits = re.search(r"\d+", value or "")
        return int(digits[0]) if digits else None
    raise DataError(f"{place}: column {column!r} holds {type(value).__name__}, not a level such as 5 or 'Level 5'")


def extract_gold(text: str) -> tuple[str, bool]:
    r"""The gold answer in `text`, and whether it had to be extracted from a solution.

    After the last ``####`` (thousands commas removed), else in the last ``\boxed{}`` as the grader finds it, else
    the text itself. A last box that is not balanced gives an empty answer: no guess.
    """
    if "####" in text:
        after = text.rsplit("####", 1)[1].strip()
        return re.sub(r"(?<=\d),(?=\d{3})", "", after), True
    found = extract_answer(text, thinking=False)
    if found.fault == "no_box":
        return text.strip(), False
    return (found.text or "").strip(), True


def select_levels(problems: list[Problem], levels: Sequence[int] | None, source: str) -> list[Problem]:
    """The problems of the given levels; None: all."""
    if levels is None:
        return problems
    kept = [problem for problem in problems if problem.level in levels]
    log.info("%s: %d of %d problems have a level in %s", source, len(kept), len(problems), list(levels))
    if not kept:
        there = sorted({problem.level for problem in problems if problem.level is not None})
        hint = f"its levels are {there}" if there else "no level is known: set data.columns.level"
        raise DataError(f"data.levels={list(levels)} keeps no problem of {source}; {hint}")
    return kept


def _unique(problems: list[Problem], source: str) -> list[Problem]:
    """Each once, with what other rows of its text call the answer: a verifier says whether that contradicts."""
    golds: dict[str, dict[str, None]] = {}
    for problem in problems:
        golds.setdefault(problem.text_id, {}).setdefault(problem.answer)
    first = {problem.id: problem for problem in reversed(problems)}
    kept = [problem for problem in problems if first[problem.id] is problem]
    kept = [replace(p, other_golds=_others(p, golds)) if len(golds[p.text_id]) > 1 else p for p in kept]
    if len(kept) < len(problems):
        log.warning("%s: %d repeated problems removed", source, len(problems) - len(kept))
    if again := sum(problem.id != problem.text_id for problem in kept):
        log.warning("%s: %d rows repeat a text, with other columns: kept, as whole rows count here", source, again)
    return kept


def _others(problem: Problem, golds: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    return tuple(gold for gold in golds[problem.text_id] if gold != problem.answer)


def _without_overlap(train: list[Problem], test: list[Problem], name: str) -> list[Problem]:
    for identity in _text_of, _row_of:  # as in `hold_out`
        held_out = set(map(identity, test))
        kept = [problem for problem in train if identity(problem) not in held_out]
        if kept:
            break
    if len(kept) < len(train):
        log.warning("data=%s: %d training problems are also held out and were removed", name, len(train) - len(kept))
    if not kept:
        raise DataError(f"data={name}: every training problem is also held out; set data.test_path or data.test_split")
    return kept


def format_prompt(
    problem: Problem, *, system_prompt: str | None = None, instruction: str | None = None
) -> list[dict[str, str]]:
    """Chat messages that pose a problem; the same in training and in evaluation."""
    content = f"{problem.problem}\n{instruction}" if instruction else problem.problem
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": content}]
