"""What a compression operator makes of one layer: factors that stand for the experts' projections, and its registry.

Letters in shapes: E experts, I neurons of each, H wide outside, r rank, n rows of text, k slots.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerRows, LayerStatistics
from moeworks.errors import BadPlan, did_you_mean
from moeworks.registry import Registry

if TYPE_CHECKING:
    from moeworks.edit.compress.experts import CompressedExperts

__all__ = [
    "COMPRESSIONS",
    "PROJECTIONS",
    "Compression",
    "Factors",
    "biases",
    "check_options",
    "check_rank",
    "compression",
    "dense",
    "transform",
]

PROJECTIONS = ("gate", "up", "down")

# (layer, its statistics or None, **options) → factors; a pure function, deterministic.
Compression = Callable[..., "Factors"]
COMPRESSIONS: Registry[Compression] = Registry("compression", "moeworks.compressions")


@dataclass(frozen=True, eq=False, kw_only=True)
class Factors:
    """One layer's experts in another form; the router is no part of it.

    Attributes:
        method: the operator, by its registered name.
        layer: global layer number.
        experts, neurons, hidden: E, I, H.
        settings: what the form depends on beside the tensors; plain JSON.
        tensors: by names of the method's own; biases of the experts are carried along as they are.
    """

    method: str
    layer: int
    experts: int
    neurons: int
    hidden: int
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        """Bytes that the factors take in memory and on disk."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def compression(name: str, module: type[CompressedExperts]) -> Callable[[Compression], Compression]:
    """Return the decorator that registers an operator, with the module class that computes with its factors."""

    def enter(function: Compression) -> Compression:
        function.__dict__["module"] = module
        return COMPRESSIONS.register(name)(function)

    return enter


def biases(weights: LayerWeights) -> dict[str, Tensor]:
    """Return the biases of the projections, by field name."""
    return {
        name: tensor for name, tensor in weights.per_expert().items() if name in ("gate_bias", "up_bias", "down_bias")
    }


def check_rank(rank: int, most: int, what: str) -> None:
    """Refuse a rank that is none.

    Raises:
        BadPlan: it is below 0 or above the full rank.
    """
    if not 0 <= rank <= most:
        raise BadPlan(f"{what} {rank} does not exist; full rank is {most}, give 0 to {most}.")


def transform(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None,
    function: Compression,
    options: Mapping[str, Any],
) -> LayerWeights:
    """Cut a layer as the plan says, factorise it, and multiply the factors out again: a layer of the old shape.

    The file gets no smaller; this is for measuring what the compression costs in any engine.

    Raises:
        BadPlan: the plan has groups, or options that the operator does not take.
    """
    from moeworks.edit.transforms import cut

    whole = cut(weights, plan)
    if statistics is not None and whole.experts < weights.experts:
        statistics = _kept_statistics(statistics, plan)
    if options.get("rank", 0) is None:
        options = {name: value for name, value in options.items() if name != "rank"}
    check_options(function, options)
    return dense(function(whole, statistics, **options), whole)


def check_options(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that an operator does not take, and say which it needs.

    Raises:
        BadPlan: an option is unknown, or one without a default is missing.
    """
    known = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    unknown = [name for name in options if name not in known]
    missing = [name for name, default in known.items() if default is inspect.Parameter.empty and name not in options]
    problems = [f"it has no option '{name}'; {did_you_mean(name, known)}" for name in unknown]
    problems += [f"it needs the option '{name}'" for name in missing]
    if problems:
        raise BadPlan(f"{function.__name__}: {'; '.join(problems)}")


def dense(factors: Factors, weights: LayerWeights) -> LayerWeights:
    """Return the layer with the factors multiplied out, in the dtype that it had.

    Raises:
        Unsupported: the operator has no such form.
    """
    from moeworks.edit.compress.experts import module_of

    rebuilt = module_of(factors, weights.activation).dense()
    kind = weights.up.dtype
    changed: dict[str, Any] = {name: tensor.to(kind) for name, tensor in rebuilt.items()}
    return replace(weights, **changed)


def _kept_statistics(statistics: LayerStatistics, plan: LayerCut) -> LayerStatistics:
    """Return counts and rows with experts numbered as after the cut; slots of dropped ones have weight 0."""
    kept = list(plan.keep)
    place = np.full(plan.experts, len(kept), dtype=np.int64)  # an id beyond the experts runs nothing
    place[kept] = np.arange(len(kept))

    def read() -> LayerRows:
        rows = statistics.rows()
        ids = place[rows.ids.astype(np.int64)]
        weights = np.where(ids < len(kept), rows.weights, 0)
        return rows._replace(ids=ids, weights=weights, logits=rows.logits[:, kept])

    counts = {"count": statistics.arrays["count"][:, kept]}
    return replace(statistics, arrays=counts, sets=None, load_rows=None if statistics.load_rows is None else read)
