"""DERN: dropped neurons recombined, by hand, and where it is a plain cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.merging import KINDS, X, expert_output, groups_of, planted, random_layer, run, statistics
from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import cut
from moeworks.errors import BadPlan


def dern_example() -> tuple[LayerWeights, LayerStatistics]:
    """Expert 2 goes. Its first neuron is twice neuron 0 of expert 0, its second is like no other."""
    one, two = torch.eye(2), -torch.eye(2)
    third = torch.tensor([[2.0, 0.0], [1.0, -1.0]])
    down = torch.stack([one, two, torch.tensor([[2.0, -1.0], [0.0, 1.0]])])  # columns (2, 0) and (-1, 1)
    layer = LayerWeights(
        layer=0,
        gate=torch.stack([one, two, torch.tensor([[2.0, 0.0], [0.0, 0.0]])]),
        up=torch.stack([one, two, third]),
        down=down,
        router=torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 8.0]]),
        router_bias=torch.tensor([1.0, 2.0, 3.0]),
    )
    arrays = {
        "count": np.array([[5, 4, 1]]),
        "gate": np.array([[3.0, 2.0, 1.0]]),
        "neuron_gate_peak": np.array([[[5.0, 4.0], [1.0, 1.0], [3.0, 9.0]]]),
    }
    return layer, LayerStatistics(layer=0, tokens=np.array([10]), labels=("all",), arrays=arrays)


def test_dern_by_hand():
    layer, given = dern_example()
    plan = LayerCut(layer=0, experts=3, keep=(0, 1))
    merged = run("dern", layer, plan, given)
    # Neuron 0 of expert 0 and its double: same direction, mean length 1.5 times its own. Neuron 1 is as it was.
    assert merged.gate is not None
    np.testing.assert_allclose(merged.gate[0], [[1.5, 0], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(merged.up[0], [[1.5, 0], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(merged.down[0], [[1.5, 0], [0, 1]], atol=1e-6)
    for name in ("gate", "up", "down"):
        assert torch.equal(getattr(merged, name)[1], getattr(layer, name)[1])  # received nothing
    assert merged.router.tolist() == [[3.0, 4.0], [0.0, 1.0]]  # one of two neurons: half of (4, 8) added
    assert merged.router_bias is not None
    assert merged.router_bias.tolist() == [1.0, 2.0]


def test_dern_weighs_by_gate_mass_starts_from_loud_neurons_and_compares_what_it_is_told_to():
    layer, given = dern_example()
    plan = LayerCut(layer=0, experts=3, keep=(0, 1))
    layer.up[2, 0] = torch.tensor([2.0, 2.0])  # now beside neuron 0: up and down (2, 2, 2, 0), cosine 4 / sqrt 24
    for alpha, moves in ((0.8, True), (0.82, False)):
        merged = run("dern", layer, plan, given, alpha=alpha)
        assert torch.equal(merged.up[0], layer.up[0]) != moves
    merged = run("dern", layer, plan, given, alpha=0.8)
    own, other = np.array([1, 0, 1, 0, 1, 0]), np.array([2, 0, 2, 2, 2, 0])  # gate, up, down
    a, b = np.linalg.norm(own), np.linalg.norm(other)
    direction = 3 * own / a + 1 * other / b  # gate mass 3 and 1
    wanted = direction / np.linalg.norm(direction) * (a + b) / 2
    np.testing.assert_allclose(merged.up[0, 0], wanted[2:4], rtol=1e-5)
    np.testing.assert_allclose(merged.down[0, :, 0], wanted[4:], rtol=1e-5)
    layer.gate[2, 0] = torch.tensor([0.0, -9.0])  # with the gate it is far away
    assert torch.equal(run("dern", layer, plan, given, alpha=0.8, similarity="all").up[0], layer.up[0])
    assert not torch.equal(run("dern", layer, plan, given, alpha=0.8).up[0], layer.up[0])
    for options in ({"similarity": "gate"}, {"iterations": 0}):
        with pytest.raises(BadPlan, match="dern compares"):
            run("dern", layer, plan, given, **options)
    with pytest.raises(BadPlan, match="has groups"):
        run("dern", layer, groups_of([(0, 0.5), (2, 0.5)], [(1, 1.0)], layer=0, experts=3), given)


def test_dern_first_centres_are_the_loudest_neurons():
    """One iteration from two of three neurons: which two, the gate responses say."""
    layer, given = dern_example()
    layer.up[2, 1], layer.down[2, :, 1] = torch.tensor([0.7, 0.7]), torch.tensor([0.7, 0.7])
    layer.gate[2, 1] = torch.tensor([0.7, -0.7])
    plan = LayerCut(layer=0, experts=3, keep=(0,), order=())
    loud = run("dern", layer, plan, given, iterations=1, alpha=0.6)  # neuron 1 of expert 2 has the largest response
    quiet = replace(given, arrays={**given.arrays, "neuron_gate_peak": np.array([[[5.0, 4], [1, 1], [3, 0]]])})
    assert not torch.allclose(loud.up, run("dern", layer, plan, quiet, iterations=1, alpha=0.6).up)


@pytest.mark.parametrize("kind", KINDS)
def test_dern_above_1_is_a_plain_cut(kind):
    layer = random_layer(kind=kind)
    given, plan = statistics(layer), LayerCut(layer=3, experts=6, keep=(0, 2, 5))
    ours, plain = run("dern", layer, plan, given, alpha=1.01), cut(layer, plan)
    assert ours.per_expert().keys() == plain.per_expert().keys()
    for name, tensor in plain.per_expert().items():
        assert torch.equal(ours.per_expert()[name], tensor), name
    moved = run("dern", layer, plan, given, alpha=-1.0)  # every neuron finds an owner
    assert not torch.equal(moved.up, plain.up)
    extra = moved.router.double() - plain.router.double()
    wanted = layer.router[[1, 3, 4]].double().sum(0)
    np.testing.assert_allclose(extra.sum(0), wanted, atol=1e-5)  # fractions of each dropped row add up to 1


@pytest.mark.parametrize("kind", KINDS)
def test_dern_of_copies_leaves_the_kept_experts_and_adds_the_copies_rows(kind):
    layer = planted(kind, ordered=False)
    given = statistics(layer)
    merged = run("dern", layer, LayerCut(layer=3, experts=6, keep=(0, 1, 2, 3)), given, alpha=0.999)
    for place in range(4):
        wanted = expert_output(layer, place, X)[0]
        np.testing.assert_allclose(expert_output(merged, place, X)[0], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(merged.router[0], layer.router[0] + layer.router[4], rtol=1e-6)
    assert torch.equal(merged.router[2], layer.router[2])
