"""Plans at run time, the door, limits, and clients that leave: against a real uvicorn.

Above 400 lines: all of them need one running server, which takes long to start.
"""

import io
import json
import socket
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from httpx2 import Client, ReadTimeout

from helpers.servers import Served, in_thread, signature
from moeworks.engines.fake import FakeEngine
from moeworks.errors import BadData, BadPlan, Unsupported
from moeworks.plan import Add, Replay, RoutingGate, empty_plan, plan_hash
from moeworks.serve import Limits, build_app, open_model, read_routes, serve
from moeworks.trace import Trace
from moeworks.watch import READINGS
from moeworks.where import Where
from serve.client_suite import client_of

torch.set_num_threads(1)
LIMITS = Limits(
    body_bytes=20_000,
    waiting=3,
    new_tokens=900,
    choices=4,
    plans=2,
    plan_operations=3,
    record_bytes=60_000,
    body_seconds=0.5,
)


@pytest.fixture(scope="module")
def engine():
    return open_model("fake")


@pytest.fixture(scope="module")
def app(engine):
    return build_app(engine, {"expert-0": signature(engine.identity, 0)}, key="secret", limits=LIMITS, keep_traces=3)


@pytest.fixture(scope="module")
def served(app, engine):
    with in_thread(app) as url:
        yield Served(url, engine.identity, engine.context, key="secret")


@pytest.fixture(scope="module")
def web(served):
    with Client(base_url=served.url, headers={"authorization": "Bearer secret"}, timeout=60) as web:
        yield web


def document(plan):
    return plan.model_dump(mode="json", exclude_none=True)


def message(answer):
    return answer.json()["error"]["message"]


def complete(web, **fields):
    return web.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2, **fields})


def idle(app):
    """Wait until no request is in the server and the inference thread is free; return how long that took."""
    door, worker = app.state.door, app.state.serving.worker
    start = time.monotonic()
    while door.tickets:
        assert time.monotonic() - start < 20
        time.sleep(0.005)
    worker._thread.submit(lambda: None).result(20)
    return time.monotonic() - start


# ---------------------------------------------------------------------- plans at run time


def test_plans_come_and_go(web, engine):
    plan = signature(engine.identity, 5)
    added = web.post("/moeworks/plans", json={"name": "five", "plan": document(plan)})
    assert added.status_code == 201
    assert added.json()["hash"] == plan_hash(plan)
    assert web.post("/moeworks/plans", json={"name": "five", "plan": document(plan)}).status_code == 201  # the same
    assert [one["name"] for one in web.get("/moeworks/plans").json()["plans"]] == ["expert-0", "five"]
    assert web.get("/moeworks/plans/five").json()["operations"] == document(plan)["operations"]
    assert complete(web, model="five").json()["moeworks"]["plan"] == plan_hash(plan)
    other = signature(engine.identity, 6)
    taken = web.post("/moeworks/plans", json={"name": "five", "plan": document(other)})
    assert taken.status_code == 400
    assert "here already" in message(taken)
    assert "at most 2 plans" in message(web.post("/moeworks/plans", json={"name": "six", "plan": document(other)}))
    assert web.delete("/moeworks/plans/five").json() == {"removed": "five"}
    assert complete(web, model="five").status_code == web.delete("/moeworks/plans/five").status_code == 404


def test_validate_names_every_problem_and_explain_says_what_it_does(web, engine):
    plan = document(signature(engine.identity, 5))
    assert web.post("/moeworks/plans/validate", json={"plan": plan}).json()["valid"] is True
    plan["operations"][0]["experts"] = ["L0.E99", "L9.E1"]
    plan["where"] = {"labels": {"lang": ["fr"]}}
    found = web.post("/moeworks/plans/validate", json={"plan": plan}).json()
    assert found["valid"] is False
    told = " ".join(found["problems"])
    assert all(word in told for word in ("lang", "L0.E99", "L9.E1"))
    broken = web.post("/moeworks/plans/validate", json={"plan": {"header": {}}}).json()
    assert broken["valid"] is False
    assert "format" in broken["problems"][0]
    text = web.post("/moeworks/plans/explain", json={"plan": "expert-0"}).json()["text"]
    assert "Promote 4 experts" in text


