"""Tries an edit plan without writing anything: KL, perplexity by label and probes, beside random plans of its size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from moeworks.edit.compare import LABELS, compare, compare_several
from moeworks.edit.comparison import ALL, Comparison
from moeworks.edit.plan import EditPlan
from moeworks.edit.random_cuts import random_cuts
from moeworks.edit.sides import Side, side_of, under
from moeworks.engines.progress import Progress
from moeworks.errors import BadData, BadPlan
from moeworks.examples import Example
from moeworks.plan.evidence import Interval
from moeworks.probes import Probe, neutral_texts
from moeworks.prove.metrics import measure
from moeworks.prove.resample import Resamples, document_numbers

if TYPE_CHECKING:
    from moeworks.edit.statistics_file import Statistics
    from moeworks.engines.base import Engine

__all__ = ["CONTROLS", "Preview", "ProbeEffect", "RandomPlan", "check_model", "preview"]

CONTROLS = 3


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class ProbeEffect(_Frozen):
    """What the plan does to one probe's metric on its items."""

    probe: str
    metric: str
    split: str
    items: int
    documents: int
    before: float
    after: float
    effect: Interval = Field(description="after - before")
    random: tuple[float, ...] = Field(description="after - before under each random plan")
    excess: Interval | None = Field(None, description="effect minus that of the random plans")


class RandomPlan(_Frozen):
    """What a random plan with the same counts does."""

    seed: int
    divergence: float
    perplexity: dict[str, float] = Field(description="after / before, of all texts and of each label")


class Preview(_Frozen):
    """What a plan would do, and what as many random experts would."""

    comparison: Comparison
    random: tuple[RandomPlan, ...]
    probes: tuple[ProbeEffect, ...] = ()

    def words(self) -> str:
        """Return it as lines for people."""
        lines = [self.comparison.words()]
        if self.random:
            kl = [control.divergence for control in self.random]
            rise = [control.perplexity[ALL] for control in self.random]
            lines.append(f"  random, {_counted(len(self.random))}    KL {_span(kl)}, perplexity times {_span(rise)}")
        for probe in self.probes:
            beside = f", random {_span(probe.random)}" if probe.random else ""
            known = np.isfinite(probe.effect.low) and np.isfinite(probe.effect.high)
            width = f"[{probe.effect.low:+.4g}, {probe.effect.high:+.4g}]" if known else "[too few documents]"
            lines.append(
                f"  {probe.probe}: {probe.metric} {probe.before:.4g} -> {probe.after:.4g}, effect "
                f"{probe.effect.value:+.4g} {width}{beside}"
            )
        return "\n".join(lines)

    def evidence(self) -> dict[str, Any]:
        """Return it as a plan's evidence: plain values that JSON holds."""
        found: dict[str, Any] = json.loads(self.model_dump_json(exclude_none=True))
        return found


