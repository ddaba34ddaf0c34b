"""Scores of several kinds of text in one: domains normalised and added or their maximum, and one label less another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from moeworks.edit.scores.base import EDIT_SCORES, Array, needs, needs_of
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData, did_you_mean

__all__ = ["Mix", "difference", "layer_normalised", "mixed"]

Mix = Literal["sum", "l2", "max"]


def layer_normalised(scores: Array, by: Literal["sum", "l2", "max"]) -> Array:
    """Return scores (L, E) divided by their sum, Euclidean length or maximum of absolute values in each layer.

    A layer of zeros stays as it is.
    """
    size = {
        "sum": np.abs(scores).sum(-1, keepdims=True),
        "l2": np.sqrt((scores**2).sum(-1, keepdims=True)),
        "max": np.abs(scores).max(-1, keepdims=True),
    }[by]
    return np.asarray(np.divide(scores, size, out=np.zeros_like(scores), where=size > 0))


def mixed(score: Callable[[str], Array], domains: Sequence[str], *, mix: Mix = "sum") -> Array:
    """Return the scores of several domains in one, (L, E): normalised in each layer, then joined.

    Args:
        score: from a value of the label to its scores, (L, E).
        domains: values of the label.
        mix: `sum` divides by the sum in the layer and adds (EASY-EP); `l2` divides by the Euclidean length and adds
            (TENP); `max` divides by the sum and takes the largest, so that what one domain needs stays.

    Raises:
        BadData: no domain, or one twice.
    """
    if not domains or len(set(domains)) < len(domains):
        raise BadData("name the domains to mix, values of the label, each once.")
    if mix not in ("sum", "l2", "max"):
        raise BadData(f"mix is 'sum', 'l2' or 'max', not '{mix}'.")
    parts = np.stack([layer_normalised(score(domain), "l2" if mix == "l2" else "sum") for domain in domains])
    return np.asarray(parts.max(0) if mix == "max" else parts.sum(0))


@EDIT_SCORES.register("difference")
@needs("cheap")
def difference(
    statistics: Sequence[LayerStatistics],
    *,
    label: str | None = None,
    against: str | None = None,
    base: str = "reap",
    normalise: bool = True,
    **options: Any,
) -> Array:
    """Score on one value of the label less that on another, by any base score: to specialise, or to forget `against`.

    Both are divided by their sum in the layer first, so that the longer text does not win; `normalise=false` subtracts
    the bare scores. An expert that neither text uses scores 0, above those that only `against` uses.

    Raises:
        BadData: a side is not named, or the base score takes no label.
    """
    if label is None or against is None or label == against:
        raise BadData("say two values of the label: what is kept as label, what is subtracted as against.")
    if base == "difference" or "label" not in EDIT_SCORES.options(base) or "weights" in needs_of(EDIT_SCORES.get(base)):
        able = [name for name in EDIT_SCORES.names() if name != "difference" and "label" in EDIT_SCORES.options(name)]
        raise BadData(f"the score '{base}' does not tell labels apart; {did_you_mean(base, able)}")
    function = EDIT_SCORES.get(base)
    kept, gone = (function(statistics, label=value, **options) for value in (label, against))
    return layer_normalised(kept, "sum") - layer_normalised(gone, "sum") if normalise else kept - gone