def test_what_cannot_be_done_exactly_is_refused_at_the_door(engine, web):
    empty = empty_plan(engine.identity)
    replay = empty.model_copy(update={"operations": (Replay(trace="/etc"),)})
    assert "replay" in message(complete(web, moeworks={"plan": document(replay)}))
    many = empty.model_copy(update={"operations": signature(engine.identity, 1).operations * 4})
    assert "this server takes 3" in message(complete(web, moeworks={"plan": document(many)}))
    role = signature(engine.identity, 1).model_copy(update={"where": Where(role=("user",))})
    assert "roles" in message(complete(web, moeworks={"plan": document(role)}))
    with pytest.raises(BadPlan, match=r"plan 'x'.*label lang"):
        build_app(
            engine, {"x": signature(engine.identity, 1).model_copy(update={"where": Where(labels={"lang": ("fr",)})})}
        )
    with pytest.raises(BadData, match="choose another name"):
        build_app(engine, {"base": empty})
    with pytest.raises(Unsupported, match="torch twin"):
        build_app(FakeEngine())


def test_roles_of_a_chat_are_steered_alone(engine, web):
    plan = signature(engine.identity, 2).model_copy(update={"where": Where(role=("user",))})
    body = {"messages": [{"role": "system", "content": "aaa"}, {"role": "user", "content": "bbb"}], "max_tokens": 2}
    answer = web.post("/v1/chat/completions", json={**body, "moeworks": {"plan": document(plan), "record": {}}}).json()
    table = read_routes(answer)
    runs = [2 in ids for ids in table["L1.ids"].to_pylist()]
    said = bytes(t for t in table["token"].to_pylist() if t < 256).decode()
    user = said.index("bbb")
    assert all(runs[user : user + 3])
    assert not all(runs[:user])
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    refused = web.post("/v1/chat/completions", json={**body, "tools": tools, "moeworks": {"plan": document(plan)}})
    assert "cannot be told" in message(refused)


def test_a_gate_decides_by_the_prompt(engine, web):
    weights = {1: tuple(float(e == 0) for e in range(16))}
    plan = signature(engine.identity, 3)
    for threshold, applied in ((-1.0, True), (2.0, False)):
        gated = plan.model_copy(update={"gate": RoutingGate(weights=weights, threshold=threshold)})
        answer = complete(web, moeworks={"plan": document(gated), "record": {}}).json()
        assert answer["moeworks"]["applied"] == [applied]
        assert all(3 in ids for ids in read_routes(answer)["L0.ids"].to_pylist()) == applied


# ---------------------------------------------------------------------- reading


def test_metrics_are_a_fixed_set_and_count(web):
    def series():
        lines = [line for line in web.get("/moeworks/metrics").text.splitlines() if not line.startswith("#")]
        return dict(line.rsplit(" ", 1) for line in lines)

    before = series()
    assert {f"moeworks_routing_{name}" for name in READINGS} <= set(before)
    complete(web, prompt="12345", max_tokens=4)
    complete(web, prompt="12345", max_tokens=4, model="expert-0")
    after = series()
    grown = {name: float(after[name]) - float(before[name]) for name in before if "created" not in name}
    assert grown['moeworks_tokens_total{phase="prompt"}'] == 10
    assert grown['moeworks_tokens_total{phase="generated"}'] == 8
    assert grown["moeworks_routing_tokens"] == 2 * (5 + 3)
    assert grown["moeworks_steered_requests_total"] == 1
    assert len(after) <= len(before) + 2


def test_the_meter_sees_what_the_plan_decided(engine):
    app = build_app(engine, {"expert-0": signature(engine.identity, 0)})
    with in_thread(app) as url, Client(base_url=url) as web:
        complete(web, model="expert-0", max_tokens=3)
        loads = app.state.serving.worker.meter.routing.loads()
        assert all(int(load[0]) == 4 for load in loads.values())  # both tokens of the prompt, and two of three more


