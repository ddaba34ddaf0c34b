"""Published policies are the papers': hand-worked numbers in numpy and torch, caps, windows, and what they refuse."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.plans import at, scores, small
from moeworks.address import Address
from moeworks.contract import Contract, decide
from moeworks.engines.transformers.steering import Active, redecide, to_torch
from moeworks.errors import BadData, BadPlan
from moeworks.families.router import RouterArrays
from moeworks.families.torch_contract import TorchDetail
from moeworks.plan import POLICIES, Add, Demote, Mask, Promote, Scale, steer
from moeworks.plan.compiled import compile_layer
from moeworks.plan.operations import apply
from moeworks.plan.policies import STEERMOE_COUNTS, middle_layers, risk_difference

Z = np.array([[2.0, 1.0, 0.5, -1.0]])  # the specification's token: 4 experts, top 2
WIDE = small(layers=1, experts=4, top_k=2, renormalise=True)


def decided(plan, logits=Z, renormalise=True):
    """{expert: weight} of the one token by the numpy reference and by torch, which must agree."""
    contract = Contract(experts=logits.shape[1], top_k=2, renormalise=renormalise)
    reference = apply(logits, contract, plan.operations, layer=0)
    router = SimpleNamespace(contract=contract, detail=TorchDetail(), arrays=RouterArrays())
    plain = decide(logits, contract)
    edit = to_torch(compile_layer(plan.operations, 0, logits.shape[1]), torch.device("cpu"))
    ids, weights = redecide(
        router,
        torch.from_numpy(logits).float(),
        torch.from_numpy(plain.weights).float(),
        torch.from_numpy(plain.ids).long(),
        [Active(edit, None)],
    )
    found = {int(e): float(w) for e, w in zip(reference.ids[0], reference.weights[0], strict=True)}
    twin = {int(e): float(w) for e, w in zip(ids[0], weights[0], strict=True)}
    assert found == pytest.approx(twin, abs=1e-6)
    return found


def one(expert, value=0.5):
    return scores(WIDE, {f"L0.E{expert}": value})


def test_steermoe_hand_worked():
    """[1.5 of the specification]: activate 3: {3, 0}, .5025 / .4975; deactivate 0: {1, 2}, .6225 / .3775."""
    up = steer(one(3), promote=1, policy="steermoe")
    assert up.operations == (Promote(experts=at("L0.E3"), margin=0.01),)
    assert decided(up) == pytest.approx({3: 0.5025, 0: 0.4975}, abs=5e-5)
    down = steer(one(0), demote=1, policy="steermoe")
    assert decided(down) == pytest.approx({1: 0.6225, 2: 0.3775}, abs=5e-5)
    assert decided(down, renormalise=False) == pytest.approx({1: 0.5331, 2: 0.3233}, abs=5e-5)


def test_steermoe_is_the_papers_ranking():
    """Equal to the paper's loop, written here anew: rank all by |RD|, first n of each sign, k activated a layer."""
    assert POLICIES.get("steermoe") is risk_difference
    model = small(layers=3, experts=8, top_k=2)
    generator = np.random.default_rng(0)
    for _ in range(20):
        rates = generator.normal(size=(3, 8))
        found = scores(model, {f"L{a}.E{b}": rates[a, b] for a in range(3) for b in range(8)}, passing=[])
        order = np.argsort(-abs(rates), axis=None, kind="stable")
        places = [Address(int(i) // 8, int(i) % 8) for i in order]
        activated: list[Address] = []
        for place in [p for p in places if rates[p] > 0][:6]:
            if sum(a.layer == place.layer for a in activated) < 2:
                activated.append(place)
        deactivated = [p for p in places if rates[p] < 0][:5]
        plan = steer(found, promote=6, demote=5, direction="up", policy="steermoe", only_passing=False)
        assert plan.operations == (Promote(experts=tuple(activated)), Demote(experts=tuple(deactivated)))
    assert STEERMOE_COUNTS["Qwen3-30B-A3B"]["faithful"] == (0, 500)


def test_multilingual_soft_hand_worked():
    """[2.4]: std 1.0825, expert 2 rises to 1.041, the choice goes from {0, 1} to {0, 2}, weights .723 / .277."""
    plan = steer(one(2), promote=1, policy="multilingual_soft")
    assert plan.operations == (Add(experts=at("L0.E2"), strength=0.5, unit="std"),)
    assert decided(plan) == pytest.approx({0: 0.723, 2: 0.277}, abs=5e-4)
    assert plan.provenance.options["strength"] == 0.5


def test_multilingual_soft_is_refused_where_it_is_not_stable():
    assert steer(one(2), promote=1, policy="multilingual_soft", strength=1.0).operations[0].strength == 1.0
    with pytest.raises(BadPlan, match=r"a lambda of 1\.5 .* beyond_stable"):
        steer(one(2), promote=1, policy="multilingual_soft", strength=1.5)
    made = steer(one(2), promote=1, policy="multilingual_soft", strength=1.5, beyond_stable=True)
    assert made.operations[0].strength == 1.5


def test_multilingual_hard_hand_worked():
    """z of expert 2 becomes max = 2: two equal logits, weights .5 each. Of expert 0 min = -1: {1, 2} as if masked."""
    up = steer(one(2), promote=1, policy="multilingual_hard")
    assert up.operations == (Promote(experts=at("L0.E2"), margin=0.0),)
    assert decided(up) == pytest.approx({2: 0.5, 0: 0.5}, abs=1e-6)
    down = steer(one(0), demote=1, policy="multilingual_hard")
    assert down.operations == (Demote(experts=at("L0.E0"), margin=0.0),)
    assert decided(down) == pytest.approx({1: 0.6225, 2: 0.3775}, abs=5e-5)


def test_windows_of_the_middle():
    """A quarter to three quarters: 12-35 of 48, 6-17 of 24; a single layer is its own middle."""
    assert middle_layers(range(48)) == list(range(12, 36))
    assert middle_layers(range(24)) == list(range(6, 18))
    assert middle_layers([7]) == [7]
    assert middle_layers([1, 2, 3]) == [1, 2, 3]
    deep = small(layers=8)
    found = scores(deep, {f"L{layer}.E0": 0.9 - layer / 100 for layer in range(8)})
    for policy in ("multilingual_soft", "multilingual_hard"):
        middle = steer(found, promote="all", policy=policy)
        assert middle.operations[0].experts == at("L2.E0,L3.E0,L4.E0,L5.E0")
        given = steer(found, promote="all", policy=policy, layers=[0, 7])
        assert given.operations[0].experts == at("L0.E0,L7.E0")
        assert steer(found, promote="all", policy=policy, threshold=0.865).operations[0].experts == at("L2.E0,L3.E0")


def test_mote_off_hand_worked():
    """Expert 0 off: no replacement, expert 1 gets the token's total: 1, or unnormalised .6095 + .2242 = .8337."""
    plan = steer(one(0), demote=1, policy="mote_off")
    assert plan.operations == (Mask(experts=at("L0.E0"), refill=False, renormalise=True),)
    assert decided(plan) == pytest.approx({0: 0.0, 1: 1.0}, abs=1e-6)
    assert decided(plan, renormalise=False) == pytest.approx({0: 0.0, 1: 0.8337}, abs=1e-4)


def test_mote_on_hand_worked():
    """Expert 3 is forced in with the best expert's logit, expert 1 gives way."""
    plan = steer(one(3), promote=1, policy="mote_on")
    assert decided(plan) == pytest.approx({3: 0.5, 0: 0.5}, abs=1e-6)


def test_rice_hand_worked():
    """[4]: weights .6 and .4, beta 64 on the second: 25.6 without renormalising, .023 / .977 with it."""
    logits = np.log(np.array([[0.6, 0.4, 1e-9, 1e-9]]))
    plan = steer(one(1), promote=1, policy="rice")
    assert plan.operations == (Scale(experts=at("L0.E1"), factor=64.0, renormalise=False),)
    assert decided(plan, logits) == pytest.approx({0: 0.6, 1: 25.6}, rel=1e-5)
    kept = steer(one(1), promote=1, policy="rice", renormalise=True)
    assert decided(kept, logits) == pytest.approx({0: 0.023, 1: 0.977}, abs=5e-4)
    assert steer(one(1), promote=1, policy="rice", strength=8.0).operations[0].factor == 8.0
    untouched = steer(one(3), promote=1, policy="rice")  # not selected: nothing happens
    assert decided(untouched, logits) == pytest.approx({0: 0.6, 1: 0.4}, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"promote": 1, "policy": "mote_off"}, "only turns experts down"),
        ({"demote": 1, "policy": "mote_on"}, "only turns experts up"),
        ({"demote": 1, "policy": "rice"}, "only turns experts up"),
        ({"demote": 1, "policy": "mote_off", "refill": True}, "sets refill to False"),
        ({"promote": 1, "policy": "multilingual_soft", "op": "scale"}, "sets op to add"),
        ({"promote": 1, "policy": "multilingual_soft", "unit": "spread"}, "sets unit to std"),
        ({"promote": 1, "policy": "multilingual_hard", "strength": 0.5}, "has no strength"),
        ({"promote": 1, "policy": "rice", "strength": 0.5}, "above 1"),
    ],
)
def test_what_a_policy_fixes_cannot_be_changed(arguments, message):
    with pytest.raises(BadData, match=message):
        steer(one(2), **arguments)
