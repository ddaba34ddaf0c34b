"""Experts: the first steps, the map's numbers, choosing by pointer and keys, search, the card."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from looking import parameters, until

from helpers.page_server import HOSTILE
from moeworks.view.cards import expert_card
from moeworks.view.expert_map import expert_map

LEFT, TOP = 34, 18  # where the squares of the map begin


def opened(page, site, query=""):
    page.goto(f"{site.page}#/experts?{query}")
    page.wait_for_selector(".experts canvas, .experts table")
    return page


def square(page, layer, expert):
    """Return the middle of a square of the map (4 layers of 16 experts)."""
    box = page.locator(".experts canvas").bounding_box()
    wide, high = (box["width"] - LEFT - 2) / 16, (box["height"] - TOP - 2) / 4
    return box["x"] + LEFT + (expert + 0.5) * wide, box["y"] + TOP + (layer + 0.5) * high


def says(page):
    return page.locator("#grid-says").inner_text()


def test_a_newcomer_is_led_from_the_map_to_the_steer(page, site):
    page.goto(site.page)
    page.get_by_role("link", name="see which experts carry Russian").click()
    until(page, "location.hash.includes('value=ru')")
    page.wait_for_selector("canvas")
    page.get_by_role("button", name="choose the").first.click()
    until(page, "location.hash.includes('picked=')")
    picked = parameters(page)["picked"]
    table = expert_map(site.sources.trace("plain"), by="specialisation", label="lang", value="ru").to_pylist()
    passing = sorted((row for row in table if row["passes"]), key=lambda row: -row["value"])[:8]
    assert picked.split(",") == sorted(f"L{row['layer']}.E{row['expert']}" for row in passing)
    page.get_by_role("link", name="switch them off and watch the text change").click()
    until(page, "location.hash.startsWith('#/steer')")
    assert parameters(page) == {"trace": "plain", "demote": picked, "value": "ru"}


@pytest.mark.parametrize(
    "choice",
    [
        {"by": "load"},
        {"by": "weight"},
        {"by": "load", "label": "lang", "value": "ru"},
        {"by": "specialisation", "label": "lang", "value": "ja"},
    ],
)
def test_the_table_has_the_numbers_of_python(page, site, choice):
    query = "&".join(f"{name}={value}" for name, value in choice.items())
    opened(page, site, f"trace=plain&as=table&{query}")
    page.get_by_role("button", name="Show more").click()
    shown = page.evaluate(
        "[...document.querySelectorAll('.experts tbody tr')].map((row) => [...row.cells].map((one) => one.textContent))"
    )
    found = {cells[1]: cells for cells in shown}
    table = expert_map(site.sources.trace("plain"), **choice).to_pylist()
    assert len(found) == len(table) == 64
    for row in table:
        cells = found[f"L{row['layer']}.E{row['expert']}"]
        if row["value"] is None:
            assert cells[2] == "–"
        else:
            assert float(cells[2]) == pytest.approx(row["value"], rel=1e-3)
        assert cells[6] == {None: "–", True: "yes", False: "no"}[row["passes"]]
    values = [float(cells[2]) for cells in shown if cells[2] != "–"]
    assert values == sorted(values, reverse=True)


def test_pointing_at_a_square_says_its_number(page, site):
    opened(page, site, "trace=plain")
    page.mouse.move(*square(page, 2, 3))
    until(page, "document.getElementById('grid-says').textContent.startsWith('L2.E3')")
    value = expert_map(site.sources.trace("plain")).to_pylist()[2 * 16 + 3]["value"]
    assert f"load {value:.3g}".rstrip("0") in says(page)


def test_the_picture_has_the_colours_of_the_numbers(page, site):
    opened(page, site, "trace=plain")
    table = expert_map(site.sources.trace("plain")).to_pylist()
    lightness = []
    for row in table:
        x, y = square(page, row["layer"], row["expert"])
        lightness.append(
            page.evaluate(
                """([x, y]) => {
                  const canvas = document.querySelector(".experts canvas");
                  const box = canvas.getBoundingClientRect();
                  const [r, g, b] = canvas.getContext("2d").getImageData(x - box.left, y - box.top, 1, 1).data;
                  return 0.3 * r + 0.6 * g + 0.1 * b;
                }""",
                [x, y],
            )
        )
    ranked = [light for _, light in sorted(zip([row["value"] for row in table], lightness, strict=True))]
    assert all(later <= earlier + 1 for earlier, later in pairwise(ranked))  # more is darker
    assert ranked[0] - ranked[-1] > 100


def test_choosing_with_keys_alone(page, site):
    opened(page, site, "trace=plain")
    page.locator(".grid-hold").focus()
    until(page, "document.getElementById('grid-says').textContent.startsWith('L0.E0')")
    for key in ("ArrowDown", "ArrowRight", "Space"):
        page.keyboard.press(key)
    until(page, "location.hash.includes('picked=L1.E1')")
    assert says(page).endswith("chosen")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")  # a rectangle from where it began
    until(page, "location.hash.includes('picked=L1.E1-2,L2.E1-2')")
    page.keyboard.press("End")
    until(page, "document.getElementById('grid-says').textContent.startsWith('L2.E15')")
    page.keyboard.press("Enter")
    page.wait_for_selector(".expert-name")
    assert page.locator(".expert-name").inner_text() == "L2.E15"
    page.wait_for_selector(".contexts li")
    page.reload()
    page.wait_for_selector(".contexts li")
    assert page.locator(".pick-count").inner_text() == "4 chosen"
    page.keyboard.press("Escape")
    until(page, "!location.hash.includes('picked')")


def test_choosing_with_the_pointer(page, site):
    opened(page, site, "trace=plain")
    page.mouse.click(*square(page, 0, 4))
    page.wait_for_selector(".contexts li")  # the card has taken its place, and the map is narrower
    page.keyboard.down("Shift")
    page.mouse.click(*square(page, 1, 6))
    page.keyboard.up("Shift")
    page.wait_for_selector(".contexts li")
    until(page, "location.hash.includes('picked=L0.E4-6,L1.E4-6')")
    page.keyboard.down("Control")
    page.mouse.click(*square(page, 1, 5))
    page.keyboard.up("Control")
    until(page, "location.hash.includes('picked=L0.E4-6,L1.E4,L1.E6')")
    page.wait_for_selector(".contexts li")
    hrefs = page.locator(".pick-ways a").evaluate_all("(all) => all.map((link) => link.hash)")
    names = ("demote", "promote", "mask", "add", "scale")
    assert hrefs == [f"#/steer?trace=plain&{name}=L0.E4-6,L1.E4,L1.E6" for name in names]


def test_the_card_is_that_of_python(page, site):
    opened(page, site, "trace=plain&expert=L2.E3")
    page.wait_for_selector(".contexts li")
    card = expert_card(site.sources.trace("plain"), "L2.E3", decoder=site.sources.decoder("plain"))
    side = page.locator(".experts-side")
    assert f"Ran for {card['load'] * 100:.3g}" in side.locator("p").first.inner_text().replace("\u00a0", " ")
    contexts = side.locator(".contexts a").evaluate_all("(all) => all.map((link) => link.title)")
    assert [int(title.split()[1]) for title in contexts] == [one["row"] for one in card["contexts"]]
    languages = side.locator("table.rates").nth(1).locator("tbody tr").all_inner_texts()
    assert [line.split()[0] for line in languages] == [one["value"] for one in card["labels"]["lang"]]
    assert side.locator(".chip").first.inner_text().startswith(card["partners"][0]["address"])
    assert side.locator(".command code").inner_text() == card["command"]
    assert HOSTILE in side.inner_text()
    side.locator(".contexts a").first.click()
    page.wait_for_selector(".t.pinned")
    until(page, f"document.querySelector('.route-head')?.textContent.includes('row {card['contexts'][0]['row']},')")


def test_search_by_address_layer_and_label(page, site):
    opened(page, site, "trace=plain")
    field = page.locator(".expert-search")
    field.fill("l3")
    until(page, "document.querySelector('.controls').textContent.includes('16 marked')")
    field.fill("L3.E5")
    field.press("Enter")
    page.wait_for_selector(".contexts li")
    assert parameters(page)["expert"] == "L3.E5"
    field.fill("ru")
    page.get_by_role("button", name="lang ru", exact=True).click()
    until(page, "location.hash.includes('by=specialisation')")
    assert (parameters(page)["label"], parameters(page)["value"]) == ("lang", "ru")
    field.fill("nothing of the kind")
    until(page, "document.querySelector('.controls').textContent.includes('no such expert')")


def test_the_command_says_which_map(page, site):
    opened(page, site, "trace=plain&by=specialisation&label=lang&value=ru")
    path = site.sources.trace("plain").path
    assert page.locator(".experts-map .command code").inner_text() == (
        f"moeworks inspect {path} --map specialisation --label lang --value ru"
    )


@pytest.mark.parametrize(
    ("query", "words", "noise"),
    [
        ("trace=nowhere", "no trace “nowhere”", None),
        ("trace=plain&by=mood", "no map by “mood”", None),
        ("trace=plain&by=score", "no scores file", None),
        ("trace=plain&by=specialisation&label=lang&value=xx", "lang=xx", "400"),
        ("trace=plain&expert=L9.E1", "no layer 9", "404"),
    ],
)
def test_what_is_wrong_is_said_in_words(page, site, query, words, noise):
    if noise:
        page.expected.append(f"status of {noise}")
    page.goto(f"{site.page}#/experts?{query}")
    page.wait_for_selector(".failure, .empty")
    assert words in page.locator(".failure, .empty").first.inner_text()
