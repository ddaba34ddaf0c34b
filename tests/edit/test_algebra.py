"""Neurons, alignment, least squares, factorisations and router rows, each alone against a formula or numpy."""

import itertools
import math

import numpy as np
import pytest
import torch

from helpers.merging import KINDS, Kind, expert_output, gpt_oss, random_layer, relu2, silu
from moeworks.edit.algebra import (
    Expert,
    activation_cost,
    add_fractions,
    align,
    assign,
    balance,
    cosines,
    cosines_of_gram,
    expert_of,
    fitted_rows,
    from_features,
    group_logits,
    is_linear_in_up,
    join,
    joint_svd,
    low_rank_and_sparse,
    mean,
    neuron_cost,
    neuron_features,
    outputs,
    rank_of_share,
    reduced_cost,
    reorder,
    rescale,
    solve_down,
    take_neurons,
    weight_cosines,
    with_experts,
)
from moeworks.errors import BadData, Unsupported

X = np.random.default_rng(5).normal(size=(9, 4))


def run(expert: Expert, kind: Kind = "silu") -> np.ndarray:
    """The expert's outputs by the test's own forward, (n, H)."""
    layer = with_experts(random_layer(kind=kind, dtype=torch.float64, neurons=expert.neurons), {0: expert})
    return expert_output(layer, 0, X)[0]


def expert(kind: Kind = "silu", number: int = 0, neurons: int = 5) -> Expert:
    return expert_of(random_layer(kind=kind, dtype=torch.float64, neurons=neurons), number)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_a_plain_forward(kind):
    layer = random_layer(kind=kind, dtype=torch.float64)
    ours = outputs(expert_of(layer, 2), layer.activation, torch.from_numpy(X))
    np.testing.assert_allclose(ours.numpy(), expert_output(layer, 2, X)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_reordering_neurons_leaves_the_function(kind):
    before = expert(kind)
    after = reorder(before, [4, 2, 0, 1, 3])
    assert not torch.equal(before.up, after.up)
    np.testing.assert_allclose(run(after, kind), run(before, kind), rtol=1e-13, atol=1e-13)
    # Not merely close: the same triples to the bit, in another order.
    assert {tuple(row) for row in neuron_features(after).tolist()} == {
        tuple(row) for row in neuron_features(before).tolist()
    }
    assert torch.equal(neuron_features(after)[1], neuron_features(before)[2])


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 5]])
def test_an_order_that_is_no_permutation_is_refused(order):
    with pytest.raises(BadData, match="each of them once"):
        reorder(expert(), order)


def test_the_scale_of_up_and_down_is_free_with_a_plain_gate_alone():
    before, factors = expert("silu"), torch.tensor([2.0, -3.0, 0.5, 1.0, 10.0], dtype=torch.float64)
    after = rescale(before, factors, silu)
    np.testing.assert_allclose(run(after), run(before), rtol=1e-12, atol=1e-12)
    assert torch.equal(after.up, before.up * factors[:, None])
    for kind, rule in (("relu2", relu2), ("gpt_oss", gpt_oss)):
        assert not is_linear_in_up(rule, gated=kind != "relu2")
        with pytest.raises(Unsupported, match="no free scale"):
            rescale(expert(kind), factors, rule)
    with pytest.raises(BadData, match="not 0"):
        rescale(before, factors * 0, silu)


def test_the_scale_of_the_gate_is_not_free():
    before = expert("silu")
    scaled = before._replace(gate=before.gate * 2, down=before.down / 2)
    assert np.abs(run(scaled) - run(before)).max() > 0.1


def test_balance_gives_up_and_down_equal_length_and_leaves_the_function_and_dead_neurons():
    before = expert("silu")
    up = before.up.clone()
    up[3] = 0
    before = before._replace(up=up)
    after = balance(before, silu)
    length = after.up.norm(dim=1)
    np.testing.assert_allclose(length[[0, 1, 2, 4]], after.down.norm(dim=0)[[0, 1, 2, 4]], rtol=1e-12)
    assert torch.equal(after.down[:, 3], before.down[:, 3])
    np.testing.assert_allclose(run(after), run(before), rtol=1e-12, atol=1e-12)
    twice = balance(rescale(before, torch.full((5,), 7.0, dtype=torch.float64), silu), silu)
    np.testing.assert_allclose(twice.up, after.up, rtol=1e-12)  # whatever scale it was given before


