"""Makes an edit plan: scores by a named method, counts by a named budget, rules checked, every layer in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from moeworks import __version__
from moeworks.address import Address
from moeworks.artefact import Header, LayerShape, ModelIdentity
from moeworks.edit.budgets import BUDGETS, Constraints
from moeworks.edit.cutting import (
    Weights,
    Work,
    check_labels,
    check_rescaled,
    cut_experts,
    cut_neurons_of,
    draws,
    kind_of,
    method_function,
    method_names,
)
from moeworks.edit.plan import FORMAT, VERSION, EditPlan
from moeworks.edit.scores import needs_of, super_experts_of
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData, BadPlan, did_you_mean
from moeworks.plan.protected import Protect, protection

__all__ = ["StatisticsLike", "Weights", "kind_of", "method_function", "method_names", "plan_edit"]


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
    if not chosen and "weights" not in needs_of(method_function(method)):
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
    work = Work(chosen, shapes, weights, dict(options), keep, seed)
    asked = {**dict(budget_options or {})}
    check_labels(kind, method, named, BUDGETS.options(budget) if budget != "adaptive" else ())
    if kind == "neurons":
        if budget != "uniform":
            raise BadPlan("scores of neurons keep all experts; widths=joint or global shares neurons out unevenly.")
        cuts, made = cut_neurons_of(work, method, named, multiple_of)
    else:
        call = {name: value for name, value in (("label", label), ("against", against)) if value is not None}
        takes = BUDGETS.options(budget) if budget != "adaptive" else {}
        asked = {**{name: value for name, value in call.items() if name in takes}, **asked}
        unknown = sorted(set(asked) - set(takes))
        if unknown and budget != "adaptive":
            raise BadPlan(f"the budget '{budget}' has no option '{unknown[0]}'; {did_you_mean(unknown[0], takes)}")
        cuts, made = cut_experts(work, kind, method, named, budget, asked, constraints)
    if transform is not None or transform_options:
        from moeworks.edit.transforms import strange_options  # torch, which a plan without them does not need

        strange = strange_options(transform or made, transform_options or ())
        if strange:
            raise BadPlan(strange)
    if transform == "cut_rescaled":
        check_rescaled(shapes, made)
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
        options={**told, **options, **({"seed": seed} if draws(method) else {})},
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
