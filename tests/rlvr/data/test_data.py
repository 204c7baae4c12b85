"""Problems from every source arrive alike, splits do not overlap, and each fault is one line with its place."""

from __future__ import annotations

import csv
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from rlspec.config.load import load_recipe
from rlspec.config.rlvr_schema import Columns
from rlspec.errors import ConfigError, DataError
from rlspec.rlvr.data.problems import (
    Problem,
    content_id,
    extract_gold,
    format_prompt,
    is_single_file,
    load_problems,
)
from rlspec.rlvr.grading import grade_answer

GSM8K = Columns(problem="question", answer="answer", solution="answer")
ROWS = [{"problem": f"What is {n}+{n}?", "answer": str(2 * n), "level": f"Level {n % 5 + 1}"} for n in range(60)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(problems: list[Problem]) -> list[str]:
    return [problem.problem for problem in problems]


# --- generated arithmetic


def test_arithmetic_parts_are_disjoint_and_cover_all_problems() -> None:
    train, test = load_problems(name="arithmetic", levels=[2], seed=0)
    assert not set(texts(train)) & set(texts(test))
    assert len(train) + len(test) == 8100
    assert len(test) == pytest.approx(1620, abs=120)
    assert {problem.level for problem in train + test} == {2}


def test_a_problem_keeps_its_part_whatever_other_problems_there_are() -> None:
    _, alone = load_problems(name="arithmetic", levels=[2], seed=0)
    _, mixed = load_problems(name="arithmetic", levels=[1, 2, 4], seed=0)
    assert set(texts(alone)) == {problem.problem for problem in mixed if problem.level == 2}


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    assert load_problems(name="arithmetic", seed=1) == load_problems(name="arithmetic", seed=1)
    held_out = [set(texts(load_problems(name="arithmetic", levels=[2], seed=seed)[1])) for seed in (0, 1)]
    assert len(held_out[0] & held_out[1]) < 0.4 * len(held_out[0])


def test_unknown_level_of_arithmetic_names_the_levels() -> None:
    with pytest.raises(ConfigError, match=r"levels \[1, 2, 3, 4, 5\], not \[9\]"):
        load_problems(name="arithmetic", levels=[2, 9])


# --- real files


def test_real_gsm8k_has_its_counts_and_golds(shared: Path) -> None:
    folder = shared / "data" / "gsm8k"
    train, test = load_problems(
        name="gsm8k", path=str(folder / "train.jsonl"), test_path=str(folder / "test.jsonl"), columns=GSM8K
    )
    assert (len(train), len(test)) == (7473, 1319)
    assert train[0].answer == "72"
    assert train[0].solution is not None and train[0].solution.endswith("#### 72")
    assert all(float(problem.answer) == int(float(problem.answer)) for problem in train + test)


def test_a_folder_with_a_file_per_split_is_a_data_set(shared: Path) -> None:
    train, test = load_problems(name="gsm8k", path=str(shared / "data" / "gsm8k"), subset="main", columns=GSM8K)
    assert (len(train), len(test)) == (7473, 1319)


def test_real_math500_is_for_evaluation_only_and_its_solutions_box_its_answers(shared: Path) -> None:
    path = str(shared / "data" / "math500" / "test.jsonl")
    columns = Columns(solution="solution", level="level")
    train, test = load_problems(name="math500", path=path, split="test", test_split="test", columns=columns)
    assert (len(train), len(test)) == (0, 500)
    assert {problem.level for problem in test} == {1, 2, 3, 4, 5}
    _, from_solutions = load_problems(
        name="math500", path=path, split="test", test_split="test", columns=Columns(answer="solution")
    )
    # The file's own answers are normalised here and there; the box must agree but for that.
    same = sum(ours.answer == theirs.answer for ours, theirs in zip(from_solutions, test, strict=True))
    assert same >= 480
    assert all(problem.answer for problem in from_solutions)


# --- formats


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_problems(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"problems.{suffix}"
    rows = [*ROWS, {"problem": 'Line\r\nbreak, "quote" é 👍 \u2028?', "answer": "1", "level": "Level ?"}]
    if suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8", newline="")
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    columns = Columns(level="level")
    _, problems = load_problems(name="mine", path=str(path), split="all", test_split="all", columns=columns)
    assert texts(problems) == [row["problem"] for row in rows]
    assert [problem.answer for problem in problems] == [row["answer"] for row in rows]
    assert [problem.level for problem in problems] == [*(n % 5 + 1 for n in range(60)), None]


def test_a_hub_snapshot_on_disk_loads_by_split_and_subset(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "main").mkdir(exist_ok=True)
        write_jsonl(tmp_path / "main" / f"{split}-00000.jsonl", ROWS[:5] if split == "test" else ROWS[5:])
    front = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n"
    (tmp_path / "README.md").write_text(front + "  - split: test\n    path: main/test-*\n---\n")
    train, test = load_problems(name="mine", path=str(tmp_path), subset="main")
    assert (len(train), len(test)) == (55, 5)
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        load_problems(name="mine", path=str(tmp_path), subset="main", split="dev")


# --- splits, levels, repeats


def test_a_single_file_is_split_by_content(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "all.jsonl", ROWS)
    train, test = load_problems(name="mine", path=path, test_fraction=0.3)
    assert len(train) + len(test) == 60
    assert 8 <= len(test) <= 28
    reordered = write_jsonl(tmp_path / "reordered.jsonl", ROWS[::-1])
    assert set(load_problems(name="mine", path=reordered, test_fraction=0.3)[1]) == set(test)


def test_overlap_and_repeats_are_removed_from_training_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The same text in other white space is the same problem.
    respaced = {"problem": "  What is 3+3?\n", "answer": "6"}
    path = write_jsonl(tmp_path / "train.jsonl", [*ROWS, ROWS[0]])
    test_path = write_jsonl(tmp_path / "test.jsonl", [respaced, ROWS[4]])
    with caplog.at_level(logging.INFO):
        train, test = load_problems(name="mine", path=path, test_path=test_path)
    assert (len(train), len(test)) == (58, 2)
    assert "1 repeated problems removed" in caplog.text
    assert "2 training problems are also held out" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "problem,answer,answer\n1+1,2,3\n", "a.csv:1: column 'answer' stands twice"),
        ("a.jsonl", '{"problem": "1+1", "answer": 2, "answer": 3}\n', "a.jsonl:1: .* key 'answer' stands twice"),
        ("a.json", '[{"problem": "1+1", "answer": 2, "answer": 3}]', "key 'answer' stands twice"),
    ],
)
def test_a_column_that_is_there_twice_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_problems(name="mine", path=str(tmp_path / name))


