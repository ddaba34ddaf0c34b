"""The notebook widgets in a page that loads them as anywidget does: a text, and a model of traits and messages."""

from __future__ import annotations

import base64

import pytest

pytest.importorskip("anywidget", reason="the widgets need anywidget (extra view)")

from moeworks.view import ExpertMap, TokenView
from moeworks.view.widget_module import widget_module

HOST = "http://notebook.test/"
# A notebook of two cells, with styles and keys of its own that must neither reach the widgets nor be reached by theirs.
NOTEBOOK = """<!doctype html><html lang="en" style="font-size: 30px"><title>notebook</title>
<style>button { background: rgb(255, 0, 0) } .t { display: none }</style>
<body><h1>Notebook</h1><p class="controls quiet">outside</p>
<div id="first"></div><div id="second"></div></body></html>"""

# What anywidget does with a module: a blob, an import of it, and render with the model and an element.
LOAD = """async ({ esm, traits, cell, name }) => {
  const events = {};
  const tell = (event, ...given) => { for (const listener of [...(events[event] ?? [])]) listener(...given); };
  const changed = {};
  const model = {
    get: (key) => traits[key],
    set(key, value) { traits[key] = value; changed[key] = value; tell(`change:${key}`); },
    save_changes() { window.saved(name, { ...changed }); for (const key of Object.keys(changed)) delete changed[key]; },
    on: (event, listener) => (events[event] ??= []).push(listener),
    off: (event, listener) => { events[event] = (events[event] ?? []).filter((one) => one !== listener); },
    async send(content) {
      const { status, body } = await window.kernel(name, content.url);
      const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
      const error = status === 200 ? null : JSON.parse(new TextDecoder().decode(bytes)).error;
      const buffers = status === 200 ? [new DataView(bytes.buffer)] : [];
      tell("msg:custom", { id: content.id, status, message: error?.message }, buffers);
    },
  };
  (window.models ??= {})[name] = { model, count: () => Object.values(events).flat().length };
  const address = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
  const { default: widget } = await import(address);
  URL.revokeObjectURL(address);
  window.models[name].close = await widget.render({ model, el: document.getElementById(cell) });
}"""

COLOURS = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}"""


@pytest.fixture
def notebook(new_page):
    """Return a function that shows a widget in a cell of a notebook's page; the page itself is its attribute `page`."""
    page = new_page()
    widgets = {}
    page.route(f"{HOST}**", lambda route: route.fulfill(body=NOTEBOOK, content_type="text/html"))
    page.goto(HOST)

    def kernel(name, url):
        status, body = widgets[name].answer(url)
        return {"status": status, "body": base64.b64encode(body).decode()}

    page.expose_function("kernel", kernel)
    page.expose_function("saved", lambda name, changes: widgets[name].set_state(changes))

    def show(widget, cell="first", name="w"):
        widgets[name] = widget
        traits = {key: getattr(widget, key) for key in ("selected", "row", "height", "_route", "_name")}
        page.evaluate(LOAD, {"esm": widget_module(), "traits": traits, "cell": cell, "name": name})
        return page.locator(f"#{cell}")

    show.page = page
    yield show
    for widget in widgets.values():
        widget.close()


def saved(page, widget, name, value):
    """Wait until a trait has a value in Python."""
    for _ in range(100):
        if getattr(widget, name) == value:
            return
        page.wait_for_timeout(50)
    assert getattr(widget, name) == value


def test_tokens_are_drawn_and_a_chosen_one_is_known_in_python(notebook, site):
    widget = TokenView(site.sources.trace("plain"), request=0, colour="entropy", layer=1)
    cell = notebook(widget)
    cell.locator(".t").first.wait_for()
    text = cell.locator(".tokens-frame").inner_text()
    assert "king" in text.replace("·", "") or cell.locator(".t").count() > 5
    assert cell.locator(".legend").inner_text().startswith("Entropy")
    colour = cell.locator(".t").nth(3).evaluate("node => node.style.getPropertyValue('--c')")
    assert colour.startswith("rgb(")
    cell.locator(".t").nth(2).click()
    row = int(cell.locator(".t").nth(2).get_attribute("data-row"))
    saved(notebook.page, widget, "row", row)
    cell.locator(".route-token").wait_for()
    assert cell.locator(".route-row .bar").count() == len(widget.trace.layers)


