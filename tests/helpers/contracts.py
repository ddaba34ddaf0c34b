"""One contract of each kind of router, with values of a layer, for tests that compare masking with deleting."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.contract import Contract

Array = NDArray[Any]


class Case(NamedTuple):
    """A rule, and the values that go with it."""

    contract: Contract
    bias: Array | None = None
    expert_scale: Array | None = None


_BIAS = np.array([0.4, -0.3, 0.1, -0.5, 0.2, 0.6, -0.1, 0.0])
_SCALE = np.array([1.0, 0.5, 2.0, 1.5, 0.7, 1.1, 0.9, 3.0])


def _rule(**fields: Any) -> Contract:
    return Contract(experts=8, top_k=fields.pop("top_k", 2), **fields)


CASES: dict[str, Case] = {
    "softmax renormalised": Case(_rule(renormalise=True)),
    "softmax not renormalised": Case(_rule()),
    "softmax with bias (ERNIE)": Case(_rule(bias=True, renormalise=True), _BIAS),
    "softmax with floor": Case(_rule(renormalise=True, floor=0.7)),
    "top-k first (gpt-oss)": Case(_rule(order="top_k_first")),
    "sigmoid with bias, groups, scale": Case(
        _rule(score="sigmoid", bias=True, renormalise=True, groups=2, groups_kept=1, epsilon=1e-20, scale=2.5), _BIAS
    ),
    "softmax, groups by maximum, zero fill": Case(
        _rule(groups=2, groups_kept=1, group_score="max", group_fill="zero", scale=16.0)
    ),
    "sigmoid, zero fill below which open experts are": Case(
        _rule(score="sigmoid", bias=True, groups=2, groups_kept=1, group_fill="zero", renormalise=True), _BIAS - 0.6
    ),
    "square root of softplus": Case(_rule(score="sqrt_softplus", bias=True, renormalise=True, scale=1.5), _BIAS),
    "identity": Case(_rule(score="identity", top_k=1)),
    "expert scale (Gemma 4)": Case(_rule(renormalise=True, expert_scale=True), None, _SCALE),
    "norm of order 2 (DBRX)": Case(_rule(renormalise=True, norm_order=2.0)),
    "sparsemixer": Case(_rule(score="sparsemixer", order="top_k_first", jitter=0.3)),
}


def sliced(case: Case, keep: list[int]) -> Case:
    """Return the rule of the layer with these experts alone: what a checkpoint with fewer rows has."""
    import dataclasses

    rule = dataclasses.replace(case.contract, experts=len(keep))
    bias, scale = (None if v is None else v[keep] for v in (case.bias, case.expert_scale))
    return Case(rule, bias, scale)
