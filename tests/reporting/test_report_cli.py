"""`python -m rlspec.report`: what it takes, and what it says to folders and files that are not usable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rlspec import report
from rlspec.errors import ConfigError
from rlspec.reporting import page

pytestmark = pytest.mark.usefixtures("undrawn")


def test_a_runs_page_lies_in_its_folder_and_names_its_result(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(after=0.8125)
    assert report.main([str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert "<!doctype html>" in text
    assert "81.2%" in text and "+41.2 points from 40.0%" in text
    assert str(folder / "report.html") in capsys.readouterr().out


def test_folders_are_given_with_and_without_the_key() -> None:
    line = report.ReportCommand.read(["a,b", "c"])
    assert line.run == [Path("a,b"), Path("c")]  # a folder's name may hold a comma
    assert report.ReportCommand.read(["run=a,b"]).run == [Path("a"), Path("b")]
    with pytest.raises(ConfigError, match="run"):
        report.ReportCommand.read(["out=x.html"])


def test_a_checkpoint_in_a_run_stands_for_the_run(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_run()
    checkpoint = folder / "checkpoints" / "checkpoint-40"
    checkpoint.mkdir(parents=True)
    (checkpoint / "recipe.yaml").write_text("recipe: grpo_math\n")
    assert report.main([str(checkpoint), f"out={tmp_path / 'page.html'}"]) == 0
    assert "80.0%" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("prepare", "arguments", "says"),
    [
        (None, ["{0}/absent"], "no such folder"),
        (None, ["{0}/empty"], "neither a run (recipe.yaml, metrics.jsonl) nor a sweep"),
        ({"report.json": '{"arms": []}'}, ["{0}/sweep"], "nothing to report"),
        ({"report.json": '{"arms": [{'}, ["{0}/sweep"], "report.json: cannot be read"),
        ({"plan.yaml": "arms: 3"}, ["{0}/sweep"], "no arm in report.json and no run below it"),
        ({"metrics.jsonl": ""}, ["{0}/sweep", "out={0}/empty"], "it is a folder; give a file"),
        ({"metrics.jsonl": ""}, ["{0}/sweep", "out={0}/absent/page.html"], "there is no folder"),
        ({"metrics.jsonl": ""}, ["{0}/sweep", "out={0}/page.pdf"], "ends with .html"),
        ({"metrics.jsonl": ""}, ["{0}/sweep", "evry=3"], "did you mean every"),
        ({"metrics.jsonl": ""}, ["{0}/sweep", "every=0"], "every"),
    ],
)
def test_a_mistake_gets_one_line(
    prepare: dict[str, str] | None,
    arguments: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("empty", "sweep"):
        (tmp_path / name).mkdir()
    for name, content in (prepare or {}).items():
        (tmp_path / "sweep" / name).write_text(content)
    assert report.main([argument.format(tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


def test_a_page_that_cannot_be_written_gets_one_line(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError(28, os.strerror(28), str(path))

    monkeypatch.setattr(page, "write_text_atomically", refuse)
    assert report.main([str(make_run()), f"out={tmp_path / 'page.html'}"]) == 2
    assert (
        capsys.readouterr().err
        == f"out={tmp_path / 'page.html'}: cannot be written (No space left on device); choose another file\n"
    )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metrics.jsonl", '{"step": 1, "reward": 0.5}\n{"step": 2, "rew', "metrics.jsonl: 1 lines that cannot be read"),
        ("metrics.jsonl", "[" * 100_000, "metrics.jsonl: 1 lines"),
        ("metrics.jsonl", '3\nnull\n"x"\n{"step": "x"}\n', "metrics.jsonl: 3 lines"),
        ("metrics.jsonl", "\xff\xfe{}", "metrics.jsonl: 1 lines"),
        ("summary.json", '{"status": "fin', "summary.json: cannot be read"),
        ("summary.json", "[]", "summary.json: holds no mapping"),
        ("recipe.yaml", "a: [", "recipe.yaml: cannot be read"),
        ("symmetry.json", "\x00", "symmetry.json: cannot be read"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(
    name: str, content: str, says: str, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run()
    (folder / name).write_bytes(content.encode("latin-1"))
    assert report.main([str(folder)]) == 0
    assert says in capsys.readouterr().err
    assert says in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("symmetry.json", '{"warnings": null, "specs": []}'),
        ("videos/push-\u00b2-success.mp4", "no film"),
        ("evaluations/step-\u00b2-arithmetic.jsonl", ""),
        ("metrics.jsonl", '{"step": 1, "reward": 1' + "0" * 400 + "}"),
        ("metrics.jsonl", '{"step": 1, "reward": 1e308}\n{"step": 2, "reward": -1e308}'),
    ],
)
def test_odd_names_and_numbers_are_passed_over(name: str, content: str, make_run: Callable[..., Path]) -> None:
    folder = make_run()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")
    assert report.main([str(folder)]) == 0


@pytest.mark.parametrize(
    "summary",
    [
        {},
        {"status": 3, "after": [], "before": "x", "versions": [1], "steps": None, "seconds": "x"},
        {"status": "finished", "after": {"sampled_pass_at_1": None, "pass_at_k": {"8": None}}, "versions": None},
        {"after": {"success_rate": 0.5, "total": {"ci95": [0.1]}}},
    ],
)
def test_a_summary_of_whatever_content_is_shown_as_far_as_it_goes(
    summary: dict[str, object], make_run: Callable[..., Path]
) -> None:
    folder = make_run()
    (folder / "summary.json").write_text(json.dumps(summary))
    assert report.main([str(folder)]) == 0


def test_a_run_that_has_just_begun_has_a_page(make_run: Callable[..., Path]) -> None:
    folder = make_run(after=None)
    for name in ("metrics.jsonl", "symmetry.json"):
        (folder / name).unlink()
    assert report.main([str(folder)]) == 0
    assert "No step has been logged yet." in (folder / "report.html").read_text()


def test_a_watched_run_is_written_until_it_has_ended(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pages = make_run(after=None), []
    summary = {"status": "finished", "steps": 40, "after": {"sampled_pass_at_1": 0.8}}

    def sleep(seconds: float) -> None:
        pages.append((folder / "report.html").read_text())
        if len(pages) == 2:
            (folder / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(page.time, "sleep", sleep)
    monkeypatch.setattr(page.watch, "__kwdefaults__", {"sleep": sleep})
    assert report.main([str(folder), "watch=true", "every=5"]) == 0
    assert len(pages) == 2
    assert all('data-reload="5.0"' in text for text in pages)
    assert "data-reload" not in (folder / "report.html").read_text().split("<script>")[0]


def test_a_resumed_run_is_running_again(make_run: Callable[..., Path]) -> None:
    folder = make_run(steps=40)
    assert not page.read_content([folder]).running
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "reward": 0.9}\n')
    assert page.read_content([folder]).running
