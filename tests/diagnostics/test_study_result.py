"""Tables, JSON and pictures of findings."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rlspec.diagnostics.result import StudyResult, Table, mean, plain, write_result
from rlspec.errors import ConfigError


def test_a_table_aligns_words_left_and_numbers_right_and_knows_what_is_missing() -> None:
    rows = [
        {"role": "q", "n": 3, "x": 0.12345},
        {"role": "long", "n": 12, "x": math.nan},
        {"role": "k", "n": 1, "x": 2e-7},
    ]
    assert list(Table("title", rows).lines()) == [
        "title",
        "  role   n        x",
        "  q      3    0.123",
        "  long  12        -",
        "  k      1  2.0e-07",
    ]


def test_files_are_valid_json_and_a_picture(tmp_path: Path) -> None:
    result = StudyResult(
        [Table("t", [{"a": math.inf}])], ["note"], {"b": (1.23456789, None)}, lambda figure: figure.subplots()
    )
    written = write_result(result, tmp_path / "new", "spectra", title="what")
    assert [path.name for path in written] == ["spectra.json", "spectra.png"]
    content = json.loads(written[0].read_text())
    assert content == {"title": "what", "tables": {"t": [{"a": None}]}, "notes": ["note"], "b": [1.23457, None]}
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"out=.*/file/x: cannot be written: Not a directory"):
        write_result(StudyResult([], [], {}), tmp_path / "file" / "x", "spectra", title="what")


def test_means_leave_out_what_is_not_finite() -> None:
    assert mean([1.0, math.nan, 3.0, math.inf]) == 2.0
    assert math.isnan(mean([]))
    assert plain({1: [float("nan")]}) == {"1": [None]}