def test_what_save_to_disk_has_written_is_read(tmp_path: Path) -> None:
    several = DatasetDict(train=Dataset.from_list(ROWS[:50]), test=Dataset.from_list(ROWS[50:]))
    several.save_to_disk(str(tmp_path / "several"))
    train, test = load_problems(name="mine", path=str(tmp_path / "several"))
    assert (len(train), len(test)) == (50, 10)
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    train, test = load_problems(name="mine", path=str(tmp_path / "one"), test_split=None)
    assert len(train) + len(test) == 60 and test
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        load_problems(name="mine", path=str(tmp_path / "one"))


def test_a_prompt_of_one_message_and_a_gold_inside_a_column_are_read(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": row["problem"]}], "reward_model": {"ground_truth": row["answer"]}}
        for row in ROWS
    ]
    columns = Columns(problem="prompt", answer="reward_model.ground_truth")
    train, test = load_problems(name="verl", path=write_jsonl(tmp_path / "verl.jsonl", rows), columns=columns)
    assert {(each.problem, each.answer) for each in train + test} == {(row["problem"], row["answer"]) for row in ROWS}
    rows[0]["prompt"].insert(0, {"role": "system", "content": "Be brief."})
    with pytest.raises(DataError, match="a prompt of 2 messages; only one of the user is read"):
        load_problems(name="verl", path=write_jsonl(tmp_path / "verl.jsonl", rows), columns=columns)
    with pytest.raises(DataError, match="no column 'prompt.role'"):
        load_problems(name="verl", path=str(tmp_path / "verl.jsonl"), columns=Columns(problem="prompt.role"))
    with pytest.raises(
        DataError, match="set data.columns.problem=prompt data.columns.answer=reward_model.ground_truth"
    ):
        load_problems(name="verl", path=str(tmp_path / "verl.jsonl"))


WORDLE = [{"problem": "Let's play Wordle", "answer": "", "secret": f"word{n % 30}"} for n in range(31)]


def test_rows_of_one_text_are_several_problems_where_whole_rows_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_jsonl(tmp_path / "games.jsonl", WORDLE)
    with caplog.at_level(logging.INFO):
        train, test = load_problems(name="mine", path=path, whole_rows=True)
    assert sorted(problem.columns["secret"] for problem in train + test) == sorted({row["secret"] for row in WORDLE})
    assert len({problem.id for problem in train + test}) == 30
    assert "1 repeated problems removed" in caplog.text and "29 rows repeat a text" in caplog.text
    with pytest.raises(DataError):  # one problem for a verifier that sees nothing but text and gold
        load_problems(name="mine", path=path)


