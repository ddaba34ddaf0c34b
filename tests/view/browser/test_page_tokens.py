"""Tokens: the text as it was, colours and routes that are the trace's own, keys, search, speed."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from looking import parameters, until

from helpers.page_server import HOSTILE, page_texts
from moeworks.engines.fake import FakeEngine
from moeworks.examples import Example
from moeworks.view.expert_map import expert_map
from moeworks.view.tokens import token_table

# Rows and texts of the drawn tokens as they were recorded: what makes white space visible holds no text of its own.
SHOWN = """() => [...document.querySelectorAll('.t')].map((token) =>
  [Number(token.dataset.row), token.textContent + (token.querySelector('.nl') ? '\\n' : '')])"""
WHOLE = "document.querySelectorAll('.request-head').length === 13"


def opened(page, site, query="trace=plain"):
    page.goto(f"{site.page}#/tokens?{query}")
    page.wait_for_selector(".t")
    return page


def table_of(site, **options):
    return token_table(site.sources.trace("plain"), decoder=site.sources.decoder("plain"), **options)


def row_of(site, text, lang="en"):
    """Return a row of `plain` whose token is this text, in a text of that language, and past its first token."""
    table = table_of(site).to_pylist()
    starts = [i for i, row in enumerate(table) if row["text"] == text and row["position"] > 0]
    labels = site.sources.trace("plain").request_table().labels["lang"]
    return next(i for i in starts if labels[table[i]["request"]] == lang)


def test_the_text_is_that_of_the_trace(page, site):
    opened(page, site)
    until(page, WHOLE)
    table = table_of(site).to_pylist()
    drawn, texts = {}, {}
    for row, text in page.evaluate(SHOWN):
        drawn[table[row]["request"]] = drawn.get(table[row]["request"], "") + text
    for row in table:
        texts[row["request"]] = texts.get(row["request"], "") + row["text"]
    assert list(drawn) == list(texts)
    for request, text in texts.items():
        if not re.search(r"[\x00-\x09\x0b-\x1f\ufffd\x7f-\x9f]", text):  # what the fake model made of bytes has no form
            assert drawn[request] == text
    assert sum(text.startswith("The king sat in his house by the sea.") for text in drawn.values()) == 1
    assert sum("A cat sleeps.\n\n  It dreams." in text for text in drawn.values()) == 1


def test_a_hostile_text_is_shown_and_does_nothing(page, site):
    opened(page, site)
    until(page, WHOLE)
    assert HOSTILE in "".join(text for _, text in page.evaluate(SHOWN))
    assert page.locator(".request-head", has_text=HOSTILE).count() == 1
    assert page.evaluate("[window.hurt, document.querySelectorAll('main script, main img').length]") == [None, 0]


def test_each_paragraph_runs_as_its_script_does(page, site):
    opened(page, site)
    until(page, WHOLE)
    found = page.evaluate(
        "[...document.querySelectorAll('.text:not(.made)')].map((p) => [p.textContent, getComputedStyle(p).direction])"
    )
    arabic = [direction for text, direction in found if re.match(r"[\u0600-\u06ff]", text)]
    others = [direction for text, direction in found if re.match(r"[A-Za-z\u0400-\u04ff\u3040-\u9fff]", text)]
    assert arabic == ["rtl"] * 3
    assert set(others) == {"ltr"}


def test_a_character_of_several_tokens_is_one_cell(page, site):
    opened(page, site)
    cell = page.locator(".t.many", has_text="王").first
    cell.scroll_into_view_if_needed()
    first, last = (int(cell.get_attribute(f"data-{name}")) for name in ("first", "row"))
    assert last - first == 2  # three bytes
    assert [row["part"] for row in table_of(site, start=first, stop=last + 1).to_pylist()] == [True, True, False]
    box = cell.bounding_box()
    for share, row in ((0.1, first), (0.5, first + 1), (0.9, last)):  # each third of it is one of its tokens
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        until(page, f"document.querySelector('.route-head')?.textContent.includes('row {row},')")


def test_generated_tokens_stand_apart(page, site):
    opened(page, site)
    until(page, WHOLE)
    phases = table_of(site)["phase"].to_pylist()
    found = page.evaluate(
        "[...document.querySelectorAll('.t')].map((one) => [Number(one.dataset.row), one.closest('.made') !== null])"
    )
    assert dict(found) == {row: phases[row] != "prompt" for row, _ in found}
    assert sum(made for _, made in found) > 30
    assert page.locator(".phase.made").first.text_content() == "generated"


def test_the_route_is_the_one_of_the_trace(page, site):
    row = row_of(site, "k")
    opened(page, site, f"trace=plain&row={row}")
    page.locator(".tokens-side details summary").click()
    page.wait_for_selector(".tokens-side table tbody tr")
    shown = page.locator(".tokens-side table tbody tr").all_inner_texts()
    trace = site.sources.trace("plain")
    wanted = []
    table = table_of(site, start=row, stop=row + 1).to_pylist()[0]
    for layer in trace.layers:
        order = np.argsort(-np.asarray(table[f"L{layer}.weights"]), kind="stable")
        wanted.append((layer, [table[f"L{layer}.ids"][slot] for slot in order], table[f"L{layer}.entropy"]))
    assert len(shown) == len(wanted) == 4
    for line, (layer, ids, entropy) in zip(shown, wanted, strict=True):
        cells = line.split("\t")
        assert (cells[0], cells[1]) == (str(layer), ", ".join(map(str, ids)))
        assert float(cells[3]) == pytest.approx(entropy, rel=1e-3)
    bars = page.evaluate(
        "[...document.querySelectorAll('.route-row .bar')].map((bar) => bar.querySelector('a').title.split(',')[0])"
    )
    assert bars == [f"L{layer}.E{ids[0]}" for layer, ids, _ in wanted]
    assert page.locator(".tokens-side .command code").inner_text().endswith(f"--from {row} --rows 1")


def test_neighbours_that_went_elsewhere(page, site):
    row = row_of(site, "k")
    opened(page, site, f"trace=plain&row={row}&layer=2")
    page.wait_for_selector(".route-row.chosen .cells i")
    kinds = page.evaluate("[...document.querySelectorAll('.route-row.chosen .cells i')].map((cell) => cell.className)")
    rows = table_of(site, start=row - 6, stop=row + 7, layers=[2]).to_pylist()
    here = set(rows[6]["L2.ids"])
    near = [one for one in rows if one["request"] == rows[6]["request"]]
    both = [len(here & set(one["L2.ids"])) for one in near]
    names = {0: "other", 1: "half", 2: "same"}
    assert kinds == ["self" if one is rows[6] else names[count] for one, count in zip(near, both, strict=True)]
    assert f"{both.count(0)} of {len(near) - 1} neighbours share no expert" in page.locator(".route-says").inner_text()


def lightness(colour: str) -> float:
    red, green, blue = map(int, re.findall(r"\d+", colour))
    return 0.3 * red + 0.6 * green + 0.1 * blue


@pytest.mark.parametrize("colour", ["expert", "entropy", "margin", "load", "divergence", "weight"])
def test_colours_follow_the_numbers(page, site, colour):
    """Equal values have equal colours; of an amount, more is darker on light paper, and the ends lie far apart."""
    opened(page, site, f"trace=plain&colour={colour}&layer=1&expert=L1.E2")
    until(page, WHOLE)
    page.wait_for_selector(".legend")
    colours = (
        "[...document.querySelectorAll('.t:not(.many)')].map((t) => [t.dataset.row, t.style.getPropertyValue('--c')])"
    )
    found = dict(page.evaluate(colours))
    rows = table_of(site, layers=[1]).to_pylist()
    first = {i: row["L1.ids"][int(np.argmax(row["L1.weights"]))] for i, row in enumerate(rows)}
    if colour in ("expert", "load"):
        values = first
    elif colour == "weight":
        values = {i: dict(zip(row["L1.ids"], row["L1.weights"], strict=True)).get(2) for i, row in enumerate(rows)}
    else:
        values = {i: row[f"L1.{colour}"] for i, row in enumerate(rows)}
    by_value: dict = {}
    for row, shown in found.items():
        by_value.setdefault(values[int(row)], set()).add(shown)
    assert all(len(shown) == 1 for shown in by_value.values())
    if colour == "weight":
        assert by_value.pop(None) == {"transparent"}
    assert len({next(iter(shown)) for shown in by_value.values()}) >= min(8, len(by_value))
    if colour == "load":
        loads = expert_map(site.sources.trace("plain")).to_pylist()
        by_value = {loads[1 * 16 + expert]["value"]: shown for expert, shown in by_value.items()}
    if colour != "expert":
        ranked = [lightness(next(iter(by_value[value]))) for value in sorted(by_value)]
        assert all(later <= earlier + 1 for earlier, later in pairwise(ranked))
        assert ranked[0] - ranked[-1] > (30 if colour == "weight" else 60)  # weights have the fixed scale from 0 to 1
    assert page.locator(".failure").count() == 0


def test_choosing_a_token_is_in_the_address_and_survives_a_reload(page, site):
    opened(page, site)
    row = row_of(site, "k")
    page.locator(f".t[data-row='{row}']").first.click()
    until(page, f"location.hash.includes('row={row}')")
    page.reload()
    page.wait_for_selector(".t.pinned")
    assert page.locator(".t.pinned").get_attribute("data-row") == str(row)
    assert f"row {row}," in page.locator(".route-head").inner_text()


def test_keys_walk_and_follow_the_script(page, site):
    english, arabic = row_of(site, "n"), row_of(site, "م", "ar")
    opened(page, site, f"trace=plain&row={english}")
    page.wait_for_selector(".t.pinned")
    page.locator(".tokens-frame").focus()
    page.keyboard.press("ArrowRight")
    until(page, f"location.hash.includes('row={english + 1}')")
    page.keyboard.press("ArrowLeft")
    until(page, f"/row={english}(&|$)/.test(location.hash)")
    page.keyboard.press("]")
    until(page, "location.hash.includes('layer=3')")
    opened(page, site, f"trace=plain&row={arabic}")
    page.wait_for_selector(".t.pinned")
    page.locator(".tokens-frame").focus()
    page.keyboard.press("ArrowLeft")  # onwards: the paragraph runs from right to left
    until(page, f"location.hash.includes('row={arabic + 1}')")
    page.keyboard.press("ArrowDown")
    until(page, f"!location.hash.includes('row={arabic + 1}')")
    assert int(parameters(page)["row"]) > arabic + 1


def test_search_finds_over_the_borders_of_tokens(page, site):
    opened(page, site, "trace=plain&find=KEY")
    until(page, "document.querySelector('.find').textContent.includes('found')")
    assert "1 found" in page.locator(".find").inner_text()  # key, in bytes three tokens
    page.get_by_label("Next find").click()
    page.wait_for_selector(".t.pinned.hit")
    assert page.locator(".t.hit").all_text_contents() == ["k", "e", "y"]
    page.locator("#find").fill("no such words")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.find').textContent.includes('0 found')")


def test_one_request_alone(page, site):
    opened(page, site, "trace=plain&request=3")
    page.wait_for_timeout(200)
    assert page.locator(".request").count() == 1
    assert page.locator(".request-head").inner_text().startswith("Request 3")
    requests = set(
        table_of(site, start=int(page.locator(".t").first.get_attribute("data-row")))["request"].to_pylist()[:3]
    )
    assert requests == {3}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("trace=plain&layer=99", "no router in layer 99"),
        ("trace=plain&request=77", "no request 77"),
        ("trace=plain&colour=mood", "no colour “mood”"),
        ("trace=nowhere", "no trace “nowhere”"),
    ],
)
def test_what_is_wrong_is_said_in_words(page, site, query, words):
    page.goto(f"{site.page}#/tokens?{query}")
    page.wait_for_selector(".failure")
    assert words in page.locator(".failure").inner_text()


def test_signs_that_would_turn_a_line_are_named(page, site):
    opened(page, site)
    told = page.evaluate(
        """async () => {
          const { fillText } = await import("moeworks/tokens-text");
          return ["a\\u202eb", "\\u2066", "می\\u200cخواهم", "\\u200d", " \\t"].map((text) => {
            const span = document.createElement("span");
            fillText(span, text);
            return span.innerHTML;
          });
        }"""
    )
    assert told == [
        'a<i class="code">RLO</i>b',
        '<i class="code">LRI</i>',
        "می\u200cخواهم",  # joins letters: it stays where it is needed
        '<i class="code">ZWJ</i>',
        '<i class="sp"> </i><i class="tab">\t</i>',
    ]


# 150 frames, 40 px each: 2,400 px a second at 60 frames a second, faster than anybody reads.
SCROLL = """async () => {
  const frame = document.querySelector(".tokens-frame");
  for (let i = 0; i < 150; i += 1) {
    await new Promise((resolve) => requestAnimationFrame(resolve));
    frame.scrollTop += 40;
  }
  return { tokens: document.querySelectorAll(".t").length, top: frame.scrollTop };
}"""


def test_two_hundred_thousand_tokens_open_and_scroll(page, site, tmp_path):
    text = " ".join(example.text for example in page_texts())
    long = [Example(text=text * 60), *(Example(text=text * 6) for _ in range(62))]  # the first of 30,000 tokens
    FakeEngine(context=40_000).record(long, tmp_path / "long")
    site.sources.add(tmp_path / "long")
    try:
        assert len(site.sources.trace("long")) > 200_000
        page.goto(f"{site.page}#/experts")
        page.wait_for_selector("canvas")
        page.evaluate("location.hash = '#/tokens?trace=long'")
        page.reload()
        page.wait_for_selector(".t")
        run = page.evaluate(SCROLL)  # how fast it is, benchmarks/view_page.py measures
        assert run["top"] > 5_000
        assert run["tokens"] < 10_000  # what is out of sight is not in the page
        page.evaluate("location.hash = '#/tokens?trace=long&row=199000'")
        page.wait_for_selector(".t.pinned")
        box = page.locator(".t.pinned").bounding_box()
        assert 100 < box["y"] < 800
    finally:
        site.sources.remove("long")
