"""What methods and budgets there are, what each needs, and what share of routing a plan takes away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from moeworks.edit.budgets import BUDGETS
from moeworks.edit.plan import EditPlan
from moeworks.edit.planning import StatisticsLike, kind_of, method_function, method_names
from moeworks.edit.scores import needs_of, summary_of
from moeworks.edit.statistics import LayerStatistics

__all__ = ["MethodEntry", "list_budgets", "list_methods", "lost_mass", "needs_of_method"]


class MethodEntry(NamedTuple):
    """One method that a plan can be made by."""

    name: str
    kind: str
    needs: str
    what: str


def needs_of_method(name: str) -> frozenset[str]:
    """Return what a method has to be given: groups of statistics, `sets`, `rows`, `weights`, `contract`.

    Raises:
        BadPlan: there is no such method.
    """
    kind = kind_of(name)
    function = method_function(name)
    if kind != "grouping":
        return frozenset(needs_of(function))
    collect: tuple[str, ...] = function.__dict__.get("collect", ())
    weights = ("weights",) if function.__dict__.get("needs_weights") else ()
    return frozenset((*collect, *weights))


def list_methods() -> list[MethodEntry]:
    """Return every registered method with its first sentence, scores first."""
    kinds = method_names()
    order = list(dict.fromkeys(kinds.values()))
    return [
        MethodEntry(
            name,
            kind,
            ", ".join(sorted(needs_of_method(name) - {"contract"})) or "-",
            summary_of(method_function(name)),
        )
        for name, kind in sorted(kinds.items(), key=lambda pair: (order.index(pair[1]), pair[0]))
    ]


def list_budgets() -> dict[str, str]:
    """Return every registered budget with its first sentence."""
    own = {"adaptive": "A grouping's own way to share groups out over layers (M-SMoE); uneven"}
    return {name: summary_of(BUDGETS.get(name)) for name in BUDGETS.names()} | own


def lost_mass(plan: EditPlan, statistics: StatisticsLike | Sequence[LayerStatistics]) -> dict[int, float]:
    """Return for each layer the share of all combine weights that the experts that are not kept had."""
    layers = list(statistics) if isinstance(statistics, Sequence) else [statistics.layer(n) for n in statistics.layers]
    found = {layer.layer: layer.get("gate").astype(float) for layer in layers}
    lost = {}
    for cut in plan.layers:
        if cut.layer in found and found[cut.layer].sum() > 0:
            mass = found[cut.layer]
            lost[cut.layer] = float(1 - mass[list(cut.keep)].sum() / mass.sum())
    return lost
