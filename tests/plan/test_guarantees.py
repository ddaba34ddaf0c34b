"""What guards accept keeps its promise on random routers; what each refuses would break it on a token shown here."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.plans import at, identity, plan
from moeworks.address import Address
from moeworks.contract import Contract, decide
from moeworks.plan import Add, Demote, Mask, Promote, Scale, TopK, apply, apply_edits, compile_plan
from moeworks.plan.guards import problems
from moeworks.where import Where


def router(random):
    groups = int(random.choice([1, 1, 2, 4]))
    experts, kept = groups * int(random.integers(2, 6)), int(random.integers(1, groups + 1))
    score = str(random.choice(["softmax", "sigmoid", "sqrt_softplus", "identity"]))
    return Contract(
        experts=experts,
        top_k=int(random.integers(1, max(kept * experts // groups // 2, 1) + 1)),
        score=score,
        order=str(random.choice(["score_first", "top_k_first"])),
        bias=bool(random.random() < 0.4),
        groups=groups,
        groups_kept=kept,
        group_score=str(random.choice(["max", "top_2_sum"])),
        group_fill=str(random.choice(["minus_infinity", "zero"])),
        renormalise=score != "identity" and bool(random.random() < 0.5),
    )


def some(random, contract, most):
    numbers = random.permutation(contract.experts)[: random.integers(0, most + 1)]
    return tuple(Address(0, int(number)) for number in numbers)


def case(random):
    contract = router(random)
    listed = ((Promote, contract.top_k), (Demote, contract.experts // 2), (Mask, 2))
    drawn = [(kind, some(random, contract, most)) for kind, most in listed]
    operations = [kind(experts=experts) for kind, experts in drawn if experts and random.random() < 0.7]
    moved = some(random, contract, 3)
    if moved:
        operations.append(Add(experts=moved, strength=random.normal() * 3))
    if random.random() < 0.3:
        operations.append(TopK(k=int(random.integers(1, contract.top_k + 3))))
    logits = random.normal(size=(16, contract.experts)) * random.choice([0.1, 1.0, 4.0])
    logits[::4] = logits[::4].round()  # ties
    bias = random.normal(size=contract.experts) * 2 if contract.bias else None
    return contract, operations, logits, bias


seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@settings(max_examples=250, deadline=None)
@given(seeds)
def test_promoted_experts_run_and_others_never_do(random):
    """The promise itself, read off the ids: nothing of the formula is used."""
    contract, operations, logits, bias = case(random)
    model = identity(contract)
    assume(not problems(plan(model, *operations), model))
    decision = apply(logits, contract, operations, layer=0, bias=bias)
    assert (np.diff(np.sort(decision.ids, -1), axis=-1) > 0).all()
    width = next((o.k for o in operations if isinstance(o, TopK)), contract.top_k)
    for operation in operations:
        for _, expert in getattr(operation, "experts", ()):
            if isinstance(operation, Promote):
                assert (decision.ids[:, :width] == expert).any(-1).all()
            if isinstance(operation, (Demote, Mask)):
                assert not (decision.ids == expert).any()
    assert not decision.weights[:, width:].any()
    if not operations:
        own = decide(logits, contract, bias=bias)
        assert (decision.ids == own.ids).all()
        assert decision.weights.tobytes() == own.weights.tobytes()


SOFTMAX = Contract(experts=4, top_k=2)
GROUPS = Contract(experts=6, top_k=2, groups=3, groups_kept=2, score="sigmoid")
FOUR = np.array([[3.0, 2.0, 1.0, 0.0]])
SIX = np.array([[3.0, 2.9, 2.0, 1.9, 1.0, 0.9]])
SIGNED = dataclasses.replace(GROUPS, groups_kept=1, group_fill="zero", bias=True)
LOW = np.full(6, -9.0)


@pytest.mark.parametrize(
    ("contract", "logits", "bias", "operations", "fewer"),
    [
        (SOFTMAX, FOUR, None, [Promote(experts=at("L0.E1-3"))], [Promote(experts=at("L0.E2-3"))]),
        (SOFTMAX, FOUR, None, [Demote(experts=at("L0.E0-2"))], [Demote(experts=at("L0.E0-1"))]),
        (SOFTMAX, FOUR, None, [Mask(experts=at("L0.E0-2"))], [Mask(experts=at("L0.E0-1"))]),
        (SOFTMAX, FOUR, None, [Promote(experts=at("L0.E2-3")), TopK(k=1)], [Promote(experts=at("L0.E3")), TopK(k=1)]),
        (SOFTMAX, FOUR, None, [Demote(experts=at("L0.E0-1")), TopK(k=3)], [Demote(experts=at("L0.E0")), TopK(k=3)]),
        (
            SOFTMAX,
            FOUR,
            None,
            [Promote(experts=at("L0.E3")), Demote(experts=at("L0.E3"))],
            [Promote(experts=at("L0.E3"))],
        ),
        (  # three groups of two, two kept
            dataclasses.replace(GROUPS, top_k=3),
            SIX,
            None,
            [Promote(experts=at("L0.E0,L0.E2,L0.E4"))],
            [Promote(experts=at("L0.E2,L0.E4"))],
        ),
        (  # the two best groups of three have one expert left each, for three slots
            Contract(experts=9, top_k=3, groups=3, groups_kept=2, group_score="max"),
            np.array([[9.0, 0.0, 0.0, 8.0, 0.0, 0.0, 1.0, 1.0, 1.0]]),
            None,
            [Demote(experts=at("L0.E1-2,L0.E4-5"))],
            [Demote(experts=at("L0.E1-2,L0.E4"))],
        ),
        (  # group 2's sum is -inf: expert 4 stays out
            GROUPS,
            SIX,
            None,
            [Promote(experts=at("L0.E4")), Mask(experts=at("L0.E5"))],
            [Promote(experts=at("L0.E4"))],
        ),
        (  # sigmoids of 50 are all 1: 2 + 0 for the promoted group's sum is no more than 1 + 1
            dataclasses.replace(GROUPS, groups_kept=1),
            np.array([[50.0, 50.0, -50.0, -50.0, -50.0, -50.0]]),
            None,
            [Promote(experts=at("L0.E4")), Demote(experts=at("L0.E5"))],
            [Promote(experts=at("L0.E4"))],
        ),
        (SIGNED, SIX, LOW, [Promote(experts=at("L0.E4"))], [Add(experts=at("L0.E4"), strength=9.0)]),
        (SIGNED, SIX, LOW, [Demote(experts=at("L0.E2"))], [Add(experts=at("L0.E2"), strength=-9.0)]),
    ],
)
def test_each_refusal_is_needed(contract, logits, bias, operations, fewer):
    """Run all the same, the refused operations break the promise on one token; the nearest accepted ones do not."""
    model = identity(contract)
    assert problems(plan(model, *operations), model)
    assert not problems(plan(model, *fewer), model)

    def broken(applied):
        ids = apply(logits, contract, applied, layer=0, bias=bias).ids[0].tolist()
        ids = ids[: next((o.k for o in applied if isinstance(o, TopK)), None)]
        return any(
            (expert in ids) != isinstance(operation, Promote)
            for operation in applied
            if isinstance(operation, (Promote, Demote, Mask))
            for _, expert in operation.experts
        )

    assert broken(operations)
    assert not broken(fewer)


@settings(max_examples=150, deadline=None)
@given(seeds)
def test_merged_edits_do_what_single_operations_do(random):
    """Engines run `compile_plan`; the reference runs one operation after another. Three clauses, 16 rows.

    Weights are kept positive: those of a signed score may cancel to a total of exactly 0 between two steps, and what a
    total of 0 is scaled to is nothing that either form could promise.
    """
    contract, operations, logits, bias = case(random)
    if contract.score == "identity":
        logits = np.abs(logits) + 0.1
    masks = {"": None, "a": random.random(16) < 0.5, "b": random.random(16) < 0.5}
    keep = bool(random.random() < 0.5)
    for factor in (2.0, 0.5):
        experts = some(random, contract, 3)
        if experts:
            operations.append(Scale(experts=experts, factor=factor, renormalise=keep))
            operations.append(Mask(experts=experts[:1], refill=False, renormalise=keep))
    clauses = [str(random.choice(["", "a", "b"])) for _ in operations]
    operations = [
        operation.model_copy(update={"where": Where(labels={name: ("yes",)} if name else {})})
        for operation, name in zip(operations, clauses, strict=True)
    ]
    model = identity(contract)
    whole = plan(model, *operations)
    assume(not problems(whole, model))
    single = apply(logits, contract, operations, layer=0, bias=bias, masks=[masks[name] for name in clauses])
    edits = [(edit.layers[0], masks["".join(edit.where.labels)]) for edit in compile_plan(whole, model)]
    merged = apply_edits(logits, contract, edits, bias=bias)
    assert (single.ids == merged.ids).all()
    np.testing.assert_allclose(single.weights, merged.weights, rtol=1e-9, atol=1e-12)
