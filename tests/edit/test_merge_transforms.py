"""How experts become one: identities on planted copies, hand-worked examples, numpy's least squares, refusals."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.merging import (
    ALIGNING,
    KINDS,
    MERGING,
    ORDER,
    PAIRS,
    X,
    expert_output,
    groups_of,
    layer_output,
    planted,
    random_layer,
    route,
    run,
    silu,
    statistics,
    statistics_of,
)
from moeworks.edit.algebra import expert_of, rescale, with_experts
from moeworks.edit.layer import LayerWeights
from moeworks.edit.merge import as_copies, mc_analysis
from moeworks.edit.plan import LayerCut
from moeworks.edit.transforms import cut, transforms_with_statistics
from moeworks.errors import BadData, BadPlan, Unsupported


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MERGING)
def test_merging_copies_changes_nothing(name, kind):
    layer = planted(kind, ordered=name not in ALIGNING)
    merged = run(name, layer, PAIRS, statistics(layer))
    assert merged.experts == 4
    for place in range(4):
        ours, wanted = expert_output(merged, place, X)[0], expert_output(layer, place, X)[0]
        np.testing.assert_allclose(ours, wanted, rtol=2e-4, atol=2e-4)
    copies = as_copies(layer, merged, PAIRS)
    assert copies.experts == 6
    np.testing.assert_allclose(layer_output(copies, X), layer_output(layer, X), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", sorted(ALIGNING))
def test_without_alignment_reordered_copies_do_not_come_out(name):
    """The identity above is the alignment's doing: the plain mean of the same copies is another function."""
    layer = planted("silu", ordered=False)
    plain = run("mean", layer, PAIRS, None)
    assert np.abs(expert_output(plain, 0, X)[0] - expert_output(layer, 0, X)[0]).max() > 0.1


def test_balancing_makes_rescaled_copies_alike():
    layer = planted("silu", ordered=False)
    factors = torch.tensor([0.1, 4.0, 2.0, 0.5, 9.0])
    layer = with_experts(layer, {4: rescale(expert_of(layer, 4), factors, silu)})
    np.testing.assert_allclose(expert_output(layer, 4, X)[0], expert_output(layer, 0, X)[0], atol=1e-5)
    balanced = run("aligned_mean", layer, PAIRS, None, balanced=True)
    np.testing.assert_allclose(expert_output(balanced, 0, X)[0], expert_output(layer, 0, X)[0], rtol=1e-4, atol=1e-4)
    plain = run("aligned_mean", layer, PAIRS, None)
    assert np.abs(expert_output(plain, 0, X)[0] - expert_output(layer, 0, X)[0]).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*MERGING, "dern"])
def test_in_half_precision_all_stays_in_its_dtype_and_comes_out_the_same_twice(name, kind):
    layer = random_layer(kind=kind, dtype=torch.bfloat16)
    given = statistics(layer)
    plan = PAIRS if name != "dern" else LayerCut(layer=3, experts=6, keep=(0, 1, 2, 3))
    options = {"alpha": 0.1} if name == "dern" else {}
    merged, again = (run(name, layer, plan, given, **options) for _ in range(2))
    for field, tensor in merged.per_expert().items():
        assert tensor.dtype == torch.bfloat16, field
        assert torch.isfinite(tensor).all()
        assert torch.equal(tensor, again.per_expert()[field])
    if name != "dern":
        alone = cut(layer, LayerCut(layer=3, experts=6, keep=(2, 3)))
        for field, tensor in alone.per_expert().items():
            assert torch.equal(merged.per_expert()[field][2:], tensor), field  # experts alone stay to the bit
        assert torch.equal(merged.router, layer.router[[0, 1, 2, 3]])
        assert not torch.equal(merged.down[0], layer.down[0])
    for field in ("router_bias", "selection_bias"):
        if getattr(layer, field) is not None:
            assert torch.equal(getattr(merged, field), getattr(layer, field)[[0, 1, 2, 3]])


