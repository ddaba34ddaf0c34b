"""The first question of placement, answered with numbers: is a fixed resident set worth it for this traffic?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moeworks.place.cache import CacheCounts
from moeworks.place.rules import CAUSAL, CacheRules
from moeworks.stats.documents import FEWEST_DOCUMENTS, draw_documents, percentiles

if TYPE_CHECKING:
    from moeworks.artefact import LayerShape

__all__ = ["Pinning", "Rate", "pinning_of"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Rate:
    """A hit rate, or a difference of two, with its 95 % interval over documents; NaN ends with fewer than 5."""

    value: float
    low: float
    high: float

    def words(self, unit: str = " %") -> str:
        """Return it in per cent with one decimal."""
        ends = "" if np.isnan(self.low) else f" [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.value:.1f}{unit}{ends}"


@dataclass(frozen=True)
class Pinning:
    """Whether pinning is worth it.

    Attributes:
        verdict: `yes` where the pinned set hits more than LRU and the interval of the difference is above 0, `no` where
            it is below 0, else `undecided`.
        answer: the sentence.
        capacity: as asked for. held: experts a layer (mean). share: of all experts.
        rates: hit rates of the policies that were run, by name.
        difference: pinned set minus LRU.
        chance: a random resident set of this size.
        ceiling: the best set of this size for the measured documents themselves, known afterwards.
        headroom: (pinned - chance) / (ceiling - chance): how much of what any fixed set could gain was learned from
            other documents; null where no fixed set gains anything.
        documents, calibration_documents, batch, phases: what was measured.
    """

    verdict: Literal["yes", "no", "undecided"]
    answer: str
    capacity: str
    held: float
    share: float
    rates: dict[str, Rate]
    difference: Rate
    chance: float
    ceiling: float
    headroom: float | None
    documents: int
    calibration_documents: int
    batch: int
    phases: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)


def pinning_of(
    group: Sequence[CacheCounts],
    ceiling: CacheCounts,
    *,
    chance: float,
    shapes: Sequence[LayerShape],
    rules: CacheRules,
    phases: Mapping[str, int],
    calibration_documents: int,
    bootstrap: int,
    seed: int,
) -> Pinning:
    """Compare the pinned set with LRU, with the best that a cache can do and with chance, at one capacity.

    Args:
        group: counts of the policies at this capacity, `fixed` and `lru` among them.
        ceiling: counts of a fixed set made from the measured documents themselves.
        chance: hit rate of a random resident set.
        shapes: the layers. rules: the semantics. phases: tokens measured, by phase.
        calibration_documents: documents that the pinned set was made from.
        bootstrap, seed: of the resampled documents.
    """
    by = {counts.policy: counts for counts in group}
    units = len(ceiling.hits)
    hits = np.stack([counts.hits.sum(1) for counts in group], axis=1).astype(float)  # (u, p)
    requests = np.stack([counts.requests.sum(1) for counts in group], axis=1).astype(float)
    names = [counts.policy for counts in group]
    samples = np.concatenate(
        [(d @ hits) / np.maximum(d @ requests, 1) for d in draw_documents(units, samples=bootstrap, seed=seed)]
    )  # (b, p)
    lows, highs = percentiles(samples, units)
    rates: dict[str, Rate] = {
        name: Rate(by[name].hit_rate, float(low), float(high))
        for name, low, high in zip(names, lows, highs, strict=True)
    }
    moved = samples[:, names.index("fixed")] - samples[:, names.index("lru")]
    low, high = percentiles(moved, units)
    difference = Rate(rates["fixed"].value - rates["lru"].value, float(low), float(high))
    verdict: Literal["yes", "no", "undecided"] = "undecided"
    if units >= FEWEST_DOCUMENTS and difference.low > 0:
        verdict = "yes"
    elif units >= FEWEST_DOCUMENTS and difference.high < 0:
        verdict = "no"
    gain = ceiling.hit_rate - chance
    held = sum(ceiling.held) / len(ceiling.held)
    experts = sum(shape.experts for shape in shapes)
    found = Pinning(
        verdict=verdict,
        answer="",
        capacity=rules.capacity,
        held=held,
        share=sum(ceiling.held) / experts,
        rates=rates,
        difference=difference,
        chance=chance,
        ceiling=ceiling.hit_rate,
        headroom=(rates["fixed"].value - chance) / gain if gain > 1e-9 else None,
        documents=units,
        calibration_documents=calibration_documents,
        batch=rules.batch,
        phases=dict(phases),
    )
    return Pinning(
        **{**{name: getattr(found, name) for name in asdict(found)}, "answer": _sentence(found, shapes, rules)}
    )


def _sentence(found: Pinning, shapes: Sequence[LayerShape], rules: CacheRules) -> str:
    size = f"{found.held:g} of {np.mean([shape.experts for shape in shapes]):g} experts a layer"
    if rules.scope == "pooled":
        size = f"{found.held * len(shapes):.0f} of {sum(shape.experts for shape in shapes)} experts in one pool"
    units = "document" if rules.batch == 1 else f"batch of {rules.batch} texts"
    begin = {
        "yes": "Yes, for this traffic",
        "no": "No",
        "undecided": f"These {found.documents} {units if found.documents == 1 else _plural(units)} cannot tell",
    }[found.verdict]
    points = found.difference.words(" points")
    above = "above" if found.difference.value >= 0 else "below"
    shown = points.lstrip("-") if np.isnan(found.difference.low) else points
    bound = f", Belady's bound {found.rates['belady'].words()}" if "belady" in found.rates else ""
    others = {*map(str, CAUSAL)} - {"fixed", "lru"}
    causal = {name: rate for name, rate in found.rates.items() if name in others}
    best = max(causal, key=lambda name: causal[name].value) if causal else None
    other = ""
    if best is not None and causal[best].value > max(found.rates["lru"].value, found.rates["fixed"].value):
        other = f" The best policy without knowledge of the future is {best}: {causal[best].words()}."
    headroom = "" if found.headroom is None else (
        f" Of what any fixed set could gain over a random one here, {100 * found.headroom:.0f} % was learned from the "
        "other documents."
    )  # fmt: skip
    return (
        f"{begin}: with {size} ({100 * found.share:.0f} %), the experts that {found.calibration_documents} other "
        f"documents use most hit {found.rates['fixed'].words()} of requests, LRU {found.rates['lru'].words()}{bound}; "
        f"random experts would hit {100 * found.chance:.1f} %. Pinned minus LRU: {shown} ({above}).{other}{headroom}"
    )


def _plural(units: str) -> str:
    return units.replace("batch", "batches") if units.startswith("batch") else f"{units}s"