@pytest.mark.parametrize("kind", KINDS)
def test_features_hold_every_number_of_a_neuron(kind):
    before = expert(kind)
    features = neuron_features(before)
    widths = {"silu": 12, "relu2": 8, "gpt_oss": 14}
    assert features.shape == (5, widths[kind])
    back = from_features(features, before)
    assert all(a is b if a is None else torch.equal(a, b) for a, b in zip(back, before, strict=True))
    if kind == "relu2":
        with pytest.raises(BadData, match="without a gate"):
            neuron_features(before, ("gate",))
    assert torch.equal(neuron_features(before, ("down",)), before.down.T)


def test_a_mean_weighs_by_shares_that_need_not_add_up_to_1():
    one, two = expert("gpt_oss", 0), expert("gpt_oss", 1)
    merged = mean([one, two], [3, 1])
    np.testing.assert_allclose(merged.gate, 0.75 * one.gate + 0.25 * two.gate, rtol=1e-14)
    np.testing.assert_allclose(merged.down_bias, 0.75 * one.down_bias + 0.25 * two.down_bias, rtol=1e-14)
    for shares in ([1], [0, 0], [-1, 2]):
        with pytest.raises(BadData, match="one share for each"):
            mean([one, two], shares)


def test_joined_neurons_add_up():
    one, two = expert("silu", 0), expert("silu", 1)
    both = join([one, two])
    np.testing.assert_allclose(run(both), run(one) + run(two), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(run(take_neurons(both, range(5, 10))), run(two), rtol=1e-13)


def test_experts_are_put_back_in_the_layers_dtype_and_the_others_stay_to_the_bit():
    layer = random_layer(dtype=torch.bfloat16)
    fresh = expert_of(layer, 1)
    assert fresh.up.dtype == torch.float32
    changed = with_experts(layer, {4: fresh._replace(up=fresh.up * 2)})
    assert changed.up.dtype == torch.bfloat16
    assert torch.equal(changed.up[4], layer.up[1] * 2)
    assert torch.equal(changed.down[4], layer.down[1])
    assert torch.equal(changed.up[:4], layer.up[:4])
    assert torch.equal(layer.up, random_layer(dtype=torch.bfloat16).up)  # the layer given is left alone
    for place, wrong in ((9, fresh), (0, fresh._replace(up=fresh.up[:3])), (0, fresh._replace(gate=None))):
        with pytest.raises(BadData, match="does not fit"):
            with_experts(layer, {place: wrong})


def test_the_assignment_is_the_cheapest_of_all_permutations():
    cost = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 6)))
    best = min(itertools.permutations(range(6)), key=lambda order: sum(float(cost[i, order[i]]) for i in range(6)))
    assert assign(cost).tolist() == list(best)
    for wrong in (cost[:5], cost.masked_fill(cost > 1, float("nan"))):
        with pytest.raises(BadData, match="square table of finite"):
            assign(wrong)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cost", ["squared", "cosine"])
def test_alignment_finds_a_hidden_order_despite_noise(kind, cost):
    reference = expert(kind, neurons=12)
    order = torch.from_numpy(np.random.default_rng(1).permutation(12))
    noisy = Expert(*(p if p is None else p + 1e-3 * torch.randn(p.shape, dtype=p.dtype) for p in reference))
    hidden = reorder(noisy, order)
    aligned = align(reference, hidden, neuron_cost(reference, hidden, cost=cost))
    assert torch.equal(aligned.up, noisy.up)
    assert torch.equal(aligned.down, noisy.down)


def test_costs_by_their_formulas():
    a, b = expert("silu", 0), expert("silu", 1)
    squared = neuron_cost(a, b)
    u, g, d = (getattr(a, p)[2] if p != "down" else a.down[:, 2] for p in ("up", "gate", "down"))
    u2, g2, d2 = (getattr(b, p)[3] if p != "down" else b.down[:, 3] for p in ("up", "gate", "down"))
    by_hand = ((u - u2) ** 2).sum() + ((g - g2) ** 2).sum() + ((d - d2) ** 2).sum()
    np.testing.assert_allclose(float(squared[2, 3]), float(by_hand), rtol=1e-12)
    rows, others = torch.randn(20, 5), torch.randn(20, 5)
    rows[:, 4] = 0  # a silent neuron is at distance 1 of all that are not
    cost = activation_cost(rows, others)
    x, y = rows[:, 1] / rows[:, 1].norm(), others[:, 2] / others[:, 2].norm()
    np.testing.assert_allclose(float(cost[1, 2]), float((x - y).norm()), rtol=1e-5)
    np.testing.assert_allclose(cost[4], np.ones(5), rtol=1e-6)


