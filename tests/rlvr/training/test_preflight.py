"""What cannot be graded or does not fit is listed with its reason and dropped, and nothing else is."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from rlspec.config.rlvr_schema import Columns
from rlspec.errors import DataError
from rlspec.rlvr.data.problems import Problem, content_id, load_problems
from rlspec.rlvr.grading import GraderPool
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer
from rlspec.rlvr.sampling.prompts import PromptStyle
from rlspec.rlvr.training.preflight import check_problems
from rlspec.rlvr.verifiers.answers import MathVerifier
from rlspec.rlvr.verifiers.verifier import Verifiers


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(workers=1, warm=False) as pool:
        yield pool


def math(pool: GraderPool) -> Verifiers:
    return Verifiers([MathVerifier(pool, thinking=False)])


def make(*answers: str) -> list[Problem]:
    return [Problem(f"Problem {n}?", gold, None, None, content_id(f"Problem {n}?")) for n, gold in enumerate(answers)]


def test_good_problems_pass_in_their_order(pool: GraderPool) -> None:
    problems = make("72", r"\frac{1}{2}", "-38", "72")
    checked = check_problems(problems, verifiers=math(pool))
    assert checked.problems == problems
    assert checked.describe() == "4 of 4 problems passed the preflight"


def test_bad_problems_are_dropped_listed_and_counted(
    pool: GraderPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    problems = make("72", "", r"\frac{1}{2", "5", r"\frac{1}{2")
    with caplog.at_level(logging.WARNING):
        checked = check_problems(problems, verifiers=math(pool))
    assert [problem.answer for problem in checked.problems] == ["72", "5"]
    assert "2 of 5 problems passed" in caplog.text
    assert "1 answer (missing)" in caplog.text
    checked.write(tmp_path / "dropped.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [problems[1].id, problems[2].id, problems[4].id]
    assert rows[0]["check"] == "answer"
    assert {row["check"] for row in rows[1:]} == {"identity"}
    assert all(row["reason"] for row in rows)


def test_a_gold_whose_mutation_is_accepted_is_dropped(pool: GraderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlspec.rlvr.grading import gold_check

    # Pretend that the grader takes a wrong answer for 7.
    monkeypatch.setattr(gold_check, "_mutations", lambda gold, limit: [("digit", "7.0")] if gold == "7" else [])
    checked = check_problems(make("7", "8"), verifiers=math(pool))
    assert [problem.answer for problem in checked.problems] == ["8"]
    assert (checked.dropped[0].check, checked.dropped[0].tried) == ("mutation: digit", "7.0")


def test_long_prompts_are_dropped_with_their_length(pool: GraderPool) -> None:
    tokenizer = build_byte_tokenizer()
    problems = make("1", "2")
    long = Problem("é" * 50, "3", None, None, "long")
    length = partial(PromptStyle(instruction="Box it.").length, tokenizer=tokenizer)
    messages = [{"role": "user", "content": "é" * 50 + "\nBox it."}]
    assert length(long) == len(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
    checked = check_problems(
        [*problems, long],
        verifiers=math(pool),
        prompt_length=length,
        max_prompt_length=60,
    )
    assert checked.problems == problems
    assert (checked.dropped[0].check, checked.dropped[0].reason) == (
        "length",
        f"too long: {length(long)} tokens, at most 60",
    )


def test_the_first_problems_that_pass_fill_the_limit(pool: GraderPool) -> None:
    problems = make("1", "", "2", "3", "4")
    checked = check_problems(problems, verifiers=math(pool), limit=2)
    assert [problem.answer for problem in checked.problems] == ["1", "2"]
    assert len(checked.dropped) == 1


def test_golds_that_commas_join_are_mentioned_once_and_kept(pool: GraderPool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        checked = check_problems(
            make("100,200", "7", "100,200", "(100,200)", "1,2", "3,000,000"),
            verifiers=math(pool),
        )
    assert len(checked.problems) == 6
    assert [record.getMessage() for record in caplog.records] == [
        "2 golds with commas, such as 100,200, are read as one number"
    ]


def test_without_a_usable_problem_the_reasons_are_the_error(pool: GraderPool) -> None:
    with pytest.raises(DataError, match=r"none of 2 problems can be trained on; dropped: 2 answer \(missing\)"):
        check_problems(make("", ""), verifiers=math(pool))


def test_real_gsm8k_passes(shared: Path, pool: GraderPool) -> None:
    columns = Columns(problem="question", answer="answer", solution="answer")
    train, test = load_problems(name="gsm8k", path=str(shared / "data" / "gsm8k"), columns=columns)
    checked = check_problems([*train, *test], verifiers=math(pool))
    assert (len(checked.problems), checked.dropped) == (7473 + 1319, [])


def test_generated_arithmetic_passes(pool: GraderPool) -> None:
    train, _ = load_problems(name="arithmetic", seed=0)
    assert check_problems(train, verifiers=math(pool)).problems == train


def test_two_golds_for_one_problem_are_dropped_where_they_contradict_and_kept_where_they_agree(
    pool: GraderPool, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [("a", "3"), ("b", "1/2"), ("a", "4"), ("b", "0.5"), ("c", "7"), ("c", "7")]
    file.write_text("".join(json.dumps({"problem": text, "answer": gold}) + "\n" for text, gold in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps({"problem": "d", "answer": "1"}))
    train, _ = load_problems(name="rows", path=str(file), test_path=str(tmp_path / "test.jsonl"))
    checked = check_problems(train, verifiers=math(pool))
    assert [problem.problem for problem in checked.problems] == ["b", "c"]
    assert [(drop.problem, drop.reason, drop.tried) for drop in checked.dropped] == [("a", "gold_contradicted", "4")]
