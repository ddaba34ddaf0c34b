"""One cell of the steering table: a plan of a method's first experts, on held-out items and beside random experts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moeworks.bench.cases import Case, Sizes
from moeworks.bench.methods import Steerer, make_plan
from moeworks.bench.schema import SteerCell
from moeworks.engines.base import Engine
from moeworks.errors import MoeworksError
from moeworks.examples import Example
from moeworks.find import Scores
from moeworks.plan import Plan
from moeworks.plan.evidence import Control, Evidence
from moeworks.prove import Limits, evaluate
from moeworks.prove.damage import ALL
from moeworks.prove.evaluate import Bench
from moeworks.prove.resample import Resamples, document_numbers
from moeworks.prove.verdict import judge

__all__ = ["Evaluations", "steered"]

BATCH = 32  # texts a forward pass
COUNTED = 8  # texts on which active experts are counted


class Evaluations:
    """What plans do on one case; methods that turn the same experts the same way share one evaluation."""

    def __init__(self, case: Case, engine: Engine, sizes: Sizes) -> None:
        self.case, self.engine, self.sizes = case, engine, sizes
        self._known: dict[str, tuple[Evidence, float]] = {}
        self._texts: Sequence[Example] = case.texts()[:COUNTED]
        self._plain: float | None = None

    def of(self, plan: Plan, controls: Sequence[Plan] = ()) -> tuple[Evidence, float]:
        """Return the evidence and how many experts run for a token under the plan, over all layers.

        Args:
            plan: the plan.
            controls: random plans of a method that has its own; otherwise its operations on matched random experts.
        """
        direction = plan.provenance.options.get("direction")
        key = f"{direction} {[operation.model_dump_json() for operation in plan.operations]}"
        if key not in self._known:
            evidence = evaluate(
                self.engine,
                plan,
                self.case.quiet if direction == "up" else self.case.probe,
                controls=self.sizes.controls,
                doses=(),
                neutral=self.case.neutral,
                bootstrap=1000,
                seed=self.case.seed,
            )
            if controls:
                evidence = self._beside(evidence, plan, controls)
            self._known[key] = evidence, self.active(plan)
        return self._known[key]

    def _beside(self, evidence: Evidence, plan: Plan, controls: Sequence[Plan]) -> Evidence:
        """Return the evidence with these controls in place of those that `evaluate` could not draw."""
        items = self.case.probe.items("held_out")
        bench = Bench(self.engine, self.case.probe, items, BATCH)
        effects, random = bench.effects(plan), np.stack([bench.effects(control) for control in controls])
        documents = document_numbers([item.document for item in items])
        excess = Resamples(documents, controls=len(random), seed=self.case.seed).excess(effects, random)
        found = tuple(Control(name="random", seed=place, effect=float(row.mean())) for place, row in enumerate(random))
        assert evidence.damage is not None
        verdict, reasons = judge(
            expected=evidence.expected,
            effect=evidence.effect,
            excess=excess,
            controls=found,
            damage=evidence.damage,
            mechanism=evidence.mechanism,
            limits=Limits(),
        )
        return evidence.model_copy(update={"controls": found, "excess": excess, "verdict": verdict, "reasons": reasons})

    def plain(self) -> float:
        """Return how many experts run for a token without a plan."""
        if self._plain is None:
            self._plain = self.active(None)
        return self._plain

    def active(self, plan: Plan | None) -> float:
        """Return how many experts run for a token, over all layers; one whose weight is 0 does not run."""
        with tempfile.TemporaryDirectory(prefix="moeworks-") as folder:
            trace = self.engine.record(self._texts, Path(folder) / "trace", plan=plan)
            return sum(float((trace.weights(layer) != 0).sum() / len(trace)) for layer in trace.layers)


def steered(steerer: Steerer, scores: Scores | None, why: str, evaluations: Evaluations) -> SteerCell:
    """Turn a method's first experts and return the cell; one that cannot be made has the reason."""
    case, start = evaluations.case, time.perf_counter()
    blank = SteerCell(
        method=steerer.name,
        model=case.model,
        probe=case.name,
        kind=case.kind,
        seed=case.seed,
        scores=steerer.detector.name,
        policy=steerer.policy,
        refused=why,
    )
    if scores is None:
        return blank
    try:
        plan = make_plan(steerer, scores, case, evaluations.engine)
        evidence, active = evaluations.of(plan, own_controls(steerer, scores, case, evaluations))
        plain = evaluations.plain()
    except MoeworksError as error:
        return blank.model_copy(update={"refused": str(error)})
    damage = evidence.damage
    assert damage is not None
    return blank.model_copy(
        update={
            "turned": _turned(plan),
            "expected": evidence.expected,
            "before": evidence.before,
            "effect": evidence.effect,
            "excess": evidence.excess,
            "random": tuple(control.effect for control in evidence.controls if control.name == "random"),
            "divergence": damage.divergence,
            "perplexity": damage.perplexity_after[ALL] / damage.perplexity_before[ALL],
            "active": active,
            "active_before": plain,
            "verdict": evidence.verdict,
            "seconds": round(time.perf_counter() - start, 3),
        }
    )


def own_controls(steerer: Steerer, scores: Scores, case: Case, evaluations: Evaluations) -> list[Plan]:
    """Return the random plans of a method that makes its plans itself; none for other methods."""
    if not steerer.maker:
        return []
    return [
        make_plan(steerer, scores, case, evaluations.engine, at_random=case.seed * evaluations.sizes.controls + number)
        for number in range(evaluations.sizes.controls)
    ]


def _turned(plan: Plan) -> tuple[str, ...]:
    from moeworks.plan.clauses import units

    return tuple(str(unit) for operation in plan.operations for unit in units(operation))