def test_rows_of_a_held_out_text_are_not_trained_on(tmp_path: Path) -> None:
    rows = [{"problem": f"Guess the word in game {n % 20}", "answer": "", "secret": f"word{n}"} for n in range(60)]
    path = write_jsonl(tmp_path / "games.jsonl", rows)
    for other in (None, write_jsonl(tmp_path / "test.jsonl", rows[:5])):
        train, test = load_problems(name="mine", path=path, test_path=other, whole_rows=True)
        texts = [{problem.problem for problem in part} for part in (train, test)]
        assert texts[0] and texts[1] and not texts[0] & texts[1]
        assert len(train) == 3 * len(texts[0])
    one, few = write_jsonl(tmp_path / "one.jsonl", WORDLE), write_jsonl(tmp_path / "few.jsonl", WORDLE[:3])
    train, test = load_problems(name="mine", path=one, test_path=few, whole_rows=True)
    assert (len(train), len(test)) == (27, 3)


def test_golds_of_one_text_are_known_to_contradict_in_whole_rows_too(tmp_path: Path) -> None:
    rows = [{"problem": "What is 1+1?", "answer": answer} for answer in "23"]
    path = write_jsonl(tmp_path / "two.jsonl", rows)
    other = write_jsonl(tmp_path / "test.jsonl", ROWS[5:])
    train, _ = load_problems(name="mine", path=path, test_path=other, whole_rows=True)
    assert [(problem.answer, problem.other_golds) for problem in train] == [("2", ("3",)), ("3", ("2",))]


@pytest.mark.parametrize(
    ("overrides", "whole"),
    [
        ([], False),
        (["reward=python"], True),
        (["reward=rewards_of_mine:score"], True),
        (["reward=[{name: math}, {name: 'rewards_of_mine:score'}]"], True),
        (["environment=games_of_mine:Game"], True),
    ],
)
def test_whole_rows_count_where_something_is_told_them(
    overrides: list[str], whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rewards_of_mine", "games_of_mine"):
        (tmp_path / f"{name}.py").write_text("class Game: ...\ndef score(**_): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_recipe(["recipe=debug_grpo", *overrides]).whole_rows == whole


def test_levels_filter_both_parts(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "all.jsonl", ROWS)
    train, test = load_problems(name="mine", path=path, columns=Columns(level="level"), levels=[3, 4])
    assert {problem.level for problem in train + test} == {3, 4}
    with pytest.raises(DataError, match=r"levels=\[7\] keeps no problem .* its levels are \[1, 2, 3, 4, 5\]"):
        load_problems(name="mine", path=path, columns=Columns(level="level"), levels=[7])
    with pytest.raises(DataError, match=r"set data\.columns\.level"):
        load_problems(name="mine", path=path, levels=[3])


# --- gold answers


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("72", "72"),
        ("  12-5i ", "12-5i"),
        ("so 1 <<1+1=2>>\n#### 1,234,567", "1234567"),
        ("#### 3\n#### -5", "-5"),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{1}, \boxed{2", ""),
        ("\\boxed{1\\", ""),
        ("####", ""),
        (r"so \boxed {5}.", "5"),
        (r"\boxed{3, \fbox{4}}", r"3, \fbox{4}"),
        (r"\boxedfoo{3}", r"\boxedfoo{3}"),
        ("(1,200)", "(1,200)"),
    ],
)
def test_gold_is_the_answer_or_taken_from_the_solution(text: str, gold: str) -> None:
    assert extract_gold(text)[0] == gold


def test_numbers_as_answers_become_text_and_missing_ones_stay_empty_for_the_preflight(tmp_path: Path) -> None:
    rows = [{"problem": str(n), "answer": answer} for n, answer in enumerate([5, 2.5, None, ""])]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    _, problems = load_problems(name="mine", path=path, split="a", test_split="a")
    assert [problem.answer for problem in problems] == ["5", "2.5", "", ""]


@pytest.mark.parametrize(
    ("cell", "gold", "answer"),
    [
        ("1e16", "10000000000000000", "10^{16}"),
        ("1e-05", "0.00001", "0.00001"),
        ("5.0", "5.0", "5"),
        ("-2.5e-7", "-0.00000025", "-0.00000025"),
        ("NaN", "", None),
        ("Infinity", "", None),
    ],
)
def test_a_number_is_written_out_and_what_is_none_is_missing(
    tmp_path: Path, cell: str, gold: str, answer: str | None
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"problem": "a", "answer": {cell}}}\n')
    _, (problem,) = load_problems(name="mine", path=str(path), split="a", test_split="a")
    assert problem.answer == gold
    assert answer is None or grade_answer(answer, problem.answer).correct


