"""Pages in a browser: no errors, no sideways scroll, keyboard, filter, dark and light, reload."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlspec import report

PHONE, LAPTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


@contextmanager
def opened(browser: Any, path: Path, viewport: dict[str, int], **settings: Any) -> Iterator[Any]:
    """The page, which must not complain or ask for anything in the meantime."""
    context = browser.new_context(viewport=viewport, **settings)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert not wrong


@pytest.fixture(scope="module")
def pages(make_shared_run: Callable[..., Path], make_answer: Callable[..., dict[str, Any]]) -> list[Path]:
    """Of a run with hostile answers and a film, and of a sweep."""
    run = make_shared_run("a-run-with-a-very-long-name-" + "x" * 120)
    hostile = "</script><img src=x onerror=alert(1)>" + "y" * 5_000
    rows = [make_answer("1", hostile, correct=True, problem="z" * 900)]
    rows += [make_answer("2", "<script>alert(2)</script>\x00", correct=False)]
    (run / "evaluations" / "after-sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "evaluations" / "after" / "videos").mkdir(parents=True)
    (run / "evaluations" / "after" / "videos" / "push-000-success.gif").write_bytes(GIF)
    for seed in (0, 1):
        for optim in ("pion", "adamw", "muon"):
            sweep = make_shared_run(f"sweep/{optim}-{seed}", optim=optim, seed=seed).parent
    for folder in (run, sweep):
        assert report.main([str(folder)]) == 0
    return [run / "report.html", sweep / "report.html"]


GIF = bytes.fromhex("47494638396101000100800000ff0000ffffff2c00000000010001000002024401003b")


def test_pages_open_without_an_error_and_without_sideways_scroll(browser: Any, pages: list[Path]) -> None:
    for path in pages:
        for viewport in (PHONE, LAPTOP):
            with opened(browser, path, viewport) as page:
                page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
                assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
                assert page.locator("svg.chart").count() >= 8


def test_everything_is_reached_by_keyboard(browser: Any, pages: list[Path]) -> None:
    with opened(browser, pages[0], LAPTOP) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the content"
        key = page.locator(".key").first
        key.focus()
        page.keyboard.press("Enter")
        assert key.get_attribute("aria-pressed") == "true"
        shown = page.locator(".group.lit .line.shown")
        assert shown.count() > 0
        assert shown.first.evaluate("(each) => getComputedStyle(each).opacity") == "1"
        assert (
            page.locator(".group.lit .line:not(.shown)").first.evaluate("(e) => getComputedStyle(e).opacity") == "0.1"
        )
        page.locator("summary", has_text="1 of 1 right").focus()
        page.keyboard.press("Enter")
        assert page.locator(".problem[open] .answer").is_visible()


def test_the_filter_shows_one_verdict(browser: Any, pages: list[Path]) -> None:
    with opened(browser, pages[0], LAPTOP) as page:
        assert page.locator(".problem:visible").count() == 2
        page.get_by_label("never right").check()
        assert page.locator(".problem:visible").get_attribute("data-verdict") == "wrong"
        page.get_by_label("all", exact=True).check()
        assert page.locator(".problem:visible").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_figures_stand_out_from_the_paper(scheme: str, browser: Any, pages: list[Path]) -> None:
    with opened(browser, pages[0], LAPTOP, color_scheme=scheme) as page:
        paper = lightness(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert paper < 60 if scheme == "dark" else paper > 200
        for words in ("h1", ".about", "svg.chart text"):
            style = "fill" if "svg" in words else "color"
            colour = page.locator(words).first.evaluate(f"(each) => getComputedStyle(each).{style}")
            assert abs(lightness(colour) - paper) > 90, words
        page.locator("#theme").click()
        assert abs(lightness(page.evaluate("getComputedStyle(document.body).backgroundColor")) - paper) > 150


def lightness(colour: str) -> float:
    return sum(float(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]) / 3


def test_the_page_of_a_running_run_follows_it(
    browser: Any, make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlspec.reporting.page import write_report

    folder = make_run(after=None, steps=10)
    path = folder / "report.html"
    write_report([folder], path, reload_seconds=0.2)
    with opened(browser, path, LAPTOP) as page:
        page.locator("summary", has_text="recipe.yaml").click()
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 77, "reward": 0.9}\n')
        write_report([folder], path, reload_seconds=0.2)
        page.locator("dd", has_text="77").wait_for()
        assert page.locator("details", has_text="recipe.yaml").first.get_attribute("open") is not None  # as it was left


def test_a_printed_page_is_light_and_whole(browser: Any, pages: list[Path]) -> None:
    with opened(browser, pages[0], LAPTOP, color_scheme="dark") as page:
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert lightness(page.evaluate("getComputedStyle(document.body).backgroundColor")) == 255
        assert page.locator(".answer").first.is_visible()
        assert not page.locator("nav").is_visible()
        assert len(page.pdf()) > 20_000
