"""Reports: a study's numbers and its own report in a frame that can do nothing, league tables that sort, ways on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from looking import parameters, until

from helpers.page_server import HOSTILE, serve_page
from moeworks.bench.schema import DetectCell, League, Settings, save_league
from moeworks.engines.fake import planted_probe
from moeworks.serve import open_model
from moeworks.study import load_study, study
from moeworks.view.reports import league_json


def write_league(folder):
    """Write a league of three methods on one planted model."""
    folder.mkdir()
    cells = [
        DetectCell(
            method=method, model="planted", probe="single", kind="planted", seed=0, unit="expert", reads="runs",
            null="permuted", budget=4, top=("L0.E1",), claims=claims, sought=("L0.E1",), stability=stability,
            seconds=seconds,
        )
        for method, claims, stability, seconds in (
            ("alpha", ("L0.E1",), 0.9, 2.0), ("beta", ("L0.E1", "L0.E2"), 0.5, 11.0), ("gamma", (), 0.7, 1.0),
        )
    ]  # fmt: skip
    sizes = {"documents": 40, "texts": None, "experts": 4, "permutations": 99, "controls": 2}
    settings = {"planted": Settings(budget="quick", seeds=1, null_seeds=1, sizes=sizes, versions={"torch": "2"})}
    save_league(League(moeworks="0.1.0", detect_settings=settings, detect=tuple(cells)), folder / "league.json")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The page with a study of the planted model, with a hostile sentence in its report, and a league."""
    folder = tmp_path_factory.mktemp("reports")
    study(open_model("fake:single"), [planted_probe(60)], folder / "study", progress=False)
    report = folder / "study" / "report.html"
    report.write_text(report.read_text().replace("</body>", f"{HOSTILE}<p id='end'>the end</p></body>"))
    write_league(folder / "league")
    with serve_page(folder / "traces", more=[folder / "study", folder / "league"]) as site:
        yield site


def opened(page, site, query=""):
    page.expected += ["Blocked script execution", "Content Security Policy"]  # what the frame's policy stops
    page.goto(f"{site.page}#/reports?{query}")
    page.wait_for_selector(".reports table")
    return page


def test_a_study_is_shown_as_it_stands(page, reported):
    opened(page, reported)
    [probe] = load_study(reported.sources.study("study")).probes
    cells = page.locator(".reports tbody tr").first.locator("td").all_inner_texts()
    assert cells[:2] == [probe.name, probe.verdict]
    effect = probe.plan.evidence.effect
    assert cells[2].split()[0] == f"{effect.value:.3g}"
    assert cells[5] == str(probe.amount)
    assert cells[6] == str(sum(probe.scores.passes))


def test_the_report_runs_nothing(page, reported):
    opened(page, reported)
    frame = page.frame_locator(".report-frame")
    frame.locator("#end").wait_for()
    assert page.locator(".report-frame").get_attribute("sandbox") == ""
    child = next(one for one in page.frames if one.parent_frame is not None)
    assert "/view/report/study" in child.url
    assert page.evaluate("window.hurt") is None
    assert page.evaluate("document.querySelector('.report-frame').contentDocument") is None  # an origin of its own


def test_a_report_behind_a_key_opens(new_page, tmp_path):
    study(open_model("fake:single"), [planted_probe(60)], tmp_path / "study", progress=False)
    with serve_page(tmp_path / "traces", more=[tmp_path / "study"], key="secret") as site:
        page = new_page()
        page.goto(site.page)
        page.wait_for_selector("nav")
        page.evaluate("location.hash = '#/reports'")
        page.wait_for_selector(".report-frame")
        page.frame_locator(".report-frame").locator("h1").wait_for()


def test_a_study_leads_to_steer_with_its_experts(page, reported):
    opened(page, reported)
    [probe] = load_study(reported.sources.study("study")).probes
    page.get_by_role("link", name="Steer with its experts").click()
    page.wait_for_selector(".steer-chip")
    [operation] = probe.plan.operations
    assert parameters(page)[operation.op] == ",".join(map(str, operation.experts))


def test_league_tables_sort(page, reported):
    opened(page, reported, "league=league")
    table = next(one for one in league_json(reported.sources, "league")["blocks"] if one["kind"] == "table")
    frame = page.locator(".table-frame").first
    rows = lambda: [row.locator("td").first.inner_text() for row in frame.locator("tbody tr").all()]  # noqa: E731
    assert rows() == [row[0].strip("`") for row in table["rows"]]
    frame.get_by_role("button", name="seconds").click()
    assert rows() == ["beta", "alpha", "gamma"]
    frame.get_by_role("button", name="seconds").click()
    assert rows() == ["gamma", "alpha", "beta"]
    assert frame.locator("th[aria-sort=ascending]").inner_text().startswith("seconds")


def test_the_list_leads_from_one_to_the_other(page, reported):
    opened(page, reported)
    page.get_by_role("link", name="league").click()
    until(page, "document.querySelector('.league') !== null")
    assert parameters(page) == {"league": "league"}
    page.reload()
    until(page, "document.querySelector('.league') !== null")
    assert page.locator(".reports-list [aria-current]").inner_text() == "league"


def test_without_reports_the_view_says_what_to_do(page, site):
    page.goto(f"{site.page}#/reports")
    assert "moeworks study lab -o study" in page.inner_text(".empty")
