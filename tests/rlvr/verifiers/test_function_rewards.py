"""A user's own functions in TRL's signature run unchanged, and their mistakes are one line."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rlspec.config.rlvr_schema import Grader, Reward
from rlspec.errors import ConfigError, UserError
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.training.rewards import VerifierReward
from rlspec.rlvr.verifiers.build import Circumstances, build_verifiers
from rlspec.rlvr.verifiers.verifier import Attempt, Verifier

# As they stand in TRL's documentation.
SOURCE = """
import re

def format_reward_func(completions, **kwargs):
    pattern = r"^<think>.*?</think>.*$"
    return [1.0 if re.match(pattern, c[0]["content"]) else 0.0 for c in completions]

def correctness(prompts, completions, ground_truth, **kwargs):
    return [1.0 if c[0]["content"] == truth else 0.0 for c, truth in zip(completions, ground_truth)]

async def slow(completions, completion_ids, trainer_state=None, log_metric=None, bonus=0.0, **kwargs):
    log_metric("seen", len(completions))
    return [len(ids) + bonus if ids else None for ids in completion_ids]

def wrong_number(completions, **kwargs):
    return [1.0]

def no_number(completions, **kwargs):
    return ["good"] * len(completions)

def nothing(completions, **kwargs):
    return 3

def digits(completions, **kwargs):
    return "1" * len(completions)

def by_number(completions, **kwargs):
    return {0: 1.0, 1: 0.0}

def forbidden(completions, **kwargs):
    raise PermissionError(13, "Permission denied", "/etc/shadow")

def narrow(completions):
    return [0.5] * len(completions)

value = 3
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my_rewards_for_test.py"
    path.write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return path


def load(name: str, **options: Any) -> Verifier:
    return build_verifiers([Reward(name=name, options=options)], Circumstances(Grader(), [], False)).main


ROW = {"question": "1+1", "answer": "#### 2", "ground_truth": "2", "id": 17}
PROBLEM = Problem("1+1", "2", None, None, "key", columns=ROW)


def attempt(text: str, tokens: int = 3) -> Attempt:
    return Attempt(PROBLEM, text, range(tokens), [{"role": "user", "content": "1+1"}])


def test_trls_examples_run_unchanged_from_a_module_and_from_a_file(file: Path) -> None:
    for place in (file.stem, str(file)):
        judged = load(f"{place}:format_reward_func").judge([attempt("<think>a</think>b"), attempt("b")])
        assert [each.score for each in judged] == [1.0, 0.0]
        assert [each.score for each in load(f"{place}:correctness").judge([attempt("2"), attempt("3")])] == [1.0, 0.0]


def test_columns_arrive_as_they_stand_in_the_file_and_not_as_rlspec_reads_them(tmp_path: Path) -> None:
    (tmp_path / "peek.py").write_text(
        "seen = {}\ndef peek(completions, **rest):\n    seen.update(rest)\n    return [0.0]\n"
    )
    member = load(f"{tmp_path / 'peek.py'}:peek")
    reward = VerifierReward(member, [PROBLEM])
    reward([[]], [[{"content": "x"}]], [[1]], rlspec_id=["key"], answer=["2"], trainer_state="state")
    import peek  # what the loader has imported

    assert peek.seen["answer"] == ["#### 2"] and peek.seen["id"] == [17] and peek.seen["trainer_state"] == "state"
    assert "prompts" in peek.seen


def test_asynchronous_functions_and_none_work_as_in_trl(file: Path) -> None:
    member = load(f"{file}:slow", bonus=0.5)
    seen: list[object] = []
    judged = member.judge(
        [attempt("x", 2), attempt("x", 0)], surroundings={"log_metric": lambda *each: seen.append(each)}
    )
    assert [(each.score, each.reason) for each in judged] == [(2.5, "scored"), (None, "not_judged")]
    assert seen == [("seen", 2)]
    assert member.judge([attempt("x", 2)])[0].score == 2.5  # outside of training nobody listens

    async def in_a_notebook() -> float | None:  # its thread has a running loop
        return member.judge([attempt("x", 2)])[0].score

    assert asyncio.run(in_a_notebook()) == 2.5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong_number", "returned 1 rewards for 2 completions"),
        ("no_number", "returned 'good', not a number"),
        ("nothing", "returned int, not a list"),
        ("digits", "returned str, not a list"),
        ("by_number", "returned dict, not a list"),
        ("forbidden", "reward forbidden: PermissionError: .*/etc/shadow"),
    ],
)
def test_what_a_function_returns_amiss_is_one_line(file: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(f"{file}:{function}").judge([attempt("a"), attempt("b")])


def test_what_wraps_a_function_takes_what_itself_says(file: Path, tmp_path: Path) -> None:
    (tmp_path / "wrapping.py").write_text(
        "import functools\n\ndef plain(completions):\n    return [1.0 for _ in completions]\n\n"
        "@functools.wraps(plain)\ndef timed(completions, **kwargs):\n    return plain(completions)\n"
    )
    judged = load(f"{tmp_path / 'wrapping.py'}:timed").judge([attempt("a")])
    assert [each.score for each in judged] == [1.0]


def test_what_cannot_be_loaded_is_one_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "broken_reward.py").write_text("import no_such_thing\n")
    for name, message in (
        (f"{file}:value", "not a function but int"),
        (f"{file}:narrow", r"reward narrow: .* let it take \*\*kwargs"),
        (f"{file}:correctnes", "did you mean correctness"),
        (f"{tmp_path / 'broken_reward.py'}:f", "ModuleNotFoundError"),
        (f"{tmp_path / 'gone.py'}:f", "no file"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            load(name)
        assert "\n" not in str(caught.value)
