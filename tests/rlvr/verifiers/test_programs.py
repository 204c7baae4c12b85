"""Programs: right ones win, wrong ones do not, hostile ones are held by the kernel; and tests are checked before."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlspec.config.rewards import PythonOptions
from rlspec.errors import ConfigError
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.verifiers.jail import missing
from rlspec.rlvr.verifiers.programs import PythonVerifier, find_code, read_tests
from rlspec.rlvr.verifiers.sandbox import ProgramEnd, ProgramJob, Sandbox, check_machine
from rlspec.rlvr.verifiers.unit_tests import calls_of_tests
from rlspec.rlvr.verifiers.verifier import Attempt, Judgement

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine cannot confine {missing()}")


@pytest.fixture(scope="module")
def verifier() -> Iterator[PythonVerifier]:
    found = PythonVerifier(PythonOptions(timeout=5.0, memory_mb=256), thinking=False, workers=2)
    yield found
    found.close()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    box = Sandbox(1)
    yield box
    box.close()


def problem(solution: str | None = None, **columns: Any) -> Problem:
    return Problem("?", "", solution, None, "id", columns=columns)


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\nDone."


def packed(value: object) -> str:
    """As LiveCodeBench keeps the text of private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


ADD = "def add(a, b):\n    return a + b"
READS = "print(int(input()) + int(input()))"
FORMS = {
    "MBPP": (ADD, problem(test_list=["assert add(1, 2) == 3"], test_setup_code="import math")),
    "HumanEval": (
        "    return a + b\n",
        problem(prompt="def add(a, b):\n", entry_point="add", test="def check(f):\n    assert f(1, 2) == 3"),
    ),
    "HumanEval, written anew": (
        "def add(a: List[int], b: List[int]) -> int:\n    return one(a) + one(b)",
        problem(
            prompt="from typing import List\ndef one(a):\n    return a[0]\n\ndef add(a: List[int], b: List[int]):\n",
            entry_point="add",
            test="def check(f):\n    assert f([1], [2]) == 3",
        ),
    ),
    "MBPP, typed": (
        "def add(a: List[int], b: int) -> int:\n    return a[0] + b",
        problem(test_list=["assert add([1], 2) == 3"]),
    ),
    "pytest": (ADD, problem(test="from solution import add\n\ndef test_add():\n    assert add(1, 2) == 3")),
    "pytest, a class": (ADD, problem(test="class TestAdd:\n    def test_it(self):\n        assert add(1, 2) == 3")),
    "unittest": (
        ADD,
        problem(
            test="import unittest\nfrom solution import add\n\nclass Adds(unittest.TestCase):\n    def setUp(self):\n"
            "        self.one = 1\n    def test_it(self):\n        self.assertEqual(add(self.one, 2), 3)"
        ),
    ),
    "statements": (ADD, problem(test="for b in (2, 3):\n    assert add(1, b) == 1 + b")),
    "APPS": (READS, problem(input_output=json.dumps({"inputs": ["1\n2\n", "5\n6"], "outputs": ["3\n", "11"]}))),
    "APPS, calls": (
        f"class Solution:\n    {ADD.replace('(a', '(self, a').replace(chr(10), chr(10) + '    ')}",
        problem(input_output=json.dumps({"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]})),
    ),
    "APPS, a list or what is in it": (
        "def add(a, b):\n    return [a + b]",
        problem(input_output=json.dumps({"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]})),
    ),
    "open-r1": (
        READS,
        problem(
            verification_info=json.dumps(
                {"language": "python", "test_cases": [{"input": "1\n2", "output": "3", "type": "stdin_stdout"}]}
            )
        ),
    ),
    "LiveCodeBench": (
        READS,
        problem(
            public_test_cases=json.dumps([{"input": "1\n2\n", "output": "3\n", "testtype": "stdin"}]),
            private_test_cases=packed(json.dumps([{"input": "5\n6\n", "output": "11\n", "testtype": "stdin"}])),
        ),
    ),
    "LiveCodeBench, calls": (
        "class Solution:\n    def add(self, a: List[int], b: Optional[int]) -> int:\n        return a[0] + b",
        problem(
            public_test_cases=json.dumps([{"input": "[1, 4]\n2", "output": "3", "testtype": "functional"}]),
            private_test_cases="[]",
            metadata='{"func_name": "add"}',
        ),
    ),
    "verl": (
        READS,
        problem(reward_model={"style": "rule", "ground_truth": json.dumps({"inputs": ["1\n2\n"], "outputs": ["3\n"]})}),
    ),
    "verl, calls": (
        ADD,
        problem(reward_model={"ground_truth": {"fn_name": "add", "inputs": ["1\n2"], "outputs": ["3"]}}),
    ),
    "verl, asserts": (ADD, problem(reward_model={"ground_truth": {"assert_case": ["assert add(1, 2) == 3"]}})),
    "a list of asserts": (ADD, problem(tests=["assert add(1, 1) == 2", "assert add(2, 2) == 4"])),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_right_program_wins_and_the_wrong_one_does_not(form: str, verifier: PythonVerifier) -> None:
    code, asked = FORMS[form]
    right, wrong = verifier.judge([Attempt(asked, fenced(code)), Attempt(asked, fenced(code.replace("+", "*")))])
    assert (right.score, right.reason) == (1.0, "passed")
    assert (wrong.score, wrong.reason) == (0.0, "wrong_output")


def test_only_the_last_block_of_python_counts() -> None:
    assert find_code("```python\na\n```\n```python\nb\n```") == "b\n"
    assert find_code("```\na\n```\n```\nb\n```") == "b\n"
    assert find_code("```python\na\n```\nIt prints:\n```\n7\n```") == "a\n"
    assert find_code("```text\n1\n```\nso:\n```python\na\n```\n```bash\nb\n```\nthat is all") == "a\n"
    assert find_code('```python title="a.py"\na\n```') == find_code("````python\na\n````") == "a\n"
    assert find_code("```PY\na\n```") == "a\n"
    assert find_code("print(1)") is None
    assert find_code("```python\nunfinished") is None
    assert find_code("```json\n{}\n```") is None


def test_a_block_in_a_list_loses_the_margin_of_its_fence_and_no_more() -> None:
    assert find_code("1. so:\n   ```python\n   def f():\n       return 1\n   ```") == "def f():\n    return 1\n"
    assert find_code("```python\n    return 1\n```") == "    return 1\n"  # goes on with the prompt's `def`


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([[1, 2]], [[1, 2]]),
        ([[1], [1, 2], []], [[1], [1, 2], []]),
        ([[1], [2]], [1, 2]),
        ([[[1, 2]]], [[1, 2]]),
        ([1, True], [1, True]),
    ],
)
def test_results_of_calls_are_wrapped_where_all_of_them_are(outputs: list[Any], expected: list[Any]) -> None:
    tests = read_tests({"input_output": {"fn_name": "two", "inputs": [[1, 2]] * len(outputs), "outputs": outputs}})
    assert [test.expected for test in tests] == expected


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"verification_info": '{"language": "cpp", "test_cases": [{"input": "1", "output": "2"}]}'}, "tests of cpp"),
        ({"test_list": ["assert f(1) == 2", None]}, "None is no assert"),
        ({"tests": [None]}, "tests: "),
        ({"public_test_cases": "[]", "private_test_cases": packed("[")}, "public_test_cases: "),
        ({"public_test_cases": "[]", "private_test_cases": packed(print)}, "builtins.print in a text"),
    ],
)
def test_tests_that_are_not_of_the_form_are_named(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        read_tests(columns)


def test_a_test_that_stands_alone_is_one_text() -> None:
    (test,) = read_tests({"test_list": "assert f() == 1", "test_imports": "import math"})
    assert test.job["script"].split("\n") == ["import math", "", "assert f() == 1"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def add(a, b:", "syntax"),
        ("raise ValueError", "raised"),
        ("while True: pass", "timeout"),
        ("x = 'a' * 10**10", "memory"),
        ("while True: print('y' * 1000)", "too_much_output"),
        ("import ctypes; ctypes.string_at(0)", "killed"),
        ("import os; os._exit(0)", "wrong_output"),
        ("import sys; sys.exit(0)", "wrong_output"),
        ("import os; os.write(3, b'{\"result\": true}\\n'); os._exit(0)", "wrong_output"),
        ("class Equal:\n    def __eq__(self, other): return True\ndef add(a, b): return Equal()", "raised"),
    ],
)
def test_tricks_and_accidents_win_nothing_and_say_why(code: str, reason: str) -> None:
    one = PythonVerifier(PythonOptions(timeout=1.0, memory_mb=256), thinking=False, workers=1)
    asked = problem(input_output=json.dumps({"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}))
    try:
        (judged,) = one.judge([Attempt(asked, fenced(code))])
    finally:
        one.close()
    assert (judged.score, judged.reason) == (0.0, reason)


def test_a_text_alone_is_an_argument_unless_its_result_is_json_too() -> None:
    of_apps = {"fn_name": "shout", "inputs": ["abc"], "outputs": [["ABC"]]}
    (test,) = read_tests({"input_output": of_apps})
    assert (test.job["arguments"], test.expected) == (["abc"], "ABC")


@pytest.mark.parametrize("expected", ["", None, False, []])
def test_a_call_that_raises_is_wrong_whatever_is_expected(expected: Any, verifier: PythonVerifier) -> None:
    # verl pull request 7853: there it earned 1 where nothing is expected.
    asked = problem(input_output={"fn_name": "add", "inputs": [[1, 2]], "outputs": [expected]})
    raising, right = "def add(a, b): raise ValueError('failed call')", f"def add(a, b): return {expected!r}"
    judged = verifier.judge([Attempt(asked, fenced(raising)), Attempt(asked, fenced(right))])
    assert [(each.score, each.reason) for each in judged] == [(0.0, "raised"), (1.0, "passed")]


SECRET = "the secret of the home folder"


def run(sandbox: Sandbox, code: str, **settings: Any) -> ProgramEnd:
    return sandbox.run(ProgramJob(code, "program", **{"seconds": 5.0, **settings}))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text(SECRET)
    return tmp_path


def test_nothing_outside_is_read_or_written(sandbox: Sandbox, home: Path) -> None:
    for code in (
        f"print(open({str(home / 'key')!r}).read())",
        f"import os; print(os.listdir({str(home)!r}))",
        f"import os; os.symlink({str(home / 'key')!r}, 'link'); print(open('link').read())",
        f"import os; os.link({str(home / 'key')!r}, 'link'); print(open('link').read())",
        f"import os; os.remove({str(home / 'key')!r})",
        f"import os; os.rename({str(home / 'key')!r}, 'key'); print(open('key').read())",
        f"open({str(home / 'new')!r}, 'w').write('x')",
        f"open({str(home / 'key')!r}, 'w').write('x')",
        f"import os; os.mkdir({str(home / 'folder')!r})",
        f"import os; os.truncate({str(home / 'key')!r}, 0)",
        "print(open('/etc/passwd').read())",
        f"print(open('/proc/{os.getpid()}/environ').read())",
        f"print(open('/proc/{os.getpid()}/mem', 'rb').read(1))",
        "open('../escaped', 'w').write('x')",
    ):
        end = run(sandbox, code)
        assert (end.how, end.status) == ("exit", 1) and "Error" in end.error, (code, end)
        assert SECRET not in end.written
    assert {path.name for path in home.iterdir()} == {"key"} and (home / "key").read_text() == SECRET
    assert run(sandbox, "open('mine', 'w').write('x'); print(open('mine').read())").written == "x\n"


def test_no_process_no_signal_and_no_network(sandbox: Sandbox) -> None:
    for code in (
        "import os\nwhile True: os.fork()",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.kill(os.getppid(), 9)",
        f"import os; os.kill({os.getpid()}, 0)",
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1')",
        "import os; os.unshare(os.CLONE_NEWUSER)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    ):
        end = run(sandbox, code)
        assert (end.how, end.status) == ("exit", 1) and "Error" in end.error, (code, end)
    thread = "import threading; t = threading.Thread(target=print, args=(1,)); t.start(); t.join()"
    assert run(sandbox, thread).written == "1\n"


def test_time_memory_files_and_output_are_bounded(sandbox: Sandbox) -> None:
    assert run(sandbox, "while True: pass", seconds=0.5).how == "timeout"
    assert run(sandbox, "import time; time.sleep(1000)", seconds=0.5).how == "timeout"
    deaf = "import signal\nfor number in (15, 24): signal.signal(number, signal.SIG_IGN)\nwhile True: pass"
    assert run(sandbox, deaf, seconds=0.5).how == "timeout"
    assert "MemoryError" in run(sandbox, "x = bytearray(10**10)").error
    assert run(sandbox, "i = 0\nwhile True:\n    open(str(i), 'w').write('y' * 100000)\n    i += 1").how == "files"
    assert "File too large" in run(sandbox, "open('x', 'w').write('y' * 10**8)").error
    end = run(sandbox, "while True: print('y' * 1000)", output=10_000)
    assert end.how == "output" and len(end.written) <= 10_000
    assert len(run(sandbox, "import os\nwhile True: os.write(3, b'y' * 1000)", seconds=0.5).error) < 1000
    assert run(sandbox, "print(6 * 7)").written == "42\n"  # after all that


@pytest.mark.parametrize(
    "code",
    [
        "print(open('/dev/stdin').read())",
        "print(7)\nexit()",
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print(7))).start()",
        "import atexit, io, sys\nout, sys.stdout = sys.stdout, io.StringIO()\n"
        "atexit.register(lambda: out.write(sys.stdout.getvalue()))\nprint(7)",
        "import sys\nsys.__stdout__.write('7')",
        "import pickle\nclass A: pass\npickle.dumps(A())\nprint(7)",
        "def f(x: int): pass\nprint(7 if f.__annotations__['x'] is int else 8)",
    ],
)
def test_a_program_runs_as_a_script_does(sandbox: Sandbox, code: str) -> None:
    end = run(sandbox, code, input="7")
    assert (end.how, end.status, end.written.strip()) == ("exit", 0, "7")


@pytest.mark.parametrize("annotation", ["int", "'int'"])
def test_a_program_whose_function_is_called_may_have_dataclasses(sandbox: Sandbox, annotation: str) -> None:
    code = f"from dataclasses import dataclass\n@dataclass\nclass A:\n    x: {annotation}\ndef f(): return A(7).x"
    assert sandbox.run(ProgramJob(code, "call", function="f")).result == 7


def test_each_program_begins_with_an_empty_folder_and_leaves_none(sandbox: Sandbox) -> None:
    first = run(sandbox, "import os; open('x', 'w'); print(os.getcwd())")
    assert not Path(first.written.strip()).exists()
    assert run(sandbox, "import os; print(os.listdir('.'), len(os.environ))").written == "[] 0\n"


def test_no_expected_output_is_in_reach_of_the_program(sandbox: Sandbox, verifier: PythonVerifier) -> None:
    everything = "import gc\nprint(*[each for each in gc.get_objects() if isinstance(each, dict)])"
    asked = problem(input_output=json.dumps({"inputs": ["given-5"], "outputs": ["wanted-7"]}))
    (test,) = read_tests(asked.columns)
    end = sandbox.run(ProgramJob(everything, **test.job, output=1 << 24, files=1 << 24))
    assert end.how == "exit" and "given-5" in end.written and "wanted-7" not in end.written


def test_a_dead_keeper_is_replaced_and_its_attempt_not_judged() -> None:
    box = Sandbox(1)
    try:
        assert box.run(ProgramJob("print(1)", "program")).written == "1\n"
        box._all[0]._process.kill()
        assert box.run(ProgramJob("print(1)", "program")).how == "lost"
        assert box.run(ProgramJob("print(1)", "program")).written == "1\n"
    finally:
        box.close()


BUSY = 6  # other processes on the one processor of a program


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not count how long one waits")
def test_time_in_which_no_processor_is_free_is_not_the_programs() -> None:
    box = Sandbox(1)
    processor = {min(os.sched_getaffinity(0))}
    # They end by themselves, should this test be killed.
    spin = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    others: list[subprocess.Popen[bytes]] = []
    try:
        assert box.run(ProgramJob("print(1)", "program")).written == "1\n"
        os.sched_setaffinity(box._all[0]._process.pid, processor)
        for _ in range(BUSY):
            # Each in a session, as the keeper: processors may be shared out among sessions first.
            others.append(subprocess.Popen([sys.executable, "-I", "-S", "-c", spin], start_new_session=True))
            os.sched_setaffinity(others[-1].pid, processor)
        works = "import time\nwhile time.process_time() < 0.3: pass\nprint(time.monotonic())"
        start = time.monotonic()
        end = box.run(ProgramJob(works, "program", seconds=0.8))
        assert end.how == "exit" and float(end.written) - start > 0.8, end
        assert box.run(ProgramJob("import time; time.sleep(1000)", "program", seconds=0.4)).how == "timeout"
        assert box.run(ProgramJob("while True: pass", "program", seconds=0.4)).how == "lost"  # it got less than a fifth
    finally:
        for other in others:
            other.kill()
            other.wait()
        box.close()


def test_the_share_of_tests_is_the_score_where_the_recipe_wants_it() -> None:
    member = PythonVerifier(PythonOptions(partial=True), thinking=False, workers=1)
    asked = problem(tests=["assert add(1, 1) == 2", "assert add(1, 2) == 3"])
    try:
        (judged,) = member.judge([Attempt(asked, fenced("def add(a, b): return 2"))])
    finally:
        member.close()
    assert judged == Judgement(0.5, "wrong_output", "def add(a, b): return 2\n")


def test_rows_are_checked_before_training(verifier: PythonVerifier) -> None:
    good = {"test_list": ["assert add(1, 2) == 3"]}
    faults = verifier.check(
        [
            problem(fenced(ADD), **good),
            problem(ADD, **good),
            problem(None, **good),
            problem(ADD.replace("+", "-"), **good),
            problem(None),
            problem(None, test_list=["assert True"]),
            problem(None, input_output="{broken"),
            problem(None, input_output=json.dumps({"inputs": ["1"], "outputs": []})),
        ]
    )
    assert [fault and (fault.check, fault.reason.partition(":")[0]) for fault in faults] == [
        None,
        None,
        None,
        ("solution", "wrong_output"),
        ("tests", "no_tests"),
        ("mutation: empty program", "passed"),
        ("tests", "tests_unreadable"),
        ("tests", "tests_unreadable"),
    ]


def test_a_row_without_tests_is_not_judged_and_prose_earns_nothing(verifier: PythonVerifier) -> None:
    none, prose = verifier.judge([Attempt(problem(), fenced(ADD)), Attempt(FORMS["MBPP"][1], "I would add them.")])
    assert (none.score, none.reason) == (None, "no_tests")
    assert (prose.score, prose.reason) == (0.0, "no_code")
    assert read_tests({}) == []


def test_a_machine_that_cannot_hold_a_program_is_refused_unless_that_is_accepted() -> None:
    with pytest.raises(ConfigError, match="cannot confine files.*weaker=true"):
        check_machine(["files"], weaker=False)
    check_machine(["files"], weaker=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "def helper():\n    assert False",
        "from solution import add\nEXPECTED = 3",
        "def helper():\n    assert False\n\nif __name__ == '__main__':\n    helper()",
        "def test_add(fixture):\n    assert add(1, 2) == 3",
        "@pytest.mark.parametrize('a', [1])\ndef test_add(a=1):\n    pass",
        "def test_add(:",
    ],
)
def test_a_text_that_tests_nothing_is_no_test(text: str) -> None:
    with pytest.raises(ValueError, match=r"no test in it|asks for arguments|no Python"):
        calls_of_tests(text)


def test_a_block_may_end_where_its_code_does() -> None:
    assert find_code("```python\nprint(3)```") == "print(3)"
    assert find_code("```python\nprint('```')\n```\n") == "print('```')\n"
