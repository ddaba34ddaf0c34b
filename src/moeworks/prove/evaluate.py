"""Proof of a plan: effect on held-out items, random experts beside it, dose curve, damage, re-trace, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from moeworks.engines.progress import Progress, Show
from moeworks.errors import BadData, BadPlan, Unsupported
from moeworks.plan import Plan, bottom_of, check, matched_random, plan_hash
from moeworks.plan.clauses import listed, narrowed, units
from moeworks.plan.evidence import Control, Dose, Evidence, Interval
from moeworks.plan.schema import Add, Neurons, Operation, Promote, Scale
from moeworks.probes import neutral_texts
from moeworks.probes.check import side_of
from moeworks.prove.damage import Neutral
from moeworks.prove.doses import amounts_of, at_amount, listed_experts
from moeworks.prove.mechanism import check_mechanism
from moeworks.prove.metrics import PHASES_OF_METRIC, measure
from moeworks.prove.resample import FEWEST_DOCUMENTS, LEVEL, Resamples, document_numbers
from moeworks.prove.verdict import Limits, judge

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.examples import Example
    from moeworks.find import Scores
    from moeworks.probes import Item, Probe

__all__ = ["DOSES", "Bench", "evaluate", "expected_direction"]

Array = NDArray[np.float64]
DOSES = (0.25, 0.5, 1.0, 2.0)  # of the plan's number of experts
DOSE_CONTROLS = 2  # random plans at each dose but the plan's own, where all of them are used
TRIES = 20  # draws for each random plan that is to differ from the others
RETRACED = 16  # texts that are recorded again


def evaluate(
    engine: Engine,
    plan: Plan,
    probe: Probe,
    *,
    split: Literal["held_out", "dev"] = "held_out",
    controls: int = 5,
    doses: Sequence[float] = DOSES,
    neutral: Sequence[Example] | None = None,
    scores: Scores | None = None,
    expected: Literal["up", "down"] | None = None,
    limits: Limits = Limits(),
    bootstrap: int = 1000,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Show = False,
) -> Evidence:
    """Measure what a plan does and compare it with the same operations on random experts.

    The effect is the metric under the plan minus the metric without it, item by item. Intervals are percentiles of a
    bootstrap over documents (for the excess also over the random plans).

    Args:
        engine: the model.
        plan: what is to be proved.
        probe: its metric, and its items of `split`.
        split: report `held_out` only; whatever was chosen must have been chosen on `dev`.
        controls: random plans, layer- and count-matched.
        doses: shares of the plan's number of experts, in rank order; those above 1 need `scores`.
        neutral: texts with labels `lang` and `domain` to measure damage on; by default the built-in ones of the split.
        scores: those the plan was made of, for the bottom of the ranking and doses above 1.
        expected: where the metric should go; by default the probe's word, turned round for a plan that turns
            the behaviour up.
        limits: how much damage is too much.
        bootstrap: samples.
        limit: take the first items only.
        batch_size: texts a forward pass.
        seed: of random experts and of the bootstrap.
        progress: show a bar on standard error, or a function that is told how much of how much is done.

    Raises:
        BadPlan: the plan does not fit the model.
        BadData: there are too few items or documents, or the metric is not a number.
        Unsupported: the metric runs no token that the plan applies to.
    """
    check(plan, engine.identity)
    if not plan.operations:
        raise BadPlan("the plan is empty: there is nothing to prove.")
    _reaches(plan, probe)
    items = probe.items(split)[:limit]
    bench = Bench(engine, probe, items, batch_size)
    documents = document_numbers([item.document for item in items])
    count = int(documents.max(initial=-1)) + 1
    if count < FEWEST_DOCUMENTS:
        raise BadData(
            f"the {len(items)} {split} items of probe {probe.name} come from {count} documents; a verdict "
            f"needs {FEWEST_DOCUMENTS} or more (items without a document name count as one each)."
        )
    random, notes = _random_plans(engine, plan, controls, seed)
    amounts = amounts_of(plan, doses, longer=scores is not None)
    resamples = Resamples(documents, controls=len(random), samples=bootstrap, seed=seed)
    texts = Neutral(engine, neutral_texts(split) if neutral is None else neutral, batch_size)

    total = 4 + len(random) + 3 * len(amounts)
    with engine.remembering(), Progress("evaluating", "plans", total=total, show=progress) as bar:
        before = bench.before()
        effects = bench.effects(plan)
        bar.advance(2)
        found: list[Control] = []
        random_effects = np.empty((len(random), len(items)))
        for number, control in enumerate(random):
            random_effects[number] = bench.effects(control)
            found.append(_control("random", control, random_effects[number]))
            bar.advance(1)
        if scores is not None:
            try:
                bottom = bottom_of(scores, plan)
                found.append(_control("bottom", bottom, bench.effects(bottom)))
            except BadPlan as error:
                notes.append(f"There is no control from the bottom of the ranking: {error}")
        effect = resamples.interval(effects)
        excess = (
            resamples.excess(effects, random_effects)
            if len(random)
            else Interval(value=effect.value, low=-math.inf, high=math.inf, level=LEVEL)
        )
        damage = texts.damage(plan)
        bar.advance(1)
        mechanism = check_mechanism(engine, plan, _contrast_texts(probe, split), batch_size=batch_size)
        if mechanism.residual_growth is not None:
            notes.append(
                f"Scaling makes the residual stream at most {mechanism.residual_growth:.3g} times as long (mean norm "
                "after a layer)."
            )
        bar.advance(1)
        curve: list[Dose] = []
        for amount in amounts:
            if amount == listed_experts(plan):
                mean = float(random_effects.mean()) if len(random) else None
                curve.append(Dose(amount=amount, effect=effect, control=mean, divergence=damage.divergence))
            else:
                dosed = at_amount(plan, amount, engine.identity, scores)
                if dosed is not None:
                    curve.append(_dose(bench, texts, resamples, dosed, amount, seed))
            bar.advance(3)

    aim = expected or expected_direction(plan, probe)
    verdict, reasons = judge(
        expected=aim,
        effect=effect,
        excess=excess,
        controls=found,
        damage=damage,
        mechanism=mechanism,
        limits=limits,
        notes=notes,
    )
    return Evidence(
        probe=probe.name,
        metric=probe.header.metric.name,
        split=split,
        items=len(items),
        documents=count,
        before=float(before.mean()),
        after=float((before + effects).mean()),
        expected=aim,
        effect=effect,
        controls=tuple(found),
        excess=excess,
        doses=tuple(curve),
        damage=damage,
        mechanism=mechanism,
        verdict=verdict,
        reasons=reasons,
    )


def expected_direction(plan: Plan, probe: Probe) -> Literal["up", "down"]:
    """Return where the metric should go: the probe's word holds for plans that turn the contrast side down.

    A plan says in its provenance which way it turns; one written by hand turns down if any of its operations does.
    """
    direction = plan.provenance.options.get("direction")
    if direction is None:
        direction = "up" if all(map(_turns_up, plan.operations)) else "down"
    if direction == "down":
        return probe.header.expected
    return "up" if probe.header.expected == "down" else "down"


def _turns_up(operation: Operation) -> bool:
    match operation:
        case Promote():
            return True
        case Add():
            return operation.strength > 0
        case Scale():
            return operation.factor > 1
        case Neurons(action="scale"):
            return min(operation.numbers()["factor"]) > 1
        case _:
            return False


@dataclass
class Bench:
    """One probe's items on one model; the plain model is measured once."""

    engine: Engine
    probe: Probe
    items: Sequence[Item]
    batch_size: int
    _before: Array | None = None

    def before(self) -> Array:
        """Return the metric without a plan, (items,)."""
        if self._before is None:
            self._before = self._measure(None)
        return self._before

    def effects(self, plan: Plan) -> Array:
        """Return the metric under the plan minus the metric without, (items,)."""
        return self._measure(plan) - self.before()

    def _measure(self, plan: Plan | None) -> Array:
        metric = self.probe.header.metric
        return measure(
            self.engine, self.items, metric.name, plan=plan, batch_size=self.batch_size, options=metric.options
        )


