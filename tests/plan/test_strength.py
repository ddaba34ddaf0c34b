"""The dial by hand: what each operation becomes, what is refused, and that 0 is the identity in an engine."""

import pytest

from moeworks.address import Address, parse_neuron
from moeworks.artefact import Header
from moeworks.engines import load
from moeworks.engines.fake import planted_examples
from moeworks.errors import BadPlan
from moeworks.plan import Add, Demote, Mask, Neurons, Plan, Scale, TopK
from moeworks.plan.strength import with_strength

EXPERTS = (Address(0, 1),)


def plan(*operations):
    return Plan(header=Header(format="moeworks.plan", moeworks="0.1.0"), operations=operations)


@pytest.mark.parametrize(("strength", "added", "factor"), [(0.5, 1.0, 0.75), (1, 2.0, 0.5), (2, 4.0, 0.0)])
def test_add_and_scale_by_hand(strength, added, factor):
    """add 2; a factor of 0.5 is half a step below 1."""
    neurons = tuple(map(parse_neuron, ("L0.E1.N2", "L0.E1.N3")))
    found = with_strength(
        plan(
            Add(experts=EXPERTS, strength=2.0),
            Scale(experts=EXPERTS, factor=0.5),
            Neurons(neurons=neurons, action="scale", factor=(0.5, 1.5)),
            Neurons(neurons=neurons, action="scale", factor=0.5),
        ),
        strength,
    )
    add, scale, many, one = found.operations
    assert add.strength == pytest.approx(added)
    assert scale.factor == pytest.approx(factor)
    assert many.factor == pytest.approx((factor, 2 - factor))
    assert one.factor == pytest.approx(factor)


@pytest.mark.parametrize("operation", [Demote(experts=EXPERTS), Mask(experts=EXPERTS), TopK(k=1)])
def test_what_is_on_or_off(operation):
    with pytest.raises(BadPlan, match=r"operation 1 \(.*\) is on or off"):
        with_strength(plan(operation), 0.5)
    assert with_strength(plan(operation), 1) == plan(operation)
    assert with_strength(plan(operation), 0).operations == ()


def test_strengths_that_are_none():
    for strength in (-1, float("nan"), float("inf")):
        with pytest.raises(BadPlan, match="a number from 0 on"):
            with_strength(plan(Add(experts=EXPERTS, strength=1)), strength)
    with pytest.raises(BadPlan, match="into -1, below 0"):
        with_strength(plan(Scale(experts=EXPERTS, factor=0)), 2)


def test_an_engine_at_strengths():
    """Probabilities of the planted model: 0 is the plain model to the bit, 2 is further away than 1."""
    engine = load("fake")
    made = Plan(
        header=Header(format="moeworks.plan", moeworks="0.1.0", model=engine.identity),
        operations=(Add(experts=engine.planted, strength=-1.0, unit="logit"),),
    )
    texts = [example.text for example in planted_examples(2)]

    def scores(strength):
        with engine.steered(with_strength(made, strength)):
            return [list(one.log_probabilities) for one in engine.token_scores(texts)]

    plain = [list(one.log_probabilities) for one in engine.token_scores(texts)]

    def distance(strength):
        return sum(
            abs(a - b)
            for ours, theirs in zip(scores(strength), plain, strict=True)
            for a, b in zip(ours, theirs, strict=True)
        )

    assert scores(0) == plain
    assert 0 < distance(0.25) < distance(1)
