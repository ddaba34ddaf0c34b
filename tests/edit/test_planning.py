"""Edit plans: what stays, nested shares, protection, masks, controls, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers.contracts import CASES
from helpers.cuts import layer_of, model_of, shape_of
from helpers.written_out import Setting
from moeworks.address import Address
from moeworks.edit.layer import LayerWeights
from moeworks.edit.methods import list_budgets, list_methods, lost_mass, needs_of_method
from moeworks.edit.plan import EditPlan
from moeworks.edit.planning import plan_edit
from moeworks.edit.ranking import first_of, rank
from moeworks.edit.replan import as_mask, random_plans, reapply, recut
from moeworks.errors import BadData, BadPlan
from moeworks.plan import protected as protected_module
from moeworks.plan.protected import SuperExpertRecord, remember

SHAPES = [shape_of(layer, experts=8, top_k=2, renormalise=True) for layer in (1, 2)]
MODEL = model_of(*SHAPES)
GATED = [[8.0, 1, 7, 2, 6, 3, 5, 4], [1.0, 2, 3, 4, 5, 6, 7, 8]]


def statistics(gated: Any = GATED, **more: Any) -> list:
    return [
        layer_of(layer, count=np.ones(8), gate=np.array(row) / 36, gated_norm=row, **more)
        for layer, row in zip((1, 2), gated, strict=True)
    ]


def planned(**asked: Any) -> EditPlan:
    return plan_edit(statistics(), identity=MODEL, **{"keep": 0.5, "protect": "none", **asked})


def test_the_best_stay_in_every_layer() -> None:
    plan = planned()
    assert [cut.keep for cut in plan.layers] == [(0, 2, 4, 6), (4, 5, 6, 7)]
    assert plan.layers[0].order == (0, 2, 4, 6, 7, 5, 3, 1)
    assert (plan.method, plan.budget, plan.transform, plan.counts) == ("reap", "uniform", "cut", (4, 4))
    assert plan.header.format == "moeworks.edit"
    assert plan.model == MODEL
    assert lost_mass(plan, statistics()) == {1: pytest.approx(10 / 36), 2: pytest.approx(10 / 36)}


def test_shares_are_nested() -> None:
    plan = planned()
    kept = {share: [set(cut.keep) for cut in recut(plan, keep=share).layers] for share in (0.25, 0.5, 0.75, 1.0)}
    for smaller, larger in ((0.25, 0.5), (0.5, 0.75), (0.75, 1.0)):
        assert all(a < b for a, b in zip(kept[smaller], kept[larger], strict=True))
    assert recut(recut(plan, keep=0.25), keep=0.5).layers == plan.layers
    with pytest.raises(BadPlan, match="its router chooses 2"):
        recut(plan, keep=0.125)


def test_rank_puts_protected_first_and_shares_out_over_groups() -> None:
    scores = np.array([5.0, 5, 1, 9, 2, 8, 3, 4])
    assert rank(scores) == (3, 5, 0, 1, 7, 6, 4, 2)  # equal scores: the lower number
    assert rank(scores, protected={2, 4}) == (4, 2, 3, 5, 0, 1, 7, 6)
    # groups (0 1 2 3) and (4 5 6 7): bests 3, 5; seconds 0, 7; thirds 1, 6; last 4, 2
    assert rank(scores, groups=2) == (3, 5, 0, 7, 1, 6, 4, 2)
    assert rank(scores, groups=2, protected={2}) == (2, 5, 3, 7, 0, 6, 1, 4)
    assert first_of(rank(scores, groups=2), 4) == (0, 3, 5, 7)
    with pytest.raises(BadData, match="expert 1 is not finite"):
        rank(np.array([1.0, np.nan]))


def test_groups_keep_equally_many_at_every_share() -> None:
    grouped = shape_of(1, experts=8, top_k=2, groups=2, groups_kept=1, score="sigmoid")
    layer = layer_of(1, count=np.ones(8), gated_norm=[9, 8, 7, 6, 4, 3, 2, 1])  # the best all in one group
    model = model_of(grouped)
    plan = plan_edit([layer], identity=model, keep=0.5, protect="none")
    assert plan.layers[0].keep == (0, 1, 4, 5)
    assert recut(plan, keep=0.75).layers[0].keep == (0, 1, 2, 4, 5, 6)
    with pytest.raises(BadPlan, match="use the budget group_equal"):
        plan_edit([layer], identity=model, keep=0.6, protect="none")  # int(3.2) = 3 go, 5 stay
    even = plan_edit([layer], identity=model, keep=0.6, protect="none", budget="group_equal")
    assert even.layers[0].keep == (0, 1, 4, 5)  # round(3 / 2) = 2 of each


def test_super_experts_by_statistics_stay_unless_told() -> None:
    peaks = [[1.0] * 8, [1.0] * 8]
    peaks[0][1] = 500.0  # worth least in layer 1
    with_peaks = [
        layer_of(layer, count=np.ones(8), gated_norm=row, peak=peak)
        for layer, row, peak in zip((1, 2), GATED, peaks, strict=True)
    ]
    plan = plan_edit(with_peaks, identity=MODEL, keep=0.5)
    assert plan.protected == (Address(1, 1),)
    assert plan.layers[0].keep == (0, 1, 2, 4)
    assert "L1.E1" in plan.description
    assert plan_edit(with_peaks, identity=MODEL, keep=0.5, protect="none").layers[0].keep == (0, 2, 4, 6)
    assert plan_edit(with_peaks, identity=MODEL, keep=0.5, protect="L2.E0").layers[1].keep == (0, 5, 6, 7)
    assert all(Address(1, 1) not in set(other.dropped()) for other in random_plans(plan))


def test_measured_super_experts_come_first(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(protected_module, "cache_folder", lambda: tmp_path)
    record = SuperExpertRecord(model="tiny", weight_hash=MODEL.weight_hash, experts=("L2.E0",), settings={})
    remember(record, tmp_path)
    plan = plan_edit(statistics(), identity=MODEL, keep=0.5)
    assert plan.protected == (Address(2, 0),)


def test_protected_experts_need_their_places() -> None:
    with pytest.raises(BadPlan, match="5 are protected; keep at least 5 of 8"):
        planned(protect="L1.E0-4")
    with pytest.raises(BadPlan, match=r"L9\.E0 does not exist"):
        planned(protect="L9.E0")


def test_labels_domains_and_differences_reach_the_score() -> None:
    two = [
        layer_of(
            layer,
            labels=["fr", "en"],
            tokens=[10, 90],
            count=[[9, 1, 5, 5, 5, 5, 5, 5], [10, 90, 50, 50, 50, 50, 50, 49]],
        )
        for layer in (1, 2)
    ]

    def kept(**asked: Any) -> tuple[int, ...]:
        call = {"keep": 0.25, "protect": "none", "method": "frequency", **asked}
        return plan_edit(two, identity=MODEL, **call).layers[0].keep

    assert kept(label="fr") == (0, 2)
    assert kept(label="en") == (1, 2)
    assert kept() == (1, 2)
    assert kept(domains=["fr", "en"], mix="max") == (0, 1)  # what one of them needs most
    assert kept(method="difference", label="fr", against="en", base="frequency") == (0, 7)
    for more in ({"against": "en"}, {"method": "random", "mix": "sum"}):
        with pytest.raises(BadPlan, match=f"do not look at {next(k for k in ('against', 'mix') if k in more)}"):
            kept(**more)
    with pytest.raises(BadPlan, match="do not look at label"):
        plan_edit(two, identity=MODEL, method="m_smoe", label="fr")
    with pytest.raises(BadPlan, match="cannot mix domains"):
        kept(label="fr", domains=["fr", "en"])
    with pytest.raises(BadPlan, match="no option 'bas'"):
        kept(bas=1)


def test_uneven_budgets_are_asked_for_by_name() -> None:
    rows = [[8.0, 7, 6, 5, 4, 3, 2, 1], [80.0, 1, 1, 1, 1, 1, 1, 1]]
    call = {"identity": MODEL, "keep": 0.5, "protect": "none", "budget": "global"}
    with pytest.raises(BadPlan, match="--uneven"):
        plan_edit(statistics(rows), **call)
    plan = plan_edit(statistics(rows), **call, uneven=True)
    assert plan.counts == (6, 2)
    # in proportion to 6 and 2 at three quarters: 12 places, 9 and 3 → cut off at 8 → 8 and 4
    assert recut(plan, keep=0.75).counts == (8, 4)
    assert recut(plan, keep=0.375).counts == (4, 2)  # 6 places: 4.5 and the floor 2 → 4 and 2
    assert plan.budget_options == {"uneven": True}


def test_multiples_are_remembered() -> None:
    plan = planned(multiple_of=4, keep=0.6)
    assert plan.counts == (8, 8)  # 5 stay → 8
    assert recut(plan, keep=0.5).counts == (4, 4)


def test_hash_routed_layers_stay_whole() -> None:
    hashed = shape_of(0, experts=8, top_k=2, hashed=True)
    model = model_of(hashed, *SHAPES)
    with pytest.raises(BadPlan, match="Layers 0 would stay whole"):
        plan_edit(statistics(), identity=model, keep=0.5, protect="none")
    plan = plan_edit(statistics(), identity=model, keep=0.5, protect="none", uneven=True)
    assert [cut.layer for cut in plan.layers] == [1, 2]
    with pytest.raises(BadData, match="token ids"):
        plan_edit(statistics(), identity=model, layers=[0, 1], uneven=True)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(BadPlan, match="did you mean 'reap'"):
        planned(method="reep")
    with pytest.raises(BadData, match="which model"):
        plan_edit(statistics())
    with pytest.raises(BadData, match="Layer 1 has 4 experts, and the statistics 8"):
        plan_edit(statistics(), identity=model_of(shape_of(1, experts=4), SHAPES[1]))
    with pytest.raises(BadData, match="layer 7, which has no router"):
        plan_edit([*statistics(), layer_of(7, count=np.ones(8))], identity=MODEL)
    with pytest.raises(BadData, match="moeworks edit score"):
        plan_edit(None, identity=MODEL)
    with pytest.raises(BadData, match="--model"):
        planned(method="aimer")
    with pytest.raises(BadPlan, match="shares out by scores"):
        planned(method="m_smoe", budget="global")
    with pytest.raises(BadPlan, match="no option 'slop'"):
        planned(budget="trapezoid", budget_options={"slop": 1}, uneven=True)


def random_weights(layer: int) -> LayerWeights:
    draw = torch.Generator().manual_seed(layer)
    return LayerWeights(
        layer=layer,
        up=torch.randn(8, 4, 3, generator=draw),
        gate=torch.randn(8, 4, 3, generator=draw),
        down=torch.randn(8, 3, 4, generator=draw),
        router=torch.randn(8, 3, generator=draw),
    )


class Reader:
    """Reads layers as a checkpoint does."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def read_layer(self, layer: int) -> LayerWeights:
        self.read.append(layer)
        return random_weights(layer)