def _random_plans(engine: Engine, plan: Plan, controls: int, seed: int) -> tuple[list[Plan], list[str]]:
    """Return different random plans, and what there is to say if they are too few."""
    drawn: dict[str, Plan] = {}
    for number in range(seed * TRIES * controls, (seed + 1) * TRIES * controls):
        if len(drawn) == controls:
            break
        try:
            control = matched_random(plan, engine.identity, seed=number)
        except BadPlan as error:
            return [], [f"There are no random controls, so that nothing tells the plan from chance: {error}"]
        drawn.setdefault(plan_hash(_sorted(control)), control)
    few = f"Only {len(drawn)} different random plans were found, {controls} were asked for."
    return list(drawn.values()), [few] if len(drawn) < controls else []


def _sorted(plan: Plan) -> Plan:
    """Return the plan with each operation's list in order of address: the same plan for the same experts or neurons."""

    def in_order(operation: Operation) -> Operation:
        if isinstance(operation, Neurons):
            return operation.keep(sorted(range(len(operation.neurons)), key=operation.neurons.__getitem__))
        return operation.model_copy(update={"experts": tuple(sorted(listed(operation)))} if listed(operation) else {})

    return plan.model_copy(update={"operations": tuple(map(in_order, plan.operations))})


def _control(name: str, plan: Plan, effects: Array) -> Control:
    experts = tuple(str(unit) for operation in plan.operations for unit in units(operation))
    return Control(name=name, seed=plan.header.seed, effect=float(effects.mean()), experts=experts)


def _dose(bench: Bench, texts: Neutral, resamples: Resamples, plan: Plan, amount: int, seed: int) -> Dose:
    random, _ = _random_plans(bench.engine, plan, DOSE_CONTROLS, seed)
    means = [float(bench.effects(control).mean()) for control in random]
    return Dose(
        amount=amount,
        effect=resamples.interval(bench.effects(plan)),
        control=sum(means) / len(means) if means else None,
        divergence=texts.divergence(plan),
    )


def _contrast_texts(probe: Probe, split: Literal["held_out", "dev"]) -> list[Example]:
    """Return texts to record again: of the contrast side, from the split or else from those for finding."""
    for part in (split, "find"):
        texts = [text for text in probe.texts(part) if side_of(probe, text) == "contrast"]
        if texts:
            return texts[:RETRACED]
    return []


def _reaches(plan: Plan, probe: Probe) -> None:
    """Refuse a plan that the metric could not show: its items are plain texts, without labels, spans and roles."""
    metric = probe.header.metric.name
    phases = PHASES_OF_METRIC.get(metric)
    for number, operation in enumerate(narrowed(plan), 1):
        where = operation.where
        if where.labels or where.span or where.role:
            raise Unsupported(
                f"operation {number} applies to '{where}', but items of a probe are plain texts without labels, spans "
                "and roles, so that it would do nothing; evaluate the plan without that clause."
            )
        if phases and where.phase and not set(where.phase) & set(phases):
            raise Unsupported(
                f"operation {number} applies to phase {', '.join(where.phase)}, but metric {metric} runs tokens of "
                f"phase {' and '.join(phases)} only; use a probe with another metric."
            )