@pytest.mark.parametrize("name", [*MERGING, "dern"])
def test_what_each_transform_cannot_do_without(name):
    layer, given = random_layer(), statistics(random_layer())
    plan = PAIRS if name != "dern" else LayerCut(layer=3, experts=6, keep=(0, 1))
    reads = name in ("fix_dom", "zipit", "merge_moe", "ream", "dern")
    assert transforms_with_statistics(name) == reads
    if reads:
        with pytest.raises(BadData, match="reads statistics"):
            run(name, layer, plan, None)
    if reads and name != "dern":
        with pytest.raises(BadData, match="--rows"):
            run(name, layer, plan, replace(given, load_rows=None))
        with pytest.raises(Unsupported, match="activation rule"):
            run(name, replace(layer, activation=None), plan, given)
    with pytest.raises(BadPlan, match="the plan is for layer 4"):
        run(name, layer, plan.model_copy(update={"layer": 4}), given)
    with pytest.raises(BadPlan, match="not both in one plan"):
        run(name, layer, plan.model_copy(update={"neurons": ((0,),) * 4}), given)
    if name != "dern":
        with pytest.raises(BadPlan, match="'centre' or 'fitted'"):
            run(name, layer, plan, given, router="sum")


def test_a_mean_by_hand():
    """Two experts of one neuron: 0.75 of the first, 0.25 of the second."""
    layer = LayerWeights(
        layer=0,
        gate=torch.tensor([[[1.0, 2.0]], [[5.0, -2.0]]]),
        up=torch.tensor([[[0.0, 4.0]], [[8.0, 0.0]]]),
        down=torch.tensor([[[1.0], [1.0]], [[-3.0], [1.0]]]),
        router=torch.eye(2),
    )
    merged = run("mean", layer, groups_of([(0, 3.0), (1, 1.0)], layer=0, experts=2), None)
    assert merged.gate is not None
    assert (merged.gate.tolist(), merged.up.tolist()) == ([[[2.0, 1.0]]], [[[2.0, 3.0]]])
    assert (merged.down.tolist(), merged.router.tolist()) == ([[[0.0], [1.0]]], [[1.0, 0.0]])


def test_experts_in_no_group_go():
    layer = random_layer()
    merged = run("mean", layer, groups_of([(0, 0.5), (4, 0.5)], [(2, 1.0)]), None)
    np.testing.assert_allclose(merged.up[0], (layer.up[0] + layer.up[4]) / 2, rtol=1e-6)
    assert torch.equal(merged.up[1], layer.up[2])


def test_sub_moe_by_hand():
    """[3 0 4 0; 0 1 0 0] has singular values 5 and 1; V is (3, 0, 4, 0) / 5 and (0, 1, 0, 0)."""
    matrices = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[4.0, 0.0], [0.0, 0.0]]])
    layer = LayerWeights(layer=0, gate=matrices, up=matrices, down=matrices, router=torch.eye(2))
    plan = groups_of([(0, 0.25), (1, 0.75)], layer=0, experts=2)
    whole = run("sub_moe", layer, plan, None)
    # V averaged: (0.25 * 3 + 0.75 * 4) / 5 = 0.75 and 0.25; times 5 and 1.
    np.testing.assert_allclose(whole.up[0], [[3.75, 0], [0, 0.25]], atol=1e-6)
    half = run("sub_moe", layer, plan, None, rank=0.5)
    for tensor in (half.gate, half.up, half.down):
        assert tensor is not None
        np.testing.assert_allclose(tensor[0], [[3.75, 0], [0, 0]], atol=1e-6)


