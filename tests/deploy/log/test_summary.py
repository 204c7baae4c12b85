"""Logs are read back whole or as a killed process left them; the summary says what they hold."""

from __future__ import annotations

import base64
import html.parser
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from run_logs import STEP, record, write

from rlspec.deploy.log.reader import read_log
from rlspec.deploy.log.summary import measure, write_summary
from rlspec.errors import DataError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    record(folder)
    return folder


class Page(html.parser.HTMLParser):
    """Rows of all tables, and the pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.pictures += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.rstrip()


def test_figures_are_those_of_the_ticks(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "ticks.jsonl").read_text().splitlines()][1:-1]
    figures = measure(read_log(run))
    acted = [line for line in lines if line["requested"]]
    assert (figures.ticks, figures.acted, len(acted)) == (60, 56, 56)
    assert figures.phases == {"start": 1, "run": 56, "hold": 3}
    assert figures.reasons == {"slew": sum(line["reasons"] == ["slew"] for line in lines)}
    assert figures.reasons["slew"] > 5
    assert figures.events == [(20, pytest.approx(20 / 15), "no fresh action")]
    assert figures.late_ms == (0.375, 0.75, 0.75)
    chunks = {line["chunk"]: line["inference_ms"] for line in acted}
    assert figures.inference_ms[0] == np.median(list(chunks.values()))
    cut = [max(abs(line["target"][i] - line["sent"][i]) for line in acted) for i in range(7)]
    np.testing.assert_allclose(figures.changed, cut)
    lag = max(abs(a["sent"][1] - b["state"]["joints"][1]) for a, b in zip(lines[1:], lines[2:], strict=False))
    assert figures.lag[1] == pytest.approx(lag)
    assert max(figures.changed) <= 0.2 - STEP + 1e-9


def test_the_page_is_self_contained_and_says_what_happened(run: Path, tmp_path: Path) -> None:
    picture, page = write_summary(run, tmp_path)
    text = page.read_text()
    shown = Page(text)
    cells = {row[0]: row[1] for row in shown.rows if len(row) >= 2}
    slew = measure(read_log(run)).reasons["slew"]
    assert cells["outcome"].endswith("60 ticks <done>"), "text of the log is escaped, not interpreted"
    assert cells["slew"].startswith(f"{slew} ticks")
    assert cells["law"] == "stiff_position"
    assert cells["lateness"] == "median 0.4 ms, p99 0.8 ms, largest 0.8 ms"
    assert cells["1.33 s, tick 20"] == "no fresh action"
    assert [row[0] for row in shown.rows].count("joint7") == 1
    (source,) = shown.pictures
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == picture.read_bytes()
    assert "http" not in text


def test_the_picture_holds_the_curves_of_the_log(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
    write_summary(run, tmp_path)
    log = read_log(run)
    axes = kept[0].axes
    assert [axis.get_title() for axis in axes[:7]] == [f"joint{i}, rad" for i in range(1, 8)]
    for joint, axis in enumerate(axes[:7]):
        curves = {str(line.get_label()): np.asarray(line.get_ydata(), float) for line in axis.lines}
        np.testing.assert_array_equal(curves["measured"], log.column("state", "joints", size=7)[:, joint])
        np.testing.assert_array_equal(curves["target"], log.column("target", size=7)[:, joint])
        np.testing.assert_array_equal(curves["sent"], log.column("sent", size=7)[:, joint])
        assert np.isnan(curves["target"]).sum() == 4
    gripper = {str(line.get_label()): np.asarray(line.get_ydata(), float) for line in axes[7].lines}
    assert np.nanmax(gripper["sent"]) == 1.0 and np.nanmin(gripper["requested"]) == 0.0
    assert axes[8].get_yticklabels()[0].get_text().startswith("slew (")
    assert {text.get_text() for text in axes[9].get_legend().get_texts()} == {
        "tick's lateness",
        "action's age",
        "observation's age",
        "inference",
    }


def test_a_log_cut_off_by_a_kill_is_used_up_to_its_last_whole_line(run: Path, tmp_path: Path) -> None:
    whole = (run / "ticks.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    lines[7] = json.dumps({**json.loads(lines[7]), "state": None}).encode() + b"\n"  # the robot did not answer
    (tmp_path / "ticks.jsonl").write_bytes(b"".join(lines[:31]) + lines[31][:40])
    log = read_log(tmp_path)
    assert [tick["tick"] for tick in log.ticks] == list(range(30))
    assert log.footer == {}
    assert log.problems[0] == "line 32 was cut off while it was written; left out"
    assert "killed" in log.problems[1]
    _, page = write_summary(tmp_path)
    shown = Page(page.read_text())
    assert log.problems[0] in shown.text and log.problems[1] in shown.text
    assert ["outcome", "unknown"] in shown.rows


def test_broken_lines_are_named_and_numbers_that_were_not_finite_are_gaps(run: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (run / "ticks.jsonl").read_text().splitlines()]
    lines[5]["requested"][2] = None  # how a NaN is written
    lines[6]["state"] = None
    write(tmp_path, lines)
    text = (tmp_path / "ticks.jsonl").read_text().splitlines()
    text[9] = "[1, 2]"
    (tmp_path / "ticks.jsonl").write_text("\n".join(text) + "\n")
    log = read_log(tmp_path)
    assert log.problems == ("line 10 is no JSON object; left out",)
    assert len(log.ticks) == 59
    assert np.isnan(log.column("requested", size=8)[4, 2])
    assert np.isnan(log.column("state", "joints", size=7)[5]).all()


def test_what_is_no_log_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no ticks.jsonl; give the folder"):
        read_log(tmp_path)
    write(tmp_path, [{"header": {"robot": "mujoco"}}])
    with pytest.raises(DataError, match="no ticks; the deployment ended"):
        read_log(tmp_path)
    write(tmp_path, [{"tick": 1}])
    with pytest.raises(DataError, match="no header"):
        read_log(tmp_path)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What is written beyond fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 1000])
def test_a_full_disk_leaves_no_half_of_a_picture(run: Path, tmp_path: Path, room: int) -> None:
    with largest_file(room), pytest.raises(OSError):
        write_summary(run, tmp_path)
    assert list(tmp_path.iterdir()) == []
    picture, page = write_summary(run, tmp_path)
    before = picture.read_bytes(), page.read_bytes()
    with largest_file(room), pytest.raises(OSError):
        write_summary(run, tmp_path)
    assert (picture.read_bytes(), page.read_bytes()) == before


def test_a_joint_that_stands_is_drawn_as_a_line_and_one_that_moves_fills_its_axis(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (run / "ticks.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines[1:-1]):
        line["state"]["joints"] = [0.3 + 1e-8 * (number % 2), 0.1 * number] + [0.0] * 5
        line["target"] = line["sent"] = None
    write(tmp_path, lines)
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
    write_summary(tmp_path)
    limits = [axis.get_ylim() for axis in kept[0].axes[:7]]
    assert limits[0] == pytest.approx((0.29, 0.31), abs=1e-6)
    assert limits[1][1] - limits[1][0] == pytest.approx(1.1 * 5.9)  # matplotlib's margins


def test_a_tick_counts_once_for_a_reason_however_often_it_is_named(run: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (run / "ticks.jsonl").read_text().splitlines()]
    for line in lines[1:-1]:
        line["reasons"] = ["slew", "slew"] if line["requested"] else []
    write(tmp_path, lines)
    _, page = write_summary(tmp_path)
    cells = {row[0]: row[1] for row in Page(page.read_text()).rows if len(row) >= 2}
    assert cells["slew"].startswith("56 ticks, 100.0%")
