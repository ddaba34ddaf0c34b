"""Makes an edit plan: scores by a named method, counts by a named budget, rules checked, every layer in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from moeworks import __version__
from moeworks.address import Address
from moeworks.artefact import Header, LayerShape, ModelIdentity
from moeworks.edit.budgets import BUDGETS, Constraints, expert_groups, target
from moeworks.edit.neuron_cut import cut_neurons
from moeworks.edit.plan import FORMAT, VERSION, EditPlan, LayerCut
from moeworks.edit.ranking import first_of, rank
from moeworks.edit.scores import EDIT_SCORES, NEURON_SCORES, SEARCHES, mixed, needs_of, super_experts_of
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData, BadPlan, did_you_mean
from moeworks.plan.protected import Protect, protection
from moeworks.registry import Registry

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = ["StatisticsLike", "Weights", "kind_of", "method_function", "method_names", "plan_edit"]

Array = NDArray[Any]
Kind = Literal["score", "neurons", "search", "grouping"]


class StatisticsLike(Protocol):
    """What a folder of statistics shows: `Statistics` of `moeworks.edit.statistics_file`."""

    @property
    def header(self) -> Any:
        """The header, with model, hash and hash of the texts."""

    @property
    def layers(self) -> Sequence[int]:
        """Global numbers of the layers."""

    def layer(self, number: int) -> LayerStatistics:
        """Return the statistics of one layer."""


class _ReadsLayers(Protocol):
    def read_layer(self, layer: int) -> LayerWeights: ...


Weights = Callable[[int], "LayerWeights"] | Mapping[int, "LayerWeights"] | _ReadsLayers


@dataclass(frozen=True)
class _Given:
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


def plan_edit(
    statistics: StatisticsLike | Sequence[LayerStatistics] | None,
    *,
    method: str = "reap",
    keep: float = 0.75,
    budget: str = "uniform",
    protect: Protect = "super",
    label: str | None = None,
    against: str | None = None,
    domains: Sequence[str] = (),
    mix: Literal["sum", "l2", "max"] | None = None,
    multiple_of: int = 1,
    expert_parallel: int = 1,
    equal_groups: bool = True,
    uneven: bool = False,
    layers: Sequence[int] | None = None,
    weights: Weights | None = None,
    identity: ModelIdentity | None = None,
    transform: str | None = None,
    extra_layers: Literal["same", "drop"] = "same",
    seed: int = 0,
    budget_options: Mapping[str, Any] | None = None,
    transform_options: Mapping[str, Any] | None = None,
    command: str = "",
    **options: Any,
) -> EditPlan:
    """Return the plan that keeps a share of a model's experts, or of their neurons, by a named method.

    Methods are scores (`EDIT_SCORES`), searches of sets (`SEARCHES`), scores of neurons (`NEURON_SCORES`, which keep
    all experts) and groupings that merge (`GROUPINGS`). No model runs; some methods read weights and kept rows. Layers
    that take experts from token ids are left whole. Each layer has its `order`, so that `recut` gives the same plan at
    another share, nested.

    Args:
        statistics: a folder opened with `Statistics.open`, or the layers themselves; None for methods without text.
        method: name of the method.
        keep: share that stays; int(E × (1 - keep)) experts go from each layer.
        budget: how experts are shared out over layers, by its registered name; `adaptive` is a grouping's own way.
        protect: `super` for the super experts that are known of the model, or else those that stand out in the
            statistics; `none`; or addresses.
        label, against: values of the statistics' label, for methods and budgets that look at one or compare two.
        domains: values of the label whose scores are normalised in each layer and joined.
        mix: how: `sum`, `l2` or `max`; the method's own way if not said.
        multiple_of, expert_parallel: every count is a multiple of them; with scores of neurons, the width.
        equal_groups: whether groups of group-limited routers keep equally many; without it the result is refused by
            stock models without a word.
        uneven: allow layers with different numbers of experts, which stock checkpoints cannot hold.
        layers: cut these alone.
        weights: for methods that read them: a checkpoint, a mapping or a function from layer to `LayerWeights`.
        identity: the model, where the statistics do not say.
        transform: how layers are made, if not in the method's own way: `cut_rescaled` for softmax routers that do not
            renormalise, whose weights grow when experts are deleted.
        extra_layers: what becomes of layers for multi-token prediction.
        seed: of everything drawn.
        budget_options: of the budget.
        transform_options: of the transform that makes merged layers.
        command: how it was made, for the header.
        options: of the method; for scores of neurons also `widths` and `whole` of `cut_neurons`.

    Raises:
        BadPlan: a rule is broken, a name is unknown; all problems are named at once.
        BadData: statistics or weights that are needed are missing, or not of one model.
    """
    given, model, hashes = _read(statistics, identity)
    kind = kind_of(method)
    shapes, whole = _shares(model, given, layers)
    chosen = [layer for layer in given if layer.layer in {shape.layer for shape in shapes}]
    if not chosen and "weights" not in needs_of(_function(kind, method)):
        raise BadData(f"'{method}' reads statistics; collect them with: moeworks edit score MODEL DATA -o FOLDER.")
    guarded, why = _protected(model, protect, given)
    constraints = Constraints(
        shapes=tuple(shapes),
        protected=guarded,
        multiple_of=1 if kind == "neurons" else multiple_of,
        expert_parallel=expert_parallel,
        equal_groups=equal_groups,
        uneven=uneven,
        whole=tuple(whole) if kind != "neurons" else (),
    )
    named = {"label": label, "against": against, "domains": tuple(domains), "mix": mix}
    work = _Given(chosen, shapes, weights, dict(options), keep, seed)
    asked = {**dict(budget_options or {})}
    if kind == "neurons":
        if budget != "uniform":
            raise BadPlan("scores of neurons keep all experts; widths=joint or global shares neurons out unevenly.")
        cuts, made = _neurons(work, method, named, multiple_of)
    else:
        call = {name: value for name, value in (("label", label), ("against", against)) if value is not None}
        takes = BUDGETS.options(budget) if budget != "adaptive" else {}
        asked = {**{name: value for name, value in call.items() if name in takes}, **asked}
        unknown = sorted(set(asked) - set(takes))
        if unknown and budget != "adaptive":
            raise BadPlan(f"the budget '{budget}' has no option '{unknown[0]}'; {did_you_mean(unknown[0], takes)}")
        cuts, made = _experts(work, kind, method, named, budget, asked, constraints)
    if transform == "cut_rescaled":
        _check_rescaled(shapes, made)
    rules: dict[str, Any] = {
        name: value
        for name, value, usual in (
            ("multiple_of", multiple_of, 1),
            ("expert_parallel", expert_parallel, 1),
            ("equal_groups", equal_groups, True),
            ("uneven", uneven, False),
        )
        if value != usual
    }
    told = {name: list(value) if isinstance(value, tuple) else value for name, value in named.items() if value}
    return EditPlan(
        method=method,
        options={**told, **options, **({"seed": seed} if _draws(kind, method) else {})},
        budget=budget,
        budget_options={**asked, **rules},
        keep=keep,
        transform=transform or made,
        transform_options=dict(transform_options or {}),
        extra_layers=extra_layers,
        protected=guarded,
        layers=tuple(cuts),
        statistics=hashes[0],
        description=f"Protected experts: {why}.",
        header=Header(
            format=FORMAT,
            version=VERSION,
            moeworks=__version__,
            model=model,
            command=command,
            seed=seed,
            text_hash=hashes[1],
        ),
    )


def _read(
    statistics: StatisticsLike | Sequence[LayerStatistics] | None, identity: ModelIdentity | None
) -> tuple[list[LayerStatistics], ModelIdentity, tuple[str, str]]:
    """Return the layers' statistics, the model, and the hashes of statistics and texts."""
    hashes = ("", "")
    if statistics is None:
        given: list[LayerStatistics] = []
    elif isinstance(statistics, Sequence):
        given = list(statistics)
    else:
        header = statistics.header
        given = [statistics.layer(number) for number in statistics.layers]
        hashes = (str(getattr(header, "hash", "")), str(getattr(header, "text_hash", "")))
        if identity is not None and header.model is not None and header.model.weight_hash != identity.weight_hash:
            raise BadData(f"these statistics are of {header.model.name}, and the model is {identity.name}.")
        identity = header.model or identity
    if identity is None:
        raise BadData("the statistics do not say which model they are of; give its identity.")
    return given, identity, hashes