def test_sub_moe_of_whole_rank_is_the_mean_and_scaling_moves_the_cut():
    layer = random_layer()
    given, plan = statistics(layer), groups_of([(0, 0.7), (1, 0.2), (2, 0.1)])
    whole, average = run("sub_moe", layer, plan, None), run("mean", layer, plan, None)
    for name in ("gate", "up", "down"):
        np.testing.assert_allclose(getattr(whole, name), getattr(average, name), atol=1e-5)
    # Inputs that are large in one direction: a cut that was scaled by them loses less of what they give.
    loud = X * np.array([30.0, 1.0, 1.0, 1.0])
    given = statistics(layer, loud)
    wanted = average.up[0].double().numpy() @ loud.T
    error = {}
    for scaled in (False, True):
        half = run("sub_moe", layer, plan, given, rank=0.5, scaled=scaled)
        error[scaled] = np.linalg.norm(half.up[0].double().numpy() @ loud.T - wanted)
    assert error[True] < 0.7 * error[False]
    for options in ({"rank": 0.0}, {"rank": 1.5}, {"scaled": True}):
        with pytest.raises(BadPlan, match="rank"):
            run("sub_moe", layer, plan, given, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_merge_moe_is_numpys_least_squares(kind):
    layer = random_layer(kind=kind)
    given = statistics(layer)
    merged = run("merge_moe", layer, PAIRS, given)
    average = run("mean", layer, PAIRS, None)
    bias = 0 if layer.down_bias is None else layer.down_bias.double().numpy()
    every = [expert_output(layer, e, X)[0] - (0 if layer.down_bias is None else bias[e]) for e in range(6)]
    q = expert_output(average, 0, X)[1]
    wanted = np.linalg.lstsq(q, 0.6 * every[0] + 0.4 * every[4], rcond=None)[0].T
    np.testing.assert_allclose(merged.down[0], wanted, rtol=1e-3, atol=1e-4)
    # The same as stacking both members' outputs, weighted.
    stacked = np.linalg.lstsq(
        np.concatenate([np.sqrt(0.6) * q, np.sqrt(0.4) * q]),
        np.concatenate([np.sqrt(0.6) * every[0], np.sqrt(0.4) * every[4]]),
        rcond=None,
    )[0].T
    np.testing.assert_allclose(merged.down[0], stacked, rtol=1e-3, atol=1e-4)
    assert torch.equal(merged.up[0], average.up[0])
    # It is nearer to the wanted outputs than the averaged D.
    target = 0.6 * expert_output(layer, 0, X)[0] + 0.4 * expert_output(layer, 4, X)[0]
    ours, plain = (np.linalg.norm(expert_output(m, 0, X)[0] - target) for m in (merged, average))
    assert ours < 0.9 * plain


def test_merge_moe_on_routed_rows_alone():
    layer = random_layer()
    hidden = np.random.default_rng(1).normal(size=(200, 4))
    routed = route(layer, hidden, 2)
    merged = run("merge_moe", layer, PAIRS, statistics_of(layer, hidden, routed), tokens="routed")
    average = run("mean", layer, PAIRS, None)
    taken = [(routed.ids == expert).any(1) for expert in (0, 4)]
    q = np.concatenate([expert_output(average, 0, hidden[mask])[1] for mask in taken])
    p = np.concatenate([expert_output(layer, e, hidden[m])[0] for e, m in zip((0, 4), taken, strict=True)])
    np.testing.assert_allclose(merged.down[0], np.linalg.lstsq(q, p, rcond=None)[0].T, rtol=1e-3, atol=1e-4)


def test_merge_moe_refuses_few_rows_and_departs_from_the_mean_where_told():
    layer = random_layer(neurons=50)
    with pytest.raises(BadData, match=r"35 rows.*needs 36"):
        run("merge_moe", layer, PAIRS, statistics(layer, X[:35]))
    given = statistics(layer, X[:36])  # fewer rows than neurons
    average = run("mean", layer, PAIRS, None)
    near, small = (run("merge_moe", layer, PAIRS, given, around=around) for around in ("mean", "zero"))
    assert (near.down[0] - average.down[0]).norm() < (small.down[0] - average.down[0]).norm()
    assert small.down[0].norm() < near.down[0].norm()
    np.testing.assert_allclose(expert_output(near, 0, X[:36])[0], expert_output(small, 0, X[:36])[0], atol=1e-3)
    for options in ({"tokens": "some"}, {"around": "one"}):
        with pytest.raises(BadPlan, match="merge_moe takes"):
            run("merge_moe", layer, PAIRS, given, **options)
    with pytest.raises(BadPlan, match="aligned by"):
        run("merge_moe", layer, PAIRS, given, align_to="gates")
    reordered = planted("silu", ordered=False)
    aligned = run("merge_moe", reordered, PAIRS, statistics(reordered), align_to="neurons")
    np.testing.assert_allclose(expert_output(aligned, 0, X)[0], expert_output(reordered, 0, X)[0], atol=1e-3)


def correlated_layer() -> LayerWeights:
    """Two experts of two neurons without a gate; those of the second are, in other order, twice those of the first."""
    up = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [2.0, 0.0]]])
    down = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [3.0, 0.0]]])
    return LayerWeights(layer=0, up=up, down=down, router=torch.eye(2), activation=lambda gate, up: torch.relu(up))


