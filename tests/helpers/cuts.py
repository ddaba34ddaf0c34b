"""Statistics, routers and models written by hand for tests of scores, budgets and edit plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.artefact import LayerShape, ModelIdentity
from moeworks.contract import Contract
from moeworks.edit.statistics import LayerStatistics

Array = NDArray[Any]


def layer_of(
    layer: int = 0,
    *,
    labels: Sequence[str] = ("all",),
    tokens: Sequence[int] = (10,),
    sets: tuple[Array, Array] | None = None,
    load_rows: Any = None,
    **arrays: Any,
) -> LayerStatistics:
    """Return statistics of one layer; an array without the label's dimension is that of one label."""
    found: dict[str, Array] = {}
    for name, given in arrays.items():
        array = np.asarray(given, np.float64)
        found[name] = array if len(labels) > 1 else array[None]
    if "count" not in found:
        some = next(iter(found.values())) if found else np.zeros((1, len(sets[0][0]) + 1 if sets else 1))
        found["count"] = np.ones(some.shape[:2])
    return LayerStatistics(
        layer=layer, tokens=np.asarray(tokens), labels=tuple(labels), arrays=found, sets=sets, load_rows=load_rows
    )


def shape_of(layer: int = 0, experts: int = 8, top_k: int = 2, neurons: int | None = None, **rule: Any) -> LayerShape:
    """Return a router's shape with the contract made of `rule`."""
    contract = Contract(experts=experts, top_k=top_k, **rule)
    return LayerShape(layer=layer, experts=experts, top_k=top_k, contract=contract, neurons=neurons)


def model_of(*shapes: LayerShape, weight_hash: str = "hash-of-weights", name: str = "tiny") -> ModelIdentity:
    """Return the identity of a model with these routers."""
    return ModelIdentity(
        name=name, family="test", weight_hash=weight_hash, tokenizer_hash="hash-of-tokenizer", layers=shapes
    )
