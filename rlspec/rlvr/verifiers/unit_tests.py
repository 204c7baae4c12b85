"""What runs a text of tests: the functions and classes that pytest and unittest would find, or its own statements."""

from __future__ import annotations

import ast
from collections.abc import Iterator

_SILENT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
_CASE = "for _name in __import__('unittest').defaultTestLoader.getTestCaseNames({0}): {0}(_name).debug()"


def calls_of_tests(text: str) -> list[str]:
    """Lines to run behind a text of tests, each of which raises where a test fails; none where it runs by itself.

    Raises:
        ValueError: It is no Python, would test nothing, or asks for fixtures of pytest.
    """
    try:
        body = ast.parse(text).body
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"no Python ({error})") from error
    calls = [line for statement in body for line in _calls(statement)]
    runs = any(not (isinstance(each, _SILENT) or _is_text(each) or _is_of_main(each)) for each in body)
    if not (calls or runs):
        raise ValueError("no test in it: neither check, nor test_ functions, nor a TestCase, nor a statement that runs")
    return calls


def _calls(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef) and statement.name.startswith("test"):
        yield f"{_without_fixtures(statement, taken=0)}()"
    if not isinstance(statement, ast.ClassDef):
        return
    if any("TestCase" in ast.unparse(base) for base in statement.bases):
        yield _CASE.format(statement.name)
    elif statement.name.startswith("Test"):
        for method in statement.body:
            if isinstance(method, ast.FunctionDef) and method.name.startswith("test"):
                yield f"{statement.name}().{_without_fixtures(method, taken=1)}()"


def _without_fixtures(function: ast.FunctionDef, taken: int) -> str:
    arguments = function.args
    asked = arguments.posonlyargs + arguments.args
    if len(asked) - len(arguments.defaults) > taken or any(
        "parametrize" in ast.unparse(each) for each in function.decorator_list
    ):
        raise ValueError(f"{function.name} asks for arguments, which pytest would give")
    return function.name


def _is_of_main(statement: ast.stmt) -> bool:
    """`if __name__ == "__main__": unittest.main()`, which does not run here."""
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
