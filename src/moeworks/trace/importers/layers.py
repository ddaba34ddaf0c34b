"""Fits the routes of another engine, (tokens, layers, slots), to the layers of a model, and refuses what cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.artefact import ModelIdentity
from moeworks.errors import BadData

__all__ = ["fit_layers"]

Array = NDArray[Any]


def fit_layers(routes: Array, model: ModelIdentity) -> dict[int, Array]:
    """Return layer → ids, (n, k), of each router of the model.

    The layer axis may count all hidden layers, dense ones as rows of zeros (vLLM, SGLang), or the layers with routers
    alone (TensorRT-LLM). Slots beyond the model's k are taken off if all of their ids lie beyond its experts: engines
    that fuse shared experts into the routed ones add such.

    Args:
        routes: (n, layers, slots) expert ids, or (n, layers * slots) where the source does not tell them apart.
        model: whose routes they are said to be.

    Raises:
        BadData: all problems at once: an axis that fits neither way, ids in dense layers, ids beyond the experts, the
            same expert twice in a row. Rows of zeros come from kernels that route inside, where nothing is captured.
    """
    numbers = [shape.layer for shape in model.layers]
    if routes.ndim == 2:
        routes = _split(routes, numbers, max(shape.top_k for shape in model.layers))
    width = routes.shape[1]
    if width > numbers[-1]:
        places = {number: number for number in numbers}
        dense = [place for place in range(width) if place not in places]
        filled = [place for place in dense if routes[:, place].any()]
        if filled:
            raise BadData(
                f"layers {', '.join(map(str, filled))} of the routes hold experts, but {model.name} has no router "
                f"there (routers: {', '.join(map(str, numbers))}): the layer axis is another model's, or is moved."
            )
    elif width == len(numbers):
        places = {number: place for place, number in enumerate(numbers)}
    else:
        raise BadData(
            f"the routes have {width} layers; {model.name} has {len(numbers)} routers, the last in layer "
            f"{numbers[-1]}: neither all hidden layers nor all routers."
        )
    found: dict[int, Array] = {}
    problems: list[str] = []
    for shape in model.layers:
        ids = routes[:, places[shape.layer]]  # (n, slots)
        extra = ids[:, shape.top_k :]
        if extra.size and (extra >= shape.experts).all():
            ids = ids[:, : shape.top_k]
        problem = _problem(ids, shape.experts, shape.top_k)
        if problem:
            problems.append(f"layer {shape.layer}: {problem}")
        found[shape.layer] = ids
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more layers" if len(problems) > 4 else "")
        raise BadData(f"the routes are not those of {model.name}: {shown}.")
    return found


def _split(flat: Array, numbers: list[int], top_k: int) -> Array:
    """Return (n, layers, slots) of (n, layers * slots): k slots a layer, or one more where a shared expert is fused."""
    for slots in (top_k, top_k + 1):
        layers, rest = divmod(flat.shape[1], slots)
        if not rest and (layers == len(numbers) or layers > numbers[-1]):
            return flat.reshape(len(flat), layers, slots)
    raise BadData(
        f"{flat.shape[1]} ids a token are not {top_k} for each of {len(numbers)} routers, nor for all hidden layers "
        f"up to layer {numbers[-1]}."
    )


def _problem(ids: Array, experts: int, top_k: int) -> str:
    if ids.shape[1] != top_k:
        return f"{ids.shape[1]} experts a token, the model takes {top_k}"
    if ids.size and (ids.min() < 0 or ids.max() >= experts):
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        return (
            f"expert {wrong}, but they are 0 to {experts - 1} (ids after a placement of experts, or overflowed ones?)"
        )
    if top_k > 1:
        ranked = np.sort(ids, axis=-1)
        twice = (ranked[:, 1:] == ranked[:, :-1]).any(-1)
        if twice.any():
            zero = int((ids[twice] == 0).all(-1).sum())
            what = f", {zero} of them all zeros: nothing was captured there" if zero else ""
            return f"the same expert twice in {int(twice.sum())} of {len(ids)} rows{what}"
    elif len(ids) > 1 and not ids.any():
        return "expert 0 in every row: nothing was captured there"
    return ""