@pytest.mark.parametrize("neurons", [5, 30])  # fewer and more rows than features
def test_reduced_cost_is_the_distance_after_pca_of_unit_triples(neurons):
    a, b = expert("silu", 0, neurons), expert("silu", 1, neurons)
    rows = torch.cat([neuron_features(a), neuron_features(b)]).numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centred = rows - rows.mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:3]
    points = centred @ directions.T
    wanted = np.linalg.norm(points[:neurons, None] - points[None, neurons:], axis=-1)
    np.testing.assert_allclose(reduced_cost(a, b, dimensions=3), wanted, atol=1e-7)


def test_cosines_by_numpy_and_of_nothing():
    vectors = np.random.default_rng(2).normal(size=(4, 3))
    vectors[2] = 0
    ours = cosines(vectors)
    wanted = vectors[0] @ vectors[3] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[3])
    np.testing.assert_allclose(ours[0, 3], wanted, rtol=1e-12)
    assert (ours[2] == 0).all()
    np.testing.assert_allclose(cosines_of_gram(vectors @ vectors.T), ours, rtol=1e-12)


def test_weight_cosines_in_blocks(monkeypatch):
    layer = random_layer()
    flat = np.concatenate([layer.up.reshape(6, -1), layer.gate.reshape(6, -1)], 1)
    whole = weight_cosines(layer)
    np.testing.assert_allclose(whole, cosines(flat), atol=1e-7)
    monkeypatch.setattr("moeworks.edit.algebra.similarity.CHUNK", 18)
    np.testing.assert_allclose(weight_cosines(layer), whole, atol=1e-12)
    assert weight_cosines(random_layer(kind="relu2")).shape == (6, 6)


def test_solved_down_is_numpys_least_squares():
    random = np.random.default_rng(3)
    q, p = random.normal(size=(40, 6)), random.normal(size=(40, 3))
    ours = solve_down(torch.from_numpy(p), torch.from_numpy(q))
    np.testing.assert_allclose(ours.numpy(), np.linalg.lstsq(q, p, rcond=None)[0].T, rtol=1e-10)
    np.testing.assert_allclose(ours.numpy(), p.T @ np.linalg.pinv(q.T), rtol=1e-9)  # P Q^+


def test_where_rows_do_not_determine_it_the_smallest_or_the_nearest_is_taken():
    random = np.random.default_rng(4)
    q, p = random.normal(size=(4, 6)), random.normal(size=(4, 3))
    q[:, 5] = q[:, 4]  # and two neurons alike
    ours = solve_down(torch.from_numpy(p), torch.from_numpy(q)).numpy()
    np.testing.assert_allclose(ours, p.T @ np.linalg.pinv(q.T), atol=1e-9)
    near = random.normal(size=(3, 6))
    shifted = solve_down(torch.from_numpy(p), torch.from_numpy(q), around=torch.from_numpy(near)).numpy()
    np.testing.assert_allclose(shifted @ q.T, p.T, atol=1e-9)
    assert np.linalg.norm(shifted - near) < np.linalg.norm(ours - near)
    with pytest.raises(BadData, match="rows of both"):
        solve_down(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(BadData, match="not finite"):
        solve_down(torch.full((3, 2), float("inf")), torch.zeros(3, 2))


def test_joint_basis_gives_the_matrices_back_and_is_orthonormal():
    matrices = [torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)]
    basis = joint_svd(matrices)
    for part, matrix in zip(basis.parts, matrices, strict=True):
        np.testing.assert_allclose((basis.basis * basis.values) @ part, matrix, atol=1e-12)
    np.testing.assert_allclose(basis.basis.T @ basis.basis, np.eye(4), atol=1e-12)
    assert len(joint_svd(matrices, rank=2).values) == 2
    for wrong in ([], [torch.zeros(2, 2), torch.zeros(3, 2)]):
        with pytest.raises(BadData, match="equally many rows"):
            joint_svd(wrong)


