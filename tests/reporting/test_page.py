"""What a page shows of runs and sweeps, and that what others wrote can do no harm in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlspec import report
from rlspec.reporting.evaluations import MOST_PROBLEMS, rate_tables, read_answers, read_films
from rlspec.reporting.text import clean

MakeRun = Callable[..., Path]
MakeAnswer = Callable[..., dict[str, Any]]
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "</pre></details></main><h1>mine</h1>",
    "\x00\x1b[31mred\x07 \x9b \u202eevil\u2066 \ud800 \ufeff",
    "{{ 7 * 7 }} {% raw %} $\\frac{1}{2}$ &lt; ]]> -->",
    "x" * 100_000,
    "\"' onmouseover='alert(1)",
]


class Outline(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path) -> tuple[str, Outline]:
    assert report.main([str(folder)]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, Outline(text)


def write_answers(folder: Path, rows: list[dict[str, Any]], name: str = "after-sums.jsonl") -> None:
    (folder / "evaluations" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_others_wrote_stays_text(make_run: MakeRun, make_answer: MakeAnswer) -> None:
    folder = make_run()
    rows = [make_answer(f"{k}", text, correct=k % 2 == 0, problem=text) for k, text in enumerate(HOSTILE)]
    write_answers(
        folder, [row | {"gold": row["problem"], "reason": row["problem"], "extracted": row["problem"]} for row in rows]
    )
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"]["name"] = HOSTILE[0]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "symmetry.json").write_text(json.dumps({"rows": [{"role": HOSTILE[1]}], "warnings": HOSTILE[:3]}))
    text, outline = page_of(folder)
    tags = [tag for tag, _ in outline.tags]
    assert tags.count("script") == 1 and tags.count("h1") == 1
    assert not [attrs for _, attrs in outline.tags if any(name.startswith("on") for name in attrs)]
    assert HOSTILE[0] in outline.text and HOSTILE[4] in outline.text
    assert "\\x00\\x1b[31mred\\x07 \\x9b \\u202eevil\\u2066 \\ud800 \\ufeff" in outline.text
    assert not set(text) & set("\x00\x1b\x9b\u202e\u2066")
    assert "98,500 more characters" in outline.text
    assert len(text) < 1_000_000


def test_names_of_roles_and_arms_do_no_harm_in_figures(make_run: MakeRun) -> None:
    folder = make_run(steps=3)
    names = ["$\\frac{", "<script>x</script>", "a\x00b", "\ud800", "$x$"]
    rows = [{"step": step, **{f"optim/{name}/pass_energy": 1.0 for name in names}} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text, outline = page_of(folder)
    assert [tag for tag, _ in outline.tags].count("script") == 1
    assert "$\\frac{" in outline.text and "a\\x00b" in outline.text


def test_nothing_is_loaded_from_anywhere(make_run: MakeRun) -> None:
    text, outline = page_of(make_run())
    policy = next(
        attrs["content"] for tag, attrs in outline.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and policy.startswith("default-src 'none'")
    for tag, attrs in outline.tags:
        for name in ("src", "href", "xlink:href"):
            assert str(attrs.get(name) or "#").startswith(("#", "data:")), (tag, attrs)
    assert "@import" not in text and "url(http" not in text


def test_every_identifier_and_every_anchor_is_there_once(make_run: MakeRun) -> None:
    _, outline = page_of(make_run())
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 100
    anchors = {str(attrs["href"])[1:] for tag, attrs in outline.tags if tag == "a"}
    assert "r-spectra" in anchors and anchors <= set(ids)


def test_figures_take_their_colours_from_the_page(make_run: MakeRun) -> None:
    text, _ = page_of(make_run())
    drawings = "".join(part.partition("</svg>")[0] for part in text.split("<svg")[1:])
    assert "var(--s2)" in drawings and "var(--ink)" in drawings
    assert "#0a0" not in drawings and "#ffffff" not in drawings and "#000000" not in drawings


def test_answers_are_chosen_evenly_and_say_what_training_changed(make_run: MakeRun, make_answer: MakeAnswer) -> None:
    folder = make_run()
    rows = [make_answer(f"right {k}", "good", correct=True) for k in range(100)]
    rows += [make_answer(f"wrong {k}", "bad", correct=False) for k in range(100)]
    rows += [make_answer("mixed", f"text {mode}", correct=mode in (2, 3), mode=mode) for mode in ("greedy", 0, 1, 2, 3)]
    write_answers(folder, rows)
    write_answers(
        folder,
        [make_answer("mixed", "before", correct=True), make_answer("right 0", "x", correct=False)],
        "before-sums.jsonl",
    )
    write_answers(folder, [make_answer("old", "old", correct=True)], "step-5-sums.jsonl")
    (answers,) = read_answers(folder / "evaluations")
    assert answers.label == "after-sums" and answers.total == 201
    verdicts = [problem.verdict for problem in answers.shown]
    assert len(verdicts) == MOST_PROBLEMS
    assert verdicts.count("mixed") == 1
    assert abs(verdicts.count("right") - verdicts.count("wrong")) <= 1
    mixed = next(problem for problem in answers.shown if problem.verdict == "mixed")
    assert [(each.mode, each.text) for each in mixed.answers] == [
        ("greedy", "text greedy"),
        ("sample 0", "text 0"),
        ("sample 2", "text 2"),
    ]
    assert (mixed.right, mixed.total, mixed.earlier) == (2, 5, True)
    assert answers.shown[0].earlier is False  # right 0: learned


def test_lines_that_are_no_answers_are_counted(make_run: MakeRun, make_answer: MakeAnswer) -> None:
    folder = make_run()
    good = json.dumps(make_answer("a", "x", correct=True))
    (folder / "evaluations" / "after-sums.jsonl").write_text(f'{good}\n[]\n{{"id": 1}}\n{good[:30]}')
    (answers,) = read_answers(folder / "evaluations")
    assert (answers.total, answers.unreadable) == (1, 3)


def test_films_take_turns_and_keep_to_the_room_they_have(tmp_path: Path) -> None:
    for label, names in {
        "step-10": ["old-000-success.mp4"],
        "after": ["push-000-timeout.mp4", "push-001-timeout.mp4", "push-002-success.gif", ".1-push-003-success.mp4"],
    }.items():
        (tmp_path / label / "videos").mkdir(parents=True)
        for name in names:
            (tmp_path / label / "videos" / name).write_bytes(b"x" * 300)
    (films,) = read_films(tmp_path, room=900)
    assert films.label == "after"
    assert [(film.name, film.outcome, film.kind) for film in films.shown] == [
        ("push, episode 2", "success", "image"),
        ("push, episode 0", "timeout", "video"),
    ]
    assert films.left_out == ["push-001-timeout.mp4"]
    assert films.shown[0].source.startswith("data:image/gif;base64,eHh4")


def test_every_table_of_rates_is_found_by_its_form() -> None:
    rate = {"successes": 3, "episodes": 4, "success_rate": 0.75, "ci95": [0.3, 0.95], "failures": {"timeout": 1}}
    metrics = {
        "label": "after",
        "total": rate,
        "suites": {"franka": rate},
        "tasks": {"push": rate},
        "perturbations": {"camera": {"small": rate, "large": rate}, "light": rate},
    }
    tables = {table.title: table.rows for table in rate_tables(metrics)}
    assert tables.keys() == {"tasks", "perturbations"}
    assert [row[0] for row in tables["perturbations"]] == ["camera: small", "camera: large", "light"]
    assert tables["tasks"] == [("push", "3/4", "75.0% [30.0, 95.0]", "timeout 1")]


@pytest.mark.parametrize("text", ["a\nb\tc", "häuser 中文 \U0001f600", ""])
def test_ordinary_text_is_left_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_ten_thousand_steps_give_a_small_page(make_run: MakeRun) -> None:
    folder = make_run(steps=10_000)
    text, _ = page_of(folder)
    assert len(text) < 2_000_000
    assert "10,000" in text
