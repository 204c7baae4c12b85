"""Programs that have to pass tests: the verifier `python`, and where a row keeps its tests."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from rlspec.config.rewards import PythonOptions
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.grading.extract import answer_part
from rlspec.rlvr.verifiers.jail import missing
from rlspec.rlvr.verifiers.sandbox import ProgramEnd, ProgramJob, Sandbox, check_machine
from rlspec.rlvr.verifiers.unit_tests import calls_of_tests
from rlspec.rlvr.verifiers.verifier import Attempt, Fault, Judgement, Verifier

# Blocks of any language: the fence that ends one must not be taken for the beginning of the next.
_BLOCK = re.compile(r"^([ \t]*)(`{3,})([^`\n]*)\n(.*?)(?:^[ \t]*\2|\2[ \t]*$)", re.DOTALL | re.MULTILINE)
_PYTHON = re.compile(r"\s*(?:python|py)[\d.]*(?!\S)", re.I)
_NOTHING = "pass\n"


@dataclass(frozen=True)
class ProgramTest:
    """One test: a run, and what has to come out of it (of a script nothing: it raises)."""

    job: Mapping[str, Any]  # of ProgramJob
    expected: Any = None
    also: Any = None  # another result that counts

    def passed(self, end: ProgramEnd) -> bool:
        """Whether the run came through with what is expected."""
        if end.how != "exit" or end.status != 0:
            return False
        if self.job["kind"] == "program":
            return _lines(end.written) == _lines(str(self.expected))
        if self.job["kind"] == "script":
            return end.reported
        also = self.also is not None and _same(end.result, self.also)
        return end.reported and (also or _same(end.result, self.expected))


class PythonVerifier(Verifier):
    """1 for an answer whose program (`find_code`) passes the problem's tests; with `partial` the share it passes.

    The tests are found in the row: `verification_info` or `input_output` (APPS, TACO, open-r1), `test_list` (MBPP),
    `test` with `entry_point` (HumanEval) or with tests for pytest or unittest (KodCode), `public_test_cases`
    (LiveCodeBench), `tests`, `reward_model` (verl). Output is compared line by line without white space at the ends.
    """

    name = "python"

    def __init__(self, options: PythonOptions, *, thinking: bool, workers: int) -> None:
        check_machine(missing(), weaker=options.weaker)
        self.options = options
        self.thinking = thinking
        self.sandbox = Sandbox(workers)

    def judge(self, attempts: Sequence[Attempt], *, surroundings: Mapping[str, Any] | None = None) -> list[Judgement]:
        """Several at once, each in a process of its own."""
        return self.sandbox.map(self._judge, attempts)

    def check(self, problems: Sequence[Problem]) -> list[Fault | None]:
        """Rows without tests, tests that a program without a line passes, and solutions that fail."""
        return self.sandbox.map(self._check, problems)

    def close(self) -> None:
        """End the sandbox."""
        self.sandbox.close()

    def _check(self, problem: Problem) -> Fault | None:
        try:
            tests = read_tests(problem.columns)
        except ValueError as error:
            return Fault("tests", f"tests_unreadable: {error}")
        if not tests:
            return Fault("tests", "no_tests")
        if self._run(_NOTHING, tests).score == 1.0:
            return Fault("mutation: empty program", "passed", _NOTHING)
        if problem.solution is None:
            return None
        solution = find_code(problem.solution) or problem.solution
        judgement = self._run(_with_context(solution, problem.columns), tests)
        return None if judgement.score == 1.0 else Fault("solution", judgement.reason, solution)

    def _judge(self, attempt: Attempt) -> Judgement:
        text = answer_part(attempt.text, thinking=self.thinking)
        if text is None:
            return Judgement(0.0, "truncated_thinking")
        code = find_code(text)
        if code is None:
            return Judgement(0.0, "no_code")
        try:
            tests = read_tests(attempt.problem.columns)
        except ValueError:
            tests = []
        if not tests:
            return Judgement(None, "no_tests", code)
        judgement = self._run(_with_context(code, attempt.problem.columns), tests)
        return Judgement(judgement.score, judgement.reason, code)

    def _run(self, code: str, tests: Sequence[ProgramTest]) -> Judgement:
        """All tests share the time; without `partial` the first that fails decides."""
        options, passed, reason = self.options, 0, "passed"
        chosen = list(tests[: options.tests])
        for test in chosen:
            end = self.sandbox.run(
                ProgramJob(
                    code,
                    **test.job,
                    seconds=options.timeout / len(chosen) if options.partial else options.timeout,
                    memory=options.memory_mb << 20,
                    output=options.output_kb << 10,
                    files=options.files_kb << 10,
                )
            )
            if end.how == "lost":
                return Judgement(None, "sandbox_error")
            if test.passed(end):
                passed += 1
                continue
            reason = _reason(end)
            if not options.partial:
                break
        score = passed / len(chosen) if options.partial else float(passed == len(chosen))
        return Judgement(score, reason)


def _reason(end: ProgramEnd) -> str:
    if end.how in ("timeout", "output", "files"):
        return {"timeout": "timeout", "output": "too_much_output", "files": "too_much_written"}[end.how]
    if end.how == "signal":
        return "timeout" if end.status == 24 else "killed"  # SIGXCPU
    kind = end.error.partition(":")[0]
    return {"SyntaxError": "syntax", "IndentationError": "syntax", "MemoryError": "memory", "": "wrong_output"}.get(
        kind, "wrong_output" if kind == "AssertionError" else "raised"
    )


def find_code(text: str) -> str | None:
    """The last fenced block of Python, else the last without a language, as it stands between its fences."""
    blocks = _BLOCK.findall(text)
    chosen = [block for block in blocks if _PYTHON.match(block[2])] or [each for each in blocks if not each[2].strip()]
    if not chosen:
        return None
    margin, _, _, code = chosen[-1]  # of a block in a list
    return re.sub(f"^{margin}", "", code, flags=re.MULTILINE)


def _with_context(code: str, columns: Mapping[str, Any]) -> str:
    """HumanEval's prompt is the beginning of the program, with imports and helpers.

    A completion that goes on with it has no `def` of its own.
    """
    prompt, name = columns.get("prompt"), columns.get("entry_point")
    if not isinstance(prompt, str) or not isinstance(name, str):
        return code
    before, begun, _ = prompt.partition(f"def {name}")
    if f"def {name}" not in code:
        return f"{prompt}{code}"
    return f"{before}\n{code}" if begun else code


def read_tests(columns: Mapping[str, Any]) -> list[ProgramTest]:
    """The tests of a row, in the first form that it has.

    Raises:
        ValueError: They are there, and not of the form.
    """
    try:
        for name, reader in _READERS.items():
            if columns.get(name) not in (None, "", [], {}):
                return list(reader(columns, columns[name]))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())[:100]}") from error
    return []


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _cases(columns: Mapping[str, Any], value: Any) -> Iterator[ProgramTest]:
    """open-r1: a list of cases, or a mapping that has one."""
    value = _decoded(value)
    if isinstance(value, dict) and not _PYTHON.match(language := str(value.get("language") or "python")):
        raise ValueError(f"tests of {language}, and programs are run as Python")
    if isinstance(value, dict) and "test_cases" not in value:
        yield from _input_output(columns, value)
        return
    for case in value["test_cases"] if isinstance(value, dict) else value:
        if isinstance(case, str):
            yield _script(case, calls_of_tests(case))
        elif case.get("fn_name"):
            yield _call(case["fn_name"], _decoded(case["input"]), _decoded(case["output"]))
        else:
            yield ProgramTest({"kind": "program", "input": _text(case["input"])}, _text(case["output"]))


def _input_output(_: Mapping[str, Any], value: Any) -> Iterator[ProgramTest]:
    """APPS, TACO and verl: `inputs`, `outputs` and, for calls, `fn_name`; or `assert_case`."""
    value = _decoded(value)
    if value.get("assert_case"):
        yield from _asserts({}, value["assert_case"])
        return
    # APPS wraps results of calls in a list, mostly, and its harness takes either.
    wrapped = all(isinstance(expected, list) and len(expected) == 1 for expected in value["outputs"])
    for given, expected in zip(value["inputs"], value["outputs"], strict=True):
        if value.get("fn_name") and isinstance(given, str) and isinstance(expected, str):  # verl
            yield _call_of_lines(value["fn_name"], given, expected)
        elif value.get("fn_name"):
            also = expected if wrapped else None
            yield replace(_call(value["fn_name"], given, expected[0] if wrapped else expected), also=also)
        else:
            yield ProgramTest({"kind": "program", "input": _text(given)}, _text(expected))


def _asserts(columns: Mapping[str, Any], value: Any) -> Iterator[ProgramTest]:
    """MBPP: `test_list`, behind `test_setup_code` and imports."""
    before = "\n".join([*_listed(columns.get("test_imports") or []), str(columns.get("test_setup_code") or "")])
    for line in _listed(value):
        if not isinstance(line, str):
            raise ValueError(f"{line} is no assert")
        yield ProgramTest({"kind": "script", "script": f"{before}\n{line}"})


def _livecodebench(columns: Mapping[str, Any], value: Any) -> Iterator[ProgramTest]:
    """LiveCodeBench: `public_test_cases` and `private_test_cases`."""
    for case in [*_decoded(value), *_unpacked(columns.get("private_test_cases") or "[]")]:
        if case["testtype"] == "functional":
            yield _call_of_lines(_decoded(columns["metadata"])["func_name"], case["input"], case["output"])
        else:
            yield ProgramTest({"kind": "program", "input": case["input"]}, case["output"])


def _unpacked(value: str) -> Any:
    """Private tests are JSON, or a pickled text of it, compressed, in base 64."""
    if value.lstrip().startswith("["):
        return json.loads(value)
    try:
        return json.loads(_TextUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(value)))).load())
    except (zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"private_test_cases cannot be unpacked ({error})") from error


class _TextUnpickler(pickle.Unpickler):
    """Runs nothing: a pickle may name any function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a text")


