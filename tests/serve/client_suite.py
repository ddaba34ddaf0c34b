"""What any server of plans must do for the real OpenAI client; written against an address alone.

A test class takes these tests by inheriting from `ClientSuite`; its module gives the fixtures `served`, a running
server that keeps the traces of some answers, and `client` (`client_of`). The plans of the server are named `expert-0`
and `expert-1`: under each, that expert runs for every token in every layer (`helpers.servers.signature`).
"""

from __future__ import annotations

import io
import tarfile
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from helpers.servers import Served, signature
from moeworks.address import Address
from moeworks.artefact import LayerShape
from moeworks.plan import Add, empty_plan, plan_hash
from moeworks.serve import read_routes
from moeworks.trace import Trace
from moeworks.watch import READINGS

PROMPT = "The river ran past THE OLD mill"
NEW = 6


def client_of(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0, timeout=120)


def ids_of(answer, served: Served) -> np.ndarray:
    """Return (rows, layers, k) expert ids of an answer."""
    table = read_routes(answer)
    columns = [table[f"L{shape.layer}.ids"].combine_chunks() for shape in served.identity.layers]
    return np.stack([np.asarray(c.values).reshape(len(table), -1) for c in columns], 1)


def runs_always(answer, served: Served, expert: int) -> bool:
    return bool((ids_of(answer, served) == expert).any(-1).all())


