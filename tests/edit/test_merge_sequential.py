"""Layers merged in order, later ones seeing the merged earlier ones, decided as a plan."""

from dataclasses import replace

import pytest
import torch

from helpers.merging import random_layer, statistics
from moeworks.artefact import Header
from moeworks.edit.merge import sequential_change
from moeworks.edit.transforms import TRANSFORMS
from moeworks.errors import BadPlan, MoeworksError

HEADER = Header(format="moeworks.edit", version=1, moeworks="0")


@pytest.mark.parametrize("method", ["ream", "m_smoe", "dern"])
def test_layers_in_order_with_what_was_decided_as_a_plan(method):
    change = sequential_change(method, {3: 4, 7: 2})
    with pytest.raises(BadPlan, match="no layer was grouped"):
        change.plan(HEADER)
    layers = {n: replace(random_layer(seed=n), layer=n) for n in (3, 7)}
    merged = {}
    for number, layer in layers.items():
        merged[number] = change(statistics(layer), layer)
    plan = change.plan(HEADER, statistics="abc")
    assert (plan.counts, plan.keep, plan.method, plan.statistics) == ((4, 2), 0.5, method, "abc")
    assert plan.options["sequential"] is True
    for layer_cut in plan.layers:  # the plan with the same statistics gives the same weights
        layer = layers[layer_cut.layer]
        again = TRANSFORMS.get(plan.transform)(layer, layer_cut, statistics(layer), **plan.transform_options)
        for name, tensor in again.per_expert().items():
            assert torch.equal(tensor, merged[layer_cut.layer].per_expert()[name])
    with pytest.raises(BadPlan, match="not said how many"):
        change(replace(statistics(layers[3]), layer=5), replace(layers[3], layer=5))


def test_sequential_choices():
    layer = random_layer()
    change = sequential_change("m_smoe", 2, layout="copies", transform="mean", similarity="rows")
    assert change(statistics(layer), layer).experts == 6
    assert (change.plan(HEADER).transform, change.plan(HEADER).options["similarity"]) == ("mean", "rows")
    with pytest.raises(BadPlan, match="'rows' or 'copies'"):
        sequential_change("m_smoe", 2, layout="both")
    for wrong in ({"method": "ram"}, {"method": "ream", "transform": "rem"}):
        with pytest.raises(MoeworksError, match="is called"):
            sequential_change(**wrong, kept=2)
