"""The client suite on the embedded server, and what it owes to the engine: the same tokens, to the bit."""

import pytest
import torch

from helpers.servers import Served, in_thread, signature
from moeworks.examples import Example, Message
from moeworks.serve import build_app, open_model
from serve.client_suite import NEW, PROMPT, ClientSuite

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def engine():
    return open_model("fake")


@pytest.fixture(scope="module")
def plans(engine):
    return {f"expert-{number}": signature(engine.identity, number) for number in range(2)}


@pytest.fixture(scope="module")
def served(engine, plans):
    app = build_app(engine, plans, name="tiny", key="secret", keep_traces=8)
    with in_thread(app) as url:
        yield Served(url, engine.identity, engine.context, plans, key="secret")


class TestEmbedded(ClientSuite):
    @pytest.mark.parametrize("model", ["base", "tiny", "expert-0"])
    def test_it_is_what_the_engine_generates(self, client, served, engine, plans, model):
        """Text and the bits of the log-probabilities: the steered model's own, from the same forward passes."""
        plan = plans.get(model)
        (expected,) = engine.generate([PROMPT], plan=plan, max_new_tokens=NEW)
        answer = self.complete(client, served, model, more={"logprobs": 1}).choices[0]
        assert answer.text == expected.text
        with engine.steered(plan), torch.inference_mode():
            out = engine.model.generate(
                torch.tensor([engine.tokens(PROMPT)]),
                max_new_tokens=NEW,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        logits = [float(z[0].log_softmax(-1)[t]) for z, t in zip(out.logits, expected.tokens, strict=True)]
        assert answer.logprobs.token_logprobs == logits

    def test_sampling_is_the_engines(self, client, served, engine):
        (expected,) = engine.generate([PROMPT], max_new_tokens=NEW, do_sample=True, temperature=0.8, seed=5)
        answer = client.completions.create(model="base", prompt=PROMPT, max_tokens=NEW, temperature=0.8, seed=5)
        assert answer.choices[0].text == expected.text

    def test_a_chat_is_the_engines(self, client, served, engine):
        (expected,) = engine.generate([Example(messages=(Message(role="user", content="Hello"),))], max_new_tokens=NEW)
        answer = client.chat.completions.create(
            model="base", messages=[{"role": "user", "content": "Hello"}], max_tokens=NEW, temperature=0
        )
        assert answer.choices[0].message.content == expected.text

    def test_many_prompts_and_token_ids(self, client, served, engine):
        texts = [PROMPT, "Another ONE"]
        answer = self.complete(client, served, prompt=texts, record={}, more={"n": 2})
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.choices[0].text == answer.choices[1].text != answer.choices[2].text
        ids = self.complete(client, served, prompt=[engine.tokens(text) for text in texts])
        assert [choice.text for choice in ids.choices] == [answer.choices[0].text, answer.choices[2].text]
        from moeworks.serve import read_routes

        assert set(read_routes(answer)["choice"].to_pylist()) == {0, 1, 2, 3}

    def test_echo_gives_the_prompts_log_probabilities(self, client, served, engine, plans):
        for model, plan in (("base", None), ("expert-1", plans["expert-1"])):
            answer = self.complete(client, served, model, new=0, more={"echo": True, "logprobs": 1}).choices[0]
            (expected,) = engine.token_scores([PROMPT], plan=plan)
            assert answer.text == PROMPT
            assert answer.logprobs.token_logprobs[0] is None
            assert answer.logprobs.token_logprobs[1:] == pytest.approx(expected.log_probabilities.tolist())
