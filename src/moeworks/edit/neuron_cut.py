"""From scores of neurons to the neurons that stay: equal widths that stock checkpoints hold, or exact unequal ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, BadPlan

__all__ = ["NeuronCut", "Widths", "cut_neurons"]

Array = NDArray[Any]
Widths = Literal["equal", "joint", "global", "important"]


class NeuronCut(NamedTuple):
    """Which neurons stay, and the transform that carries it out."""

    neurons: list[tuple[tuple[int, ...], ...]]  # for each layer, for each expert, ascending
    transform: str  # `cut` for equal widths, else `zero_neurons`


def cut_neurons(
    scores: Sequence[Array],
    keep: float,
    *,
    widths: Widths = "equal",
    multiple_of: int = 1,
    expert_scores: Array | None = None,
    whole: float = 0.25,
) -> NeuronCut:
    """Return the neurons that stay of every expert of every layer.

    `equal` is what stock checkpoints can hold: each expert keeps its own best I × keep neurons, rounded down to the
    multiple (8, 64 or 128 for kernels), in all layers. The papers rank otherwise: `joint` ranks all neurons of a layer
    together and drops int(E I (1 - keep)) of them (CAMERA-P, arXiv 2508.02322), `global` those of all layers (HEAPr,
    arXiv 2509.22299), `important` leaves the best experts whole and cuts the others to one width (TENP, arXiv
    2606.09885 [secondary]). These three give unequal widths: the other neurons are set to 0 and nothing gets smaller.

    Args:
        scores: for each layer (E, I), higher is kept; equal ones by number.
        keep: share of the neurons that stay.
        widths: as above.
        multiple_of: of the equal width.
        expert_scores: (L, E), for `important`.
        whole: share of experts that stay whole, for `important`; rounded.

    Raises:
        BadPlan: no neuron would be left, or an option is not possible.
        BadData: scores are not finite, or layers are not of one width.
    """
    if not 0 < keep <= 1 or multiple_of < 1 or not 0 <= whole < 1:
        raise BadPlan("keep is above 0 and up to 1, a multiple at least 1, whole from 0 and below 1.")
    if widths not in ("equal", "joint", "global", "important"):
        raise BadPlan(f"widths is equal, joint, global or important, not '{widths}'.")
    if multiple_of > 1 and widths != "equal":
        raise BadPlan("only equal widths can be a multiple of something.")
    if any(not np.isfinite(layer).all() for layer in scores) or len({layer.shape[1] for layer in scores}) != 1:
        raise BadData("scores of neurons are not finite, or layers differ in width; collect the statistics again.")
    neurons = scores[0].shape[1]
    if widths == "equal":
        width = int((neurons * keep + 1e-9) // multiple_of) * multiple_of
        if width < 1:
            raise BadPlan(f"{keep:g} of {neurons} neurons is no multiple of {multiple_of} above 0; keep more.")
        return NeuronCut([_best(layer, np.full(len(layer), width)) for layer in scores], "cut")
    if widths == "important":
        return NeuronCut(_important(scores, keep, expert_scores, whole), "zero_neurons")
    if widths == "joint":
        return NeuronCut([_together([layer], keep)[0] for layer in scores], "zero_neurons")
    return NeuronCut(_together(scores, keep), "zero_neurons")


def _best(scores: Array, widths: Array) -> tuple[tuple[int, ...], ...]:
    order = np.argsort(-scores, axis=1, kind="stable")
    return tuple(tuple(sorted(row[:width].tolist())) for row, width in zip(order, widths, strict=True))


def _together(scores: Sequence[Array], keep: float) -> list[tuple[tuple[int, ...], ...]]:
    every = np.concatenate([layer.reshape(-1) for layer in scores])
    number = len(every) - int(round(len(every) * (1 - keep), 9))
    alive = np.zeros(len(every), bool)
    alive[np.argsort(-every, kind="stable")[:number]] = True
    masks = np.split(alive, np.cumsum([layer.size for layer in scores])[:-1])
    return [
        tuple(tuple(np.flatnonzero(row).tolist()) for row in mask.reshape(layer.shape))
        for mask, layer in zip(masks, scores, strict=True)
    ]


def _important(
    scores: Sequence[Array], keep: float, expert_scores: Array | None, whole: float
) -> list[tuple[tuple[int, ...], ...]]:
    if expert_scores is None:
        raise BadPlan("to leave important experts whole their scores are needed.")
    found = []
    for layer, row in zip(scores, expert_scores, strict=True):
        experts, neurons = layer.shape
        number = round(whole * experts)
        width = int((keep * experts * neurons - number * neurons) / (experts - number) + 1e-9)
        if width < 1:
            raise BadPlan(
                f"with {number} of {experts} experts whole nothing is left of the others; keep more, or give "
                f"whole={whole / 2:g}."
            )
        widths = np.full(experts, min(width, neurons))
        widths[np.argsort(-np.asarray(row), kind="stable")[:number]] = neurons
        found.append(_best(layer, widths))
    return found
