"""Data sets of the hub by their names, each as a snapshot with the files and columns that its card states."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from rlspec.config.load import load_recipe
from rlspec.rlvr.data.problems import read_problems

CONFIGS = ("all", "cn", "en")
CARD = "\n".join(
    ["---", "configs:"]
    + [f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*" for name in CONFIGS]
    + ["---", ""]
)
VERL = {"ability": "MATH", "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"}}
# Of each: its files, rows but for the number that tells them apart, the column of the question, and the gold of a row.
LAYOUTS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "dapo": ("en/train-00000-of-00001.parquet", {"solution": "34", "data_source": "math_dapo", **VERL}, "prompt", "34"),
    "deepscaler": ("deepscaler.json", {"answer": "-\\frac{2}{3}", "solution": ""}, "problem", "-\\frac{2}{3}"),
    "deepmath": (
        "data/train-00000-of-00010.parquet",
        {"final_answer": "\\dfrac{1}{2}", "difficulty": 4.5, "topic": "Calculus", "r1_solution_1": "so"},
        "question",
        "\\dfrac{1}{2}",
    ),
    "aime24": (
        "data/train-00000-of-00001.parquet",
        {"id": 60, "solution": "Thus \\boxed{204}.", "answer": "204", "url": "https://", "year": "2024"},
        "problem",
        "204",
    ),
    "aime25": ("test.jsonl", {"answer": "70", "id": "0"}, "problem", "70"),
}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_in_wide_use_is_read_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, columns, question, gold = LAYOUTS[name]
    rows = [{question: f"Problem {number}", **columns} for number in range(300)]
    write(tmp_path / file, rows)
    if name == "dapo":  # one of several configurations
        for other in ("all", "cn"):
            write(tmp_path / file.replace("en", other), rows[:3])
        (tmp_path / "README.md").write_text(CARD)
    asked: list[str] = []

    def fetch(repo: str, **_: object) -> Path:
        asked.append(repo)
        return tmp_path

    monkeypatch.setattr("rlspec.hub.fetch_snapshot", fetch)
    data = load_recipe(["recipe=grpo_math", f"data={name}"]).data
    train, test = read_problems(data)
    assert asked and set(asked) == {data.path}
    assert len(train) + len(test) == 300
    assert {problem.answer for problem in train + test} == {gold}
    assert {problem.problem for problem in train + test} == {f"Problem {number}" for number in range(300)}
    assert not train if name.startswith("aime") else 0 < len(test) < 20