@pytest.mark.parametrize("name", ["fix_dom", "zipit"])
def test_neurons_that_are_active_together_are_averaged_by_hand(name):
    layer = correlated_layer()
    hidden = np.random.default_rng(0).normal(size=(30, 2))
    given = statistics_of(layer, hidden, route(layer, hidden, 1))
    plan = groups_of([(0, 0.75), (1, 0.25)], layer=0, experts=2)
    merged = run(name, layer, plan, given)
    np.testing.assert_allclose(merged.up[0], [[1.25, 0], [0, 1.25]], atol=1e-6)  # 0.75 * 1 + 0.25 * 2
    np.testing.assert_allclose(merged.down[0], [[1.5, 0], [0, 1.5]], atol=1e-6)  # 0.75 * 1 + 0.25 * 3
    with pytest.raises(BadPlan, match="'mean' or 'sum'"):
        run(name, layer, plan, given, down="max")


def test_neurons_that_meet_in_one_are_averaged_or_added():
    """Both neurons of the second expert do what neuron 0 of the first does."""
    layer = correlated_layer()
    layer.up[1] = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    layer.down[1] = torch.tensor([[3.0, 5.0], [0.0, 0.0]])
    hidden = np.random.default_rng(0).normal(size=(30, 2))
    given = statistics_of(layer, hidden, route(layer, hidden, 1))
    plan = groups_of([(0, 0.5), (1, 0.5)], layer=0, experts=2)
    averaged, added = (run("fix_dom", layer, plan, given, down=down) for down in ("mean", "sum"))
    np.testing.assert_allclose(averaged.down[0], [[3, 0], [0, 1]], atol=1e-6)  # (1 + 3 + 5) / 3, and neuron 1 alone
    np.testing.assert_allclose(added.down[0], [[4.5, 0], [0, 0.5]], atol=1e-6)  # 0.5 (1 + 3 + 5), and 0.5 * 1
    target = (expert_output(layer, 0, hidden)[0] + expert_output(layer, 1, hidden)[0]) / 2
    np.testing.assert_allclose(expert_output(added, 0, hidden)[0], target, atol=1e-5)
    zipped = run("zipit", layer, plan, given, down="sum")
    np.testing.assert_allclose(expert_output(zipped, 0, hidden)[0], target, atol=1e-5)


def test_fix_dom_leaves_out_neurons_that_never_vary_and_zipit_refuses_too_many(monkeypatch):
    layer = correlated_layer()
    layer.up[1, 0] = 0
    hidden = np.random.default_rng(0).normal(size=(30, 2))
    given = statistics_of(layer, hidden, route(layer, hidden, 1))
    plan = groups_of([(0, 0.5), (1, 0.5)], layer=0, experts=2)
    merged = run("fix_dom", layer, plan, given)
    np.testing.assert_allclose(merged.up[0], [[1.5, 0], [0, 1]], atol=1e-6)
    monkeypatch.setattr(sys.modules["moeworks.edit.merge.zipit"], "MOST_NEURONS", 3)
    with pytest.raises(Unsupported, match="too many to correlate"):
        run("zipit", layer, plan, given)


def test_mc_by_hand_and_its_analysis():
    """The mean of both is diag(4, 2): rank 1 keeps the 4, half of the rows the 2."""
    one, two = torch.diag(torch.tensor([6.0, 3.0])), torch.diag(torch.tensor([2.0, 1.0]))
    matrices = torch.stack([one, two])
    layer = LayerWeights(layer=0, up=matrices, down=matrices, router=torch.eye(2))
    plan = groups_of([(0, 0.5), (1, 0.5)], layer=0, experts=2)
    for rows, wanted in ((0.0, [4.0, 0.0]), (0.5, [4.0, 2.0])):
        np.testing.assert_allclose(run("mc", layer, plan, None, rank=0.5, rows=rows).up[0], np.diag(wanted), atol=1e-6)
    table = mc_analysis(run("aligned_mean", layer, plan, None), rank=0.5, rows=0.0)
    assert [(part.matrix, part.rank, part.rows, part.numbers, part.of) for part in table] == [
        ("up", 1, 0, 4, 4),
        ("down", 1, 0, 4, 4),
    ]
    np.testing.assert_allclose([part.error for part in table], 2 / np.sqrt(20), rtol=1e-6)
    single = groups_of([(0, 1.0)], layer=0, experts=2)
    assert torch.equal(run("mc", layer, single, None, rank=0.5, rows=0.0).up[0], one)
    reduced = run("mc", layer, single, None, rank=0.5, rows=0.0, singles=True)
    np.testing.assert_allclose(reduced.up[0], np.diag([6.0, 0.0]), atol=1e-6)
    with pytest.raises(BadData, match="share of 0"):
        mc_analysis(layer, rank=0)