def test_aimer_needs_no_statistics() -> None:
    reader = Reader()
    plan = plan_edit(None, method="aimer", identity=MODEL, weights=reader, keep=0.5)
    again = plan_edit(None, method="aimer", identity=MODEL, weights=random_weights, keep=0.5)
    mapped = plan_edit(
        None, method="aimer", identity=MODEL, weights={1: random_weights(1), 2: random_weights(2)}, keep=0.5
    )
    assert reader.read == [1, 2]
    assert plan.layers == again.layers == mapped.layers
    ratios = []
    for expert in range(8):  # written out for layer 1
        w = random_weights(1)
        every = torch.cat([w.gate[expert].flatten(), w.up[expert].flatten(), w.down[expert].flatten()])
        ratios.append(float(every.abs().mean() / every.square().mean().sqrt()))
    assert plan.layers[0].order == tuple(np.argsort(ratios).tolist())


def test_neurons_keep_all_experts() -> None:
    neurons = np.arange(32.0).reshape(8, 4)
    layers = [layer_of(n, count=np.ones(8), neuron_projection=neurons, own_turn=np.arange(8.0)) for n in (1, 2)]
    plan = plan_edit(layers, identity=MODEL, method="enp", keep=0.5, protect="none")
    assert plan.counts == (8, 8)
    assert plan.layers[0].neurons == ((2, 3),) * 8
    assert plan.transform == "cut"
    joint = plan_edit(layers, identity=MODEL, method="enp", keep=0.5, protect="none", widths="joint")
    assert joint.layers[0].neurons == ((),) * 4 + ((0, 1, 2, 3),) * 4
    assert joint.transform == "zero_neurons"
    assert joint.options == {"widths": "joint"}
    whole = plan_edit(layers, identity=MODEL, method="enp", keep=0.75, protect="none", widths="important", whole=0.5)
    assert whole.layers[0].neurons == ((2, 3),) * 4 + ((0, 1, 2, 3),) * 4
    with pytest.raises(BadPlan, match="drops neurons"):
        as_mask(plan)
    with pytest.raises(BadPlan, match="make it again"):
        recut(plan, keep=0.75)
    with pytest.raises(BadPlan, match="keep all experts"):
        plan_edit(layers, identity=MODEL, method="enp", budget="global")


