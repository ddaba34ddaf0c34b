"""How much a model can spare, before anything is cut: perplexity over five cuts, by a ranking and at random."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from moeworks.edit.compare import LABELS, compare_several
from moeworks.edit.comparison import ALL, Comparison
from moeworks.edit.plan import EditPlan
from moeworks.edit.preview import CONTROLS, check_model
from moeworks.edit.random_cuts import random_cuts
from moeworks.edit.replan import constraints_of, recut
from moeworks.edit.sides import side_of, under
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.plan.evidence import Interval
from moeworks.probes import neutral_texts

if TYPE_CHECKING:
    from moeworks.engines.base import Engine

__all__ = ["KEEPS", "LIMIT", "Confirmed", "Dose", "DoseCurve", "dose"]

KEEPS = (1.0, 0.875, 0.75, 0.625, 0.5)
LIMIT = 0.05  # rise of the perplexity that a cut may cost


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Dose(_Frozen):
    """One cut on dev texts."""

    keep: float = Field(description="share of experts that was asked for")
    cut: float = Field(description="share that goes, in all listed layers together")
    counts: tuple[int, ...] = Field(description="experts that each listed layer keeps")
    divergence: float = Field(description="mean KL to the whole model, nats a token")
    perplexity: Interval = Field(description="after / before")
    random: tuple[float, ...] = Field(description="perplexity after / before of each random cut of the same size")


class Confirmed(_Frozen):
    """A cut on held-out texts, which did not choose it."""

    cut: float
    comparison: Comparison

    @property
    def perplexity(self) -> Interval:
        """After / before, of all texts."""
        return self.comparison.perplexity[ALL].ratio

    @property
    def worst(self) -> tuple[str, Interval] | None:
        """The label whose perplexity rises most."""
        labelled = [(name, found.ratio) for name, found in self.comparison.perplexity.items() if name != ALL]
        return max(labelled, key=lambda pair: pair[1].value, default=None)


class DoseCurve(_Frozen):
    """What each cut costs, which one dev texts allow, and whether held-out texts agree."""

    model: str
    method: str
    limit: float
    doses: tuple[Dose, ...]
    chosen: Confirmed | None = Field(description="the largest cut within the limit on dev; none: not even the smallest")
    beyond: Confirmed | None = Field(description="the smallest cut beyond the limit; none: all are within")

    def evidence(self) -> dict[str, Any]:
        """Return it as a plan's evidence: plain values that JSON holds."""
        found: dict[str, Any] = json.loads(self.model_dump_json(exclude_none=True))
        return found

    @property
    def confirmed(self) -> bool:
        """Whether the chosen cut is within the limit on held-out texts too."""
        return self.chosen is not None and self.chosen.perplexity.value <= 1 + self.limit

    def words(self) -> str:
        """Return the answer as sentences, and the curve as lines."""
        lines = [self._answer()]
        if self.chosen is not None and self.chosen.worst is not None:
            name, ratio = self.chosen.worst
            lines.append(f"The label that suffers most at {100 * self.chosen.cut:.3g} % less: {name}, {_times(ratio)}.")
        lines.append(f"Dev texts, experts ranked by {self.method}, beside {len(self.doses[-1].random)} random cuts:")
        for point in self.doses:
            random = f"random times {np.mean(point.random):.4g}" if point.random else "nothing is cut"
            told = f"KL {point.divergence:.4f}  perplexity {_times(point.perplexity)}"
            lines.append(f"  {100 * point.cut:5.1f} % less  {told}  {random}")
        return "\n".join(lines)

    def _answer(self) -> str:
        limit = f"limit {100 * self.limit:.3g} %"
        beyond = ""
        if self.beyond is not None:
            on_dev = next(point.perplexity for point in self.doses if point.cut == self.beyond.cut)
            beyond = (
                f"{100 * self.beyond.cut:.3g} % (times {on_dev.value:.4g} on dev texts, "
                f"{self.beyond.perplexity.value:.4g} on held-out ones)"
            )
        if self.chosen is None:
            return f"{self.model} can take none of these cuts within the {limit}: not even {beyond}."
        told = f"({_times(self.chosen.perplexity)} on held-out texts, {limit})"
        if not self.confirmed:
            return (
                f"Dev texts allow {self.model} a cut of {100 * self.chosen.cut:.3g} %, but held-out texts do not "
                f"confirm it {told}; take a smaller one."
            )
        rest = f", not {beyond}" if beyond else ", the largest cut that was tried"
        return f"{self.model} can take {100 * self.chosen.cut:.3g} % {told}{rest}."


