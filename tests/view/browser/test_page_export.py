"""The page as a file: it opens from disk, shows what the server would show, and asks for nothing anywhere."""

import base64
import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from looking import until

from helpers.page_server import HOSTILE, make_site
from helpers.traces import make_trace
from moeworks.errors import BadData
from moeworks.find import find
from moeworks.view.export import export_page
from moeworks.view.sources import Sources
from moeworks.view.tokens import token_table


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    _, traces = make_site(tmp_path_factory.mktemp("traces"))
    sources = Sources(traces)
    scores = find(sources.trace("plain"), contrast="lang=ru", against="lang=en", permutations=50, bootstrap=20)
    sources.add_scores(scores, name=HOSTILE)
    return sources


@pytest.fixture(scope="module")
def file(sources, tmp_path_factory):
    return export_page(sources, tmp_path_factory.mktemp("export") / "page")


def embedded(file):
    found = re.findall(r'<script type="application/octet-stream" data-url="([^"]*)">([^<]*)</script>', file.read_text())
    return {url.replace("&amp;", "&"): base64.b64decode(text) for url, text in found}


@pytest.fixture
def opened(page, file):
    """The file in a browser, and the addresses that it asked for."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    yield page
    assert [url for url in asked if not url.startswith(("data:", file.as_uri()))] == []


def test_it_holds_what_the_endpoints_give(file):
    data = embedded(file)
    for url in (
        "api/sources",
        "api/traces/plain/tokens",
        "api/traces/plain/map?by=specialisation&label=lang&value=ru",
        "api/traces/steered/experts/L0.E1",
        "api/compare/plain/steered",
        "api/traces/plain/layers",
    ):
        assert url in data, url
    listed = json.loads(data["api/sources"])
    assert listed["can"] == {"generate": False, "record": False, "evaluate": False}
    assert [one["name"] for one in listed["scores"]] == [HOSTILE]
    assert HOSTILE not in file.read_text()  # neither as text nor as anything else
    assert len(re.findall("<script", file.read_text())) == len(data) + 3  # import map, start, licences


@pytest.mark.parametrize("view", ["tokens", "experts", "layers", "compare", "steer", "reports"])
def test_every_view_opens_from_disk(opened, file, view):
    opened.goto(f"{file.as_uri()}#/{view}")
    until(opened, "document.querySelector('main')?.innerText.length > 20")
    opened.wait_for_timeout(500)
    text = opened.inner_text("main")
    assert "failed" not in text
    assert "does not hold" not in text
    assert opened.evaluate("window.hurt") is None


def test_rows_are_those_of_the_trace(opened, sources):
    """A stretch of rows with some layers, cut out of the whole table that the file holds."""
    table = token_table(sources.trace("plain"), start=50, stop=90, layers=[2])
    found = opened.evaluate(
        """async () => {
          const { getTable, column } = await import("moeworks/data");
          const table = await getTable("api/traces/plain/tokens?start=50&stop=90&layers=2");
          const list = (name) => Array.from(column(table, name), Number);
          const text = [...table.getChild("text")];
          const said = Object.fromEntries(table.schema.metadata);
          return {row: list("row"), ids: list("L2.ids"), entropy: list("L2.entropy"), text, said};
        }"""
    )
    assert found["row"] == table["row"].to_pylist()
    told = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
    assert {**found["said"], "layers": "[2]"} == told
    assert found["text"] == table["text"].to_pylist()
    assert found["ids"] == [one for row in table["L2.ids"].to_pylist() for one in row]
    assert found["entropy"] == pytest.approx(table["L2.entropy"].to_pylist())


def test_nothing_else_may_run_in_it(opened):
    opened.expected.append("Content Security Policy")
    opened.evaluate("document.head.append(Object.assign(document.createElement('script'), {text: 'window.hurt = 1'}))")
    assert opened.evaluate("window.hurt") is None
    refused = opened.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')")
    assert refused == "refused"


def test_what_is_too_much_for_a_file_is_said(tmp_path):
    make_trace(tmp_path / "long", rows_per_request=3000, requests=7)
    with pytest.raises(BadData, match=r"21000 rows, a file holds 20000 .* moeworks trace slice"):
        export_page(Sources([tmp_path / "long"]), tmp_path / "page")
    with pytest.raises(BadData, match="nothing to export"):
        export_page(Sources(), tmp_path / "page")
    make_trace(tmp_path / "short", rows_per_request=3, requests=2)
    with pytest.raises(BadData, match="at most 6 traces"):
        export_page(Sources([tmp_path / "short"] * 7), tmp_path / "page")
    assert not (tmp_path / "page").exists()