def test_groupings_are_dispatched_with_their_transform() -> None:
    layers = statistics(logit_gram=np.eye(8) * 8 + 1)
    plan = plan_edit(layers, identity=MODEL, method="m_smoe", keep=0.5, protect="L1.E3")
    assert plan.transform == "aligned_mean"
    assert plan.counts == (4, 4)
    groups = plan.layers[0].groups
    assert groups is not None
    assert ((3, 1.0),) in groups  # protected experts are merged with none
    assert sorted(expert for group in groups for expert, _ in group) == list(range(8))
    with pytest.raises(BadPlan, match="makes experts of others"):
        as_mask(plan)
    controls = random_plans(plan)
    assert all(control.transform == "cut" and control.counts == (4, 4) for control in controls)


def test_adaptive_budget_is_the_groupings_own() -> None:
    layers = [
        layer_of(layer, count=row, logit_gram=np.eye(8) * 8 + 1)
        for layer, row in zip((1, 2), ([10, 10, 10, 10, 10, 10, 1, 1], [60, 1, 1, 1, 1, 1, 1, 1]), strict=True)
    ]
    call = {"identity": MODEL, "method": "m_smoe", "keep": 0.5, "budget": "adaptive", "protect": "none"}
    plan = plan_edit(layers, **call, uneven=True)
    assert plan.counts == (6, 2)
    with pytest.raises(BadPlan, match="no way of its own"):
        plan_edit(layers, **{**call, "method": "frequency"}, uneven=True)


