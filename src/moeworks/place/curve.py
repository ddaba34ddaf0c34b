"""Hit rates over capacities: each policy beside chance and the bounds, on documents that it did not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.place.cache import CacheCounts, calibrate, simulate
from moeworks.place.events import Steps, steps_of
from moeworks.place.pinning import Pinning, pinning_of
from moeworks.place.rules import CAUSAL, POLICIES, CacheRules, Capacity, Policy
from moeworks.stats.documents import FEWEST_DOCUMENTS, draw_documents, percentiles, ratio_intervals
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["CacheCurve", "cache_curve", "default_capacities", "default_policies", "split_documents"]

Array = NDArray[Any]
SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
NO_KNEE = 0.02  # hit rate above chance below which there is no knee to speak of


@dataclass(frozen=True)
class CacheCurve:
    """What every policy hits at every capacity.

    Attributes:
        table: a row per capacity and policy: capacity (as asked for), held (experts a layer, mean), share (of all
            experts), policy, hit_rate with its interval low, high from resampled documents (batches of texts where
            texts run together), chance (a random resident set of this size), misses_per_token (experts to load).
        layers: the same per layer at the capacity of the rules.
        knees: a row per policy: where its hit rate is farthest above chance: capacity, held, gain, and low, high of
            `held` over resampled documents; capacity null where the gain is below 2 points everywhere.
        admission: a row per capacity: the best causal policy, and how much of its gap to Belady's bound comes from
            having to keep every newcomer; null where the three are not all there or there is no gap.
        pinning: whether a fixed resident set is worth it here; None unless `fixed` and `lru` were run.
        rules, tokens, texts, documents, phases, units: what was measured, under which semantics.
        calibration_documents: documents that `fixed` and `predictor` learned from; none of them is measured.
    """

    table: pa.Table
    layers: pa.Table
    knees: pa.Table
    admission: pa.Table
    pinning: Pinning | None
    rules: CacheRules
    tokens: int
    texts: int
    documents: int
    units: int
    phases: dict[str, int]
    calibration_documents: int

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "pinning": None if self.pinning is None else self.pinning.as_json(),
            "rules": self.rules.as_json(),
            "tokens": self.tokens,
            "texts": self.texts,
            "documents": self.documents,
            "units": self.units,
            "phases": self.phases,
            "calibration_documents": self.calibration_documents,
            "rows": self.table.to_pylist(),
            "layers": self.layers.to_pylist(),
            "knees": self.knees.to_pylist(),
            "admission": self.admission.to_pylist(),
        }


def default_policies(rules: CacheRules) -> tuple[Policy, ...]:
    """Return all policies that mean something under the rules."""
    return tuple(policy for policy in POLICIES if policy != "least_stale" or rules.scope == "pooled")


def default_capacities(experts: int) -> tuple[str, ...]:
    """Return capacities from a sixteenth of E experts to all of them."""
    held = dict.fromkeys(max(1, round(share * experts)) for share in SHARES)
    return tuple(f"{100 * count / experts:g}%" for count in (*held, experts))


def split_documents(trace: Trace, *, where: Where, share: float, seed: int) -> tuple[Array, Array]:
    """Return the numbers of the documents to learn from and of those to measure on, drawn at random.

    Raises:
        BadData: fewer than two documents have selected tokens, so that none is left to learn from or to measure.
    """
    if not 0 < share < 1:
        raise BadData(f"{share} is no share of the documents to learn from; give one between 0 and 1.")
    requests, of_request = trace.request_table(), trace.documents()
    present = np.zeros(len(requests), bool)
    for part in trace.parts:
        rows = part.rows()
        present[rows.request[where.mask(rows, requests)]] = True
    documents = np.unique(of_request[present])
    if len(documents) < 2:
        raise BadData(
            f"{len(documents)} {'document has' if len(documents) == 1 else 'documents have'} tokens that match "
            f"'{where}'; one is needed to learn from and another to measure on: record more texts."
        )
    drawn = np.random.default_rng([seed, 17]).permutation(documents)
    learned = min(len(documents) - 1, max(1, round(share * len(documents))))
    return np.sort(drawn[:learned]), np.sort(drawn[learned:])


def cache_curve(
    trace: Trace,
    *,
    policies: Sequence[Policy] | None = None,
    capacities: Sequence[str] | None = None,
    rules: CacheRules = CacheRules(),
    where: Where = Where(),
    calibration_share: float = 0.5,
    expert_bytes: float | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> CacheCurve:
    """Measure policies over capacities; the capacity of the rules is always among them.

    Args:
        trace: the trace.
        policies: all that mean something under the rules, unless given.
        capacities: from a sixteenth of the experts to all of them, unless given.
        rules: the semantics.
        where: tokens and layers that exist for the cache.
        calibration_share: share of the documents that `fixed` and `predictor` learn from; none is measured.
        expert_bytes: bytes of an expert, for capacities in bytes.
        bootstrap: resamplings of documents.
        seed: of the split, of `random` and of the resamplings.

    Raises:
        BadData: fewer than two documents, or what `simulate` refuses.
    """
    chosen = tuple(dict.fromkeys(policies or default_policies(rules)))
    learned, measured = split_documents(trace, where=where, share=calibration_share, seed=seed)
    steps = steps_of(trace, rules, where=where, documents=measured)
    asked = capacities or default_capacities(min(shape.experts for shape in steps.layers))
    sizes = {
        word: Capacity.parse(word).of(steps.layers, expert_bytes=expert_bytes) for word in (*asked, rules.capacity)
    }
    first = {held: word for word, held in reversed(sizes.items())} | {sizes[rules.capacity]: rules.capacity}
    words = sorted(first.values(), key=lambda word: sum(sizes[word]))  # one word for each size
    calibration = calibrate(trace, rules, where=where, documents=learned)
    known: dict[str, Any] = {"where": where, "documents": measured, "expert_bytes": expert_bytes, "seed": seed}
    counts = simulate(trace, chosen, rules=rules, capacities=words, calibration=calibration, **known)
    by = {word: counts[len(chosen) * n : len(chosen) * (n + 1)] for n, word in enumerate(words)}
    pinning = None
    if {"fixed", "lru"} <= set(chosen):
        fitted = calibrate(trace, rules, where=where, documents=measured)
        (ceiling,) = simulate(trace, ["fixed"], rules=rules, capacities=[rules.capacity], calibration=fitted, **known)
        pinning = pinning_of(
            by[rules.capacity], ceiling, chance=_chance(ceiling, steps, rules), shapes=steps.layers, rules=rules,
            phases=steps.phases, calibration_documents=calibration.documents, bootstrap=bootstrap, seed=seed,
        )  # fmt: skip
    return CacheCurve(
        table=_table(by, steps, rules, bootstrap, seed),
        layers=_by_layer(by[rules.capacity], steps, rules, bootstrap, seed),
        knees=_knees(by, steps, rules, bootstrap, seed),
        admission=_admission(by),
        pinning=pinning,
        rules=rules,
        tokens=steps.tokens,
        texts=steps.texts,
        documents=len(measured),
        units=steps.units,
        phases=steps.phases,
        calibration_documents=calibration.documents,
    )


def _chance(counts: CacheCounts, steps: Steps, rules: CacheRules) -> float:
    """Return the hit rate to be expected of a random resident set of this size."""
    experts = np.array([shape.experts for shape in steps.layers])
    held = np.array(counts.held)
    if rules.scope == "pooled":
        return float(held.sum() / experts.sum())
    requests = counts.requests.sum(0)
    return float((requests * held / experts).sum() / max(1, requests.sum()))


def _table(by: dict[str, list[CacheCounts]], steps: Steps, rules: CacheRules, bootstrap: int, seed: int) -> pa.Table:
    columns = [(word, counts) for word, group in by.items() for counts in group]
    hits = np.stack([counts.hits.sum(1) for _, counts in columns], axis=1)  # (u, c)
    requests = np.stack([counts.requests.sum(1) for _, counts in columns], axis=1)
    lows, highs = ratio_intervals(hits.astype(float), requests.astype(float), samples=bootstrap, seed=seed)
    experts = sum(shape.experts for shape in steps.layers)
    return pa.Table.from_pylist(
        [
            {
                "capacity": word,
                "held": sum(counts.held) / len(counts.held),
                "share": sum(counts.held) / experts,
                "policy": counts.policy,
                "hit_rate": counts.hit_rate,
                "low": float(low),
                "high": float(high),
                "chance": _chance(counts, steps, rules),
                "misses_per_token": float(counts.misses_per_token.sum()),
            }
            for (word, counts), low, high in zip(columns, lows, highs, strict=True)
        ]
    )


def _by_layer(group: list[CacheCounts], steps: Steps, rules: CacheRules, bootstrap: int, seed: int) -> pa.Table:
    rows = []
    for counts in group:
        lows, highs = ratio_intervals(
            counts.hits.astype(float), counts.requests.astype(float), samples=bootstrap, seed=seed
        )
        total = counts.requests.sum(0)
        for place, shape in enumerate(steps.layers):
            pooled = sum(counts.held) / sum(other.experts for other in steps.layers)
            rows.append(
                {
                    "policy": counts.policy,
                    "layer": shape.layer,
                    "hit_rate": float(counts.hits[:, place].sum() / total[place]) if total[place] else float("nan"),
                    "low": float(lows[place]),
                    "high": float(highs[place]),
                    "chance": pooled if rules.scope == "pooled" else counts.held[place] / shape.experts,
                    "misses_per_token": float(counts.misses_per_token[place]),
                }
            )
    return pa.Table.from_pylist(rows)


def _knees(by: dict[str, list[CacheCounts]], steps: Steps, rules: CacheRules, bootstrap: int, seed: int) -> pa.Table:
    """Return where each policy is farthest above chance, and how sure that is.

    The chord of a cache's curve runs from nothing held, nothing hit, to everything held, everything hit: it is chance
    itself, so that the knee in the sense of the largest distance to the chord (Satopää et al. 2011) is the largest
    gain over holding random experts.
    """
    words = list(by)
    held = np.array([sum(by[word][0].held) / len(steps.layers) for word in words])
    rows = []
    for number, counts in enumerate(by[words[0]]):
        column = [by[word][number] for word in words]
        chance = np.array([_chance(one, steps, rules) for one in column])  # (c,)
        hits = np.stack([one.hits.sum(1) for one in column], axis=1).astype(float)  # (u, c)
        requests = np.stack([one.requests.sum(1) for one in column], axis=1).astype(float)
        gain = hits.sum(0) / requests.sum(0) - chance
        best = int(np.argmax(gain))
        drawn = [
            np.argmax((d @ hits) / np.maximum(d @ requests, 1) - chance, axis=1)
            for d in draw_documents(len(hits), samples=bootstrap, seed=seed)
        ]
        low, high = percentiles(held[np.concatenate(drawn)], len(hits))
        there = bool(gain[best] >= NO_KNEE)
        rows.append(
            {
                "policy": counts.policy,
                "capacity": words[best] if there else None,
                "held": float(held[best]) if there else None,
                "low": float(low) if there and len(hits) >= FEWEST_DOCUMENTS else None,
                "high": float(high) if there and len(hits) >= FEWEST_DOCUMENTS else None,
                "gain": float(gain[best]),
            }
        )
    return pa.Table.from_pylist(rows, schema=_KNEES)


_KNEES = pa.schema(
    [("policy", pa.string()), ("capacity", pa.string()), *((n, pa.float64()) for n in ("held", "low", "high", "gain"))]
)
_ADMISSION = pa.schema([("capacity", pa.string()), ("best_causal", pa.string()), ("admission_share", pa.float64())])


def _admission(by: dict[str, list[CacheCounts]]) -> pa.Table:
    """Return (forced Belady's misses - Belady's) / (the best causal policy's - Belady's) at each capacity.

    Of the causal policies those count that keep every newcomer, as forced Belady does; `fixed` keeps none.
    Near 1: what is lost is lost by keeping newcomers that are not used again; near 0: by evicting the wrong ones.
    """
    rows = []
    for word, group in by.items():
        misses: dict[str, int] = {one.policy: int((one.requests - one.hits).sum()) for one in group}
        admitting = {*map(str, CAUSAL)} - {"fixed"}
        causal = {name: count for name, count in misses.items() if name in admitting}
        best = min(causal, key=lambda name: causal[name]) if causal else None
        share = None
        if best is not None and {"belady", "belady_forced"} <= set(misses):
            gap = causal[best] - misses["belady"]
            share = (misses["belady_forced"] - misses["belady"]) / gap if gap > 0 else None
        rows.append({"capacity": word, "best_causal": best, "admission_share": share})
    return pa.Table.from_pylist(rows, schema=_ADMISSION)
