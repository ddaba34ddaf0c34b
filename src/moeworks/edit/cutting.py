"""Runs a method of any kind, and returns what becomes of every layer: one way in for scores, searches and groupings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from moeworks.artefact import LayerShape
from moeworks.edit.budgets import BUDGETS, Constraints, expert_groups, target
from moeworks.edit.neuron_cut import cut_neurons
from moeworks.edit.plan import LayerCut
from moeworks.edit.ranking import first_of, rank
from moeworks.edit.scores import EDIT_SCORES, NEURON_SCORES, SEARCHES, mixed
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData, BadPlan, did_you_mean
from moeworks.registry import Registry

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = [
    "Kind",
    "Weights",
    "Work",
    "check_labels",
    "check_rescaled",
    "cut_experts",
    "cut_neurons_of",
    "draws",
    "kind_of",
    "method_function",
    "method_names",
    "scores_of",
]

Array = NDArray[Any]
Kind = Literal["score", "neurons", "search", "grouping"]


class _ReadsLayers(Protocol):
    def read_layer(self, layer: int) -> LayerWeights: ...


Weights = Callable[[int], "LayerWeights"] | Mapping[int, "LayerWeights"] | _ReadsLayers


@dataclass(frozen=True)
class Work:
    """What methods are called with."""

    statistics: list[LayerStatistics]
    shapes: list[LayerShape]
    weights: Weights | None
    options: dict[str, Any]
    keep: float
    seed: int

    def layers(self) -> Iterator[LayerWeights]:
        """Read the weights of the layers one by one."""
        for shape in self.shapes:
            yield self.layer(shape.layer)

    def layer(self, number: int) -> LayerWeights:
        """Read the weights of one layer."""
        if self.weights is None:
            raise BadData("this method reads weights; give it the model too (--model).")
        if isinstance(self.weights, Mapping):
            return self.weights[number]
        read: Any = getattr(self.weights, "read_layer", self.weights)
        found: LayerWeights = read(number)
        return found


def _groupings() -> Registry[Any]:
    from moeworks.edit.merge import GROUPINGS

    return GROUPINGS


def method_names() -> dict[str, Kind]:
    """Return every method that a plan can be made by, with its kind."""
    kinds: list[tuple[Kind, Registry[Any]]] = [
        ("score", EDIT_SCORES),
        ("neurons", NEURON_SCORES),
        ("search", SEARCHES),
        ("grouping", _groupings()),
    ]
    return {name: kind for kind, registry in kinds for name in registry.names()}


def kind_of(method: str) -> Kind:
    """Return what kind of method a name stands for.

    Raises:
        BadPlan: there is none of this name.
    """
    own: dict[Kind, Registry[Any]] = {"score": EDIT_SCORES, "neurons": NEURON_SCORES, "search": SEARCHES}
    for kind, registry in own.items():
        if method in registry.names():
            return kind
    names = method_names()
    if method not in names:
        raise BadPlan(f"no method is called '{method}'; {did_you_mean(method, names)}")
    return names[method]


def method_function(method: str) -> Callable[..., Any]:
    """Return the registered function of a method of any kind.

    Raises:
        BadPlan: there is none of this name.
    """
    return _function(kind_of(method), method)


def _function(kind: Kind, method: str) -> Callable[..., Any]:
    function: Callable[..., Any] = _registry(kind).get(method)
    return function


def _registry(kind: Kind) -> Registry[Any]:
    own: dict[str, Registry[Any]] = {"score": EDIT_SCORES, "neurons": NEURON_SCORES, "search": SEARCHES}
    return own[kind] if kind in own else _groupings()


def draws(method: str) -> bool:
    """Return whether a method draws at random, so that its seed belongs to the plan."""
    return "seed" in _registry(kind_of(method)).options(method)


def check_labels(kind: Kind, method: str, named: Mapping[str, Any], budget_takes: Collection[str]) -> None:
    """Refuse values of the label that neither the method nor the budget would look at."""
    takes = _registry(kind).options(method)
    unread = [
        name
        for name, value in named.items()
        if value and not (name in takes or name in budget_takes or (name in ("domains", "mix") and "label" in takes))
    ]
    if named["mix"] and not named["domains"]:
        unread.append("mix")
    if unread:
        raise BadPlan(f"'{method}' and its budget do not look at {' and '.join(dict.fromkeys(unread))}; leave it out.")


def scores_of(work: Work, method: str, named: Mapping[str, Any]) -> Any:
    """Return the scores of a method of kind score, (L, E), or neurons, for each layer (E, I)."""
    kind = kind_of(method)
    registry: Registry[Any] = EDIT_SCORES if kind == "score" else NEURON_SCORES
    function, takes = registry.get(method), registry.options(method)
    call = dict(work.options)
    unknown = sorted(set(call) - set(takes)) if method != "difference" else []
    problems = [f"'{method}' has no option '{name}'; {did_you_mean(name, takes)}" for name in unknown]
    for name in ("label", "against"):
        if named[name] is not None and name in takes:
            call[name] = named[name]
    if named["domains"] and ("label" not in takes or named["label"] is not None or kind != "score"):
        problems.append(f"'{method}' cannot mix domains here; name domains or one label, of a score that takes one.")
    if problems:
        raise BadPlan(" ".join(problems))
    if "seed" in takes:
        call["seed"] = work.seed
    if "shapes" in takes:
        call["shapes"] = work.shapes

    def run(**more: Any) -> Any:
        weights = {"layers": work.layers()} if "layers" in takes else {}
        return function(work.statistics, **call, **weights, **more)

    if not named["domains"]:
        return run()
    mix = named["mix"] or function.__dict__.get("mix", "sum")
    return mixed(lambda domain: run(label=domain), named["domains"], mix=mix)


def cut_experts(
    work: Work,
    kind: Kind,
    method: str,
    named: Mapping[str, Any],
    budget: str,
    budget_options: Mapping[str, Any],
    constraints: Constraints,
) -> tuple[list[LayerCut], str]:
    """Return the cuts of all layers by a score, a search or a grouping, and the transform that makes them."""
    scores = scores_of(work, method, named) if kind == "score" else None
    counts = _counts(work, kind, method, scores, budget, budget_options, constraints)
    constraints.check(counts.tolist())
    cuts, transform = [], "cut"
    for place, (shape, count) in enumerate(zip(work.shapes, counts.tolist(), strict=True)):
        protected = constraints.protected_in(shape.layer)
        groups = expert_groups(shape) if constraints.equal_groups else 1
        if kind == "score":
            assert scores is not None
            order = rank(scores[place], protected=protected, groups=groups)
            cuts.append(LayerCut(layer=shape.layer, experts=shape.experts, keep=first_of(order, count), order=order))
        elif kind == "search":
            kept = SEARCHES.get(method)(
                work.statistics[place],
                count,
                weights=work.layer(shape.layer),
                shape=shape,
                protected=protected,
                **_known(SEARCHES, method, work.options),
            )
            cuts.append(LayerCut(layer=shape.layer, experts=shape.experts, keep=kept.keep, order=kept.order))
        else:
            made, transform = _grouped(work, method, place, count, protected)
            cuts.append(made)
    _check_groups(cuts, constraints)
    return cuts, transform


def _counts(
    work: Work,
    kind: Kind,
    method: str,
    scores: Array | None,
    budget: str,
    budget_options: Mapping[str, Any],
    constraints: Constraints,
) -> Array:
    if budget == "adaptive":
        own = _function(kind, method).__dict__.get("layer_counts")
        if own is None:
            raise BadPlan(f"'{method}' has no way of its own to share out experts over layers; name another budget.")
        least = max(constraints.floors())
        return np.array(own(work.statistics, target(constraints, work.keep), at_least=least), np.int64)
    function = BUDGETS.get(budget)
    if scores is None and function.__dict__.get("needs_scores"):
        raise BadPlan(f"the budget '{budget}' shares out by scores, and '{method}' gives none; name another budget.")
    return np.asarray(function(scores, work.keep, constraints, statistics=work.statistics, **budget_options))


def _grouped(work: Work, method: str, place: int, count: int, protected: frozenset[int]) -> tuple[LayerCut, str]:
    from moeworks.edit.merge import group_layer

    function, statistics = _groupings().get(method), work.statistics[place]
    weights = work.layer(statistics.layer) if work.weights is not None else None
    grouping = group_layer(
        method, statistics, count, weights=weights, seed=work.seed, protected=protected, **work.options
    )
    return grouping.cut(statistics.layer, statistics.experts), str(function.__dict__["transform"])


def check_rescaled(shapes: Sequence[LayerShape], made: str) -> None:
    """Refuse to scale experts back where deletion does not inflate their weights."""
    wrong = []
    for shape in shapes:
        rule = shape.contract
        if rule is None or rule.score != "softmax" or rule.order != "score_first" or rule.renormalise:
            wrong.append(str(shape.layer))
    if wrong or made != "cut":
        raise BadPlan(
            "the transform 'cut_rescaled' is for plain cuts of softmax routers that do not renormalise"
            + (f", unlike layers {', '.join(wrong)}." if wrong else ".")
        )


def _check_groups(cuts: Sequence[LayerCut], constraints: Constraints) -> None:
    """Refuse layers of group-limited routers that keep unequal numbers, whatever the method made of them."""
    if not constraints.equal_groups:
        return
    uneven = []
    for cut, shape in zip(cuts, constraints.shapes, strict=True):
        groups = expert_groups(shape)
        held = np.bincount(np.array(cut.keep) // (shape.experts // groups), minlength=groups)
        if len(set(held.tolist())) > 1:
            uneven.append(f"Layer {shape.layer} would keep {', '.join(map(str, held))} experts of its groups.")
    if uneven:
        raise BadPlan(f"groups have to keep equally many, and this method does not do so: {' '.join(uneven)}")


def _known(registry: Registry[Any], method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    takes = [name for name in registry.options(method) if name not in ("weights", "shape", "protected")]
    unknown = sorted(set(options) - set(takes))
    if unknown:
        raise BadPlan(f"'{method}' has no option '{unknown[0]}'; {did_you_mean(unknown[0], takes)}")
    return dict(options)


def cut_neurons_of(work: Work, method: str, named: Mapping[str, Any], multiple_of: int) -> tuple[list[LayerCut], str]:
    """Return the cuts of all layers by a score of neurons, and the transform that makes them."""
    how: dict[str, Any] = {name: work.options.pop(name) for name in ("widths", "whole") if name in work.options}
    scores = scores_of(work, method, named)
    experts = None
    if how.get("widths") == "important":
        experts = EDIT_SCORES.get("tenp")(work.statistics, label=named["label"])
    cut = cut_neurons(scores, work.keep, multiple_of=multiple_of, expert_scores=experts, **how)
    work.options.update(how)
    cuts = [
        LayerCut(layer=shape.layer, experts=shape.experts, keep=tuple(range(shape.experts)), neurons=neurons)
        for shape, neurons in zip(work.shapes, cut.neurons, strict=True)
    ]
    return cuts, cut.transform
