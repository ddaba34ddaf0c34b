"""Scores of experts against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers.cuts import layer_of
from moeworks.address import Address
from moeworks.edit.layer import LayerWeights
from moeworks.edit.scores import EDIT_SCORES, layer_normalised, mixed, needs_of, summary_of, super_experts_of
from moeworks.errors import BadData


def score(name: str, layers, **options):
    return EDIT_SCORES.get(name)(layers, **options)


CHEAP = {
    "count": [4, 2, 0],
    "first": [3, 1, 0],
    "first_gate": [1.5, 0.9, 0],
    "gate": [2.0, 0.5, 0],
    "norm": [8.0, 6.0, 0],
    "gated_norm": [4.0, 3.0, 0],
    "turn": [0.3, 0.7, 0],
    "own_turn": [0.2, 0.9, 0],
    "peak": [5.0, 50.0, 0],
    "top_logit": [6.0, -2.0, 0],
}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("frequency", {}, [4, 2, 0]),
        ("gate_mass", {}, [2.0, 0.5, 0]),
        ("routing_mass", {}, [0.2, 0.05, 0]),  # / 10 tokens
        ("ean", {}, [8, 6, 0]),
        ("ean", {"aggregate": "mean"}, [2, 3, 0]),
        ("reap", {}, [1.0, 1.5, 0]),  # 4/4, 3/2: the rarer expert is worth more
        ("wean", {}, [4, 3, 0]),
        ("easy_ep", {}, [0.3, 0.7, 0]),
        ("tenp", {}, [0.2, 0.9, 0]),
        ("max_activation", {}, [5, 50, 0]),
        ("tcess", {}, [0.6, -0.2, 0]),
        ("nllb", {}, [0.3 * 0.5, 0.1 * 0.9, 0]),  # first / tokens × mean weight when first
    ],
)
def test_one_layer(name: str, options: dict, expected: list[float]) -> None:
    found = score(name, [layer_of(tokens=[10], **CHEAP)], **options)
    np.testing.assert_allclose(found, [expected])
    assert found.dtype == np.float64


def test_mone_is_deviation_times_mass() -> None:
    # expert 0: outputs (3, 0) and (5, 0) → mean (4, 0), variance 1, mass 1.0 / 4 tokens
    # expert 1: outputs (2, 2) twice → variance 0; expert 2 never ran
    layer = layer_of(
        tokens=[4],
        count=[2, 2, 0],
        gate=[1.0, 1.0, 0],
        norm_square=[9 + 25, 16, 0],
        output_sum=[[8, 0], [4, 4], [0, 0]],
    )
    np.testing.assert_allclose(score("mone", [layer]), [[0.25, 0.0, 0.0]])


def test_shape_by_hand() -> None:
    # sets {0,1}: 10, {0,2}: 4, {1,2}: 6.  Expert 0: A={0,1} rest {1}, other sets with 1: {1,2} → N=1; A={0,2} → N=1.
    # a_0 = min(10, 4) = 4 → mean((10-4)/2, (4-4)/2) = 1.5.  Expert 1: a=min(10,6)=6 → (4/2+0)/2 = 1.
    # Expert 2: a=min(4,6)=4 → (0 + 2/2)/2 = 0.5.  Expert 3 was never chosen.
    sets = np.array([[0, 1], [0, 2], [1, 2]]), np.array([10, 4, 6])
    np.testing.assert_allclose(score("shape", [layer_of(count=[14, 16, 10, 0], sets=sets)]), [[1.5, 1.0, 0.5, 0.0]])


def test_shape_without_rivals_and_with_k_1() -> None:
    # {0,1} and {2,3} share nothing: N = 0 everywhere, so each member gets half of the set's count
    sets = np.array([[0, 1], [2, 3]]), np.array([8, 2])
    np.testing.assert_allclose(score("shape", [layer_of(count=[8, 8, 2, 2], sets=sets)]), [[4, 4, 1, 1]])
    # k = 1: the empty rest is in all other sets, N = m - 1 = 1 for each; a_i N_i = v, nothing is left
    alone = np.array([[0], [1]]), np.array([8, 2])
    np.testing.assert_allclose(score("shape", [layer_of(count=[8, 2], sets=alone)]), [[0, 0]])


def test_shape_against_its_definition_by_python_sets() -> None:
    draw = np.random.default_rng(3)
    sets = np.unique(np.sort(np.stack([draw.choice(7, 3, replace=False) for _ in range(20)]), 1), axis=0)
    counts = draw.integers(1, 30, len(sets))
    observed = [frozenset(row.tolist()) for row in sets]
    expected = np.zeros(7)
    for i in range(7):
        own = [(a, int(v)) for a, v in zip(observed, counts, strict=True) if i in a]
        n = [sum(a - {i} <= other for other in observed) - 1 for a, _ in own]
        ratios = [v / m for (_, v), m in zip(own, n, strict=True) if m]
        alpha = min(ratios) if ratios else 0
        if own:
            expected[i] = max(0, np.mean([(v - alpha * m) / 3 for (_, v), m in zip(own, n, strict=True)]))
    np.testing.assert_allclose(score("shape", [layer_of(count=np.ones(7), sets=(sets, counts))])[0], expected)
    assert expected.max() > 0


def test_shape_refuses_what_has_no_sets() -> None:
    with pytest.raises(BadData, match="--collect sets"):
        score("shape", [layer_of(count=[1, 1])])
    unequal = np.array([[-1, 1], [0, 1]]), np.array([1, 1])
    with pytest.raises(BadData, match="unequal size"):
        score("shape", [layer_of(count=[1, 1], sets=unequal)])


def test_aimer_keeps_spiky_weights() -> None:
    # three tensors of two numbers: N = 6. Expert 0 flat ±1: ratio 1. Expert 1 a single 3: 3 / (sqrt 6 × 3).
    flat = torch.tensor([[1.0, -1.0]])
    spiky = torch.tensor([[3.0, 0.0]])
    layer = LayerWeights(
        layer=4,
        gate=torch.stack([flat, spiky]),
        up=torch.stack([flat, torch.zeros(1, 2)]),
        down=torch.stack([flat.T, torch.zeros(2, 1)]),
        router=torch.zeros(2, 2),
    )
    np.testing.assert_allclose(EDIT_SCORES.get("aimer")(layers=[layer]), [[-1.0, -1 / math.sqrt(6)]])
    dead = LayerWeights(layer=4, up=torch.zeros(2, 1, 2), down=torch.zeros(2, 2, 1), router=torch.zeros(2, 2))
    with pytest.raises(BadData, match="expert 0, 1 are all 0"):
        EDIT_SCORES.get("aimer")(layers=[dead])


def test_random_follows_the_seed_alone() -> None:
    layers = [layer_of(0, count=np.ones(5)), layer_of(1, count=np.zeros(5))]
    one, again, other = (score("random", layers, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).all()
    assert (one[0] != one[1]).all()


TWO = {"labels": ["fr", "de"], "tokens": [10, 100]}


def test_labels_are_told_apart() -> None:
    layer = layer_of(count=[[4, 2], [40, 80]], gated_norm=[[4, 4], [40, 20]], gate=[[2, 1], [10, 30]], **TWO)
    np.testing.assert_allclose(score("reap", [layer], label="fr"), [[1, 2]])
    np.testing.assert_allclose(score("reap", [layer], label="de"), [[1, 0.25]])
    np.testing.assert_allclose(score("reap", [layer]), [[1, 24 / 82]])  # sums first
    np.testing.assert_allclose(score("routing_mass", [layer], label="de"), [[0.1, 0.3]])
    with pytest.raises(BadData, match="fr"):
        score("reap", [layer], label="fre")


def test_domain_mixes() -> None:
    values = {"fr": np.array([[3.0, 1.0]]), "de": np.array([[10.0, 30.0]])}
    score_of = values.__getitem__
    np.testing.assert_allclose(mixed(score_of, ["fr", "de"]), [[0.75 + 0.25, 0.25 + 0.75]])
    np.testing.assert_allclose(mixed(score_of, ["fr", "de"], mix="max"), [[0.75, 0.75]])
    length = math.sqrt(10)
    np.testing.assert_allclose(mixed(score_of, ["fr", "de"], mix="l2"), [[4 / length, 4 / length]])
    np.testing.assert_allclose(layer_normalised(np.zeros((1, 2)), "sum"), [[0, 0]])
    with pytest.raises(BadData, match="each once"):
        mixed(score_of, ["fr", "fr"])


def test_difference_does_not_let_the_longer_text_win() -> None:
    layer = layer_of(count=[[6, 2], [20, 60]], **TWO)
    np.testing.assert_allclose(
        score("difference", [layer], label="fr", against="de", base="frequency"), [[0.75 - 0.25, 0.25 - 0.75]]
    )
    np.testing.assert_allclose(
        score("difference", [layer], label="fr", against="de", base="frequency", normalise=False), [[-14, -58]]
    )
    for wrong in ({"label": "fr"}, {"label": "fr", "against": "fr"}):
        with pytest.raises(BadData, match="two values"):
            score("difference", [layer], **wrong)
    with pytest.raises(BadData, match="'shape' does not tell labels apart"):
        score("difference", [layer], label="fr", against="de", base="shape")


def test_super_experts_by_percentile_tenth_and_depth() -> None:
    # 4 layers of 100 experts; the first 3 (75 %) count. Peaks 1, but L0.E5 = 100, L2.E7 = 60, L3.E9 = 1000 (too deep),
    # and L1.E1 = 8: above P99.5 (of 300 values, between the 2nd and 3rd largest: 8 + 0.505 × 52 → above 8) and below 10
    peaks = np.ones((4, 100))
    peaks[0, 5], peaks[2, 7], peaks[3, 9], peaks[1, 1] = 100, 60, 1000, 8
    layers = [layer_of(n, count=np.ones(100), peak=peaks[n]) for n in range(4)]
    assert super_experts_of(layers) == (Address(0, 5), Address(2, 7))
    assert super_experts_of(layers, first_share=1.0)[0] == Address(3, 9)
    # second 9 and third 8: P99.5 is 8.5, so that only the tenth of 100 keeps 9 out
    peaks[2, 7] = 9
    assert super_experts_of([layer_of(n, count=np.ones(100), peak=peaks[n]) for n in range(4)]) == (Address(0, 5),)
    idle = [layer_of(0, count=np.zeros(100), peak=peaks[0])]
    assert super_experts_of(idle) == ()


def test_what_is_missing_is_named() -> None:
    with pytest.raises(BadData, match="--collect means"):
        score("mone", [layer_of(count=[1], gate=[1], norm_square=[1])])
    with pytest.raises(BadData, match="2, 3 experts"):
        score("frequency", [layer_of(0, count=[1, 1]), layer_of(1, count=[1, 1, 1])])
    with pytest.raises(BadData, match="aggregate"):
        score("ean", [layer_of(**CHEAP)], aggregate="median")


def test_every_score_says_what_it_needs_and_does() -> None:
    known = {"cheap", "router", "means", "everywhere", "neurons", "gradients", "sets", "rows", "weights", "contract"}
    for name in EDIT_SCORES.names():
        function = EDIT_SCORES.get(name)
        assert needs_of(function) <= known
        assert len(summary_of(function)) > 20
