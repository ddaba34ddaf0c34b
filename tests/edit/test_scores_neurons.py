"""Scores of neurons and the cuts made of them, against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.cuts import layer_of
from moeworks.edit.layer import LayerWeights
from moeworks.edit.neuron_cut import cut_neurons
from moeworks.edit.plan import LayerCut
from moeworks.edit.scores import NEURON_SCORES
from moeworks.edit.transforms import TRANSFORMS
from moeworks.errors import BadData, BadPlan


def weights_of(down: torch.Tensor) -> LayerWeights:
    experts, hidden, neurons = down.shape
    draw = torch.Generator().manual_seed(0)
    return LayerWeights(
        layer=0,
        down=down,
        up=torch.randn(experts, neurons, hidden, generator=draw),
        gate=torch.randn(experts, neurons, hidden, generator=draw),
        router=torch.randn(experts, hidden, generator=draw),
        activation=lambda gate, up: torch.nn.functional.silu(gate) * up,
    )


def test_camera_by_hand() -> None:
    # |D_0|² = 9 + 16 = 25, |D_1|² = 1; sums of squares 2 and 10, largest 1 and 3
    down = torch.tensor([[[3.0, 1.0], [4.0, 0.0]]])
    layer = layer_of(count=[2], neuron_square=[[2, 10]], neuron_peak=[[1, 3]])
    camera = NEURON_SCORES.get("camera")
    for rho, expected in ((0.0, [50, 10]), (1.0, [25, 9]), (0.9, [25 * (0.2 + 0.9), 1 + 8.1])):
        np.testing.assert_allclose(camera([layer], layers=[weights_of(down)], rho=rho)[0], [expected])
    with pytest.raises(BadData, match="rho"):
        camera([layer], layers=[weights_of(down)], rho=1.1)
    with pytest.raises(BadData, match="not of one model"):
        camera([layer], layers=[weights_of(torch.zeros(1, 2, 3))])


def test_enp_and_heapr_by_hand() -> None:
    layer = layer_of(count=[4, 0], neuron_projection=[[8, -2], [0, 0]], neuron_loss=[[1, 3], [0, 2]])
    np.testing.assert_allclose(NEURON_SCORES.get("enp")([layer])[0], [[2, -0.5], [0, 0]])
    np.testing.assert_allclose(NEURON_SCORES.get("heapr")([layer])[0], [[1, 3], [0, 2]])


SCORES = [np.array([[5.0, 1, 2, 9], [0.5, 0.1, 0.2, 0.3]]), np.array([[8.0, 7, 6, 5], [4, 3, 2, 1]])]


def test_equal_widths_are_each_experts_own_best() -> None:
    cut = cut_neurons(SCORES, 0.5)
    assert cut == ([((0, 3), (0, 3)), ((0, 1), (0, 1))], "cut")
    assert cut_neurons(SCORES, 0.99, multiple_of=2).neurons[0] == ((0, 3), (0, 3))  # 3.96 → 2
    with pytest.raises(BadPlan, match="no multiple of 4"):
        cut_neurons(SCORES, 0.9, multiple_of=4)
    with pytest.raises(BadPlan, match="only equal widths"):
        cut_neurons(SCORES, 0.5, widths="joint", multiple_of=2)


def test_joint_ranks_over_the_experts_of_a_layer() -> None:
    cut = cut_neurons(SCORES, 0.5, widths="joint")
    assert cut == ([((0, 1, 2, 3), ()), ((0, 1, 2, 3), ())], "zero_neurons")


def test_global_ranks_over_layers() -> None:
    # 16 neurons, 8 stay: 9, 8, 7, 6, 5, 5, 4, 3 → layer 0 keeps 9 and 5
    assert cut_neurons(SCORES, 0.5, widths="global").neurons == [((0, 3), ()), ((0, 1, 2, 3), (0, 1))]


def test_important_experts_stay_whole() -> None:
    # half of two experts whole: 4 neurons of 0.75 × 8 = 6, so that 2 are left to the other
    experts = np.array([[0.1, 0.9], [0.9, 0.1]])
    cut = cut_neurons(SCORES, 0.75, widths="important", whole=0.5, expert_scores=experts)
    assert cut == ([((0, 3), (0, 1, 2, 3)), ((0, 1, 2, 3), (0, 1))], "zero_neurons")
    with pytest.raises(BadPlan, match="nothing is left"):
        cut_neurons(SCORES, 0.5, widths="important", whole=0.5, expert_scores=experts)


def output(weights: LayerWeights, x: torch.Tensor) -> torch.Tensor:
    """Return every expert's output, (E, n, H), written out."""
    assert weights.gate is not None
    gate, up = (torch.einsum("eih,nh->eni", part, x) for part in (weights.gate, weights.up))
    return torch.einsum("ehi,eni->enh", weights.down, torch.nn.functional.silu(gate) * up)


def test_zeroed_neurons_are_absent_neurons() -> None:
    layer = weights_of(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    even = LayerCut(layer=0, experts=2, keep=(0, 1), neurons=((0, 3), (1, 2)))
    narrow, zeroed = (TRANSFORMS.get(name)(layer, even) for name in ("cut", "zero_neurons"))
    assert narrow.neurons == 2
    assert zeroed.neurons == 4
    torch.testing.assert_close(output(narrow, x), output(zeroed, x))
    assert not torch.allclose(output(layer, x), output(zeroed, x))
    uneven = LayerCut(layer=0, experts=2, keep=(0, 1), neurons=((0, 1, 2), ()))
    found = TRANSFORMS.get("zero_neurons")(layer, uneven)
    assert not found.down[1].any()
    assert not found.gate[1].any()
    torch.testing.assert_close(found.up[0, :3], layer.up[0, :3])
    with pytest.raises(BadData, match="neurons 0 to 3"):
        TRANSFORMS.get("zero_neurons")(layer, LayerCut(layer=0, experts=2, keep=(0,), neurons=((4,),)))
