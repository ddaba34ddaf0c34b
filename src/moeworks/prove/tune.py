"""Grid search of counts, strengths and operations: on dev only, with a quality floor and a Pareto front.

SteerMoE (arXiv 2509.09660) chooses its counts by a plain grid search over experts to activate and to deactivate, on
task score and fluency together, and reports on the same kind of data. Here every setting is measured on the dev split,
those that harm neutral text beyond the limits are never chosen, and held-out items are not read: what the chosen plan
does must be reported by `evaluate`. The default grid is 0, 0.5, 1, 2, 4 and 8 % of all experts down times 0, 1, 2 and 3
eighths of the number of layers up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from moeworks.engines.progress import Progress
from moeworks.errors import BadData, BadPlan
from moeworks.plan import Plan, plan_hash, steer
from moeworks.plan.clauses import listed
from moeworks.plan.evidence import Interval
from moeworks.plan.policies import POLICIES, Op, manner_of
from moeworks.probes import neutral_texts
from moeworks.prove.damage import ALL, Neutral
from moeworks.prove.doses import listed_experts
from moeworks.prove.evaluate import Bench, expected_direction
from moeworks.prove.resample import Resamples, document_numbers
from moeworks.prove.verdict import Limits

if TYPE_CHECKING:
    from moeworks.artefact import ModelIdentity
    from moeworks.engines.base import Engine
    from moeworks.examples import Example
    from moeworks.find import Scores
    from moeworks.probes import Probe

__all__ = ["DOWN_SHARES", "UP_EIGHTHS", "Point", "Tuned", "default_counts", "pareto", "tune"]

DOWN_SHARES = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08)  # of all experts of the model
UP_EIGHTHS = (0, 1, 2, 3)  # times a number of layers / 8


class Point(BaseModel):
    """One setting and what it did on dev."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    promote: int = Field(description="experts turned up that were asked for")
    demote: int = Field(description="experts turned down that were asked for")
    op: str
    strength: float | None
    experts: int = Field(description="experts that the plan lists, after what layers could not take")
    effect: Interval = Field(description="change of the probe's metric on dev items")
    divergence: float = Field(description="mean KL from unsteered to steered on neutral text, nats a token")
    perplexity: float = Field(description="times the unsteered perplexity on neutral text")
    within_limits: bool
    on_front: bool = Field(False, description="whether no other setting has more effect for as little divergence")


@dataclass(frozen=True)
class Tuned:
    """What a search found."""

    plan: Plan  # the chosen one, the whole table in its provenance
    points: tuple[Point, ...]  # in the order of the grid
    chosen: int  # index into points
    skipped: int  # settings not tried, since a smaller one had broken the limits
    expected: Literal["up", "down"]  # where the metric should go
    limits: Limits
    probe: str


class _Setting(NamedTuple):
    op: Op | None
    strength: float | None
    promote: int
    demote: int


