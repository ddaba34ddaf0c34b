"""A trace of 200,000 tokens: what is asked for, drawn and held while it opens and scrolls; counts, no times.

Absolute times are of `benchmarks/view_page.py`.
"""

from __future__ import annotations

import statistics

import pytest

from helpers.page_speed import PLAIN, WATCH, first_token, long_trace, scrolled, served

ROWS = 200_000
WINDOW = 2048 + 64  # rows of one question


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The address of the text of a long trace."""
    with served(long_trace(tmp_path_factory.mktemp("long") / "trace", ROWS)) as url:
        yield url


@pytest.fixture
def watched(new_page):
    page = new_page()
    page.add_init_script(WATCH)
    return page


def test_only_what_is_seen_is_asked_for_and_drawn(watched, text):
    first_token(watched, text)
    watched.wait_for_timeout(500)
    asked = watched.evaluate("window.watch")
    assert asked["rows"] <= 4 * WINDOW
    assert asked["questions"] <= 4
    assert watched.evaluate("document.querySelectorAll('.t').length") < 5000
    whole = watched.evaluate("document.querySelector('.chunks').scrollHeight")
    assert whole > ROWS / 4  # the bar of the window stands for the whole trace


def test_scrolling_asks_for_what_comes_and_lets_go_of_what_went(watched, text):
    first_token(watched, text)
    for _ in range(3):  # far more than is held at once
        scrolled(watched, steps=40, pixels=400)
        watched.wait_for_timeout(300)
    rows = [int(one) for one in watched.evaluate("[...document.querySelectorAll('.t')].map((one) => one.dataset.row)")]
    assert min(rows) > 2 * WINDOW
    asked = watched.evaluate("window.watch")
    passed = max(rows) // 2048 + 2  # windows between the beginning and here, this one and the next
    assert asked["questions"] <= 1.5 * passed  # some are given up while the wheel turns, and asked again
    assert asked["rows"] <= 1.5 * passed * WINDOW
    assert asked["most"] < 20_000, "elements that the page holds at once"
    assert watched.evaluate("document.querySelectorAll('.chunk:not(.blank)').length") < 40


def test_no_frame_has_much_to_do(watched, text):
    """A chunk of 256 tokens with routes, marks and colours, beside 256 plain words drawn in the same page."""
    first_token(watched, text)
    plain = watched.evaluate(PLAIN)
    watched.evaluate("window.watch.work = []")
    scrolled(watched, steps=60, pixels=300)
    work = sorted(watched.evaluate("window.watch.work.filter((one) => one > 0.3)"))  # frames in which a chunk was drawn
    assert len(work) >= 5
    assert statistics.median(work) < 6 * plain
    assert work[int(0.95 * (len(work) - 1))] < 30 * plain


def test_a_place_far_away_is_shown_without_what_lies_between(watched, text):
    first_token(watched, f"{text}&row=150000")
    watched.locator(".t.pinned").wait_for()
    row = int(watched.locator(".t.pinned").first.get_attribute("data-row"))
    assert 0 <= row - 150_000 < 4  # the tokens of one character are one place, which has the row of the last
    assert watched.evaluate("window.watch.rows") <= 8 * WINDOW
