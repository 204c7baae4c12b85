"""The journal of a series, through what may happen to its file."""

from __future__ import annotations

import json
from pathlib import Path

from rlspec.deploy.series import SeriesJournal


def test_half_a_line_that_a_power_cut_left_is_no_line_and_the_next_one_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    journal = SeriesJournal(path)
    assert journal.lines() == []
    journal.add({"run": "0001"})
    with path.open("a") as file:
        file.write('{"run": "00')
    assert journal.lines() == [{"run": "0001"}]
    journal.add({"run": "0002"})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"run": "0001"}, {"run": "0002"}]
    assert journal.lines() == [{"run": "0001"}, {"run": "0002"}]


def test_a_file_that_holds_only_half_a_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"run"')
    journal = SeriesJournal(path)
    assert journal.lines() == []
    journal.add({"run": "0001"})
    assert path.read_text() == '{"run": "0001"}\n'
