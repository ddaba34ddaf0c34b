"""The page's endpoints against a real server: data, tags, plans from picks, recording, evidence, studies, leagues.

Above 400 lines: all of them ask one running page, which takes long to start.
"""

import importlib
import json
import re
import threading
import time

import numpy as np
import pytest
import torch
from httpx2 import Client, ReadTimeout

from helpers.page_answers import PICKS, PROBE, arrow, events, refused
from helpers.page_server import page_texts, serve_page
from helpers.studies import build_study
from moeworks.address import Address
from moeworks.bench.schema import DetectCell, League, Settings, save_league
from moeworks.engines.progress import Progress
from moeworks.examples import Example
from moeworks.find import find
from moeworks.plan import Demote, Mask, dry_run, empty_plan, explain, load_plan, plan_hash
from moeworks.plan.files import parse_plan
from moeworks.probes import load_probe
from moeworks.prove import evaluate
from moeworks.study import save_study
from moeworks.study.budget import some_of_each
from moeworks.trace import Trace
from moeworks.view.expert_map import expert_map
from moeworks.view.recording import LiveTraces
from moeworks.view.tokens import request_table, token_table
from moeworks.where import Where

torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def few_neutral_texts():
    """Damage is measured on a few texts: what it is, is tested elsewhere."""
    module = importlib.import_module("moeworks.prove.evaluate")
    whole = module.neutral_texts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "neutral_texts", lambda split: some_of_each(whole(split), 4))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A study and a league beside the traces."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "study").mkdir()
    save_study(build_study(), folder / "study" / "study.json")
    cells = tuple(
        DetectCell(method=method, model="fake", probe="single", kind="planted", seed=0, sought=("L0.E1",),
                   claims=claims, top=("L0.E1",), budget=1, reads="runs", null="documents")
        for method, claims in (("one|two", ("L0.E1",)), ("none", ()))
    )  # fmt: skip
    sizes = {"documents": 10, "experts": 3, "permutations": 50, "controls": 2}
    settings = {"fake": Settings(budget="quick", seeds=1, null_seeds=1, sizes=sizes)}
    save_league(League(moeworks="0.1.0", detect=cells, detect_settings=settings), folder / "league.json")
    return [folder / "study", folder / "league.json"]


@pytest.fixture(scope="module")
def site(tmp_path_factory, files):
    with serve_page(tmp_path_factory.mktemp("api"), more=files) as site:
        trace = site.sources.trace("plain")
        scores = find(trace, contrast="lang=ru", against="lang=en", permutations=50, bootstrap=20)
        site.sources.add_scores(scores, name="russian")
        yield site


@pytest.fixture
def web(site):
    with Client(base_url=f"{site.url}/view/", timeout=120) as web:
        yield web


@pytest.fixture
def engine(site):
    return site.sources.engine


# ---------------------------------------------------------------- what is there


def test_sources_list_everything(web, site):
    found = web.get("api/sources").json()
    assert {one["id"] for one in found["traces"]} >= {"plain", "steered"}
    assert found["model"]["name"] == "fake"
    assert found["can"] == {"generate": True, "record": True, "evaluate": True}
    assert PROBE in found["probes"]
    assert found["studies"] == [{"id": "study", "name": "study", "report": "/view/report/study"}]
    assert [one["id"] for one in found["league"]] == [site.sources.ids("league")[0]]


def test_plans_that_the_server_was_given_are_listed_and_those_that_do_not_fit_are_marked(web, site, engine):
    plan = empty_plan(engine.identity, protect="none").model_copy(
        update={"operations": (Demote(experts=(Address(0, 1),)),)}
    )
    document = plan.model_dump(mode="json", exclude_none=True)
    with Client(base_url=site.url) as server:
        assert server.post("/moeworks/plans", json={"name": "mine", "plan": document}).status_code == 201
        other = plan.model_copy(
            update={
                "header": plan.header.model_copy(
                    update={"model": engine.identity.model_copy(update={"weight_hash": "x"})}
                )
            }
        )
        id = site.sources.add_plan(other, name="other")
        plans = {one["id"]: one for one in web.get("api/sources").json()["plans"]}
        assert plans["mine"] == {"id": "mine", "name": "mine", "hash": plan_hash(plan), "verdict": None, "served": True}
        assert plans[id]["served"] is False
        server.delete("/moeworks/plans/mine")
        site.sources.remove(id)
    assert "mine" not in [one["id"] for one in web.get("api/sources").json()["plans"]]


