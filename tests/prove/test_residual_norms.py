"""Residual norms: equal to a hand-placed hook, 1 for a plan that changes nothing, and reported for plans that scale."""

from __future__ import annotations

import pytest
import torch

from helpers.plans import at, plan
from moeworks.engines.fake import FakeEngine, neutral_examples, planted_examples, planted_model
from moeworks.engines.transformers import TransformersEngine
from moeworks.errors import Unsupported
from moeworks.examples import Example
from moeworks.plan import Demote, Scale
from moeworks.prove.mechanism import check_mechanism
from moeworks.prove.residual_norms import residual_norms

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def twin():
    made = planted_model("single", layers=2, experts=8)
    return TransformersEngine(made.model, made.tokenizer), made.planted


def test_norms_are_those_of_the_stream(twin):
    """Outside truth: one text, one hook of our own on the last layer."""
    engine, planted = twin
    scaled = plan(engine.identity, Scale(experts=planted, factor=64.0))
    text = "HELLO THERE FRIEND"
    means = []
    for made in (None, scaled):
        seen = []
        hook = engine.model.model.layers[1].register_forward_hook(
            lambda m, i, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        with engine.steered(made), torch.no_grad():
            engine.model(torch.tensor([engine.tokens(text)]))
        hook.remove()
        means.append(float(seen[0][0].norm(dim=-1).mean()))
    found = residual_norms(engine, scaled, [Example(text=text)])
    assert found.layers == (0, 1)
    assert (found.before[1], found.after[1]) == pytest.approx(means, rel=1e-5)
    assert found.growth == pytest.approx((found.after / found.before).max())
    assert found.growth > 2


def test_padding_does_not_count(twin):
    engine, planted = twin
    scaled = plan(engine.identity, Scale(experts=planted, factor=8.0))
    texts = planted_examples(6)
    together, alone = (residual_norms(engine, scaled, texts, batch_size=size) for size in (6, 1))
    assert together.after == pytest.approx(alone.after, rel=1e-5)


def test_growth_is_reported_for_plans_that_scale_up(twin):
    engine, planted = twin
    texts = planted_examples(4)
    up, one, down = (
        check_mechanism(engine, plan(engine.identity, operation), texts).residual_growth
        for operation in (
            Scale(experts=planted, factor=64.0),
            Scale(experts=at("L0.E0"), factor=1.0000001),
            Demote(experts=planted),
        )
    )
    assert up > 2
    assert one == pytest.approx(1.0, abs=1e-5)
    assert down is None


def test_an_engine_that_cannot():
    fake = FakeEngine()
    scaled = plan(fake.identity, Scale(experts=fake.planted, factor=2.0))
    with pytest.raises(Unsupported, match="cannot measure the residual stream"):
        residual_norms(fake, scaled, neutral_examples(2))
    assert check_mechanism(fake, scaled, planted_examples(2)).residual_growth is None