def test_low_rank_and_sparse_by_hand():
    # Singular values 4, 3, 1 on the axes: rank 1 takes the first, the most important row of the rest is the second.
    matrix = torch.diag(torch.tensor([4.0, 3.0, 1.0], dtype=torch.float64))
    parts = low_rank_and_sparse(matrix, rank=1, rows=1 / 3)
    assert parts.rows == (1,)
    np.testing.assert_allclose(parts.product, np.diag([4.0, 3.0, 0.0]), atol=1e-12)
    np.testing.assert_allclose(parts.error, 1 / math.sqrt(16 + 9 + 1), rtol=1e-12)
    assert parts.numbers == 3 + 3 + 3
    chosen = low_rank_and_sparse(matrix, rank=1, rows=1 / 3, importance=torch.tensor([0.0, 1.0, 2.0]))
    assert chosen.rows == (2,)
    full = torch.randn(5, 7, dtype=torch.float64)
    np.testing.assert_allclose(low_rank_and_sparse(full, rank=5, rows=0).product, full, atol=1e-12)
    np.testing.assert_allclose(low_rank_and_sparse(full, rank=1, rows=1).product, full, atol=1e-12)
    singular = np.linalg.svd(full.numpy(), compute_uv=False)
    error = low_rank_and_sparse(full, rank=2, rows=0).error
    np.testing.assert_allclose(error, np.linalg.norm(singular[2:]) / np.linalg.norm(singular), rtol=1e-10)
    assert rank_of_share(768, 2048, 0.5) == math.ceil(0.5 * 768 * 2048 / 2816) == 280
    for bad in ({"rank": 6}, {"rank": 0}, {"rank": 1, "rows": 1.5}):
        with pytest.raises(BadData):
            low_rank_and_sparse(full, **bad)


def test_fractions_of_rows_by_hand():
    router = torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]], dtype=torch.bfloat16)
    fractions = torch.zeros(3, 2)
    fractions[1, 0], fractions[1, 1] = 0.25, 0.5  # of dropped expert 1, to experts 0 and 2
    rows = add_fractions(router, [0, 2], fractions)
    assert rows.dtype == torch.bfloat16
    assert rows.tolist() == [[1.0, 0.5], [4.0, 5.0]]


@pytest.mark.parametrize("kind", ["silu", "gpt_oss"])
def test_a_fitted_row_is_found_where_there_is_one(kind):
    """exp(w x) + exp(w x + c) = exp(w x + log(1 + e^c)); with a feature that is always 1 this is a row."""
    layer = random_layer(kind=kind, dtype=torch.float64)
    hidden = np.random.default_rng(6).normal(size=(50, 4))
    hidden[:, 0] = 1
    bias = torch.zeros(6) if layer.router_bias is None else layer.router_bias
    layer.router[1] = layer.router[4] + torch.tensor([1.5 + bias[4] - bias[1], 0, 0, 0])
    logits = torch.from_numpy(hidden) @ layer.router.T + bias
    known = layer.router[4].clone()
    known[0] += math.log(1 + math.exp(1.5))
    rows = fitted_rows(layer, [0, 4], [[0], [4, 1]], torch.from_numpy(hidden), logits)
    assert torch.equal(rows[0], layer.router[0])
    np.testing.assert_allclose(rows[1], known, atol=1e-9)
    together = np.logaddexp(logits[:, 4].numpy(), logits[:, 1].numpy())
    np.testing.assert_allclose(group_logits(logits, [4, 1]).numpy(), together, rtol=1e-12, atol=1e-12)


def test_a_router_that_does_more_than_multiply_is_not_fitted():
    layer = random_layer()
    hidden = torch.randn(50, 4)
    normed = hidden / hidden.norm(dim=1, keepdim=True)
    with pytest.raises(Unsupported, match="keep the centre's row"):
        fitted_rows(layer, [0], [[0, 1]], hidden, normed @ layer.router.T)
    with pytest.raises(BadData, match="there are none"):
        fitted_rows(layer, [0], [[0, 1]], hidden[:0], hidden[:0] @ layer.router.T)