def test_the_trace_of_the_last_requests(web, tmp_path, engine):
    for prompt in ("one", "two", "three", "four"):
        complete(web, prompt=prompt, model="expert-0")
    with tarfile.open(fileobj=io.BytesIO(web.get("/moeworks/trace").content)) as archive:
        archive.extractall(tmp_path, filter="data")
    trace = Trace.open(tmp_path / "moeworks-trace")
    assert trace.verify().requests == 3
    assert len(trace) == sum(len(prompt) + 1 for prompt in ("two", "three", "four"))
    assert (trace.ids(0) == 0).any(-1).all()
    with in_thread(build_app(engine)) as url, Client(base_url=url) as other:
        assert "--keep-traces" in message(other.get("/moeworks/trace"))


# ---------------------------------------------------------------------- the door


def test_the_key_guards_everything_but_health(served):
    with Client(base_url=served.url) as web:
        assert web.get("/health").json() == {"status": "ok"}
        for path in (
            "/v1/models",
            "/moeworks/plans",
            "/moeworks/metrics",
            "/moeworks/trace",
            "/openapi.json",
            "/nowhere",
        ):
            assert web.get(path).status_code == 401
            assert web.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
    with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=f"{served.url}/v1", api_key="no") as client:
        client.models.list()


def test_what_loads_other_models_is_gone(web):
    for path in ("/load_model", "/reset", "/v1/responses", "/v1/audio/transcriptions", "/docs"):
        assert web.post(path, json={"model": "x"}).status_code == 404


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "not JSON"),
        (b"[1]", "list, not an object"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        (b"[" * 15_000, "nested"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"prompt": 5}', "prompt"),
        (b'{"prompt": []}', "prompt"),
        (b'{"prompt": [99999999]}', "no token"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature"),
        (b'{"prompt": "a", "temperature": "hot"}', "temperature"),
        (b'{"prompt": "a", "seed": 1e400}', "seed"),
        (b'{"prompt": "a", "n": 5}', "5 choices"),
        (b'{"prompt": "a", "n": 9999999999999999999999}', "n:"),
        (b'{"prompt": "a", "stop": ["", "b"]}', "stop"),
        (b'{"prompt": "a", "max_tokens": 901}', "at most 900"),
        (b'{"prompt": "a", "logit_bias": {"257": 1}}', "no token 257"),
        (b'{"prompt": "a", "frequency_penalty": -1}', "frequency_penalty"),
        (b'{"prompt": "a", "generation_config": "{}x"}', "generation_config"),
        (b'{"prompt": "a", "generation_config": "{\\"num_beams\\": 4}"}', "num_beams"),
        (b'{"prompt": "a", "generation_config": "{\\"temperature\\": -3, \\"do_sample\\": true}"}', "temperature"),
        (b'{"prompt": "a", "moeworks": {"plan": "x", "colour": 1}}', "colour"),
        (b'{"prompt": "a", "moeworks": {"strength": 3}}', "strength"),
        (
            b'{"prompt": "a", "moeworks": {"plan": "expert-0", "record": {"logits": true}}, "max_tokens": 800}',
            "may take",
        ),
        (b'{"model": "expert-0", "prompt": "a", "moeworks": {"plan": "base"}}', "base"),
    ],
)
def test_malformed_and_hostile_bodies_get_one_sentence(web, body, word):
    answer = web.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 404)
    assert word in message(answer)
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "a"}]}, "no role"),
        ({"messages": [{"role": "user", "content": 7}]}, "neither text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]},
            "not text",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "OpenAI form"),
        (
            {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"chat_template": "x"}},
            "cannot be set",
        ),
    ],
)
def test_chats_of_the_wrong_shape(web, fields, word):
    answer = web.post("/v1/chat/completions", json=fields)
    assert answer.status_code == 400
    assert word in message(answer)


def test_unknown_fields_are_what_the_base_makes_of_them(web):
    answer = complete(web, colour="red")
    assert answer.status_code == 422
    assert "colour" in message(answer)


def test_bodies_are_bounded(served, web):
    assert complete(web, prompt="a" * 21_000).status_code == 413

    def chunks():
        yield b'{"prompt": "'
        for _ in range(30):
            yield b"a" * 1000

    assert web.post("/v1/completions", content=chunks()).status_code == 413
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 9\r\n\r\n{"
        )
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


