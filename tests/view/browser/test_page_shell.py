"""The shell: address, keys, theme, key of the server, lost connection, reading by other hands than a mouse."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from looking import axe_violations, until

from helpers.page_server import serve_page

VIEWS = ("tokens", "experts", "layers", "compare", "steer", "reports")


def told(page, expression: str):
    """Return what an expression gives with the modules of the page at hand as `m`."""
    return page.evaluate(f"async () => {{ const m = await import('moeworks/state'); return {expression}; }}")


def test_addresses_are_read_and_written_back(page, site):
    page.goto(site.page)
    page.wait_for_selector("canvas")
    params = {"trace": "a b", "find": "x&y=#/é", "expert": "L3.E5", "empty": ""}
    written = page.evaluate(
        "async (all) => { const m = await import('moeworks/state'); return m.parseHash(m.hashOf('tokens', all)); }",
        params,
    )
    assert written == {"view": "tokens", "params": {name: value for name, value in params.items() if value}}
    assert told(page, "m.parseHash('#/nowhere?x=1')") == {"view": "experts", "params": {}}
    assert told(page, "m.formatAddresses(['L4.E2', 'L1.E3', 'L4.E0', 'L4.E1', 'L4.E9'])") == "L1.E3,L4.E0-2,L4.E9"
    assert told(page, "m.parseAddresses('L1.E3,L4.E0-1,nonsense,L4.E1').map((one) => one.address)") == [
        "L1.E3",
        "L4.E0",
        "L4.E1",
    ]


def test_numbers_lead_to_the_views_and_the_trace_comes_along(page, site):
    page.goto(f"{site.page}#/tokens?trace=steered")
    page.wait_for_selector(".t")
    for number, view in enumerate(VIEWS, 1):
        page.keyboard.press(str(number))
        until(page, f"location.hash === '#/{view}?trace=steered'")
        until(page, f"document.querySelector('nav a[aria-current]').textContent.toLowerCase() === '{view}'")
        until(page, "document.querySelector('main h1') !== null")
        assert page.locator(".failure").count() == 0
    page.go_back()
    until(page, "location.hash.startsWith('#/steer')")


def test_the_keys_are_shown_and_letters_in_a_field_are_no_keys(page, site):
    page.goto(site.page)
    page.wait_for_selector("canvas")
    page.keyboard.press("/")
    until(page, "document.activeElement.classList.contains('expert-search')")
    page.keyboard.type("2?")
    assert page.evaluate("location.hash") in ("", "#/experts")
    assert page.locator("dialog").count() == 0
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    assert "choose an expert" in page.locator("dialog").inner_text()
    assert axe_violations(page) == []
    page.keyboard.press("Escape")
    until(page, "document.querySelector('dialog') === null")


def test_the_theme_is_chosen_and_kept(page, site):
    page.goto(site.page)
    page.wait_for_selector("canvas")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(paper)
    button = page.get_by_role("button", name="theme")
    button.click()
    assert page.evaluate(paper) == light  # light, as the system has it here
    button.click()
    until(page, f"{paper} !== '{light}'")
    page.reload()
    page.wait_for_selector("canvas")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_lost_connection_is_told_and_found_again(page, site):
    page.expected += ["ERR_CONNECTION_REFUSED", "ERR_FAILED"]
    page.goto(f"{site.page}#/tokens?trace=plain")
    page.wait_for_selector(".t")
    page.route("**/view/api/**", lambda route: route.abort("connectionrefused"))
    page.evaluate("location.hash = '#/experts?trace=steered'")
    page.wait_for_selector(".banner")
    assert "Connection lost" in page.locator(".banner").inner_text()
    page.unroute("**/view/api/**")
    page.wait_for_selector("canvas")
    assert page.locator(".banner").count() == 0


def test_a_key_is_taken_from_the_address_and_kept_out_of_it(new_page, tmp_path):
    with serve_page(tmp_path, key="open sesame") as site:
        page = new_page()
        page.goto(f"{site.url}/view/#key=open%20sesame")
        page.wait_for_selector("canvas")
        assert "sesame" not in page.url
        page.reload()
        page.wait_for_selector("canvas")
        stranger = new_page()
        stranger.expected.append("status of 401")
        stranger.goto(f"{site.url}/view/")
        stranger.wait_for_selector(".failure")
        assert "key" in stranger.locator(".failure").inner_text().lower()


@pytest.mark.parametrize("view", VIEWS)
def test_without_traces_each_view_says_what_to_do(page, site, view):
    empty = {**site.sources.as_json(), "traces": [], "scores": [], "model": None, "studies": [], "league": []}
    empty["can"] = {"generate": False, "record": False, "evaluate": False}
    page.route("**/api/sources", lambda route: route.fulfill(json=empty))
    page.goto(f"{site.page}#/{view}")
    page.wait_for_selector(".empty")
    assert page.locator(".empty h2").inner_text()
    assert axe_violations(page) == []
