"""What an edit score is: a number per expert from statistics or weights, by name; the higher, the more it is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData
from moeworks.registry import Registry

__all__ = ["EDIT_SCORES", "EditScore", "Need", "needs", "needs_of", "stacked", "summary_of", "tokens_of"]

Array = NDArray[Any]
# (statistics, *, …options) → (L, E) float64. One that needs weights also gets `layers`, an iterable of `LayerWeights`
# in the order of the statistics; one that needs the contract gets `shapes`, the `LayerShape` of each.
EditScore = Callable[..., Array]
EDIT_SCORES: Registry[EditScore] = Registry("edit score", "moeworks.edit_scores")

Need = Literal[
    "cheap",  # groups of statistics, as in `GROUPS`
    "router",
    "means",
    "everywhere",
    "neurons",
    "gradients",
    "sets",  # distinct sets of chosen experts
    "rows",  # kept rows of text
    "weights",
    "contract",
]
F = TypeVar("F", bound=Callable[..., Any])


def needs(*what: Need) -> Callable[[F], F]:
    """Return the decorator that says what a score, a neuron score or a search wants to be given."""

    def mark(function: F) -> F:
        function.__dict__["needs"] = frozenset(what)
        return function

    return mark


def needs_of(function: Callable[..., Any]) -> frozenset[Need]:
    """Return what a score was marked to need; one that says nothing needs the cheap statistics."""
    found: frozenset[Need] = function.__dict__.get("needs", frozenset({"cheap"}))
    return found


def summary_of(function: Callable[..., Any]) -> str:
    """Return the first sentence of a function's docstring, for lists of methods."""
    text = (function.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split()).split(". ")[0].rstrip(".")


def stacked(statistics: Sequence[LayerStatistics], name: str, label: str | None = None) -> Array:
    """Return one array of all layers, (L, E, …) float64, of one value of the label or joined over all.

    Raises:
        BadData: it was not collected, there is no such value, or layers differ in their number of experts.
    """
    if not statistics:
        raise BadData("these statistics hold no layer; score the model again.")
    counts = {layer.experts for layer in statistics}
    if len(counts) > 1:
        raise BadData(
            f"layers have {', '.join(map(str, sorted(counts)))} experts; a score compares layers of one size, "
            "so plan the layers of each size on their own with --layers."
        )
    return np.stack([layer.get(name, label) for layer in statistics]).astype(np.float64)


def tokens_of(statistics: Sequence[LayerStatistics], label: str | None = None) -> Array:
    """Return the number of tokens that each layer saw, (L, 1), of one value of the label or of all."""
    if label is None:
        return np.array([[float(layer.tokens.sum())] for layer in statistics])
    for layer in statistics:
        layer.get("count", label)  # says which labels there are
    return np.array([[float(layer.tokens[layer.labels.index(label)])] for layer in statistics])


def divided(numerator: Array, denominator: Array) -> Array:
    """Return the quotient, 0 where the denominator is 0: what never ran has no mean and counts as nothing."""
    top, bottom = np.broadcast_arrays(numerator, denominator)
    return np.asarray(np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0))