def test_tables_are_those_of_python(web, site):
    trace = site.sources.trace("plain")
    decoder = site.sources.decoder("plain")
    assert arrow(web.get("api/traces/plain/requests")).equals(request_table(trace, decoder=decoder))
    whole = token_table(trace, decoder=decoder)
    assert arrow(web.get("api/traces/plain/tokens")).equals(whole)
    part = arrow(web.get("api/traces/plain/tokens?start=5&stop=9&layers=1"))
    assert part.equals(token_table(trace, start=5, stop=9, layers=[1], decoder=decoder))
    text = "".join(whole["text"].to_pylist())
    assert all(example.text in text for example in page_texts())
    assert arrow(web.get("api/traces/plain/map")).equals(expert_map(trace))
    wanted = expert_map(trace, by="specialisation", label="lang", value="ru")
    assert arrow(web.get("api/traces/plain/map?by=specialisation&label=lang&value=ru")).equals(wanted)
    scored = arrow(web.get("api/traces/plain/map?by=score&scores=russian"))
    assert scored.equals(expert_map(trace, by="score", scores=site.sources.scores("russian")))


def test_json_views_answer(web):
    card = web.get("api/traces/plain/experts/L1.E2").json()
    assert card["address"] == "L1.E2"
    assert "russian" in card["scores"]
    assert {one["what"] for one in web.get("api/traces/plain/layers").json()} >= {"balance", "divergence"}
    balance = web.get("api/traces/plain/layers/balance").json()
    assert balance["command"].startswith("moeworks inspect")
    compared = web.get("api/compare/plain/steered").json()
    assert compared["command"].startswith("moeworks compare")
    tokens = arrow(web.get("api/compare/plain/steered/tokens?start=0&stop=20"))
    assert tokens.num_rows == 20
    assert max(tokens["flips"].to_pylist()) > 0


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("api/traces/nowhere/tokens", 404, "nowhere"),
        ("api/traces/plain/experts/L9.E9", 404, "layer 9"),
        ("api/traces/plain/experts/nine", 400, "nine"),
        ("api/traces/plain/map?by=beauty", 400, "did you mean|Known"),
        ("api/traces/plain/map?by=score&scores=none", 404, "none"),
        ("api/traces/plain/map?by=specialisation&label=colour&value=red", 400, "colour"),
        ("api/traces/plain/tokens?start=-1", 400, "-1"),
        ("api/traces/plain/tokens?start=a", 400, "start"),
        ("api/traces/plain/tokens?layers=a", 400, "layers"),
        ("api/traces/plain/tokens?layers=99", 400, "99"),
        ("api/traces/plain/layers/beauty", 400, "beauty"),
        ("api/compare/plain/nowhere", 404, "nowhere"),
        ("api/studies/nowhere", 404, "nowhere"),
        ("api/studies/study/report", 404, "report.html"),
        ("api/league/nowhere", 404, "nowhere"),
        ("api/nothing", 404, "Not Found"),
    ],
)
def test_what_is_wrong_is_said_in_words(web, path, status, words):
    assert re.search(words, refused(web.get(path), status))


