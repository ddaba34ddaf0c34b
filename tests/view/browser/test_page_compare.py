"""Compare: figures are those of compare, marks stand where routes differ, and every change can be walked to."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from looking import parameters, until

from moeworks.compare import compare
from moeworks.view.comparing import compared_tokens

QUERY = "a=plain&b=steered"


def opened(page, site, query=QUERY):
    page.goto(f"{site.page}#/compare?{query}")
    page.wait_for_selector(".compare-block")
    return page


def found_by(site, a="plain", b="steered"):
    return compare(site.sources.trace(a), site.sources.trace(b))


def tokens_of(site, a="plain", b="steered"):
    traces = [site.sources.trace(one) for one in (a, b)]
    decoders = tuple(site.sources.decoder(one) for one in (a, b))
    return compared_tokens(*traces, decoders=decoders).to_pylist()


def changed(rows):
    return [row["row"] for row in rows if not row["same"] or (row["flips"] or 0) > 0]


def test_figures_and_layers_are_those_of_compare(page, site):
    opened(page, site)
    found = found_by(site)
    layers = found.layers.to_pylist()
    figures = page.locator(".figures dd").all_inner_texts()
    assert figures[0] == f"{found.rows:,}"
    parting = 100 * sum(row["first_flips"] for row in layers)
    assert abs(float(figures[2].split()[0]) - parting) < 0.06
    assert figures[3] == f"layer {max(layers, key=lambda row: row['first_flips'])['layer']}"
    page.locator(".chart-box").focus()
    for row in layers:
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(60)
        said = page.locator(".chart-readout").inner_text()
        assert said.startswith(f"layer {row['layer']}, other experts: ")
        assert abs(float(said.rsplit(": ", 1)[1]) - row["flips"]) < 0.0006
    for cause in {row["cause"] for row in layers if row["cause"]}:
        assert cause in page.locator(".sentences").inner_text()
    page.get_by_label("Picture").select_option("overlap")
    until(page, "document.querySelector('.chart-title').innerText === 'Experts in common'")
    page.locator(".chart-box").focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(60)
    assert f"by chance {layers[0]['chance']:.3f}" in page.locator(".chart-readout").inner_text()


def test_every_changed_token_is_marked_on_both_sides(page, site):
    opened(page, site)
    rows = tokens_of(site)
    there = [sum(rows[row][f"text_{side}"] is not None for row in changed(rows)) for side in "ab"]
    page.set_viewport_size({"width": 1280, "height": 4000})
    until(page, f"document.querySelectorAll('.compare-block mark').length >= {sum(there)}")
    for which, count in zip((1, 2), there, strict=True):
        assert page.locator(f".compare-block .compare-side:nth-child({which}) mark").count() == count
    others = sum(not row["same"] and row["text_a"] is not None for row in rows)
    assert page.locator(".compare-block .compare-side:nth-child(1) mark.other").count() == others


def test_keys_walk_from_change_to_change(page, site):
    opened(page, site)
    rows = tokens_of(site)
    page.locator("body").press("n")
    for row in changed(rows)[:3]:
        until(page, f"location.hash.includes('row={row}')")
        if row != changed(rows)[2]:
            page.locator("body").press("n")
    page.locator("body").press("p")
    until(page, f"new URLSearchParams(location.hash.split('?')[1]).get('row') === '{changed(rows)[1]}'")
    assert page.locator("mark.chosen").count() == 2


def test_a_token_says_what_changed_and_leads_to_tokens(page, site):
    rows = tokens_of(site)
    row = next(row for row in rows if row["flips"] and row["request"] > 0)
    opened(page, site, f"{QUERY}&row={row['row']}")
    page.wait_for_selector(".compare-picked")
    page.wait_for_selector("mark.chosen")
    said = page.locator(".compare-picked").inner_text()
    trace = site.sources.trace("plain")
    size = {layer: trace.header.shape_of(layer).top_k for layer in trace.layers}
    for layer, k in size.items():
        if row[f"L{layer}.overlap"] < k:
            assert f"{layer} ({row[f'L{layer}.overlap']} of {k} in common)" in said
    assert f"Text {row['request']}, position {row['position']}" in said
    page.get_by_role("link", name="In Tokens: B").click()
    until(page, "location.hash.startsWith('#/tokens')")
    assert parameters(page) == {"trace": "steered", "row": str(row["row_b"])}


def test_exchange_turns_the_pair_round(page, site):
    opened(page, site)
    page.get_by_role("button", name="Exchange").click()
    until(page, "location.hash.includes('a=steered')")
    assert parameters(page) == {"a": "steered", "b": "plain"}


def test_a_trace_and_itself_route_alike(page, site):
    opened(page, site, "a=plain&b=plain")
    assert "They route alike" in page.locator(".compare-summary").inner_text()
    page.get_by_role("button", name="Next change").click()
    page.get_by_text("No token after this one was routed differently.").wait_for()


def test_only_lines_with_changes(page, site):
    opened(page, site, "a=plain&b=plain")
    page.get_by_label("only lines with changes").check()
    page.get_by_text("No token was routed differently.").wait_for()
    assert parameters(page)["only"] == "changed"


def test_a_trace_that_is_gone_is_named(page, site):
    opened(page, site, "a=plain&b=text-99")
    assert "“text-99”" in page.locator(".failure").inner_text()


def test_traces_of_other_texts_are_refused_in_words(page, site):
    words = "the prompts are not the same: record the same data"

    def refuse(route):
        route.fulfill(status=400, json={"error": {"message": words}})

    page.expected.append("400")
    page.route("**/api/compare/plain/steered", refuse)
    page.goto(f"{site.page}#/compare?{QUERY}")
    page.wait_for_selector(".failure")
    assert words in page.locator(".failure").inner_text()


def test_one_trace_alone_says_what_to_do(page, site):
    page.route(
        "**/api/sources", lambda route: route.fulfill(json={**(s := route.fetch().json()), "traces": s["traces"][:1]})
    )
    page.goto(f"{site.page}#/compare")
    assert "moeworks view TRACE_A TRACE_B" in page.inner_text(".empty")


def test_hostile_texts_are_shown_and_do_nothing(page, site):
    opened(page, site)
    page.set_viewport_size({"width": 1280, "height": 4000})
    until(page, "document.querySelector('.virtual').innerText.includes('onerror')")
    assert page.evaluate("window.hurt") is None


def test_long_lists_draw_what_is_seen(page, site):
    """A list of 5,000 blocks holds a few dozen in the page, and the last can be reached."""
    page.goto(site.page)
    page.evaluate("""async () => {
      const [{ VirtualList }, { html }, { render }] = await Promise.all(
        ['moeworks/compare-list', 'moeworks/parts', 'preact'].map((name) => import(name)));
      const host = document.createElement('div');
      document.body.append(host);
      const draw = (place) => html`<p style=${{ height: `${20 + (place % 7) * 9}px` }}>block ${place}</p>`;
      window.handle = {};
      const many = { count: 5000, estimate: 40, label: 'many', draw, handle: window.handle };
      render(html`<${VirtualList} ...${many} />`, host);
    }""")
    until(page, "document.querySelectorAll('.virtual [data-place]').length > 5")
    page.evaluate("window.handle.current.reveal(4999)")
    until(page, "document.querySelector('.virtual').innerText.includes('block 4999')")
    assert page.evaluate("document.querySelectorAll('.virtual [data-place]').length") < 120
    seen = page.evaluate("""() => {
      const box = document.querySelector('.virtual').getBoundingClientRect();
      const last = document.querySelector('[data-place="4999"]').getBoundingClientRect();
      return last.bottom <= box.bottom + 2 && last.top >= box.top - 2;
    }""")
    assert seen
