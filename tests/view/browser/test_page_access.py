"""Every view for everybody: axe in both themes, keys alone, small windows, text as text, motion only where wanted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from looking import axe_violations, parameters, until

from helpers.page_files import study_and_league
from helpers.page_server import HOSTILE, serve_page
from moeworks.find import find

# Each view as full as it gets: the address, and what stands there once it is drawn.
VIEWS = {
    "tokens": ("#/tokens?trace=plain&row=5&colour=entropy&layer=1&find=a", ".route-row"),
    "experts": (
        "#/experts?trace=plain&by=specialisation&label=lang&value=ru&expert=L1.E2&picked=L1.E2,L0.E1",
        ".contexts",
    ),
    "experts as a table": ("#/experts?trace=plain&by=score&scores=russian&as=table", ".experts table"),
    "layers": ("#/layers?trace=plain&what=divergence&label=lang&base=en", "main table"),
    "compare": ("#/compare?a=plain&b=steered", ".figures"),
    "steer": ("#/steer?trace=plain&demote=L0.E1,L1.E2&prompt=The+king", ".steer-chip"),
    "study": ("#/reports?study=study", ".report-frame"),
    "league": ("#/reports?league=more", ".reports-main table"),
}
# What a person can do something with, in the order of the document, as far as it can be seen. A frame is no stop of the
# Tab key where nothing in it is one: a study's report has a link beside it that opens it in a tab of its own.
CONTROLS = """() => {
  const every = "a[href], button, input, select, textarea, summary, [tabindex='0']";
  const seen = new Set();
  window.controls = [...document.querySelectorAll(every)].filter((node) => {
    if (node.disabled || node.tabIndex < 0 || !node.checkVisibility({ visibilityProperty: true })) return false;
    if (node.type !== "radio") return true;
    return !seen.has(node.name) && seen.add(node.name); // one of a group is reached, the arrows lead to the others
  });
  document.activeElement.blur();
  return window.controls.length;
}"""
# Where the focus is: which control, how it is marked, and whether it can be seen.
FOCUS = """() => {
  const node = document.activeElement;
  const style = getComputedStyle(node);
  const box = node.getBoundingClientRect();
  return {
    at: window.controls.indexOf(node),
    body: node === document.body,
    name: node.outerHTML.slice(0, 160),
    marked: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1,
    seen: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
  };
}"""

MISSED = """(reached) => window.controls.filter((node, i) => node.isConnected && !reached.includes(i))
  .map((node) => node.outerHTML.slice(0, 160))"""
BEYOND = """() => [...document.querySelectorAll('main *')].filter((node) => {
  const box = node.getBoundingClientRect();
  if (box.width === 0 || box.right <= innerWidth + 1) return false;
  if (getComputedStyle(node).position === 'absolute') return false;
  for (let outer = node.parentElement; outer; outer = outer.parentElement) {
    if (/auto|scroll|hidden|clip/.test(getComputedStyle(outer).overflowX)) return false;
  }
  return true;
}).map((node) => node.outerHTML.slice(0, 120))"""
WIDTHS = (360, 1280, 2560)
MOVING = """() => [...document.querySelectorAll('*')].filter((node) => {
  const style = getComputedStyle(node);
  const moves = style.transitionDuration.split(', ').some((one) => parseFloat(one) > 0);
  return moves || style.animationName !== 'none' || style.scrollBehavior === 'smooth';
}).length"""


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A page with something in every view, and names that are markup."""
    folder = tmp_path_factory.mktemp("access")
    with serve_page(folder, more=study_and_league(folder / "more")) as site:
        trace = site.sources.trace("plain")
        scores = find(trace, contrast="lang=ru", against="lang=en", permutations=50, bootstrap=20)
        site.sources.add_scores(scores, name="russian")
        site.sources.add_scores(scores, name=HOSTILE)
        site.sources.add_trace(trace, name=HOSTILE)
        yield site


def opened(page, site, view):
    """Open a view and wait until it stands there."""
    address, ready = VIEWS[view]
    page.goto(f"{site.page}{address}")
    page.wait_for_selector(ready)
    page.wait_for_timeout(200)
    return page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_and_every_width_is_enough(new_page, full, view, dark, screenshots):
    page = opened(new_page(dark=dark), full, view)
    assert axe_violations(page) == []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(200)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{view} is {wide} px wide in a window of {width} px"
        if screenshots is not None:
            name = f"{view.replace(' ', '-')}-{width}-{'dark' if dark else 'light'}.png"
            page.screenshot(path=screenshots / name)


