"""Find the experts whose use follows a number that each document carries: a toxicity score, a length, a year."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from moeworks.errors import BadData
from moeworks.find.amounts import sum_reads
from moeworks.find.artefact import Scores
from moeworks.find.groups import GroupEntries, enter_groups
from moeworks.find.null import Progress, monte_carlo
from moeworks.find.scores.base import Reads, Traits
from moeworks.find.tabulate import FEWEST, Columns, as_scores, check_numbers, clause_of, sealed
from moeworks.stats.counts import layer_batches, layers_of
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["find_correlated"]

Array = NDArray[Any]
_BLOCK = 64  # resamplings at a time


def find_correlated(
    trace: Trace,
    *,
    label: str,
    where: Where | str = Where(),
    read: Reads = "weights",
    ranks: bool = False,
    threshold: float = 0.0,
    permutations: int = 1000,
    refine: bool = True,
    bootstrap: int = 200,
    alpha: float = 0.05,
    within: str | None = None,
    top: int | None = None,
    seed: int = 0,
    command: str = "",
    budget_bytes: int = 256 << 20,
    progress: Progress | None = None,
) -> Scores:
    """Return Pearson's r between a document's mean routing score of each expert and a number that it is labelled with.

    Source: Monet (arXiv 2412.04139, section 5), which removes the experts whose r with a toxicity score exceeds a
    threshold (0.2, 0.1 and 0.05 there) without a test. Here an expert passes if its r is above `threshold` (in either
    direction) and stands a null in which documents exchange their numbers. An expert whose score is the same in
    all documents has r = 0.

    Args:
        trace: the trace.
        label: a label whose values are numbers, one for each document; documents without it are left out.
        where: which tokens and layers count.
        read: what is averaged over a document's tokens: combine weights as in the paper, choices or probabilities.
        ranks: correlate ranks in place of values (Spearman), for numbers with outliers.
        threshold: smallest absolute r that may pass.
        permutations, refine, bootstrap, alpha, within, top, seed, command, budget_bytes, progress: as in `find`.

    Returns:
        The scores; the two rates are means over documents above the median of the number (from it on, if none is
        above), and over the others.

    Raises:
        BadData: a value is no number, a document has several, or all have the same.
    """
    check_numbers(permutations=permutations, bootstrap=bootstrap, alpha=alpha, top=top)
    clause = clause_of(where)
    layers = layers_of(trace, clause)
    entries, number = _enter(trace, label, clause, within)
    y = rankdata(number) if ranks else number  # (n,)
    if not any(len(set(y[group].tolist())) > 1 for group in entries.single):
        raise BadData(f"within each value of '{within}' all documents have the same '{label}'; permute within another.")
    most = max(permutations, math.ceil(sum(layers.values()) / alpha)) if refine else permutations
    samples = bootstrap if len(entries) >= 2 * FEWEST else 0
    middle = np.median(number)
    high = number > middle if (number > middle).any() else number >= middle

    def draw(rng: np.random.Generator, count: int) -> Array:
        drawn = np.empty((count, len(y)))
        for group in entries.single:
            drawn[:, group] = rng.permuted(np.tile(y[group], (count, 1)), axis=1)
        return drawn

    columns: list[Columns] = []
    for batch in layer_batches(layers, len(entries), budget_bytes=budget_bytes):
        x = (
            sum_reads(trace, entries.rows(trace, clause), entries.tokens, batch, read) / entries.tokens[:, None]
        )  # (n, E)
        rates = np.stack([x[high].mean(0), x[~high].mean(0)])
        if ranks:
            x = rankdata(x, axis=0)
        normal = _normalised(x)
        score = (_normalised(y[:, None]).T @ normal)[0]
        tested = monte_carlo(
            draw,
            _correlations(normal),
            np.abs(score),
            width=len(entries),
            permutations=permutations,
            most=most,
            seed=seed,
            progress=progress,
        )
        rng = np.random.default_rng([seed, 2])
        resampled = np.empty((samples, len(score)))
        for start in range(0, samples, _BLOCK):
            times = entries.resample(rng, min(_BLOCK, samples - start))
            resampled[start : start + _BLOCK] = _weighted(times, x, y)
        columns.append(Columns(score, rates, rates[0], rates[1], tested.p, tested.drawn, resampled))

    scores = as_scores(
        trace,
        layers,
        columns,
        Traits(reads=read),
        names=("above", "below"),
        options={"read": read, "ranks": ranks, "threshold": threshold},
        alpha=alpha,
        top=top,
        header={
            "command": command,
            "seed": seed,
            "contrast": "",
            "against": "",
            "where": str(clause),
            "method": "pearson",
            "aggregate": "macro",
            "documents": (int(high.sum()), int((~high).sum())),
            "pairs": 0,
            "tokens": (int(entries.tokens[high].sum()), int(entries.tokens[~high].sum())),
            "null": "values",
            "within": within,
            "permutations": permutations,
            "exhaustive": False,
            "smallest_p": max(1 / (most + 1), _rarest(entries, y)),
            "bootstrap": samples,
            "label": label,
        },
    )
    return _above(scores, threshold) if threshold else scores


def _correlations(normal: Array) -> Callable[[Array, Array | None], Array]:
    """Return the function from numbers of documents, (b, n), to r with each expert's scores, (b, E)."""

    def correlations(number: Array, active: Array | None) -> Array:
        return np.asarray(_normalised(number.T).T @ (normal if active is None else normal[:, active]))

    return correlations