def preview(
    engine: Engine,
    plan: EditPlan,
    *,
    probes: Sequence[Probe] = (),
    texts: Iterable[Example] | None = None,
    labels: Sequence[str] = LABELS,
    statistics: Statistics | None = None,
    controls: int = CONTROLS,
    split: Literal["held_out", "dev"] = "held_out",
    limit: int | None = None,
    prompts: int = 0,
    new_tokens: int = 256,
    speed: bool = False,
    batch_size: int = 8,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Preview:
    """Measure what an edit plan would do to a model; nothing is written, and the model is afterwards as it was.

    A pure cut runs as a mask, which is the same function as the smaller checkpoint; anything else runs with its new
    weights in memory. Random plans keep as many experts in the same layers, and the protected ones too; the random
    plan beside a merge is a cut.

    Args:
        engine: the model that the plan is for.
        plan: what is to be tried.
        probes: their metrics are measured on their items of `split`.
        texts: to compare on, disjoint from those that the plan was made from; by default the built-in neutral ones.
        labels: perplexity is told for each value of these.
        statistics: those that the plan was made from, if its transform needs them.
        controls: random plans, all different.
        split: of the neutral texts and of the probes; report `held_out` only.
        limit: of each probe take the first items only.
        prompts, new_tokens, speed: as in `compare`.
        batch_size: texts a forward pass.
        bootstrap: samples.
        seed: of the bootstrap and of the prompts.
        progress: show bars on standard error.

    Raises:
        BadPlan: the plan is for another model.
        BadData: there is no text, or a probe has no item.
    """
    plain = side_of(engine)
    check_model(plan, plain)
    given = list(neutral_texts(split) if texts is None else texts)
    side = under(engine, plan, statistics)
    comparison = compare(
        plain,
        side,
        given,
        labels=labels,
        prompts=prompts,
        new_tokens=new_tokens,
        speed=speed,
        batch_size=batch_size,
        bootstrap=bootstrap,
        seed=seed,
        progress=progress,
    )
    cuts = random_cuts(plan, controls)
    drawn = [under(engine, cut, name=f"random {cut.options['seed']}") for cut in cuts]
    beside = (
        compare_several(
            plain, drawn, given, labels=labels, batch_size=batch_size, bootstrap=1, seed=seed, progress=progress
        )
        if drawn
        else []
    )
    total = len(probes) * (len(drawn) + 2)
    with Progress("probes", "plans", total=total, show=progress and bool(probes)) as bar:
        effects = [
            _effect(probe, plain, side, drawn, split, limit, batch_size, bootstrap, seed, bar) for probe in probes
        ]
    return Preview(
        comparison=comparison,
        random=tuple(
            RandomPlan(
                seed=cut.options["seed"],
                divergence=found.divergence.value,
                perplexity={name: group.ratio.value for name, group in found.perplexity.items()},
            )
            for cut, found in zip(cuts, beside, strict=True)
        ),
        probes=tuple(effects),
    )


def check_model(plan: EditPlan, side: Side, *, weights: bool = True) -> None:
    """Refuse a plan that was made for another model; without `weights`, of another shape.

    Raises:
        BadPlan: shape or weights differ.
    """
    made, identity = plan.model, side.engine.identity
    if made is None:
        raise BadPlan("the edit plan does not say which model it is for; make it with `moeworks edit plan`.")
    if made.shape != identity.shape:
        raise BadPlan(f"the edit plan was made for {made.name}, whose layers are not those of {identity.name}.")
    if weights and made.weight_hash and made.weight_hash != identity.weight_hash:
        raise BadPlan(
            f"the edit plan was made for weights {made.weight_hash} of {made.name}; these are {identity.weight_hash}."
        )


def _effect(
    probe: Probe,
    plain: Side,
    side: Side,
    random: Sequence[Side],
    split: Literal["held_out", "dev"],
    limit: int | None,
    batch_size: int,
    bootstrap: int,
    seed: int,
    bar: Progress,
) -> ProbeEffect:
    metric, items = probe.header.metric, probe.items(split)[:limit]
    if not items:
        raise BadData(
            f"the probe {probe.name} has no item in its split '{split}', so that there is nothing to measure."
        )

    def values(of: Side) -> Any:
        with of.running():
            found = measure(
                of.engine, items, metric.name, plan=None, batch_size=batch_size, options=metric.options
            )  # (items,)
        bar.advance(1)
        return found

    before = values(plain)
    effects, others = values(side) - before, [values(one) - before for one in random]
    documents = document_numbers([item.document for item in items])
    resamples = Resamples(documents, controls=len(others), samples=bootstrap, seed=seed)
    return ProbeEffect(
        probe=probe.name,
        metric=metric.name,
        split=split,
        items=len(items),
        documents=int(documents.max()) + 1,
        before=float(before.mean()),
        after=float((before + effects).mean()),
        effect=resamples.interval(effects),
        random=tuple(float(other.mean()) for other in others),
        excess=resamples.excess(effects, np.stack(others)) if others else None,
    )


def _counted(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _span(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})"