def _listed(value: Any) -> list[Any]:
    """A list, also one that is written as JSON, or a text that stands alone."""
    if isinstance(value, str):
        value = _decoded(value) if value.startswith("[") else [value]
    return list(value)


def _check_function(columns: Mapping[str, Any], value: Any) -> Iterator[ProgramTest]:
    """HumanEval: `test` defines `check`, which takes the function; or it is what pytest or unittest run."""
    calls = [f"check({columns['entry_point']})"] if "def check(" in value else calls_of_tests(value)
    yield _script(value, calls)


def _script(text: str, calls: Sequence[str]) -> ProgramTest:
    return ProgramTest({"kind": "script", "script": "\n".join([text, *calls, ""])})


def _verl(columns: Mapping[str, Any], value: Any) -> Iterator[ProgramTest]:
    """Verl keeps every kind of answer in `reward_model.ground_truth`."""
    yield from _cases(columns, _decoded(value)["ground_truth"])


def _call_of_lines(name: str, arguments: str, expected: str) -> ProgramTest:
    """Arguments are lines of JSON, the result is JSON."""
    return _call(name, [*map(json.loads, arguments.splitlines())], json.loads(expected))


def _call(name: str, arguments: Any, expected: Any) -> ProgramTest:
    arguments = arguments if isinstance(arguments, list) else [arguments]
    return ProgramTest({"kind": "call", "function": str(name), "arguments": arguments}, expected)


_READERS = {
    "verification_info": _cases,
    "input_output": _input_output,
    "test_list": _asserts,
    "test_cases": _cases,
    "test": _check_function,
    "public_test_cases": _livecodebench,
    "tests": _cases,
    "reward_model": _verl,
}


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _same(found: Any, expected: Any) -> bool:
    """Equal as JSON; numbers that are not whole within a millionth."""
    with suppress(TypeError, ValueError):
        expected = json.loads(json.dumps(expected))
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_same, found, expected))
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, int | float) and isinstance(expected, int | float):
        exact = isinstance(found, int) and isinstance(expected, int)
        return found == expected if exact else abs(found - expected) <= 1e-6 * max(1.0, abs(expected))
    return bool(found == expected)
