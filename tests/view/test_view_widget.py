"""The widgets of notebooks, from Python: what they take, refuse, answer and hold."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow as pa
import pytest

pytest.importorskip("anywidget", reason="the widgets need anywidget (extra view)")

from helpers.page_server import make_site
from moeworks.errors import BadData, MoeworksError
from moeworks.trace import Trace
from moeworks.view import ExpertMap, TokenView, expert_map, token_table
from moeworks.view.widget_module import linked_modules, scoped, widget_module


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    return Trace.open(make_site(tmp_path_factory.mktemp("widget"))[1][0])


def read(body):
    return pa.ipc.open_stream(body).read_all()


def test_tokens_as_python_gives_them(trace):
    widget = TokenView(trace, request=1, colour="entropy", layer=1)
    status, body = widget.answer("api/traces/plain/tokens?start=2&stop=40&layers=1")
    assert status == 200
    assert read(body).equals(token_table(trace, start=2, stop=40, layers=[1]))
    assert widget.get_state("_route") == {"_route": "#/tokens?trace=plain&request=1&colour=entropy&layer=1"}


def test_the_map_as_python_gives_it(trace):
    widget = ExpertMap(trace.path, by="specialisation", label="lang", value="ru", selected=["L1.E2"])
    status, body = widget.answer("api/traces/plain/map?by=specialisation&label=lang&value=ru")
    assert status == 200
    assert read(body).equals(expert_map(trace, by="specialisation", label="lang", value="ru"))
    assert widget.selected == ["L1.E2"]
    listed = json.loads(widget.answer("api/sources")[1])
    assert [one["id"] for one in listed["traces"]] == ["plain"]
    assert listed["can"] == {"generate": False, "record": False, "evaluate": False}


def test_questions_come_and_answers_go_over_its_channel(trace, monkeypatch):
    widget, sent = TokenView(trace), []
    monkeypatch.setattr(widget, "send", lambda content, buffers=None: sent.append((content, buffers)))
    widget._handle_custom_msg({"id": "a 1", "url": "api/traces/plain/requests"}, [])
    widget._handle_custom_msg({"id": "a 2", "url": "api/traces/nowhere/requests"}, [])
    widget._handle_custom_msg({"id": "a 3", "url": "/etc/passwd"}, [])
    (first, buffers), (second, _), (third, _) = sent
    assert first == {"id": "a 1", "status": 200}
    assert sorted(read(buffers[0])["request"].to_pylist()) == list(range(13))
    assert second["id"] == "a 2"
    assert second["status"] == 404
    assert "there is no trace 'nowhere' here" in second["message"]
    assert third == {"id": "a 3", "status": 404, "message": "the widget asks for data alone."}


def test_no_answer_is_longer_than_the_page_may_have(trace, monkeypatch):
    widget = TokenView(trace)
    monkeypatch.setattr("moeworks.view.widget.MOST_BYTES", 100)
    status, body = widget.answer("api/traces/plain/tokens")
    assert status == 413
    assert b"ask for fewer rows" in body


def test_chosen_experts_are_checked_and_written_one_way(trace):
    widget = ExpertMap(trace)
    widget.selected = ["L2.E1", "L0.E3-4"]
    assert widget.selected == ["L0.E3", "L0.E4", "L2.E1"]
    for wrong, words in (("L0.E4000", "layer 0 has 16"), ("L77.E0", "77"), ("expert", "expert")):
        with pytest.raises(MoeworksError, match=words):
            widget.selected = [wrong]
    assert widget.selected == ["L0.E3", "L0.E4", "L2.E1"]
    with pytest.raises(BadData, match="no row"):
        widget.row = len(trace)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda trace: TokenView(trace, request=1000), "no rows of request 1000"),
        (lambda trace: TokenView(trace, layer=99), "99"),
        (lambda trace: TokenView(trace, colour="entropie"), "did you mean"),
        (lambda trace: TokenView(trace.path.parent / "nowhere"), "nowhere"),
        (lambda trace: ExpertMap(trace, by="specialisation"), "name both"),
        (lambda trace: ExpertMap(trace, by="load", label="lang", value="xx"), "lang=xx"),
        (lambda trace: ExpertMap(trace, by="score"), "needs scores"),
    ],
)
def test_what_is_not_there_is_refused_in_words(trace, make, words):
    with pytest.raises(MoeworksError, match=words):
        make(trace)


def test_without_anywidget_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['anywidget'] = None\n"
        "import moeworks.view\n"
        "from moeworks.errors import MissingExtra\n"
        "try: moeworks.view.TokenView\n"
        "except MissingExtra as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == (
        "a widget in a notebook needs anywidget; install it with: pip install 'moeworks[view]'."
    )


def test_the_module_is_whole_and_loads_nothing():
    module = widget_module()
    assert 'JSON.parse("{}")' not in module
    names = [name for name, _ in linked_modules({"a": 'import { b } from "b";', "b": "export const b = 1;"}, "a")]
    assert names == ["b", "a"]
    for needed in ("moeworks/tokens-list", "moeworks/experts-grid", "apache-arrow", "preact/hooks"):
        assert f'"name": "{needed}"' in module
    assert '"name": "uplot"' not in module
    assert "MIT License" in module


def test_modules_in_a_circle_are_refused():
    with pytest.raises(MoeworksError, match="a → b → a"):
        linked_modules({"a": 'import { b } from "b";', "b": 'export { a } from "a";'}, "a")


def test_imports_in_comments_are_no_imports():
    text = '// import("b")\n/** @param {import("b").B} b */\nexport const a = 1;'
    assert [name for name, _ in linked_modules({"a": text, "b": 'import "a";'}, "a")] == ["a"]


def test_styles_reach_no_other_part_of_the_notebook():
    css = ':root { --a: 1 } :root[data-theme="dark"] { --a: 2 } :root:not([data-theme="light"]) { --a: 3 }'
    assert scoped(css) == (
        ':host { --a: 1 } :host([data-theme="dark"]) { --a: 2 } :host(:not([data-theme="light"])) { --a: 3 }'
    )
    assert scoped("p { margin: 0.5rem } @media (max-width: 900px) { p { height: 50dvh } }") == (
        "p { margin: 7px } @container (max-width: 900px) { p { height: calc(var(--height) * 0.5) } }"
    )