def test_ream_averages_by_share_in_the_order_of_activations():
    layer = planted("silu", ordered=False)
    noise = torch.Generator().manual_seed(2)
    layer = replace(layer, down=layer.down + 0.01 * torch.randn(layer.down.shape, generator=noise))
    merged = run("ream", layer, PAIRS, statistics(layer))
    inverse = np.argsort(ORDER)
    wanted = 0.6 * layer.down[0] + 0.4 * layer.down[4][:, inverse]
    np.testing.assert_allclose(merged.down[0], wanted, atol=1e-6)


@pytest.mark.parametrize("name", MERGING)
def test_a_fitted_row_carries_the_groups_mass_better_than_the_centres(name):
    layer = random_layer()
    layer = replace(layer, router=0.3 * layer.router)
    hidden = np.concatenate([np.ones((60, 1)), X[:, 1:]], 1)
    routed = route(layer, hidden, 2)
    given = statistics_of(layer, hidden, routed)
    mass = np.log(np.exp(routed.logits[:, [0, 4]]).sum(1))
    error = {}
    for router in ("centre", "fitted"):
        merged = run(name, layer, PAIRS, given, router=router)
        error[router] = np.abs(hidden @ merged.router[0].double().numpy() - mass).mean()
        assert torch.equal(merged.router[2], layer.router[2])
    assert error["fitted"] < 0.2 * error["centre"]
    with pytest.raises(BadData, match="reads statistics"):
        run("mean", layer, PAIRS, None, router="fitted")


def test_copies_keep_the_rows_of_all_members():
    layer = random_layer(kind="gpt_oss")
    merged = run("mean", layer, PAIRS, None)
    copies = as_copies(layer, merged, PAIRS)
    for name in ("router", "router_bias"):
        assert torch.equal(getattr(copies, name), getattr(layer, name))
    for name in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias"):
        tensor, source = getattr(copies, name), getattr(merged, name)
        assert torch.equal(tensor, source[[0, 1, 2, 3, 0, 1]]), name
    # The papers' function: rows as before, both members answer with the merged expert.
    routed = route(layer, X, 2)
    every = [expert_output(merged, place, X)[0] for place in (0, 1, 2, 3, 0, 1)]
    wanted = sum(routed.weights[:, [s]] * np.stack(every)[routed.ids[:, s], np.arange(60)] for s in range(2))
    np.testing.assert_allclose(layer_output(copies, X), wanted, atol=1e-9)
    table = torch.tensor([[0, 5], [4, 2]])
    assert torch.equal(as_copies(replace(layer, table=table), merged, PAIRS).table, table)
    plan = LayerCut(layer=3, experts=6, keep=(0, 1, 2, 3))
    alone = as_copies(layer, cut(layer, plan), plan)  # 4 and 5 are in no group: they are gone, rows and all
    assert torch.equal(alone.router, layer.router[:4])
    assert torch.equal(alone.down, layer.down[:4])
    with pytest.raises(BadPlan, match="makes 4 experts of 6"):
        as_copies(layer, cut(layer, LayerCut(layer=3, experts=6, keep=(0, 1))), PAIRS)


def test_what_is_not_finite_is_refused():
    layer = random_layer(dtype=torch.bfloat16)
    layer.up[0, 0, 0] = float("inf")
    with pytest.raises(BadData, match="is not finite"):
        run("mean", layer, PAIRS, None)