def test_axe_finds_what_is_wrong(new_page, full):
    """The check itself: a picture without words, a field without a name, grey on grey."""
    page = opened(new_page(), full, "experts")
    page.evaluate("""() => {
      const add = (name, more) => {
        const node = Object.assign(document.createElement(name), more);
        document.querySelector('main').append(node);
        return node;
      };
      add('img', { src: 'data:,' });
      add('input', { type: 'text' });
      add('p', { textContent: 'Hardly to be read' }).style.color = '#bbb';
    }""")
    found = {one.split(":")[0] for one in axe_violations(page)}
    assert {"image-alt", "label", "color-contrast"} <= found


@pytest.mark.parametrize("view", VIEWS)
def test_the_tab_key_reaches_every_control(new_page, full, view):
    page = opened(new_page(), full, view)
    count = page.evaluate(CONTROLS)
    assert count > 12
    reached = set()
    for _ in range(count + 30):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        if focus["body"]:
            break
        if focus["at"] in reached:
            break
        reached.add(focus["at"])
        assert focus["marked"], f"no mark of the focus on {focus['name']}"
        assert focus["seen"], f"the focus is out of sight: {focus['name']}"
    assert page.evaluate(MISSED, sorted(reached)) == []


def test_the_keys_are_shown_and_lead_from_view_to_view(new_page, full):
    page = opened(new_page(), full, "experts")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    dialog.wait_for()
    assert "choose an expert" in dialog.inner_text()
    assert page.evaluate("document.querySelector('dialog').contains(document.activeElement)")
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    for key, view in enumerate(("tokens", "experts", "layers", "compare", "steer", "reports"), 1):
        page.keyboard.press(str(key))
        until(page, f"location.hash.startsWith('#/{view}')")
    page.wait_for_selector(".reports")
    page.keyboard.press("?")
    dialog.wait_for()
    assert "choose an expert" not in dialog.inner_text()


def tab_to(page, selector, most=80):
    """Press Tab until the focus is on what a selector names."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"the Tab key does not lead to {selector}")


def test_experts_are_chosen_and_steered_without_a_mouse(new_page, full):
    page = new_page()
    page.goto(f"{full.page}#/experts?trace=plain")
    page.wait_for_selector(".grid-hold canvas")
    tab_to(page, ".grid-hold")
    for key in ("ArrowDown", "ArrowRight", "Space", "Shift+ArrowRight", "Shift+ArrowRight"):
        page.keyboard.press(key)
    until(page, "location.hash.includes('picked=L1.E1-3')")
    assert page.locator("#grid-says").inner_text().startswith("L1.E3")
    page.keyboard.press("Enter")
    page.wait_for_selector(".contexts")
    tab_to(page, '.pick-ways a[href^="#/steer?"]')
    page.keyboard.press("Enter")
    page.wait_for_selector(".steer-prompt")
    assert parameters(page)["demote"] == "L1.E1-3"
    tab_to(page, ".steer-prompt textarea")
    page.keyboard.type("The king")
    tab_to(page, ".steer-prompt button.primary")
    page.keyboard.press("Enter")
    until(page, "[...document.querySelectorAll('.text-run')].every((one) => one.textContent.length > 10)", seconds=60)
    assert page.locator(".text-run").count() == 2


@pytest.mark.parametrize("view", VIEWS)
def test_small_windows_without_motion(new_page, full, view):
    """At 360 px nothing is wider than the window; no motion where none is wanted; markup in names stays text."""
    page = opened(new_page(width=360, height=740, reduced_motion="reduce"), full, view)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(BEYOND) == []
    assert page.evaluate(MOVING) == 0
    assert page.evaluate("window.hurt") is None
    assert page.locator("img[src=x], main script").count() == 0


def test_the_checks_of_small_windows_find_what_is_wrong(new_page, full):
    page = opened(new_page(width=360, height=740), full, "tokens")
    assert page.evaluate(MOVING) > 0  # without the wish buttons change their colour slowly
    page.evaluate("document.querySelector('main').append(Object.assign(document.createElement('p'), {id: 'wide'}))")
    page.evaluate("document.getElementById('wide').style.minWidth = '500px'")
    assert [one[:12] for one in page.evaluate(BEYOND)] == ['<p id="wide"']


def test_markup_is_shown_as_it_stands(new_page, full):
    page = opened(new_page(), full, "tokens")
    options = page.get_by_label("Trace", exact=True).locator("option").all_inner_texts()
    assert any(one.startswith(HOSTILE) for one in options)
    number = len(full.sources.trace("plain").requests) - 1
    page.goto(f"{full.page}#/tokens?trace=plain&request={number}")
    until(page, "document.querySelectorAll('.request').length === 1")
    shown = page.evaluate("document.querySelector('.tokens-frame').textContent")
    assert "<script>window.hurt=1</script>" in shown
    assert f"domain {HOSTILE}" in shown
    page.goto(f"{full.page}#/experts?trace=plain&by=score&scores=russian")
    page.wait_for_selector(".experts canvas")
    assert HOSTILE in page.get_by_label("Scores").locator("option").all_inner_texts()