def dose(
    engine: Engine,
    plan: EditPlan,
    *,
    keeps: Sequence[float] = KEEPS,
    limit: float = LIMIT,
    dev: Iterable[Example] | None = None,
    held_out: Iterable[Example] | None = None,
    labels: Sequence[str] = LABELS,
    controls: int = CONTROLS,
    batch_size: int = 8,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> DoseCurve:
    """Mask more and more of the lowest-ranked experts, and say how many the model can spare.

    Dev texts pick the largest cut whose perplexity, and that of all smaller cuts, rises by no more than the limit;
    held-out texts then judge it, and the next larger one. Each layer keeps at least as many experts as its router
    chooses. Nothing is written.

    Args:
        engine: the model.
        plan: a cut whose layers have their `order`, at whatever ratio.
        keeps: shares of the experts that stay.
        limit: rise of the perplexity that is accepted.
        dev: texts that choose; by default the built-in neutral ones, disjoint from those the plan was made from.
        held_out: texts that judge.
        labels: perplexity is told for each value of these.
        controls: random cuts of each size.
        batch_size: texts a forward pass.
        bootstrap: samples.
        seed: of the bootstrap.
        progress: show a bar on standard error.

    Raises:
        BadPlan: the plan is for another model, or ranks no experts.
        BadData: no cut differs from the whole model, or there is no text.
    """
    plain = side_of(engine)
    check_model(plan, plain)
    plans: dict[tuple[int, ...], EditPlan] = {}
    floors = zip(constraints_of(plan).floors(), plan.layers, strict=True)
    least = max(floor / cut.experts for floor, cut in floors)  # what a router needs to find all that it chooses
    for keep in sorted({max(keep, least) for keep in keeps}, reverse=True):
        made = recut(plan, keep=keep)
        plans.setdefault(made.counts, made)  # two shares may leave the same
    whole = tuple(cut.experts for cut in plan.layers)
    cuts = [made for counts, made in plans.items() if counts != whole]
    if not cuts:
        raise BadData(
            "none of these shares takes an expert away; keep fewer (0.5 of 8 experts is a cut, 0.95 is none)."
        )
    sides = [under(engine, made) for made in cuts]
    drawn = [[under(engine, control) for control in random_cuts(made, controls)] for made in cuts]
    run = partial(
        compare_several,
        plain,
        labels=labels,
        batch_size=batch_size,
        bootstrap=bootstrap,
        seed=seed,
        progress=progress,
    )
    found = run([*sides, *itertools.chain(*drawn)], neutral_texts("dev") if dev is None else dev)
    others = iter(found[len(cuts) :])
    doses = [
        Dose(
            keep=made.keep,
            cut=_share(made),
            counts=made.counts,
            divergence=comparison.divergence.value,
            perplexity=comparison.perplexity[ALL].ratio,
            random=tuple(other.perplexity[ALL].ratio.value for other in itertools.islice(others, len(random))),
        )
        for made, comparison, random in zip(cuts, found, drawn, strict=False)
    ]
    within = [point.perplexity.value <= 1 + limit for point in doses]
    count = within.index(False) if False in within else len(within)
    judged = [place for place in (count - 1, count) if 0 <= place < len(cuts)]
    judgements = run([sides[place] for place in judged], neutral_texts("held_out") if held_out is None else held_out)
    told = {
        place: Confirmed(cut=doses[place].cut, comparison=comparison)
        for place, comparison in zip(judged, judgements, strict=True)
    }
    if whole in plans:
        one = Interval(value=1, low=1, high=1)
        doses.insert(0, Dose(keep=1, cut=0, counts=whole, divergence=0, perplexity=one, random=()))
    return DoseCurve(
        model=engine.identity.name,
        method=plan.method,
        limit=limit,
        doses=tuple(doses),
        chosen=told.get(count - 1),
        beyond=told.get(count),
    )


def _share(plan: EditPlan) -> float:
    return 1 - sum(plan.counts) / sum(cut.experts for cut in plan.layers)


def _times(interval: Interval) -> str:
    if not (np.isfinite(interval.low) and np.isfinite(interval.high)):
        return f"times {interval.value:.4g}"  # too few documents for an interval
    return f"times {interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"