def test_an_answer_that_did_not_change_is_not_sent_again(web, site):
    first = web.get("api/traces/plain/map?by=load")
    again = web.get("api/traces/plain/map?by=load", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    tags = [
        web.get(path).headers["etag"]
        for path in ("api/traces/plain/map?by=load", "api/traces/plain/map?by=weight", "api/traces/steered/map?by=load")
    ]
    assert tags[0] == first.headers["etag"]
    assert len(set(tags)) == 3
    assert web.get("api/traces/plain/map?by=weight", headers={"if-none-match": tags[0]}).status_code == 200
    assert "etag" not in web.get("api/sources").headers  # there may be more by the next time


# ---------------------------------------------------------------- plans from picks


def test_picks_become_a_plan(web, engine, tmp_path):
    found = web.post("api/plan", json={"operations": PICKS, "description": "by hand", "trace": "plain"}).json()
    plan = parse_plan(json.dumps(found["plan"]), "x")
    assert plan.operations == (
        Demote(experts=(Address(0, 1), Address(1, 2))),
        Mask(experts=(Address(2, 3),), refill=False),
    )
    assert plan.header.model == engine.identity
    assert found["hash"] == plan_hash(plan)
    assert found["explanation"] == explain(plan).splitlines()
    assert (found["touched"], found["layers"]) == (3, {"0": 1, "1": 1, "2": 1})
    assert found["of"] == 64
    assert found["problems"] == []
    layers = dry_run(plan, Trace.open(found_path(web, "plain"))).layers
    assert found["changed"] == [{"layer": one.layer, "rows": one.rows, "changed": one.changed} for one in layers]
    assert sum(one["changed"] for one in found["changed"]) > 0
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(found["plan"]))
    assert load_plan(path) == plan  # what is downloaded is a plan file


def found_path(web, id):
    return next(one["path"] for one in web.get("api/sources").json()["traces"] if one["id"] == id)


def test_picks_carry_strength_factor_and_where(web):
    picks = [
        {"op": "add", "experts": ["L0.E1"], "strength": -2.5, "unit": "logit"},
        {"op": "scale", "experts": ["L0.E2"], "factor": 0.5},
    ]
    found = web.post("api/plan", json={"operations": picks, "where": {"phase": ["generated"]}}).json()
    plan = parse_plan(json.dumps(found["plan"]), "x")
    assert (plan.operations[0].strength, plan.operations[0].unit, plan.operations[1].factor) == (-2.5, "logit", 0.5)
    assert plan.where == Where(phase=("generated",))


def test_problems_of_picks_are_sentences(web):
    all_down = [{"op": "demote", "experts": [f"L0.E{expert}" for expert in range(16)]}]
    found = web.post("api/plan", json={"operations": all_down}).json()
    assert found["touched"] == 0
    assert any("layer 0" in problem.lower() or "L0" in problem for problem in found["problems"])
    labelled = web.post("api/plan", json={"operations": PICKS, "where": {"labels": {"lang": ["ru"]}}}).json()
    assert any("label" in problem for problem in labelled["problems"])
    assert "L0.X1" in refused(web.post("api/plan", json={"operations": [{"op": "demote", "experts": ["L0.X1"]}]}), 400)
    wrong = {"op": "demote", "experts": ["L0.E1"], "factor": 2}
    assert "factor" in refused(web.post("api/plan", json={"operations": [wrong]}), 400)
    assert refused(web.post("api/plan", json={"operations": [{"op": "explode", "experts": ["L0.E1"]}]}), 400)


# ---------------------------------------------------------------- recording


def test_a_text_becomes_a_trace(web, site, engine, tmp_path):
    plan = web.post("api/plan", json={"operations": PICKS}).json()["plan"]
    text = page_texts()[0].text
    made = [
        web.post("api/record", json={"text": text, "max_tokens": 5, **more}).json() for more in ({}, {"plan": plan})
    ]
    assert "--plan" in made[1]["command"]
    steering = (None, parse_plan(json.dumps(plan), "x"))
    for place, (answer, running) in enumerate(zip(made, steering, strict=True)):
        trace = site.sources.trace(answer["trace"])
        same = engine.record([Example(text=text)], tmp_path / str(place), plan=running, logits=True, generate=5)
        for layer in trace.layers:
            np.testing.assert_array_equal(trace.ids(layer), same.ids(layer))
            np.testing.assert_array_equal(trace.logits(layer), same.logits(layer))
    assert (site.sources.trace(made[0]["trace"]).ids(2) != site.sources.trace(made[1]["trace"]).ids(2)).any()
    shown = {one["id"]: one for one in web.get("api/sources").json()["traces"]}
    assert text[:20] in shown[made[0]["trace"]]["name"]
    tokens = arrow(web.get(f"api/traces/{made[0]['trace']}/tokens"))
    assert "".join(tokens["text"].to_pylist()).startswith(text)


