"""Requests and plans that nobody would write: every answer is one that the server promises, and it lives on."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from helpers.servers import signature
from moeworks.errors import BadPlan
from moeworks.plan import plan_hash
from moeworks.serve import Limits, build_app, open_model
from moeworks.serve.plans import plan_of, served_problems

torch.set_num_threads(1)
LIMITS = Limits(new_tokens=2, choices=2, body_bytes=100_000)
OFTEN = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
ENGINE = open_model("fake")
PLAN = json.loads(signature(ENGINE.identity, 1).model_dump_json(exclude_none=True))


@pytest.fixture(scope="module")
def app():
    return build_app(ENGINE, {"one": signature(ENGINE.identity, 1)}, limits=LIMITS)


@pytest.fixture(scope="module")
def web(app):
    with TestClient(app, raise_server_exceptions=True) as web:
        yield web


def fits(answer):
    assert answer.status_code in (200, 201, 400, 404, 413, 422), answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"].endswith((".", "…"))
        assert "unexpected" not in answer.json()["error"]["message"].lower().replace("unexpected fields", "")


def mostly(good):
    """Return good values three times in four, so that most requests have one thing wrong or none."""
    return good | good | good | JSON


MOEWORKS = JSON | st.fixed_dictionaries(
    {},
    optional={
        "plan": st.just("one") | st.just(PLAN) | JSON,
        "strength": st.sampled_from([0, 1, 2, 0.5]) | JSON,
        "record": st.fixed_dictionaries(
            {}, optional={"layers": st.lists(st.integers(-1, 5), max_size=3) | JSON, "from": JSON, "weights": JSON}
        )
        | JSON,
    },
)
COMMON = {
    "model": mostly(st.sampled_from(["base", "one", "none"])),
    "max_tokens": mostly(st.integers(0, 2)),
    "stream": mostly(st.booleans()),
    "n": mostly(st.integers(1, 2)),
    "stop": mostly(st.text(max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=3)),
    "seed": mostly(st.integers()),
    "temperature": mostly(st.floats(0, 2)),
    "top_p": mostly(st.floats(0, 1)),
    "frequency_penalty": mostly(st.floats(-2, 2)),
    "logit_bias": mostly(st.dictionaries(st.integers(-1, 300).map(str), st.floats(-200, 200), max_size=3)),
    "stream_options": JSON,
    "generation_config": mostly(st.text(max_size=20) | st.dictionaries(st.text(max_size=8), JSON).map(json.dumps)),
    "moeworks": MOEWORKS,
    "user": JSON,
}
TEXTS = {
    "prompt": mostly(st.text(max_size=20) | st.lists(st.text(max_size=5), max_size=2)),
    "logprobs": mostly(st.integers(0, 3)),
    "echo": mostly(st.booleans()),
    "suffix": mostly(st.text(max_size=3)),
}
CHATS = {
    "messages": st.lists(
        st.fixed_dictionaries(
            {}, optional={"role": st.sampled_from(["user", "assistant"]) | JSON, "content": st.text(max_size=9) | JSON}
        ),
        max_size=3,
    )
    | JSON,
    "logprobs": mostly(st.booleans()),
    "top_logprobs": mostly(st.integers(0, 3)),
    "tools": mostly(st.lists(JSON, max_size=2)),
    "chat_template_kwargs": JSON,
}


def send(web, path, body):
    try:
        content = json.dumps(body)
    except ValueError:
        return
    fits(web.post(path, content=content, headers={"content-type": "application/json"}))


@OFTEN
@given(
    body=st.fixed_dictionaries(
        {"prompt": TEXTS["prompt"]}, optional=COMMON | {k: v for k, v in TEXTS.items() if k != "prompt"}
    )
)
def test_any_completion_is_answered(web, body):
    send(web, "/v1/completions", body)


@OFTEN
@given(
    body=st.fixed_dictionaries(
        {"messages": CHATS["messages"]}, optional=COMMON | {k: v for k, v in CHATS.items() if k != "messages"}
    )
)
def test_any_chat_is_answered(web, body):
    send(web, "/v1/chat/completions", body)


@OFTEN
@given(body=JSON, path=st.sampled_from(["plans", "plans/validate", "plans/explain"]))
def test_any_body_of_the_other_endpoints_is_answered(web, body, path):
    send(web, f"/moeworks/{path}", body)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_plan_parser_takes_a_plan_or_says_why_not(data):
    """A real plan in which anything, anywhere, is replaced: it is refused in words, or is a plan that is checked."""
    document = json.loads(json.dumps(PLAN))
    place = document
    for _ in range(data.draw(st.integers(0, 4))):
        inner = [v for v in (place.values() if isinstance(place, dict) else place) if isinstance(v, dict | list) and v]
        if not inner:
            break
        place = data.draw(st.sampled_from(inner))
    key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
    place[key] = data.draw(JSON)
    try:
        plan = plan_of(document, LIMITS)
    except BadPlan:
        return
    assert all(isinstance(problem, str) for problem in served_problems(plan, ENGINE.identity))
    assert len(plan_hash(plan)) == 32


def test_the_schema_that_is_published_holds(app):
    """schemathesis: requests made from the server's own OpenAPI document, positive and negative."""
    schemathesis = pytest.importorskip("schemathesis")
    checks = schemathesis.checks
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)

    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case):
            case.call_and_validate(checks=[checks.not_a_server_error])

        check()
