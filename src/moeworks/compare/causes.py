"""The probable cause of what differs between two traces in one layer, tested against both what flips and what stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.compare.variants import choice_variants, same_sets, weight_variants

if TYPE_CHECKING:
    from moeworks.contract import Contract

__all__ = ["Cause", "cause_of_flips", "cause_of_weights", "shift_of_layers"]

Array = NDArray[Any]
EXPLAINED = 0.95  # share of all rows that a cause must turn into what was seen
OF_FLIPS = 0.9  # share of the flips among them; a few may be near-ties beside
WEIGHT_TOLERANCE = (
    1e-2  # relative; two engines' weights of one rule differ by rounding, those of two rules by much more
)


@dataclass(frozen=True)
class Cause:
    """What differs, in words, and the share of the flips (or of the wrong weights) looked at that it explains."""

    what: str
    share: float


def cause_of_flips(
    logits: Array, contract: Contract, bias: Array | None, own: Array, seen: Array, near_ties: float
) -> Cause:
    """Return why the second trace chose other experts than the first from the same inputs.

    Args:
        logits: (n, E) of the first trace, rows that agree and rows that flip, as they come.
        contract: the first trace's rule.
        bias: (E,) its selection bias, None where it has none or it is not known.
        own: (n, k) ids of the first trace.
        seen: (n, k) ids of the second trace.
        near_ties: share of the flips that are near-ties, NaN if unknown.
    """
    flipped = ~same_sets(own, seen)
    best = Cause("unexplained", 0.0)
    for what, ids in choice_variants(logits, contract, bias):
        alike = same_sets(ids, seen)
        share = float(alike[flipped].mean()) if flipped.any() else 0.0
        if share > best.share and alike.mean() >= EXPLAINED:
            best = Cause(what, share)
    if best.share >= OF_FLIPS:
        return best
    return Cause("near-ties", near_ties) if near_ties >= OF_FLIPS else Cause("unexplained", max(best.share, 0.0))


def cause_of_weights(
    logits: Array, contract: Contract, expert_scale: Array | None, ids: Array, seen: Array
) -> Cause | None:
    """Return which rule gives the second trace's weights of its own ids, (n, k) each; None if none does."""
    if contract.expert_scale != (expert_scale is not None):
        return None
    size = np.abs(seen).sum(-1, keepdims=True)  # (n, 1)
    best: Cause | None = None
    for what, weights in weight_variants(logits, ids, contract, expert_scale).items():
        share = float((np.abs(weights - seen) <= WEIGHT_TOLERANCE * size).all(-1).mean())
        if share >= EXPLAINED and (best is None or share > best.share):
            best = Cause(what, share)
    return best


def shift_of_layers(first: dict[int, Array], second: dict[int, Array]) -> int:
    """Return by how many layers the second trace's ids, layer → (n, k), are moved against the first's; 0 if not.

    A trace whose layer axis counts dense layers where the other's does not is moved so. A shift counts only where the
    layers agree better with it than without, in nearly every row.
    """
    layers = sorted(first)

    def agreement(shift: int) -> float:
        pairs = [(layers[i], layers[i + shift]) for i in range(len(layers)) if 0 <= i + shift < len(layers)]
        alike = [same_sets(first[a], second[b]) for a, b in pairs if first[a].shape == second[b].shape]
        return float(np.concatenate(alike).mean()) if alike else 0.0

    straight = agreement(0)
    for shift in (1, -1, 2, -2, 3, -3):  # the smallest that explains: a far one leaves few layers to contradict it
        if abs(shift) < len(layers) and (found := agreement(shift)) >= EXPLAINED and found > straight + 0.1:
            return shift
    return 0
