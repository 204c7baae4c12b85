"""The page in a browser: strict policy, no errors, no sideways scroll, keyboard, a lost link, a stop."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from rlspec.contract.actions import JOINT_NAMES
from rlspec.deploy.arm.interfaces import Frame
from rlspec.deploy.view.server import View, ViewFacts

PHONE, LAPTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
PROMPT = "put <b>the</b> " + "very" * 40 + "longcup onto the plate"
LINE: dict[str, Any] = {
    **{"tick": 30, "time": 9e5, "phase": "run", "event": "a camera froze " + "x" * 90, "reasons": ["joint_velocity"]},
    **{"late_ms": 0.1, "inference_ms": 40.0, "observation_age_ms": 33.0, "chunk": 2, "index": 5},
    "state": {"joints": np.array([1.95, *[0.5] * 6]), "velocities": np.zeros(7), "closure": 0.25, "mode": "moving"},
    **{"target": np.full(7, 0.8), "sent": np.array([0.8, 0.6, *[0.8] * 5])},
}


@contextlib.contextmanager
def watched(browser: Any, viewport: dict[str, int], stop: Callable[[str], None], **settings: Any) -> Iterator[Any]:
    """A view with a tick and two pictures, and its page, which may complain of nothing and ask for nothing else."""
    facts = ViewFacts("arm", "droid_hybrid", PROMPT, (-2.0,) * 7, (2.0,) * 7, 15.0, 8)
    view, wrong = View(facts, stop, "127.0.0.1:0"), list[str]()
    context = browser.new_context(viewport=viewport, **settings)
    try:
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((view.url, "blob:", "data:")) or wrong.append(asked.url))
        page.goto(view.url)
        view.put(LINE)
        view.put_frames({name: Frame(1.0, np.full((180, 320, 3), 90, np.uint8)) for name in ("exterior", "wrist")})
        page.locator("figure").nth(1).wait_for()
        page.locator("#phase", has_text="run (moving)").wait_for()
        yield view, page
    finally:
        context.close()
        view.close()
    assert not wrong


@pytest.mark.parametrize(("viewport", "scheme"), [(LAPTOP, "light"), (PHONE, "dark")])
def test_the_page_shows_the_run_without_an_error_and_without_sideways_scroll(
    browser: Any, viewport: dict[str, int], scheme: str
) -> None:
    with watched(browser, viewport, lambda _: None, color_scheme=scheme) as (_, page):
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        assert page.locator("figcaption").all_text_contents() == ["exterior", "wrist"]
        assert page.evaluate("[...document.images].every((each) => each.naturalWidth === 320)")
        assert PROMPT in page.locator("h1").text_content(), "as text, whatever is in it"
        rows = page.locator(".row").all()
        assert [row.locator("span").first.text_content() for row in rows] == list(JOINT_NAMES)
        assert rows[1].locator("b").all_text_contents() == ["0.50", "-0.200"], "what the filter took away"
        assert page.locator("i.near").count() == 1, "0.05 rad from its limit"
        lefts = page.locator(".row >> nth=1").locator("i").evaluate_all("(each) => each.map((one) => one.style.left)")
        assert lefts == ["62.5%", "70%"], "between -2 and 2: measured 0.5, asked for 0.8"
        assert page.locator("#changes").text_content() == "joint_velocity"
        assert page.locator("#left").text_content() == "0.13 s of chunk 2"
        assert page.locator("#inference").text_content() == "40.0 ms"
        assert page.locator("#events li").all_text_contents() == [f"2.0 s: {LINE['event']}"]
        page.mouse.wheel(0, 5000)
        assert page.locator("#stop").evaluate("(each) => each.getBoundingClientRect().top") < 50, (
            "it never scrolls away"
        )


@pytest.mark.parametrize("keys", [["Tab", "Enter"], ["Tab", "Space"], ["Space"], ["Escape"]])
def test_the_keyboard_alone_stops_the_robot(browser: Any, keys: list[str]) -> None:
    stops: list[str] = []
    with watched(browser, LAPTOP, stops.append) as (_, page):
        for key in keys:
            page.keyboard.press(key)
        page.locator("#stop", has_text="STOPPED").wait_for()
        assert page.locator("#stop").is_disabled()
    assert stops == ["the page's stop button"]


def test_a_stop_that_is_not_confirmed_a_lost_link_and_the_end_are_told(browser: Any) -> None:
    confirm = threading.Event()
    with watched(browser, LAPTOP, lambda _: None if confirm.wait(60) else None) as (view, page):
        link = page.locator("#link")
        page.evaluate("socket.close(3000)")  # the way the page sees it when the network goes
        link.get_by_text("NOT CONNECTED: use the user stop").wait_for()
        assert page.locator("#stop").is_disabled()
        page.locator("#stop:enabled").click()  # it connects again
        link.get_by_text("NOT CONFIRMED: use the user stop").wait_for()
        confirm.set()
        page.locator("#stop", has_text="STOPPED").wait_for()
        assert page.locator(".row").count() == 7
        view.close()
        link.get_by_text("the run has ended").wait_for()
