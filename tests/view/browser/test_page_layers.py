"""Layers: numbers are those of inspect, intervals and chance levels go with their numbers, keys reach every value."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from looking import axe_violations, parameters, until

from helpers.page_server import HOSTILE
from moeworks.view.layers import cache_rows, layer_rows


def opened(page, site, query):
    page.goto(f"{site.page}#/layers?trace=plain&{query}")
    page.wait_for_selector(".chart-box canvas", timeout=90_000)  # some diagnostics are compiled at first use
    return page


def three(value):
    """Write a number as the page does."""
    return f"{value:,}" if value == int(value) else f"{value:.3f}"


def readings(page, count, *, line=0):
    """Walk along one line with the arrow keys and return what is said at each place."""
    page.locator(".chart-box").focus()
    page.keyboard.press("Escape")
    page.keyboard.press("Home")
    for _ in range(line):
        page.keyboard.press("ArrowDown")
    said = []
    for place in range(count):
        if place:
            page.keyboard.press("ArrowRight")
        page.wait_for_timeout(60)
        said.append(page.locator(".chart-readout").inner_text())
    return said


def test_keys_read_the_numbers_of_inspect(page, site):
    opened(page, site, "what=balance")
    rows = layer_rows(site.sources.trace("plain"), "balance")["rows"]
    whole = [row for row in rows if row["phase"] == "all"] or rows
    for said, row in zip(readings(page, len(whole)), whole, strict=True):
        assert said.startswith(f"layer {row['layer']}, ")
        assert f": {three(row['max_violation'])}" in said
        assert f"by chance {three(row['max_violation_chance'])}" in said
        if row["max_violation_low"] is not None:
            assert f"interval {three(row['max_violation_low'])} to {three(row['max_violation_high'])}" in said


def test_the_chance_level_belongs_to_the_number_it_was_made_for(page, site):
    opened(page, site, "what=divergence&label=lang&base=en")
    rows = layer_rows(site.sources.trace("plain"), "divergence", label="lang", base="en")["rows"]
    assert "by chance" not in readings(page, 1)[0]
    assert "there is one for pooled" in page.inner_text(".layers-body")
    page.get_by_label("Number").select_option("pooled")
    until(page, "document.querySelector('.chart-title').innerText.endsWith('pooled')")
    first = next(row for row in rows if row["layer"] == 0)
    assert f"{first['value']}: {three(first['pooled'])}, by chance {three(first['chance'])}" in readings(page, 1)[0]


def test_chance_levels_of_all_diagnostics(page, site):
    page.goto(site.page)
    trace = site.sources.trace("plain")
    expected = {
        "token_overlap": {"same_token": ["chance"], "different_token": ["chance"], "excess": []},
        "token_dependence": {"dependence": ["chance", "uniform_chance"], "excess": []},
        "divergence": {"divergence": [], "normalised": [], "pooled": ["chance"]},
        "repetition": {"first_choice": ["first_choice_chance", "first_choice_load_chance"]},
        "confidence": {"top_k_mass": ["top_k_mass_chance"], "margin": []},
    }
    for what, metrics in expected.items():
        found = page.evaluate(
            "(one) => import('moeworks/layers-series').then((m) => m.metricsOf(one))", layer_rows(trace, what)
        )
        chance = {metric["name"]: metric["chance"] for metric in found}
        for name, levels in metrics.items():
            assert chance.get(name, levels) == levels, (what, name)
        assert any(name in chance for name in metrics)


def test_the_table_holds_what_is_drawn_and_the_command_gives_it(page, site):
    opened(page, site, "what=divergence&label=lang&base=ru")
    found = layer_rows(site.sources.trace("plain"), "divergence", label="lang", base="ru")
    assert page.locator("details.numbers tbody tr").count() == len(found["rows"])
    assert page.locator(".command code").inner_text() == found["command"]
    cells = page.locator("details.numbers tbody tr").first.locator("td").all_inner_texts()
    assert cells[1] == found["rows"][0]["value"]
    page.get_by_label("all columns").check()
    until(page, f"document.querySelectorAll('details.numbers th').length === {len(found['rows'][0])}")


def test_choices_are_in_the_address_and_survive_a_reload(page, site):
    opened(page, site, "what=balance")
    page.get_by_label("What").select_option("divergence")
    page.wait_for_selector(".verdicts, .layers-body p")
    page.get_by_label("Label").select_option("domain")
    page.get_by_label("Compared with").wait_for()
    page.get_by_label("Label").select_option("lang")
    page.get_by_label("Compared with").select_option("ja")
    page.get_by_label("Number").select_option("entropy")
    wanted = {"trace": "plain", "what": "divergence", "label": "lang", "base": "ja", "metric": "entropy"}
    until(page, "document.querySelector('.chart-title')?.innerText === 'Divergence: entropy'")
    assert parameters(page) == wanted
    page.reload()
    until(page, "document.querySelector('.chart-title')?.innerText === 'Divergence: entropy'")
    assert page.get_by_label("Compared with").input_value() == "ja"
    assert "ja" not in page.locator(".chart-legend").inner_text().split()


def test_lines_can_be_hidden(page, site):
    opened(page, site, "what=divergence&label=lang&base=en")
    key = page.get_by_role("button", name="ru", exact=True)
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    lines = page.locator(".chart-legend li").count()
    said = {
        reading.split(",")[1].split(":")[0].strip() for line in range(lines) for reading in readings(page, 1, line=line)
    }
    assert "ru" not in said
    assert len(said) == lines - 1


def test_what_cannot_be_told_says_why(page, site):
    page.goto(f"{site.page}#/layers?trace=plain&what=saturation")
    page.wait_for_selector(".empty")
    assert "--checkpoint" in page.inner_text(".empty")


def test_the_u_shape_is_said(page, site):
    opened(page, site, "what=divergence&label=lang&base=en")
    page.wait_for_selector(".verdicts", state="attached")
    rows = layer_rows(site.sources.trace("plain"), "u_shape", label="lang", base="en")["rows"]
    assert page.locator(".verdicts li").count() == len(rows)
    shaped = [row["value"] for row in rows if row["u_shape"]]
    assert ("none of" in page.inner_text(".layers-body")) == (not shaped)


def test_the_cache_curve_is_that_of_place(page, site):
    opened(page, site, "what=cache")
    rows = [row for row in cache_rows(site.sources.trace("plain"))["rows"] if row["policy"] == "lru"]
    names = page.locator(".chart-legend li").all_inner_texts()
    for said, row in zip(
        readings(page, len(rows), line=[one.strip() for one in names].index("lru")), rows, strict=True
    ):
        rate, chance = re.search(r"lru: ([\d.]+).*by chance ([\d.]+)$", said).groups()
        assert (float(rate), float(chance)) == pytest.approx((row["hit_rate"], row["chance"]), abs=0.0006)


def test_hostile_labels_are_shown_and_do_nothing(page, site):
    opened(page, site, "what=divergence&label=domain&base=story")
    assert HOSTILE in page.inner_text("main")
    assert page.evaluate("window.hurt") is None


def test_an_empty_page_says_what_to_do(page, site):
    page.route("**/api/sources", lambda route: route.fulfill(json={**route.fetch().json(), "traces": []}))
    page.goto(f"{site.page}#/layers")
    assert re.search(r"moeworks record .* && moeworks view", page.inner_text(".empty"))


@pytest.mark.parametrize("what", ["divergence", "srp", "cache"])
def test_accessible(page, site, what):
    opened(page, site, f"what={what}")
    assert axe_violations(page) == []