def _above(scores: Scores, threshold: float) -> Scores:
    """Return scores in which only experts whose absolute r is at least the threshold pass."""
    passes = scores.column("passes") & (np.abs(scores.column("score")) >= threshold)
    table = scores.table.set_column(scores.table.column_names.index("passes"), "passes", [passes])
    return sealed(table, scores.header)


def _enter(trace: Trace, label: str, where: Where, within: str | None) -> tuple[GroupEntries, Array]:
    """Return an entry for each document that has the label, and its number, (n,)."""
    by_value = enter_groups(trace, label=label, where=where)
    for name in by_value.names:
        try:
            good = math.isfinite(float(name))
        except ValueError:
            good = False
        if not good:
            raise BadData(f"'{label}={name}' is no number; correlation needs a label whose values are numbers.")
    if by_value.pairs:
        raise BadData(f"{by_value.pairs} documents have several values of '{label}'; each needs one number.")
    named = where.model_copy(update={"labels": {**where.labels, label: where.labels.get(label, by_value.names)}})
    entries = enter_groups(trace, label=None, where=named, within=within)
    number = np.empty(int(by_value.document.max()) + 1)
    number[by_value.document] = np.array([float(name) for name in by_value.names])[by_value.value]
    own = number[entries.document]
    if len(set(own.tolist())) < 2:
        raise BadData(f"all selected documents have the same value of '{label}'; there is nothing to correlate.")
    return entries, own


def _normalised(x: Array) -> Array:
    """Return columns with mean 0 and length 1, (n, E); constant ones are 0 throughout."""
    centred = x - x.mean(0)
    length = np.sqrt((centred**2).sum(0))
    tiny = length <= 1e-12 * np.abs(x).max(0, initial=1e-300) * math.sqrt(len(x))
    return np.asarray(np.where(tiny, 0.0, centred / np.where(tiny, 1.0, length)))


def _weighted(times: Array, x: Array, y: Array) -> Array:
    """Return r of documents that count so many times, (b, E)."""
    total = times.sum(1, keepdims=True)
    x = x - x.mean(0)  # against cancellation
    y = y - y.mean()
    mean_x, mean_y = times @ x / total, (times @ y)[:, None] / total
    together = (times * y) @ x / total - mean_x * mean_y
    spread = (times @ x**2 / total - mean_x**2) * ((times @ y**2)[:, None] / total - mean_y**2)
    out = np.zeros_like(together)
    return np.asarray(np.divide(together, np.sqrt(np.maximum(spread, 0)), out=out, where=spread > 1e-30))


def _rarest(entries: GroupEntries, y: Array) -> float:
    """Return the share that one arrangement of the numbers is of all different ones."""
    ways = 1.0
    for group in entries.single:
        _, counts = np.unique(y[group], return_counts=True)
        ways *= math.exp(min(700.0, math.lgamma(len(group) + 1) - sum(math.lgamma(c + 1) for c in counts)))
    return 1 / ways