def _shares(
    model: ModelIdentity, given: Sequence[LayerStatistics], layers: Sequence[int] | None
) -> tuple[list[LayerShape], list[LayerShape]]:
    """Return the routers that are cut, and those that stay whole."""
    known = {layer.layer: layer for layer in given}
    problems = [f"Layer {n} has no router." for n in layers or () if n not in {shape.layer for shape in model.layers}]
    problems += [f"The statistics name layer {n}, which has no router." for n in known if n not in _numbers(model)]
    cut, whole = [], []
    for shape in model.layers:
        hashed = shape.contract is not None and shape.contract.hashed
        if hashed or (layers is not None and shape.layer not in layers) or (given and shape.layer not in known):
            whole.append(shape)
            if hashed and layers is not None and shape.layer in layers:
                problems.append(f"Layer {shape.layer} takes its experts from token ids and cannot be cut.")
            continue
        if given and known[shape.layer].experts != shape.experts:
            problems.append(
                f"Layer {shape.layer} has {shape.experts} experts, and the statistics {known[shape.layer].experts}."
            )
        cut.append(shape)
    if problems:
        raise BadData(f"these statistics do not fit {model.name}: {' '.join(problems)}")
    if not cut:
        raise BadPlan(f"{model.name} has no layer that can be cut.")
    return cut, whole


