"""`python -m rlspec.grade`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlspec.grade import main
from rlspec.rlvr.grading.inspection import read_golds


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["answer=0.5", r"gold=\frac12"], 0, "correct  reason: decimal"),
        (["answer=2", r"gold=2\sqrt{3}"], 1, "wrong  reason: "),
        ([r"completion=so \boxed{4}", "gold=4"], 0, "correct  reason: exact"),
        ([r"completion=so \boxed{4}", "gold=4", "thinking=true"], 1, "wrong  reason: truncated_thinking"),
        (["answer=4", "gold="], 3, "undecided  reason: gold_unparseable"),
        (["answer=\x00\udcff", "gold=4"], 1, "wrong  reason: unparseable"),
    ],
)
def test_one_answer(arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == status
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["answr=4", "gold=4"], "did you mean answer?"),
        (["answer=4"], "gold= is missing"),
        (["gold=4"], "exactly one of answer=, completion= and data="),
        (["answer=4", "data=x.csv"], "exactly one of"),
        (["answer=4", "gold=4", "timeout=soon"], "timeout=soon: must be a number > 0 and <= 3"),
        (["answer=4", "gold=4", "timeout=9"], "timeout=9"),
        (["completion=4", "gold=4", "thinking=maybe"], "thinking=maybe: must be true or false"),
        (["answer=4", "gold=4", "thinking=true"], "thinking= does nothing with answer="),
        (["answer=4", "gold=4", "mutations=2"], "mutations= does nothing with answer="),
        (["answer=4", "gold=4", "show=2"], "show= does nothing with answer="),
        (["completion=4", "gold=4", "report=x"], "report= does nothing with completion="),
        (["data=missing.jsonl", "thinking=true"], "thinking= does nothing with data="),
        (["data=missing.jsonl", "mutations=nan"], "mutations=nan: must be a whole number"),
        (["data=missing.jsonl", "workers=inf"], "workers=inf: must be a whole number"),
        (["data=missing.jsonl", "show=1.5"], "show=1.5: must be a whole number"),
        (["data=missing.jsonl"], "no such file"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, rlspec.grade; status = rlspec.grade.main(sys.argv[1:]);"
        "sys.exit(status or any(m in sys.modules for m in ('torch', 'sympy', 'math_verify', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage:" in done.stdout


def write_rows(folder: Path, suffix: str, rows: list[dict[str, str]]) -> Path:
    path = folder / f"golds.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif suffix == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif suffix == "csv":
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_file_format_is_read(tmp_path: Path, suffix: str) -> None:
    rows = [{"question": "a, b", "answer": "1,080\u2028"}, {"question": "c", "answer": r"\frac{1}{2}"}]
    path = write_rows(tmp_path, suffix, rows)
    assert read_golds(path, None) == ("answer", ["1,080\u2028", r"\frac{1}{2}"], ["a, b", "c"])
    assert read_golds(path, "question", "answer") == ("question", ["a, b", "c"], ["1,080\u2028", r"\frac{1}{2}"])


def test_a_column_is_checked_and_failures_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path, "jsonl", [{"answer": gold} for gold in ("42", r"\frac{1}{", "x^2")])
    report = tmp_path / "report.json"
    assert main([f"data={path}", f"report={report}", "workers=1"]) == 1
    said = capsys.readouterr().out
    assert "column answer: 2 of 3 golds usable" in said
    assert "row 1: identity -> empty_box" in said
    assert "verdicts per second" in said
    assert [row["index"] for row in json.loads(report.read_text())] == [1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "{", "Expecting property name"),
        ("a.json", '{"answer": 1}', "not a list of objects but dict"),
        ("deep.jsonl", "[" * 200_000, "deep.jsonl:1: not valid JSON"),
        ("a.csv", "", "a.csv is empty"),
        ("l.jsonl", '{"answer": ["3"]}', "column 'answer' holds list, not text (gold=COLUMN names another)"),
        ("a.txt", "x", "is none of .jsonl, .json, .csv, .parquet"),
        ("a.parquet", "x", "a.parquet"),
        ("c.csv", "answer\n1\n", "not every row has a column text; there are answer"),
        ("b.csv", "question\n1\n", "not every row has a column answer; there are question"),
    ],
)
def test_a_bad_file_is_one_line(
    tmp_path: Path, name: str, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert main([f"data={path}", *(["problem=text"] if name == "c.csv" else [])]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_golds_are_read_as_training_reads_them(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("answer,problem\n4,a\n", encoding="utf-8-sig")
    assert read_golds(table, None) == ("answer", ["4"], ["a"])
    lines = tmp_path / "A.JSONL"
    lines.write_text('{"answer": 1e16}\n{"answer": null}\n{"answer": NaN}\n', encoding="utf-8")
    assert read_golds(lines, None) == ("answer", ["10000000000000000", "", ""], None)


def test_rows_that_contradict_and_golds_in_prose_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golds = [("How many?", "4"), ("Why?", "The answer is 3."), ("How many?", "5")]
    path = write_rows(tmp_path, "jsonl", [{"question": question, "answer": gold} for question, gold in golds])
    assert main([f"data={path}", "workers=1"]) == 1
    said = capsys.readouterr().out
    assert "column answer: 0 of 3 golds usable" in said
    assert "row 0: same problem as row 2 -> gold_contradicted: answer '5', gold '4'" in said
    assert "row 1: readable -> gold_unreadable: answer 'The answer is 3.', gold 'The answer is 3.'" in said
    assert "row 2: same problem as row 0 -> gold_contradicted: answer '4', gold '5'" in said


def test_golds_read_as_one_number_are_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path, "jsonl", [{"answer": gold} for gold in ("Both. #### 100,200", "(100,200)", "7")])
    assert main([f"data={path}", "workers=1"]) == 0
    assert "1 golds with commas, such as '100,200', are read as one number" in capsys.readouterr().out


def test_the_real_math500_passes(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"data={shared / 'data' / 'math500' / 'test.jsonl'}"]) == 0
    assert "500 of 500 golds usable" in capsys.readouterr().out
