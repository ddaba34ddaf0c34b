"""Simulates a cache of experts over a trace: which share of the experts that tokens need is there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.place import kernels
from moeworks.place.events import Events, caches_of, steps_of
from moeworks.place.kernels import compiled, next_uses, run_cache
from moeworks.place.rules import CacheRules, Capacity, Policy, check_policy
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["CacheCounts", "Calibration", "calibrate", "run_events", "simulate"]

Array = NDArray[Any]
_CODES: Mapping[str, int] = {
    name: getattr(kernels, name.upper())
    for name in ("random", "fixed", "lru", "lfu", "lfru", "predictor", "least_stale", "sch", "belady_forced", "belady")
}
_COLD = {"miss": kernels.COLD_MISS, "hit": kernels.COLD_HIT, "skip": kernels.COLD_SKIP}
_LOOKS_AHEAD = ("belady", "belady_forced")


@dataclass(frozen=True)
class CacheCounts:
    """What one policy did at one capacity; u units (documents, or batches of texts), l layers.

    Attributes:
        policy: its name.
        held: experts that each layer may hold, (l,); a pool holds their sum.
        hits, requests: (u, l) int64. An expert that a step needs in a layer is one request.
        tokens: tokens that ran.
    """

    policy: Policy
    held: tuple[int, ...]
    hits: Array
    requests: Array
    tokens: int

    @property
    def hit_rate(self) -> float:
        """Hits / requests over everything; NaN where nothing was asked for."""
        requests = self.requests.sum()
        return float(self.hits.sum() / requests) if requests else float("nan")

    @property
    def misses_per_token(self) -> Array:
        """Experts to load for each token, (l,)."""
        return np.asarray((self.requests - self.hits).sum(0) / self.tokens)


@dataclass(frozen=True)
class Calibration:
    """What policies that learn from other documents know of the l layers looked at.

    Attributes:
        runs: how often each expert ran, one (E,) array a layer.
        tables: (l, E, E) float32, the uses of expert j that are to be expected in the next tokens of a text (as many
            as `lookahead`, this one not included) after expert i ran; rows of experts that never ran hold the mean.
        lookahead: tokens.
        documents: how many it was made from.
    """

    runs: tuple[Array, ...]
    tables: Array
    lookahead: int
    documents: int


def calibrate(
    trace: Trace, rules: CacheRules, *, where: Where = Where(), documents: Array | None = None
) -> Calibration:
    """Count in some documents what `fixed` and `predictor` decide by: how often experts run, and what follows them.

    Batches play no part: texts are counted one by one.
    """
    alone = CacheRules(prefill="bypass" if rules.prefill == "bypass" else "tokens", between="empty")
    steps = steps_of(trace, alone, where=where, documents=documents)
    widest = max(shape.experts for shape in steps.layers)
    tables = np.zeros((len(steps.layers), widest, widest), np.float32)
    runs: list[Array] = []
    for (place,), events in caches_of(trace, steps, alone):
        counts = np.bincount(events.experts, minlength=events.total)
        sums = compiled(_follow)(events.experts, events.starts, events.fresh, events.total, rules.lookahead)
        with np.errstate(invalid="ignore"):
            rates = sums / counts[:, None]
        rates[counts == 0] = sums.sum(0) / max(1, counts.sum())
        tables[place, : events.total, : events.total] = rates
        runs.append(counts)
    return Calibration(tuple(runs), tables, rules.lookahead, steps.units)


def _follow(experts: Array, starts: Array, fresh: Array, total: int, window: int) -> Array:
    """Return how often expert j was used in the `window` events after an event with expert i, (E, E) float64."""
    sums = np.zeros((total, total))
    future = np.zeros(total)
    ahead = 0  # first event that is not in the window
    for i in range(len(starts) - 1):
        if fresh[i]:
            future[:] = 0
            ahead = i
        while ahead < len(fresh) and ahead <= i + window and (ahead <= i or not fresh[ahead]):
            for j in range(starts[ahead], starts[ahead + 1]):
                future[experts[j]] += 1
            ahead += 1
        for j in range(starts[i], starts[i + 1]):
            future[experts[j]] -= 1
        for j in range(starts[i], starts[i + 1]):
            sums[experts[j]] += future
    return sums


def simulate(
    trace: Trace,
    policies: Sequence[Policy],
    *,
    rules: CacheRules = CacheRules(),
    capacities: Sequence[str] | None = None,
    where: Where = Where(),
    documents: Array | None = None,
    calibration: Calibration | None = None,
    expert_bytes: float | None = None,
    seed: int = 0,
) -> list[CacheCounts]:
    """Run policies at some capacities over the same events.

    Args:
        trace: the trace; of its columns only ids and which weights are 0 are read.
        policies: names of `POLICIES`.
        rules: the semantics; its capacity counts where `capacities` is not given.
        capacities: as `Capacity.parse` reads them.
        where: tokens and layers that exist for the cache.
        documents: numbers of the documents that are run; all, unless given.
        calibration: what `fixed` and `predictor` know; they need it, made from other documents.
        expert_bytes: bytes of an expert, for capacities in bytes.
        seed: of `random`.

    Returns:
        One `CacheCounts` for each capacity and policy, in this order.

    Raises:
        BadData: unknown policy, a capacity that does not fit, no token selected, no calibration where it is needed.
        MissingExtra: numba is not installed.

    Source: LRU, LFU and Belady (Belady 1966, MIN) are textbook; the counting rules and SCH follow arXiv 2505.16056;
    LFRU and Least-Stale (arXiv 2602.03921, of which only the abstract was at hand) are our reading: LFRU keeps the
    largest count / (events since the last use + 1); Least-Stale evicts, of a pool, experts of layers whose turn in
    this token is over before those of layers still to come, the least recently used first.
    """
    for policy in policies:
        check_policy(policy, rules)
        if policy in ("fixed", "predictor") and calibration is None:
            raise BadData(f"'{policy}' learns from other documents; give it a calibration made from some.")
    steps = steps_of(trace, rules, where=where, documents=documents)
    held = [Capacity.parse(word).of(steps.layers, expert_bytes=expert_bytes) for word in capacities or [rules.capacity]]
    counts = {
        (number, policy): CacheCounts(
            policy,
            held[number],
            np.zeros((steps.units, len(steps.layers)), np.int64),
            np.zeros((steps.units, len(steps.layers)), np.int64),
            steps.tokens,
        )
        for number in range(len(held))
        for policy in policies
    }
    for places, events in caches_of(trace, steps, rules):
        ahead = None
        if set(policies) & set(_LOOKS_AHEAD):
            ahead = compiled(next_uses)(events.experts, events.starts, events.fresh, events.total)
        known = None if calibration is None else _known(calibration, places)
        for (number, policy), found in counts.items():
            hits, requests = run_events(
                events,
                policy,
                tuple(held[number][place] for place in places),
                rules=rules,
                ahead=ahead,
                calibration=known,
                seed=seed + 1000 * places[0],
            )
            found.hits[:, places] += hits
            found.requests[:, places] += requests
    return list(counts.values())


def run_events(
    events: Events,
    policy: Policy,
    held: tuple[int, ...],
    *,
    rules: CacheRules = CacheRules(),
    ahead: Array | None = None,
    calibration: Calibration | None = None,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Run one policy over the events of one cache; return hits and requests, (units, layers) int64 each.

    Args:
        events: of one layer, or of a pool.
        policy: its name.
        held: experts that each layer of this cache may hold; their sum is the cache's size.
        rules: the semantics; the capacity in it is not looked at.
        ahead: next uses, (accesses,), where they are known already.
        calibration: of the layers of this cache.
        seed: of `random`.
    """
    if policy in _LOOKS_AHEAD and ahead is None:
        ahead = compiled(next_uses)(events.experts, events.starts, events.fresh, events.total)
    resident = np.zeros(events.total, bool)
    tables = np.zeros((0, 0, 0), np.float32)
    if policy == "fixed":
        assert calibration is not None
        resident = _pinned(calibration.runs, held, pooled=rules.scope == "pooled")
    if policy == "predictor":
        assert calibration is not None
        tables = calibration.tables
    hits = np.zeros((events.units, len(events.base)), np.int64)
    requests = np.zeros_like(hits)
    compiled(run_cache)(
        events.experts,
        events.starts,
        events.unit,
        events.layer,
        events.fresh,
        ahead if policy in _LOOKS_AHEAD and ahead is not None else np.zeros(0, np.int32),
        events.home,
        events.base,
        tables,
        resident,
        sum(held),
        _CODES[policy],
        rules.pin,
        rules.bypass,
        _COLD[rules.cold],
        rules.lookahead * events.per_step,
        seed,
        hits,
        requests,
    )
    return hits, requests


def _pinned(runs: Sequence[Array], held: tuple[int, ...], *, pooled: bool) -> Array:
    """Return which experts a fixed cache holds, (total,): the most used; lower numbers first among equals."""
    if pooled:
        share = np.concatenate([counts / max(1, counts.sum()) for counts in runs])
        resident = np.zeros(len(share), bool)
        resident[np.argsort(-share, kind="stable")[: sum(held)]] = True
        return resident
    (counts,) = runs
    resident = np.zeros(len(counts), bool)
    resident[np.argsort(-counts, kind="stable")[: held[0]]] = True
    return resident


def _known(calibration: Calibration, places: tuple[int, ...]) -> Calibration:
    """Return what is known of some of the layers."""
    return Calibration(
        tuple(calibration.runs[place] for place in places),
        calibration.tables[list(places)],
        calibration.lookahead,
        calibration.documents,
    )