@pytest.mark.parametrize("suffix", ["JSONL", "Json", "CSV"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path, suffix: str) -> None:
    content = {"JSONL": '{"problem": "a", "answer": "1"}', "Json": '[{"problem": "a", "answer": "1"}]'}
    path = tmp_path / f"A.{suffix}"
    path.write_text(content.get(suffix, "problem,answer\na,1\n"))
    _, problems = load_problems(name="mine", path=str(path), split="a", test_split="a")
    assert texts(problems) == ["a"]
    assert is_single_file(str(path))


# --- faults

GOOD = b'{"problem": "1+1", "answer": "2"}\n'
FAULTS: dict[str, tuple[str, bytes, str]] = {
    "empty": ("x.jsonl", b"\n\n", "x.jsonl is empty"),
    "empty list": ("x.json", b"[]", "x.json is empty"),
    "no rows in a csv": ("x.csv", b"problem,answer\n", "x.csv is empty"),
    "bad line": ("x.jsonl", GOOD + b'{"problem": "1+', r"x.jsonl:2: not valid JSON: Unterminated string"),
    "not an object": ("x.jsonl", GOOD + b"[1]\n", "x.jsonl:2: not an object with columns but list"),
    "one object": ("x.json", GOOD, "not a list of objects but dict"),
    "wrong column": (
        "x.jsonl",
        b'{"question": "1", "gold": "2"}',
        r"x.jsonl:1: no column 'problem'.* gold \(set data.columns.problem=question data.columns.answer=gold\)",
    ),
    "one wrong column": ("x.jsonl", b'{"problem": "1", "solution": "2"}', r"\(set data.columns.answer=solution\)"),
    "unknown columns": ("x.jsonl", b'{"frage": "1", "antwort": "2"}', r"\(set data.columns.\*\)"),
    "later column": ("x.jsonl", GOOD + b'{"problem": "2"}', "x.jsonl:2: no column 'answer'"),
    "wrong type": ("x.jsonl", b'{"problem": ["1"], "answer": "2"}', "x.jsonl:1: column 'problem' holds list"),
    "null problem": ("x.jsonl", b'{"problem": null, "answer": "2"}', "column 'problem' holds nothing"),
    "boolean": ("x.jsonl", b'{"problem": "1", "answer": true}', "column 'answer' holds bool"),
    "blank problem": ("x.jsonl", b'{"problem": " ", "answer": "1"}', "column 'problem' is empty"),
    "not utf-8": ("x.jsonl", GOOD + b'{"problem": "\xff"}', r"byte \d+ is not UTF-8"),
    "surrogate": ("x.jsonl", b'{"problem": "\\ud800", "answer": "1"}', "lone surrogate"),
    "endless integer": ("x.jsonl", b'{"problem": "1", "answer": 1' + b"0" * 5000 + b"}", "not valid JSON"),
    "deep nesting": ("x.json", b"[" * 200_000, "not valid JSON"),
    "ragged csv": ("x.csv", b"problem,answer\n1,2\n1,2,3\n", "x.csv:3: not 2 columns"),
    "short csv": ("x.csv", b"problem,answer\n1\n", "x.csv:2: not 2 columns"),
    "open quote": ("x.csv", b'problem,answer\n"1,2\n', "not valid CSV"),
    "parquet": ("x.parquet", b"PAR1 nonsense PAR1", "not a readable Parquet file|cannot read"),
    "empty parquet": ("x.parquet", b"", "not a readable Parquet file|cannot read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_with_its_place(tmp_path: Path, fault: str) -> None:
    name, content, message = FAULTS[fault]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_problems(name="mine", path=str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for missing, words in (("no.jsonl", "no data file .*no.jsonl"), ("no_folder", "data.path=.*no_folder: no such")):
        with pytest.raises(DataError, match=words):
            load_problems(name="mine", path=str(tmp_path / missing))


@pytest.mark.filterwarnings("ignore")
def test_an_unreachable_hub_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"cannot fetch dataset openai/gsm8k.*data\.path=FILE\.jsonl") as caught:
        load_problems(name="gsm8k", path="openai/gsm8k", subset="main")
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 60  # no retries over minutes


# --- prompts


def test_prompt_has_system_and_instruction_only_where_asked_for() -> None:
    problem = Problem("1+1=?", "2", None, 1, content_id("1+1=?"))
    assert format_prompt(problem) == [{"role": "user", "content": "1+1=?"}]
    assert format_prompt(problem, system_prompt="Be brief.", instruction="Box it.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1=?\nBox it."},
    ]