def test_choosing_an_expert_sets_the_trait_and_the_trait_chooses(notebook, site):
    widget = ExpertMap(site.sources.trace("plain"), by="load", selected=["L1.E2"])
    cell = notebook(widget)
    map_ = cell.locator(".grid-hold")
    map_.wait_for()
    assert cell.locator(".pick-list").inner_text() == "L1.E2"
    assert cell.locator("canvas").evaluate(COLOURS) > 10
    map_.focus()
    notebook.page.keyboard.press("ArrowRight")
    notebook.page.keyboard.press("Space")
    saved(notebook.page, widget, "selected", ["L0.E1", "L1.E2"])
    notebook.page.evaluate(
        "() => { const { model } = window.models.w; model.set('selected', ['L2.E3']); model.save_changes(); }"
    )
    cell.get_by_text("L2.E3", exact=True).first.wait_for()
    saved(notebook.page, widget, "selected", ["L2.E3"])
    assert cell.locator('a[href^="#/steer"]').first.is_visible() is False


def test_a_link_leads_within_the_widget(notebook, site):
    widget = ExpertMap(site.sources.trace("plain"), expert="L0.E1")
    cell = notebook(widget)
    cell.get_by_role("link", name="In the text").click()
    cell.locator(".t").first.wait_for()
    assert notebook.page.url == HOST
    assert cell.locator(".legend").inner_text().startswith("Weight of L0.E1")


def test_two_widgets_keep_apart(notebook, site):
    trace = site.sources.trace("plain")
    one, two = ExpertMap(trace), ExpertMap(trace, selected=["L0.E0"])
    first, second = notebook(one, "first", "one"), notebook(two, "second", "two")
    for cell in (first, second):
        cell.locator(".grid-hold").wait_for()
    first.locator(".grid-hold").focus()
    notebook.page.keyboard.press("Space")
    saved(notebook.page, one, "selected", ["L0.E0"])
    notebook.page.keyboard.press("ArrowDown")
    notebook.page.keyboard.press("Space")
    saved(notebook.page, one, "selected", ["L0.E0", "L1.E0"])
    assert two.selected == ["L0.E0"]
    assert second.locator(".pick-count").inner_text().startswith("1")


def test_styles_and_keys_stay_within(notebook, site):
    page = notebook.page
    cell = notebook(TokenView(site.sources.trace("plain")))
    cell.locator(".t").first.wait_for()
    assert cell.locator(".t").first.is_visible()
    cell.locator(".t").first.click()
    button = cell.get_by_role("button", name="Copy")
    assert button.evaluate("node => getComputedStyle(node).backgroundColor") != "rgb(255, 0, 0)"
    assert page.locator("p.controls").evaluate("node => getComputedStyle(node).display") == "block"
    assert cell.locator(".widget").evaluate("node => getComputedStyle(node).fontSize") == "14px"
    page.evaluate("() => { window.heard = []; addEventListener('keydown', (event) => window.heard.push(event.key)); }")
    cell.locator(".tokens-frame").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    page.keyboard.press("/")
    assert page.evaluate("window.heard") == []
    assert cell.locator("#find").evaluate("node => node === node.getRootNode().activeElement")


def test_the_theme_is_the_notebooks(notebook, site):
    page = notebook.page
    cell = notebook(ExpertMap(site.sources.trace("plain")))
    cell.locator(".grid-hold").wait_for()
    light = cell.locator(".widget").evaluate("node => getComputedStyle(node).color")
    page.evaluate("document.body.setAttribute('style', 'background: #111')")
    page.wait_for_function("document.querySelector('.moeworks-widget').dataset.theme === 'dark'")
    assert cell.locator(".widget").evaluate("node => getComputedStyle(node).color") != light


def test_what_the_kernel_refuses_is_said_in_words(notebook, site):
    widget = TokenView(site.sources.trace("plain"))
    widget._route = "#/tokens?trace=nowhere"
    cell = notebook(widget)
    assert "There is no trace “nowhere”" in cell.get_by_role("alert").inner_text()


def test_ending_it_leaves_nothing(notebook, site):
    cell = notebook(ExpertMap(site.sources.trace("plain")))
    cell.locator(".grid-hold").wait_for()
    notebook.page.evaluate("window.models.w.close()")
    assert cell.evaluate("node => node.childElementCount") == 0
    assert notebook.page.evaluate("window.models.w.count()") == 0