# ---------------------------------------------------------------------- clients that leave, and time


def long_request(web, **more):
    return web.stream(
        "POST", "/v1/completions", json={"prompt": "Hi", "max_tokens": 900, "logit_bias": {"256": -100}, **more}
    )


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_model(served, app, stream):
    idle(app)
    meter = app.state.serving.worker.meter.routing
    before = meter.readings()["tokens"]
    with Client(base_url=served.url, headers={"authorization": "Bearer secret"}, timeout=0.4) as web:
        if stream:
            with long_request(web, stream=True) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(ReadTimeout), long_request(web):
                pass
    idle(app)
    assert 0 < meter.readings()["tokens"] - before < 800


def test_waiting_requests_are_bounded_and_slots_come_back(served, app):
    idle(app)
    with Client(base_url=served.url, headers={"authorization": "Bearer secret"}, timeout=60) as web:
        streams = [long_request(web, stream=True) for _ in range(LIMITS.waiting)]
        answers = [stream.__enter__() for stream in streams[:1]]
        waiting = [threading.Thread(target=lambda: complete(web)) for _ in range(LIMITS.waiting - 1)]
        for thread in waiting:
            thread.start()
        while len(app.state.door.tickets) < LIMITS.waiting:
            time.sleep(0.01)
        refused = complete(web)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert answers[0].status_code == 200
        streams[0].__exit__(None, None, None)
        for thread in waiting:
            thread.join(30)
    idle(app)
    assert not app.state.door.tickets


def test_time_runs_out_with_a_word(engine):
    app = build_app(engine, limits=Limits(seconds=0.5))
    with in_thread(app) as url, Client(base_url=url, timeout=30) as web:
        with long_request(web, stream=True) as answer:
            assert answer.status_code == 200
            last = [line for line in answer.iter_lines() if line][-1]
        assert "longer than the 0.5 s" in json.loads(last.removeprefix("data: "))["error"]["message"]
        late = complete(web, max_tokens=900, logit_bias={"256": -100})
        assert late.status_code == 504
        assert complete(web).status_code == 200
        assert idle(app) < 5


def test_a_stopping_server_finishes_or_fails_with_a_word(engine):
    app = build_app(engine, limits=Limits(grace_seconds=0.5))
    with (
        in_thread(app) as url,
        client_of(Served(url, engine.identity, engine.context)) as client,
        client.completions.create(
            model="base", prompt="Hi", max_tokens=900, stream=True, logit_bias={"256": -100}
        ) as stream,
        ThreadPoolExecutor() as pool,
    ):
        next(iter(stream))
        short = pool.submit(client.completions.create, model="base", prompt="Hi", max_tokens=2)
        while len(app.state.door.tickets) < 2:
            time.sleep(0.01)
        app.state.server.should_exit = True
        with pytest.raises(openai.APIError, match="stopping"):
            for _ in stream:
                pass
        with pytest.raises(openai.InternalServerError, match="stopping"):
            short.result(20)  # it waited behind the other
    with (
        in_thread(app := build_app(engine)) as url,
        Client(base_url=url, timeout=60) as web,
        ThreadPoolExecutor() as pool,
    ):
        whole = pool.submit(complete, web, max_tokens=50)
        while not app.state.door.tickets:
            time.sleep(0.005)
        app.state.server.should_exit = True
        assert whole.result(20).status_code == 200


def test_an_open_address_needs_a_key(engine, monkeypatch):
    monkeypatch.delenv("MOEWORKS_API_KEY", raising=False)
    with pytest.raises(BadData, match="--api-key"):
        serve(engine, host="0.0.0.0", port=0)


def test_adding_at_a_strength(engine, web):
    plan = empty_plan(engine.identity).model_copy(
        update={"operations": (Add(experts=("L0.E1",), strength=3.0, unit="std"),)}
    )
    turned = [
        complete(web, moeworks={"plan": document(plan), "strength": s}).json()["moeworks"]["plan"] for s in (1, 2)
    ]
    assert turned[0] == plan_hash(plan) != turned[1]