def test_a_chat_becomes_a_trace(web, site):
    made = web.post("api/record", json={"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}).json()
    text = "".join(arrow(web.get(f"api/traces/{made['trace']}/tokens"))["text"].to_pylist())
    assert "user: Hello" in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "text or messages"),
        ({"text": "a", "messages": [{"role": "user", "content": "b"}]}, "text or messages"),
        ({"text": "a", "max_tokens": 5000}, "context"),
        ({"text": "a" * 3000}, "context"),
        ({"text": "a", "max_tokens": -1}, "max_tokens"),
        ({"text": "a", "plan": "nowhere"}, "nowhere"),
        ({"text": "a", "plan": {"operations": []}}, "plan"),
        ({"text": "a", "strength": 0.5}, "strength"),
        ({"text": "a", "colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_recorded_is_said(web, site, body, words):
    before = site.sources.ids("trace")
    answer = web.post("api/record", json=body)
    assert answer.status_code in (400, 404)
    assert words in answer.json()["error"]["message"]
    assert site.sources.ids("trace") == before


def test_live_traces_are_bounded_and_leave_nothing(site, engine):
    live = LiveTraces(site.sources, most=2)
    before = site.sources.ids("trace")
    ids, paths = [], []
    for _ in range(3):
        path = live.path()
        ids.append(live.add(engine.record(page_texts()[:1], path), "a text"))
        paths.append(path)
    assert site.sources.ids("trace") == [*before, *ids[1:]]
    assert [path.exists() for path in paths] == [False, True, True]
    live.close()
    assert not paths[-1].parent.exists()
    for id in ids[1:]:
        site.sources.remove(id)


# ---------------------------------------------------------------- evidence


def test_evidence_runs_with_progress_and_gives_what_python_gives(web, engine):
    plan = web.post("api/plan", json={"operations": PICKS}).json()["plan"]
    told = events(web.post("api/evidence", json={"plan": plan, "probe": PROBE, "limit": 8, "controls": 2}))
    steps, result = told[:-1], told[-1]["result"]
    assert steps[0] == {"done": 0, "total": 0, "what": "waiting for the model"}
    done = [step["done"] for step in steps[1:]]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == steps[-1]["total"] > 5
    same = evaluate(engine, parse_plan(json.dumps(plan), "x"), load_probe(PROBE), controls=2, limit=8)
    assert result["effect"]["value"] == same.effect.value
    assert result["interval"] == [same.effect.low, same.effect.high]
    assert result["random"] == [control.effect for control in same.controls]
    assert result["damage"]["divergence"] == same.damage.divergence
    assert (result["verdict"], result["reasons"]) == (same.verdict, list(same.reasons))
    assert result["command"] == (f"moeworks evaluate fake --plan plan.json --probe {PROBE} --controls 2 --limit 8")
    assert not engine.model._forward_pre_hooks  # nothing of ours is left on the model


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"plan": "nowhere", "probe": PROBE}, 404, "nowhere"),
        ({"plan": {"operations": []}, "probe": PROBE}, 400, "plan"),
        ({"plan": None, "probe": PROBE}, 400, "plan"),
        ({"plan": "PLAN", "probe": "language/xx"}, 400, "language/xx"),
        ({"plan": "PLAN", "probe": "/etc/passwd"}, 400, "no probe"),
        ({"plan": "PLAN", "probe": PROBE, "limit": 0}, 400, "limit"),
        ({"plan": "PLAN", "probe": PROBE, "controls": 0}, 400, "controls"),
        ({"plan": "EMPTY", "probe": PROBE}, 400, "empty"),
    ],
)
def test_evidence_that_cannot_be_is_refused_before_anything_runs(web, body, status, words):
    picks = {"PLAN": PICKS, "EMPTY": []}.get(str(body["plan"]))
    if picks is not None:
        body = {**body, "plan": web.post("api/plan", json={"operations": picks}).json()["plan"]}
    assert words in refused(web.post("api/evidence", json=body), status)