def _numbers(model: ModelIdentity) -> set[int]:
    return {shape.layer for shape in model.layers}


def _protected(
    model: ModelIdentity, protect: Protect, given: Sequence[LayerStatistics]
) -> tuple[tuple[Address, ...], str]:
    found, why = protection(model, protect)
    if protect == "super" and why == "super experts: not measured" and given and "peak" in given[0].arrays:
        found = super_experts_of(given)
        why = f"super experts by these statistics: {', '.join(map(str, found)) or 'none'}"
    return tuple(dict.fromkeys(found)), why


def _function(kind: Kind, method: str) -> Callable[..., Any]:
    function: Callable[..., Any] = _registry(kind).get(method)
    return function


def _registry(kind: Kind) -> Registry[Any]:
    own: dict[str, Registry[Any]] = {"score": EDIT_SCORES, "neurons": NEURON_SCORES, "search": SEARCHES}
    return own[kind] if kind in own else _groupings()


def _draws(kind: Kind, method: str) -> bool:
    return "seed" in _registry(kind).options(method)


def scores_of(work: _Given, method: str, named: Mapping[str, Any]) -> Any:
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
        elif named[name] is not None and name == "label":
            problems.append(f"'{method}' does not tell labels apart.")
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


def _experts(
    work: _Given,
    kind: Kind,
    method: str,
    named: Mapping[str, Any],
    budget: str,
    budget_options: Mapping[str, Any],
    constraints: Constraints,
) -> tuple[list[LayerCut], str]:
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
    work: _Given,
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


def _grouped(work: _Given, method: str, place: int, count: int, protected: frozenset[int]) -> tuple[LayerCut, str]:
    from moeworks.edit.merge import group_layer

    function, statistics = _groupings().get(method), work.statistics[place]
    weights = work.layer(statistics.layer) if work.weights is not None else None
    grouping = group_layer(
        method, statistics, count, weights=weights, seed=work.seed, protected=protected, **work.options
    )
    return grouping.cut(statistics.layer, statistics.experts), str(function.__dict__["transform"])


def _check_rescaled(shapes: Sequence[LayerShape], made: str) -> None:
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


def _neurons(work: _Given, method: str, named: Mapping[str, Any], multiple_of: int) -> tuple[list[LayerCut], str]:
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
