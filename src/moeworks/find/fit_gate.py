"""Fits a plan's gate on routing: a linear probe, or a box, that tells prompts apart by which experts run.

L2-penalised logistic regression on the shares of each prompt's tokens for which every expert ran. The two sides count
alike whatever their sizes. Fitted on the documents of `find`; penalty and threshold are chosen on `dev`; how well it
tells is measured once on `held_out` and written into the gate. A request's split is its label `split`, or else comes
from its document's name (`moeworks.probes.split_of`), so that no document is on two sides of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.find.key_space import Box, routing_frequencies
from moeworks.plan.gate import KeySpaceGate, RoutingGate
from moeworks.probes.probe import SPLITS, Split, split_of
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.examples import Example
    from moeworks.trace import Trace

__all__ = ["PENALTIES", "area_under_curve", "best_threshold", "fit_box_gate", "fit_gate", "logistic"]

Array = NDArray[Any]
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # times |w|^2 / 2, beside the mean log loss, on standardised shares
FEWEST = 3  # documents of a side in each split


def fit_gate(
    source: Trace | Engine,
    *,
    contrast: str | Where,
    against: str | Where,
    examples: Iterable[Example] | None = None,
    layers: Sequence[int] | None = None,
    penalties: Sequence[float] = PENALTIES,
    batch_size: int = 8,
) -> RoutingGate:
    """Return the gate that opens for prompts like those of `contrast` and stays shut for those of `against`.

    Args:
        source: a trace of the plain model, or an engine, which then records `examples`.
        contrast, against: where clauses of the two sides, by labels; both should be prompts as they come in use.
        examples: the texts, with labels, for an engine only.
        layers: layers that the probe reads; None for all.
        penalties: what is tried on dev; of equally good ones the strongest.
        batch_size: texts a forward pass, for an engine only.

    Raises:
        BadData: a side has fewer than three documents in a split, a request is on both sides, or the prompts of both
            sides cannot be told apart at all because nothing differs.
    """
    from moeworks.trace import Trace

    if isinstance(source, Trace):
        if examples is not None:
            raise BadData("a trace has its texts already; leave examples out, or pass an engine.")
        return _fit(source, contrast, against, layers, penalties)
    if examples is None:
        raise BadData("an engine needs examples to record; pass them, or a trace in its place.")
    with tempfile.TemporaryDirectory(prefix="moeworks-") as folder:
        trace = source.record(list(examples), Path(folder) / "trace", batch_size=batch_size)
        return _fit(trace, contrast, against, layers, penalties)


def fit_box_gate(
    trace: Trace,
    *,
    contrast: str | Where,
    against: str | Where,
    coverage: float = 0.9,
    layers: Sequence[int] | None = None,
) -> KeySpaceGate:
    """Return the gate that opens inside a box around the routing of `contrast` prompts (Key Space Detection).

    The box (`moeworks.find.key_space`, arXiv 2503.21730) is fitted on documents of `find`, its alpha calibrated on
    `dev` so that a new prompt of the contrast side lies inside with a probability of `coverage`; what it lets in of
    either side is measured once on `held_out`. It needs no other side to be fitted, and is no better for having one.

    Args:
        trace: of the plain model.
        contrast, against, layers: as in `fit_gate`.
        coverage: share of new contrast prompts that should open it.

    Raises:
        BadData: as in `fit_gate`, or dev has too few contrast prompts for the coverage.
    """
    found = routing_frequencies(trace, where=Where(phase=("prompt",), layer=None if layers is None else tuple(layers)))
    parts, documents = _split(trace, found.rates, found.requests, contrast, against)
    prompt_tokens = np.asarray(trace.request_table().prompt_tokens)[found.requests]
    floor = 1.0 / float(np.median(prompt_tokens))  # one stray token of a prompt must not shut it
    box = Box.fit(parts["find"].rates[parts["find"].contrast], floor=floor)
    box = box.calibrate(parts["dev"].rates[parts["dev"].contrast], coverage=coverage)
    opened, side = box.contains(parts["held_out"].rates), parts["held_out"].contrast
    return KeySpaceGate(
        layers=found.layers,
        **box.as_json(),
        provenance={
            "method": "box on routing frequencies of the prompt",
            "contrast": str(contrast),
            "against": str(against),
            "documents": documents,
            "coverage": coverage,
            "opened_held_out": _opened(opened, side),
        },
    )


def _opened(opened: Array, side: Array) -> dict[str, float]:
    return {
        "contrast": round(float(opened[side].mean()), 6),
        "against": round(float(opened[~side].mean()), 6),
    }


class _Prompts(NamedTuple):
    """The prompts of one split."""

    rates: Array  # (n, columns)
    contrast: NDArray[np.bool_]  # (n,)


def _fit(
    trace: Trace,
    contrast: str | Where,
    against: str | Where,
    layers: Sequence[int] | None,
    penalties: Sequence[float],
) -> RoutingGate:
    if not penalties or min(penalties) <= 0:
        raise BadData(f"penalties are numbers above 0, not {list(penalties)}.")
    found = routing_frequencies(trace, where=Where(phase=("prompt",), layer=None if layers is None else tuple(layers)))
    parts, documents = _split(trace, found.rates, found.requests, contrast, against)
    mean, spread = parts["find"].rates.mean(0), parts["find"].rates.std(0)
    live = spread > 0  # an expert that runs alike for all prompts says nothing
    if not live.any():
        raise BadData("every expert runs alike for all prompts of find, so that routing cannot tell them apart.")
    scaled = {name: (part.rates[:, live] - mean[live]) / spread[live] for name, part in parts.items()}
    tried: list[tuple[float, float, Array, float]] = []  # (AUROC on dev, penalty, weights, intercept)
    for penalty in sorted(penalties):
        weights, intercept = logistic(scaled["find"], parts["find"].contrast, penalty=penalty)
        told = area_under_curve(scaled["dev"] @ weights + intercept, parts["dev"].contrast)
        tried.append((told, penalty, weights, intercept))
    told, penalty, weights, intercept = max(tried, key=lambda entry: entry[:2])
    threshold = best_threshold(scaled["dev"] @ weights + intercept, parts["dev"].contrast)
    held_out = scaled["held_out"] @ weights + intercept
    full = np.zeros(len(live))  # weights of the shares themselves: w·(x - mean) / spread + b > t
    full[live] = weights / spread[live]
    shift = float(threshold - intercept + full @ mean)
    ends = np.cumsum([0, *found.layers.values()])
    opened, side = held_out > threshold, parts["held_out"].contrast
    return RoutingGate(
        weights={
            layer: tuple(full[start:stop].tolist())
            for layer, start, stop in zip(found.layers, ends[:-1], ends[1:], strict=True)
        },
        threshold=shift,
        provenance={
            "method": "logistic regression on routing frequencies of the prompt",
            "contrast": str(contrast),
            "against": str(against),
            "documents": documents,
            "penalty": penalty,
            "auroc_dev": round(told, 6),
            "auroc_held_out": round(area_under_curve(held_out, side), 6),
            "opened_held_out": _opened(opened, side),
        },
    )


def _split(
    trace: Trace, rates: Array, requests: Array, contrast: str | Where, against: str | Where
) -> tuple[dict[Split, _Prompts], dict[str, list[int]]]:
    """Return the prompts of each split, and how many documents of each side there are in it."""
    table = trace.request_table()
    names = np.array(_splits(trace))[requests]  # (n,)
    documents = trace.documents()[requests]
    first, second = (_on_side(trace, clause)[requests] for clause in (contrast, against))
    if (first & second).any():
        raise BadData(f"{int((first & second).sum())} requests are on both sides; make the two clauses exclusive.")
    parts: dict[Split, _Prompts] = {}
    counts: dict[str, list[int]] = {}
    for split in SPLITS:
        here = names == split
        counts[split] = [len(np.unique(documents[here & side])) for side in (first, second)]
        if min(counts[split]) < FEWEST:
            raise BadData(
                f"{split} has {counts[split][0]} documents of the contrast side and {counts[split][1]} of the other; "
                f"a gate needs at least {FEWEST} of each in find, dev and held_out, of {len(table)} requests in all. "
                "A probe's are recorded together by: moeworks record MODEL probe:NAME:all."
            )
        taken = here & (first | second)
        parts[split] = _Prompts(rates[taken], first[taken])
    return parts, counts


def _splits(trace: Trace) -> list[str]:
    table = trace.request_table()
    if "split" in table.labels:
        return [str(name) for name in table.labels["split"]]
    names = trace.requests["document"].to_pylist()
    return [split_of(str(name or f"request {number}")) for number, name in enumerate(names)]


def _on_side(trace: Trace, clause: str | Where) -> NDArray[np.bool_]:
    """Return which requests have a row of a side, (requests,)."""
    where = Where.parse(clause) if isinstance(clause, str) else clause
    rows = trace.rows()
    side = np.zeros(len(trace.request_table()), bool)
    side[rows.request[where.mask(rows, trace.request_table())]] = True
    return side


def logistic(points: Array, positive: Array, *, penalty: float) -> tuple[Array, float]:
    """Return weights (d,) and intercept of the logistic regression with both sides counted alike.

    Minimises mean over sides of the mean log loss + penalty / 2 × |w|²; the intercept is not penalised.

    Args:
        points: (n, d).
        positive: (n,) booleans.
        penalty: above 0.
    """
    from scipy.optimize import minimize

    sign = np.where(positive, 1.0, -1.0)
    share = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum())  # sums to 1

    def loss(parameters: Array) -> tuple[float, Array]:
        weights, intercept = parameters[:-1], parameters[-1]
        margin = sign * (points @ weights + intercept)
        value = share @ np.logaddexp(0.0, -margin) + penalty / 2 * weights @ weights
        pull = -share * sign / (1.0 + np.exp(np.minimum(margin, 700.0)))  # (n,)
        return float(value), np.append(pull @ points + penalty * weights, pull.sum())

    fitted = minimize(loss, np.zeros(points.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return np.asarray(fitted.x[:-1]), float(fitted.x[-1])


def area_under_curve(values: Array, positive: Array) -> float:
    """Return the share of (positive, other) pairs in which the positive has the larger value; ties count half."""
    from scipy.stats import rankdata

    ranks, count = rankdata(values), int(positive.sum())
    wins = float(ranks[positive].sum()) - count * (count + 1) / 2
    return wins / (count * (len(values) - count))


def best_threshold(values: Array, positive: Array) -> float:
    """Return the threshold with the largest balanced accuracy of `values > threshold`; the middle of the widest gap."""
    ordered = np.unique(values)
    if len(ordered) == 1:
        return float(ordered[0])
    cuts = (ordered[1:] + ordered[:-1]) / 2
    above = values[:, None] > cuts  # (n, cuts)
    accuracy = above[positive].mean(0) - above[~positive].mean(0)
    best = np.flatnonzero(accuracy == accuracy.max())
    return float(cuts[best[np.argmax(np.diff(ordered)[best])]])