def fetched(served: Served, path: str) -> bytes:
    request = urllib.request.Request(f"{served.url}{path}", headers={"authorization": f"Bearer {served.key}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def metrics(served: Served) -> dict[str, float]:
    """Return every sample by its name and labels, as Prometheus text has it."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(fetched(served, "/moeworks/metrics").decode())
    return {
        " ".join([sample.name, *(f"{n}={v}" for n, v in sorted(sample.labels.items()))]): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


class ClientSuite:
    def complete(self, client, served, model=None, *, stream=False, new=NEW, prompt=PROMPT, more=None, **field):
        return client.completions.create(
            model=model or served.base,
            prompt=prompt,
            max_tokens=new,
            temperature=0,
            stream=stream,
            extra_body=served.extra(**field) if field else None,
            **(more or {}),
        )

    def test_models_are_the_base_and_its_plans(self, client, served):
        models = {model.id: model for model in client.models.list()}
        assert served.base in models
        assert set(served.plans) <= set(models)
        for name, plan in served.plans.items():
            assert models[name].moeworks["hash"] == plan_hash(plan)
            assert models[name].moeworks["verdict"] == "not measured"

    def test_whole_and_streamed_answers_agree(self, client, served):
        whole = self.complete(client, served)
        assert whole.usage.completion_tokens == NEW
        chunks = list(self.complete(client, served, stream=True, more={"stream_options": {"include_usage": True}}))
        text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        assert text == whole.choices[0].text
        assert [c.usage for c in chunks if c.usage] == [whole.usage]
        assert whole.choices[0].finish_reason == "length"

    def test_a_plan_is_a_model_and_a_field(self, client, served):
        base = self.complete(client, served, record={})
        named = self.complete(client, served, "expert-0", record={})
        asked = self.complete(client, served, plan="expert-0", record={})
        inline = self.complete(
            client, served, plan=served.plans["expert-0"].model_dump(mode="json", exclude_none=True), record={}
        )
        assert runs_always(named, served, 0)
        assert not runs_always(named, served, 1)
        assert not runs_always(base, served, 0)
        for other in (asked, inline):
            assert other.choices[0].text == named.choices[0].text
            np.testing.assert_array_equal(ids_of(other, served), ids_of(named, served))
            assert other.moeworks["plan"] == named.moeworks["plan"] == plan_hash(served.plans["expert-0"])

    def test_the_dial(self, client, served):
        experts = tuple(Address(shape.layer, 0) for shape in served.identity.layers)
        plan = empty_plan(served.identity).model_copy(
            update={"operations": (Add(experts=experts, strength=20.0, unit="std"),)}
        )
        document = plan.model_dump(mode="json", exclude_none=True)
        none = self.complete(client, served, plan=document, strength=0, record={})
        full = self.complete(client, served, plan=document, strength=2, record={})
        base = self.complete(client, served, record={})
        np.testing.assert_array_equal(ids_of(none, served), ids_of(base, served))
        assert none.choices[0].text == base.choices[0].text
        assert runs_always(full, served, 0)
        with pytest.raises(openai.BadRequestError, match="on or off"):
            self.complete(client, served, plan="expert-0", strength=0.5)

    def test_routes_are_what_was_asked_for(self, client, served):
        shape: LayerShape = served.identity.layers[0]
        answer = self.complete(client, served, record={"weights": True, "logits": True})
        table, tokens = read_routes(answer), answer.usage.prompt_tokens
        assert len(table) == tokens + NEW - 1  # the last token went through no router
        assert table["position"].to_pylist() == list(range(len(table)))
        assert table["phase"].to_pylist() == [0] * tokens + [1] * (NEW - 1)
        weights = np.asarray(table[f"L{shape.layer}.weights"].combine_chunks().values)
        assert np.isfinite(weights).all()
        assert weights.any()
        assert len(table[f"L{shape.layer}.logits"][0]) == shape.experts
        assert answer.moeworks["routes"]["bytes"] == len(answer.moeworks["routes"]["data"])
        some = read_routes(self.complete(client, served, record={"layers": [shape.layer], "from": "generated"}))
        assert some.column_names == ["position", "token", "phase", f"L{shape.layer}.ids"]
        assert some["position"].to_pylist() == list(range(tokens, tokens + NEW - 1))
        late = read_routes(self.complete(client, served, record={"from": tokens - 1}))
        assert late["position"].to_pylist() == list(range(tokens - 1, tokens + NEW - 1))
        with pytest.raises(openai.BadRequestError, match="have no router"):
            self.complete(client, served, record={"layers": [4711]})

    def test_routes_of_a_stream_come_with_its_end(self, client, served):
        chunks = list(self.complete(client, served, "expert-1", stream=True, record={}))
        about = [chunk for chunk in chunks if getattr(chunk, "moeworks", None)]
        assert len(about) == 1
        assert runs_always(about[0], served, 1)

    def test_stop_texts_are_cut_off(self, client, served):
        text = self.complete(client, served, new=12).choices[0].text
        stop = text[3:5]
        for stream in (False, True):
            answer = self.complete(client, served, new=12, stream=stream, more={"stop": [stop, "never said"]})
            chunks = list(answer) if stream else [answer]
            said = "".join(choice.text for chunk in chunks for choice in chunk.choices)
            assert said == text[: text.index(stop)]
            assert chunks[-1].choices[0].finish_reason == "stop"

    def test_seeds_and_choices(self, client, served):
        def sample(**more):
            answer = client.completions.create(model=served.base, prompt=PROMPT, max_tokens=8, temperature=1.5, **more)
            return [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]

        first = sample(seed=3, n=3)
        assert len(set(first)) == 3
        assert sample(seed=3, n=3) == first
        assert sample(seed=3) == first[:1]
        assert sample(seed=4) != first[:1]

    def test_a_bias_on_tokens(self, client, served):
        first = self.complete(client, served, new=1, record={})
        table = read_routes(self.complete(client, served, new=2, record={}))
        token = str(table["token"].to_pylist()[-1])
        other = self.complete(client, served, new=1, more={"logit_bias": {token: -100}})
        assert other.choices[0].text != first.choices[0].text

    def test_log_probabilities(self, client, served):
        logs = self.complete(client, served, more={"logprobs": 2}).choices[0].logprobs
        assert len(logs.tokens) == len(logs.token_logprobs) == NEW
        for value, top in zip(logs.token_logprobs, logs.top_logprobs, strict=True):
            assert value == pytest.approx(max(top.values()))
            assert value <= 0

    def test_chat(self, client, served):
        def ask(model, **more):
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello THERE"}]
            return client.chat.completions.create(
                model=model,
                messages=messages,
                max_tokens=NEW,
                temperature=0,
                extra_body=served.extra(record={}),
                **more,
            )

        base, steered = ask(served.base), ask("expert-1")
        assert base.choices[0].message.role == "assistant"
        assert runs_always(steered, served, 1)
        assert not runs_always(base, served, 1)
        chunks = list(ask("expert-1", stream=True))
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert text == steered.choices[0].message.content
        logs = ask(served.base, logprobs=True, top_logprobs=1).choices[0].logprobs.content
        assert len(logs) == NEW
        assert logs[0].logprob == pytest.approx(logs[0].top_logprobs[0].logprob)

    def test_metrics(self, client, served):
        """A fixed set of series; what a request adds is what its own routes say."""
        self.complete(client, served, "expert-1", stream=False)
        before = metrics(served)
        answer = self.complete(client, served, record={"weights": True, "logits": True})
        after = metrics(served)
        own = {"moeworks_steered_requests_total", "moeworks_requests_waiting", "moeworks_plans"}
        own |= {f"moeworks_tokens_total phase={phase}" for phase in ("prompt", "generated")}
        counted = {name for name in after if name.startswith("moeworks_requests_total")}
        assert set(after) == own | counted | {f"moeworks_routing_{name}" for name in READINGS}
        assert counted <= {
            f"moeworks_requests_total endpoint={endpoint} status={status}"
            for endpoint in ("chat", "completions", "other")
            for status in ("2xx", "4xx", "5xx", "none")
        }

        def added(name):
            return after[name] - before[name]

        tokens = answer.usage.prompt_tokens + NEW - 1  # the last one went through no router
        assert added("moeworks_tokens_total phase=prompt") == answer.usage.prompt_tokens
        assert added("moeworks_tokens_total phase=generated") == NEW
        assert added("moeworks_steered_requests_total") == 0
        assert added("moeworks_requests_total endpoint=completions status=2xx") == 1
        assert added("moeworks_routing_tokens") == tokens
        assert after["moeworks_plans"] == len(served.plans)
        table, shares, entropies = read_routes(answer), [], []
        for shape in served.identity.layers:
            weights, logits = (
                np.asarray(table[f"L{shape.layer}.{kind}"].combine_chunks().values, np.float64).reshape(len(table), -1)
                for kind in ("weights", "logits")
            )
            shares.append((weights.max(1) / weights.sum(1)).sum())
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            entropies.append(-(p * np.log(p)).sum() / np.log(shape.experts))
        for name, values in (("top_weight_mean", shares), ("router_entropy_mean", entropies)):
            sums = [one[f"moeworks_routing_{name}"] * one["moeworks_routing_tokens"] for one in (before, after)]
            assert sums[1] - sums[0] == pytest.approx(np.mean(values), rel=1e-3), name
        list(self.complete(client, served, "expert-0", stream=True))
        last = metrics(served)
        assert last["moeworks_steered_requests_total"] == after["moeworks_steered_requests_total"] + 1
        assert last["moeworks_tokens_total phase=generated"] == after["moeworks_tokens_total phase=generated"] + NEW

    def test_the_trace_of_the_last_answers(self, client, served, tmp_path):
        """What was asked for and what was not; both are there afterwards, and are what the answer said."""
        answer = self.complete(client, served, "expert-1", record={"weights": True})
        plain = self.complete(client, served, prompt="Another text")
        with tarfile.open(fileobj=io.BytesIO(fetched(served, "/moeworks/trace"))) as archive:
            archive.extractall(tmp_path, filter="data")
        trace = Trace.open(tmp_path / "moeworks-trace")
        trace.verify()
        requests, routes = trace.requests.to_pylist(), read_routes(answer)
        assert [one["label.plan"] for one in requests[-2:]] == ["expert-1", "base"]
        assert requests[-1]["tokens"] == plain.usage.prompt_tokens + NEW - 1
        assert requests[-2]["prompt_tokens"] == answer.usage.prompt_tokens
        rows = np.concatenate([part.rows().request for part in trace.parts]) == requests[-2]["request"]
        np.testing.assert_array_equal(
            np.stack([trace.ids(shape.layer)[rows] for shape in served.identity.layers], 1), ids_of(answer, served)
        )
        layer = served.identity.layers[-1].layer
        weights = np.asarray(routes[f"L{layer}.weights"].combine_chunks().values).reshape(len(routes), -1)
        np.testing.assert_array_equal(trace.weights(layer)[rows], weights)

    def test_what_is_wrong_is_said(self, client, served):
        with pytest.raises(openai.NotFoundError, match="expert-0"):
            self.complete(client, served, "expert-o")
        with pytest.raises(openai.NotFoundError, match="expert-0"):
            self.complete(client, served, plan="expert-o")
        with pytest.raises(openai.BadRequestError, match=r"tokens.*context|context.*tokens"):
            self.complete(client, served, prompt="word " * (served.context + 1))
        with pytest.raises(openai.BadRequestError, match="plan"):
            self.complete(client, served, plan={"operations": []})
        shape = served.identity.layers[0]
        wrong = signature(served.identity, 0).model_dump(mode="json", exclude_none=True)
        wrong["operations"][0]["experts"] = [f"L{shape.layer}.E{shape.experts}"]
        with pytest.raises(openai.BadRequestError, match=f"E{shape.experts}"):
            self.complete(client, served, plan=wrong)
        with pytest.raises(openai.BadRequestError, match="strength"):
            self.complete(client, served, strength=1.5)
        assert self.complete(client, served).choices[0].text  # it is as well as before

    def test_nobody_sees_another_ones_plan(self, served, requests=192, clients=64):
        """Plans and none, chats and texts, streamed and whole, all at once: each shows its own signature alone."""
        plain = {}
        with client_of(served) as client:
            for number in range(4):
                plain[number] = ids_of(
                    self.complete(client, served, prompt=f"{PROMPT} {number}", new=3, record={}), served
                )
            local = threading.local()

            def ask(number: int) -> None:
                if not hasattr(local, "client"):
                    local.client = client_of(served)
                expert, place = number % 3 - 1, number % 4  # -1: no plan
                model = served.base if expert < 0 else f"expert-{expert}"
                stream = number % 5 == 0
                answer = self.complete(
                    local.client, served, model, prompt=f"{PROMPT} {place}", new=3, stream=stream, record={}
                )
                if stream:
                    answer = next(chunk for chunk in answer if getattr(chunk, "moeworks", None))
                if expert < 0:
                    np.testing.assert_array_equal(ids_of(answer, served), plain[place])
                else:
                    assert runs_always(answer, served, expert)
                    assert not runs_always(answer, served, 1 - expert)

            with ThreadPoolExecutor(clients) as pool:
                assert len(list(pool.map(ask, range(requests)))) == requests