def tune(
    engine: Engine,
    scores: Scores,
    probe: Probe,
    *,
    promote: Sequence[int] | None = None,
    demote: Sequence[int] | None = None,
    ops: Sequence[Op | None] = (None,),
    strengths: Sequence[float | None] = (None,),
    direction: Literal["up", "down"] = "down",
    policy: str = "risk_difference",
    neutral: Sequence[Example] | None = None,
    limits: Limits = Limits(),
    early_stop: bool = True,
    bootstrap: int = 1000,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Tuned:
    """Try a grid of plans on the dev split and return the one with the largest effect within the limits of damage.

    Of equal effects the setting with less divergence is chosen, then the one with fewer experts.

    Args:
        engine: the model.
        scores: from `find`.
        probe: its metric, and its items of `dev`.
        promote, demote: numbers of experts to turn up and down; None for the default grid. Numbers above what the
            policy finds are replaced by all that it finds.
        ops: kinds of operation as in `steer`; None for the policy's own.
        strengths: of `add` and `scale`, tried for each op that has one; None for the default.
        direction: where the behaviour goes, as in `steer`.
        policy: as in `steer`.
        neutral: texts to measure damage on; by default the built-in ones of dev.
        limits: the quality floor.
        early_stop: where a setting breaks the floor, do not try more experts to turn down beside the same others.
        bootstrap, limit, batch_size, seed: as in `evaluate`.
        progress: show a bar on standard error.
        options: of `steer` and the policy.

    Raises:
        BadPlan: no expert is eligible, or no setting is within the limits.
        BadData: the grid is empty, or there are no dev items.
    """
    options.setdefault("weakens_safety", probe.header.safety and direction == "down")
    given = {"direction": direction, "policy": policy, **options}
    grid = _grid(scores, engine.identity, promote, demote, ops, strengths, policy, given)
    items = probe.items("dev")[:limit]
    if not items:
        raise BadData(f"probe {probe.name} has no dev items, so that nothing can be chosen on it.")
    bench = Bench(engine, probe, items, batch_size)
    texts = Neutral(engine, neutral_texts("dev") if neutral is None else neutral, batch_size)
    resamples = Resamples(document_numbers([item.document for item in items]), samples=bootstrap, seed=seed)
    plans: list[Plan] = []
    points: list[Point] = []
    known: dict[str, int] = {}
    skipped = 0
    broken: set[tuple[Any, ...]] = set()
    with engine.remembering(), Progress("tuning", "settings", total=len(grid), show=progress) as bar:
        for setting in grid:
            bar.advance(1)
            if early_stop and setting[:3] in broken:
                skipped += 1
                continue
            plan = _plan(scores, setting, given)
            if plan_hash(plan) in known:  # layers took no more: the same plan as a smaller setting's
                continue
            known[plan_hash(plan)] = len(plans)
            point = _measured(plan, setting, bench, texts, resamples, limits)
            plans.append(plan)
            points.append(point)
            if not point.within_limits and setting.demote:
                broken.add(setting[:3])
    expected = expected_direction(plans[0], probe)
    sign = 1 if expected == "up" else -1
    front = pareto([sign * point.effect.value for point in points], [point.divergence for point in points])
    points = [point.model_copy(update={"on_front": n in front}) for n, point in enumerate(points)]
    allowed = [n for n, point in enumerate(points) if point.within_limits]
    if not allowed:
        least = min(points, key=lambda point: point.divergence)
        raise BadPlan(
            f"none of {len(points)} settings is within the limits of damage; the least harmful ({least.demote} down, "
            f"{least.promote} up) moves neutral text by {least.divergence:.3g} nats a token. Ask for fewer experts."
        )
    chosen = min(allowed, key=lambda n: (-sign * points[n].effect.value, points[n].divergence, points[n].experts))
    return Tuned(
        plan=_explained(plans[chosen], probe, points, chosen, skipped, limits),
        points=tuple(points),
        chosen=chosen,
        skipped=skipped,
        expected=expected,
        limits=limits,
        probe=probe.name,
    )


def default_counts(identity: ModelIdentity) -> tuple[list[int], list[int]]:
    """Return the default numbers of experts to turn up and down for a model, ascending."""
    experts, layers = sum(shape.experts for shape in identity.layers), len(identity.layers)
    up = sorted({round(eighths * layers / 8) for eighths in UP_EIGHTHS})
    down = sorted({0} | {max(1, round(share * experts)) for share in DOWN_SHARES if share})
    return up, down


def pareto(effects: Sequence[float], damages: Sequence[float]) -> set[int]:
    """Return which points no other beats: at least as much effect for at most as much damage, one of both better."""
    effect, damage = np.asarray(effects), np.asarray(damages)
    beaten = (
        (effect >= effect[:, None])
        & (damage <= damage[:, None])
        & ((effect > effect[:, None]) | (damage < damage[:, None]))
    ).any(1)  # (points,) column beats row
    return set(np.flatnonzero(~beaten).tolist())


def _grid(
    scores: Scores,
    identity: ModelIdentity,
    promote: Sequence[int] | None,
    demote: Sequence[int] | None,
    ops: Sequence[Op | None],
    strengths: Sequence[float | None],
    policy: str,
    given: dict[str, Any],
) -> list[_Setting]:
    turns = manner_of(POLICIES.get(policy)).turns
    default_up, default_down = default_counts(identity)
    up = ([0] if turns == "down" else default_up) if promote is None else list(promote)
    down = ([0] if turns == "up" else default_down) if demote is None else list(demote)
    if min([*up, *down, 0]) < 0 or not up or not down or not ops or not strengths:
        raise BadData("a grid has numbers of experts from 0 on, at least one operation and one strength.")
    pairs = [(op, strength) for op in ops for strength in (strengths if _has_strength(op, policy) else (None,))]
    first = pairs[0]
    up = _available(scores, "promote", up, first, given)
    down = _available(scores, "demote", down, first, given)
    grid = [_Setting(op, strength, u, d) for (op, strength), u, d in product(pairs, up, down) if u or d]
    if not grid:
        raise BadData("the grid is empty: every setting asks for no expert at all.")
    return grid


def _has_strength(op: Op | None, policy: str) -> bool:
    return (op or manner_of(POLICIES.get(policy)).op) in ("add", "scale")


def _available(
    scores: Scores, verb: str, counts: Sequence[int], first: tuple[Op | None, float | None], given: dict[str, Any]
) -> list[int]:
    """Return the counts, none above what the policy finds."""
    if not any(counts):
        return [0]
    asked: dict[str, Any] = {verb: "all"}
    try:
        whole = steer(scores, op=first[0], strength=first[1], **asked, **given)
    except BadPlan:
        if 0 in counts:
            return [0]
        raise
    most = sum(len(listed(operation)) for operation in whole.operations)
    most += sum(whole.provenance.options["passed_over"].values())
    return sorted({min(count, most) for count in counts})


def _plan(scores: Scores, setting: _Setting, given: dict[str, Any]) -> Plan:
    op, strength, promote, demote = setting
    return steer(scores, op=op, strength=strength, promote=promote, demote=demote, **given)


def _measured(
    plan: Plan, setting: _Setting, bench: Bench, texts: Neutral, resamples: Resamples, limits: Limits
) -> Point:
    damage = texts.damage(plan)
    ratio = damage.perplexity_after[ALL] / damage.perplexity_before[ALL]
    return Point(
        promote=setting.promote,
        demote=setting.demote,
        op=plan.provenance.options["op"],
        strength=plan.provenance.options.get("strength"),
        experts=listed_experts(plan),
        effect=resamples.interval(bench.effects(plan)),
        divergence=damage.divergence,
        perplexity=ratio,
        within_limits=damage.divergence <= limits.divergence and ratio <= limits.perplexity,
    )


def _explained(plan: Plan, probe: Probe, points: Sequence[Point], chosen: int, skipped: int, limits: Limits) -> Plan:
    """Return the plan with the whole search in its provenance."""
    point = points[chosen]
    searched = {
        "chosen_on": f"{probe.name}, dev",
        "chosen": chosen,
        "tried": [_row(point) for point in points],
        "skipped": skipped,
        "limits": {"divergence": limits.divergence, "perplexity": limits.perplexity},
    }
    provenance = plan.provenance.model_copy(update={"options": {**plan.provenance.options, **searched}})
    description = (
        f"{plan.description} Chosen among {len(points)} settings on the dev items of {probe.name}: {point.demote} down "
        f"and {point.promote} up by {point.op}{'' if point.strength is None else f' of {point.strength:g}'}."
    )
    return plan.model_copy(update={"provenance": provenance, "description": description})


def _row(point: Point) -> dict[str, Any]:
    ends = point.effect.low, point.effect.high  # infinite where there are too few documents; JSON has no number for it
    return {
        "promote": point.promote,
        "demote": point.demote,
        "op": point.op,
        **({} if point.strength is None else {"strength": point.strength}),
        "effect": round(point.effect.value, 6),
        **({"interval": [round(end, 6) for end in ends]} if all(map(math.isfinite, ends)) else {}),
        "divergence": round(point.divergence, 6),
        "perplexity": round(point.perplexity, 6),
        "within_limits": point.within_limits,
        "on_front": point.on_front,
    }