def test_masks_name_exactly_what_goes() -> None:
    plan = planned(protect="L1.E1")
    mask = as_mask(plan)
    assert len(mask.operations) == 1
    operation = mask.operations[0]
    assert operation.op == "mask"
    assert operation.refill
    assert operation.experts == tuple(plan.dropped())
    assert mask.protected == (Address(1, 1),)
    assert mask.header.model == MODEL
    from moeworks.plan import check

    check(mask, MODEL)
    assert as_mask(planned(keep=1.0)).operations == ()


def test_a_mask_of_uneven_groups_is_refused() -> None:
    grouped = shape_of(1, experts=8, top_k=2, groups=2, groups_kept=1, score="sigmoid")
    layer = layer_of(1, count=np.ones(8), gated_norm=[9, 8, 7, 6, 4, 3, 2, 1])
    plan = plan_edit([layer], identity=model_of(grouped), keep=0.5, protect="none", equal_groups=False)
    assert plan.layers[0].keep == (0, 1, 2, 3)
    with pytest.raises(BadPlan, match="keeps 4, 0 of its groups"):
        as_mask(plan)


def test_random_controls_keep_as_many_and_differ() -> None:
    plan = planned(protect="L1.E1")
    controls = random_plans(plan, seeds=(0, 1, 2))
    assert len({control.layers for control in controls}) == 3
    for control in controls:
        assert control.counts == plan.counts
        assert 1 in control.layers[0].keep
    assert random_plans(plan, seeds=(1,))[0] == controls[1]


def test_reapply_is_for_the_same_shape() -> None:
    plan = planned()
    tuned = model_of(*SHAPES, weight_hash="other", name="tuned")
    moved = reapply(plan, tuned)
    assert moved.layers == plan.layers
    assert moved.model == tuned
    assert "hash-of-weights" in moved.description
    with pytest.raises(BadPlan, match="other layers"):
        reapply(plan, model_of(SHAPES[0], shape_of(2, experts=4)))
    other_rule = model_of(SHAPES[0], shape_of(2, experts=8, top_k=2, renormalise=False))
    with pytest.raises(BadPlan, match="layers 2 decide by another rule"):
        reapply(plan, other_rule)


def test_reapply_looks_at_the_other_models_super_experts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(protected_module, "cache_folder", lambda: tmp_path)
    tuned = model_of(*SHAPES, weight_hash="other", name="tuned")
    remember(SuperExpertRecord(model="tuned", weight_hash="other", experts=("L1.E3",), settings={}), tmp_path)
    with pytest.raises(BadPlan, match=r"Super experts of tuned would go: L1\.E3"):
        reapply(planned(), tuned)


def test_rescaled_cuts_are_for_softmax_without_renormalising() -> None:
    with pytest.raises(BadPlan, match="unlike layers 1, 2"):
        planned(transform="cut_rescaled")
    plain = model_of(*(shape_of(layer, experts=8, top_k=2) for layer in (1, 2)))
    plan = plan_edit(statistics(), identity=plain, keep=0.5, protect="none", transform="cut_rescaled")
    assert plan.transform == "cut_rescaled"
    assert not plan.pure_cut


def test_searches_are_planned_like_scores() -> None:
    setting = Setting(CASES["softmax renormalised"])
    model = model_of(setting.shape)
    call = {"identity": model, "weights": {0: setting.weights}, "protect": "none"}
    plan = plan_edit([setting.statistics], method="naee_greedy", keep=0.625, **call)
    smaller = plan_edit([setting.statistics], method="naee_greedy", keep=0.5, **call)
    assert plan.counts == (5,)
    assert recut(plan, keep=0.5).layers == smaller.layers
    with pytest.raises(BadPlan, match="no option 'beems'"):
        plan_edit([setting.statistics], method="naee_greedy", beems=2, **call)


def test_lists_name_everything_with_its_needs() -> None:
    entries = {entry.name: entry for entry in list_methods()}
    assert {"reap", "aimer", "camera", "naee", "m_smoe"} <= set(entries)
    assert entries["aimer"].needs == "weights"
    assert entries["m_smoe"].kind == "grouping"
    assert "rows" in needs_of_method("naee")
    assert {"uniform", "coverage", "adaptive"} <= set(list_budgets())
    assert all(entry.what for entry in entries.values())
