"""Losses and affinity against numbers worked by hand and formulas written another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from moeworks.address import Address
from moeworks.contract import Contract
from moeworks.errors import BadData
from moeworks.find.amounts import probabilities
from moeworks.train.affinity import Affinity, overlap
from moeworks.train.losses import (
    anchor_loss,
    control_vector,
    defaults_of,
    gradient_ascent,
    gradient_difference,
    next_token_loss,
    npo,
    rmu_forget,
    rmu_retain,
    router_probabilities,
    token_log_probabilities,
)


def test_anchor_is_the_squared_error_and_no_divergence() -> None:
    given = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    # token 1: 0.3² + 0.2² + 0.1² = 0.14; token 2: 0.9² + 0.6² + 0.3² = 1.26
    assert anchor_loss(given, 0).item() == pytest.approx(0.70)
    assert anchor_loss(given, 2).item() == pytest.approx((0.49 + 0.04 + 0.81 + 0.01 + 0.36 + 0.49) / 2)
    assert anchor_loss(torch.eye(3)[[1, 1]], 1).item() == 0.0
    assert anchor_loss(torch.eye(3)[[0]], 1).item() == 2.0  # where a divergence would be infinite


def test_token_log_probabilities_by_hand() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [9.0, 1.0, 1.0]]]))
    tokens = torch.tensor([[2, 1, 0]])
    found = token_log_probabilities(logits, tokens)
    assert found.shape == (1, 2)
    assert found[0].tolist() == pytest.approx([math.log(0.25), math.log(0.1)])  # rows predict what comes after them


def test_ascent_and_difference_by_hand() -> None:
    forget = torch.log(torch.tensor([[0.5, 0.25], [0.125, 1e-9]]))
    counted = torch.tensor([[True, True], [True, False]])  # the last is padding
    ascent = gradient_ascent(forget, counted)
    assert ascent.item() == pytest.approx((math.log(0.5) + math.log(0.25) + math.log(0.125)) / 3)
    retain = next_token_loss(torch.log(torch.tensor([[0.5, 0.5]])), torch.tensor([[True, True]]))
    assert retain.item() == pytest.approx(math.log(2))
    assert gradient_difference(ascent, retain, 0.5).item() == pytest.approx(-2 * math.log(2) + 0.5 * math.log(2))


def test_npo_by_the_formula_on_probabilities() -> None:
    own = torch.log(torch.tensor([[0.5, 0.5], [0.2, 0.5]]))
    counted = torch.tensor([[True, True], [True, False]])
    reference = torch.log(torch.tensor([0.5, 0.2]))
    beta = 1.0
    # text 1: p = 0.25, p_ref = 0.5 → 2 log 1.5; text 2: p = p_ref = 0.2 → 2 log 2
    assert npo(own, reference, counted, beta).item() == pytest.approx((2 * math.log(1.5) + 2 * math.log(2)) / 2)
    beta = 0.1
    by_hand = np.mean([2 / beta * math.log(1 + (p / q) ** beta) for p, q in ((0.25, 0.5), (0.2, 0.2))])
    assert npo(own, reference, counted, beta).item() == pytest.approx(by_hand, rel=1e-6)


def test_npo_is_ascent_at_first_and_fades() -> None:
    value = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    counted = torch.ones(1, 2, dtype=torch.bool)
    (at_first,) = torch.autograd.grad(npo(value, torch.tensor([-3.0]), counted, 0.1), value)
    assert at_first[0].tolist() == pytest.approx([1.0, 1.0])  # (2 / beta) × beta × sigmoid(0): that of the sum
    (later,) = torch.autograd.grad(npo(value, torch.tensor([97.0]), counted, 0.1), value)
    assert later[0, 0].item() == pytest.approx(2 / (1 + math.exp(10)))


def test_rmu_by_hand() -> None:
    hidden = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    control = torch.tensor([0.6, 0.8])
    # c u = (3, 4): (1-3)² + (2-4)² = 8 and 9 + 16 = 25
    assert rmu_forget(hidden, control, 5.0).item() == pytest.approx(16.5)
    assert rmu_retain(hidden, torch.tensor([[1.0, 1.0], [3.0, 4.0]])).item() == pytest.approx((1 + 25) / 2)


def test_control_vector() -> None:
    one = control_vector(64, seed=3)
    assert one.norm().item() == pytest.approx(1.0)
    assert (one >= 0).all()
    assert torch.equal(one, control_vector(64, seed=3))
    assert not torch.equal(one, control_vector(64, seed=4))


@pytest.mark.parametrize(
    ("score", "order"),
    [
        ("softmax", "score_first"),
        ("sigmoid", "score_first"),
        ("sqrt_softplus", "score_first"),
        ("softmax", "top_k_first"),
    ],
)
def test_probabilities_in_torch_are_those_of_the_scores(score: str, order: str) -> None:
    contract = Contract(experts=7, top_k=2, score=score, order=order)
    logits = np.random.default_rng(0).normal(size=(11, 7)) * 3
    found = router_probabilities(torch.from_numpy(logits), contract).numpy()
    np.testing.assert_allclose(found, probabilities(logits, contract), rtol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


def test_unknown_loss_is_named() -> None:
    with pytest.raises(BadData, match="did you mean 'npo'"):
        defaults_of("nop")


def two_layers(documents: list[list[list[float]]]) -> Affinity:
    return Affinity((2, 5), np.array(documents), 100)


def test_affinity_counts_every_document_once() -> None:
    """Two documents: the means of their means, whatever their lengths, and the top one over all layers."""
    found = two_layers([[[0.9, 0.1], [0.3, 0.7]], [[0.1, 0.9], [0.2, 0.8]]])
    np.testing.assert_allclose(found.mean, [[0.5, 0.5], [0.25, 0.75]])
    target = found.target()
    assert target.address == Address(5, 1)
    assert (target.affinity, target.runner_up_affinity) == pytest.approx((0.75, 0.5))
    assert target.gap == pytest.approx(0.25)
    assert target.runner_up == Address(2, 0)
    assert [found.rank(Address(*place)) for place in ((5, 1), (2, 0), (2, 1), (5, 0))] == [1, 2, 2, 4]


def test_near_tie_is_told_by_resampling_documents() -> None:
    generator = np.random.default_rng(1)
    noise = generator.normal(0, 0.1, size=(60, 1, 1))
    pair = np.concatenate([0.5 + noise, 0.5 - noise], axis=2)  # (60, 1, 2): which one leads hangs on the documents
    near = Affinity((0,), pair, 600).target()
    assert near.near_tie
    assert near.stability < 0.95
    clear = Affinity((0,), pair + np.array([0.2, 0.0]), 600).target()
    assert not clear.near_tie
    assert clear.stability == 1.0
    assert Affinity((0,), pair[:1], 10).target().near_tie  # one document says nothing of others


def test_experts_without_weights_are_no_target() -> None:
    found = two_layers([[[0.2, 0.8], [0.3, np.nan]], [[0.2, 0.8], [0.3, np.nan]]])
    assert found.target().address == Address(2, 1)
    assert found.target().stability == 1.0


def test_overlap_by_hand() -> None:
    before = np.array([[0, 1], [2, 3], [4, 5]], np.uint8)
    after = np.array([[1, 0], [3, 7], [6, 7]], np.uint8)
    assert overlap(before, after).tolist() == [1.0, 0.5, 0.0]