def test_what_fails_while_it_runs_is_the_last_event(web):
    plan = web.post("api/plan", json={"operations": PICKS}).json()["plan"]
    told = events(web.post("api/evidence", json={"plan": plan, "probe": PROBE, "limit": 1}))
    assert "documents" in told[-1]["error"]["message"]  # one document is too few for a verdict


def test_leaving_stops_the_work_and_frees_the_model(site, web, engine):
    plan = web.post("api/plan", json={"operations": PICKS}).json()["plan"]
    passes = []
    handle = engine.model.register_forward_hook(lambda *_: passes.append(time.monotonic()))
    try:
        body = {"plan": plan, "probe": PROBE, "controls": 50}
        with (
            Client(base_url=f"{site.url}/view/", timeout=120) as other,
            other.stream("POST", "api/evidence", json=body) as answer,
        ):
            for line in answer.iter_lines():
                if line and json.loads(line.removeprefix("data: "))["done"] >= 1:
                    break
        left = time.monotonic()
        record = web.post("api/record", json={"text": "Hello"})  # waits until the model is free
        freed = time.monotonic() - left
    finally:
        handle.remove()
    assert record.status_code == 200
    assert freed < 20, "fifty random plans would take minutes"
    assert not engine.model._forward_pre_hooks
    assert engine.plan is None


def test_work_waits_for_work_and_nothing_runs_at_once(site, web, engine):
    """A recording that is asked for while evidence runs gives what it gives alone."""
    plan = web.post("api/plan", json={"operations": PICKS}).json()["plan"]
    alone = web.post("api/record", json={"text": "Hello there", "max_tokens": 4}).json()["trace"]
    answers = {}

    def gather():
        with Client(base_url=f"{site.url}/view/", timeout=120) as other:
            body = {"plan": plan, "probe": PROBE, "limit": 8, "controls": 1}
            answers["evidence"] = events(other.post("api/evidence", json=body))

    thread = threading.Thread(target=gather)
    thread.start()
    time.sleep(0.3)
    beside = web.post("api/record", json={"text": "Hello there", "max_tokens": 4}).json()["trace"]
    thread.join()
    assert "result" in answers["evidence"][-1]
    first, second = site.sources.trace(alone), site.sources.trace(beside)
    for layer in first.layers:
        np.testing.assert_array_equal(first.logits(layer), second.logits(layer))


def test_progress_tells_a_function():
    told = []
    with Progress("x", "things", total=3, show=lambda done, total: told.append((done, total))) as bar:
        bar.advance(1)
        bar.advance(2)
    assert told == [(0, 3), (1, 3), (3, 3)]


# ---------------------------------------------------------------- studies, leagues, and no model


def test_a_study_is_its_own_document(web):
    found = web.get("api/studies/study").json()
    assert [probe["name"] for probe in found["probes"]] == [probe.name for probe in build_study().probes]


def test_a_league_comes_in_blocks(web, site):
    id = site.sources.ids("league")[0]
    found = web.get(f"api/league/{id}").json()
    assert found["command"].startswith("moeworks bench page -o ")
    kinds = [block["kind"] for block in found["blocks"]]
    assert {"heading", "text", "table"} <= set(kinds)
    tables = [block for block in found["blocks"] if block["kind"] == "table"]
    for table in tables:
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert any(row[0] == "`none`" for table in tables for row in table["rows"])
    assert any(row[0] == "`one∣two`" for table in tables for row in table["rows"])  # a bar in a name is no column
    assert not any("![" in json.dumps(block) for block in found["blocks"])


def test_a_client_that_loses_patience_leaves_the_model_free(web):
    with pytest.raises(ReadTimeout):  # the client's own patience; the server goes on with what is next
        Client(base_url=str(web.base_url), timeout=0.05).post(
            "api/evidence",
            json={"plan": web.post("api/plan", json={"operations": PICKS}).json()["plan"], "probe": PROBE},
        )
    assert web.post("api/record", json={"text": "a"}).status_code == 200
