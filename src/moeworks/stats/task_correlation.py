"""Whether languages that are routed less like the base do worse at a task, by a table of scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.documents import percentiles
from moeworks.stats.layer_divergences import Measure, layer_divergences
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["read_scores", "task_correlation"]

Array = NDArray[Any]
FEWEST_VALUES = 4  # a correlation of three points says nothing


def task_correlation(
    trace: Trace,
    *,
    label: str = "lang",
    base: str = "en",
    scores: str | Path | Mapping[str, float] = "",
    where: Where = Where(),
    measure: Measure = "normalised",
    permutations: int = 10_000,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return the correlation of divergence from the base with task scores over the values of a label, a row per layer.

    Columns: `layer`; `correlation` (Pearson), its 95 % interval `low`, `high` from resampled documents, `chance` 0, and
    `p`, two-sided, from scores exchanged between the values; `rank_correlation` (Spearman) and `rank_p`; `values`, how
    many. The interval says how firm the divergences are, not what other languages would give: with few languages only
    p speaks of that.

    Source: arXiv 2510.04694, which reports correlations of divergence with task performance by layer.

    Args:
        trace: the trace.
        label, base: as in `divergence`; a score of the base itself is not used.
        scores: value → score, or a file of it: JSON (an object) or CSV (value, score; a first line that is no number
            is a heading).
        where: which tokens and layers count.
        measure: normalised (D_HJS) or raw (Jensen–Shannon / ln 2).
        permutations: of the scores; all of them if there are no more.
        bootstrap: resamplings of documents.
        seed: of both.

    Raises:
        BadData: the file cannot be read, or fewer than four values have both divergence and score.
    """
    if isinstance(scores, str) and not scores:
        raise BadData("task_correlation needs task scores: scores=FILE, a CSV of value,score or a JSON object.")
    table = dict(scores) if isinstance(scores, Mapping) else read_scores(scores)
    found = layer_divergences(
        trace, label=label, base=base, where=where, measure=measure, bootstrap=bootstrap, seed=seed
    )  # fmt: skip
    both = [i for i, value in enumerate(found.values) if value in table]
    if len(both) < FEWEST_VALUES:
        raise BadData(
            f"{len(both)} values of '{label}' have a score ({', '.join(found.values[i] for i in both) or 'none'}); a "
            f"correlation needs at least {FEWEST_VALUES}. Values of the trace: {', '.join(found.values)}."
        )
    score = np.array([table[found.values[i]] for i in both], float)
    orders = _orders(len(both), permutations, seed)  # (permutations, v)
    lines: list[dict[str, Any]] = []
    for place, layer in enumerate(found.layers):
        numbers, drawn = found.found[place, both], found.drawn[:, place][:, both]
        low, high = percentiles(_correlation(drawn, score), int(found.documents[both].min()))
        line: dict[str, Any] = {"layer": layer}
        for name, one, other in (("", numbers, score), ("rank_", _ranks(numbers), _ranks(score))):
            value = float(_correlation(one, other))
            null = _correlation(one, other[orders])
            line[f"{name}correlation"] = value
            if not name:
                line |= {"low": float(low), "high": float(high), "chance": 0.0}
            line[f"{name}p"] = float((np.abs(null) >= abs(value) - 1e-12).mean())
        lines.append({**line, "values": len(both)})
    return pa.Table.from_pylist(lines)


def read_scores(path: str | Path) -> dict[str, float]:
    """Read value → score from a JSON object or a CSV file.

    Raises:
        BadData: naming the line that cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BadData(f"the table of scores {path} cannot be read: {error.strerror}.") from None
    if text.lstrip().startswith("{"):
        try:
            return {str(name): float(value) for name, value in json.loads(text).items()}
        except (ValueError, TypeError) as error:
            raise BadData(f"{path} is no JSON object of value: score ({error}).") from None
    found: dict[str, float] = {}
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        if not row:
            continue
        try:
            found[row[0].strip()] = float(row[1])
        except (IndexError, ValueError):
            if number > 1:
                raise BadData(f"line {number} of {path} is not value,score: {','.join(row)}.") from None
    return found


def _orders(count: int, most: int, seed: int) -> Array:
    """Return orders of `count` things: every one of them if there are no more than `most`, else random ones."""
    from itertools import permutations
    from math import factorial

    if factorial(count) <= most:
        return np.array(list(permutations(range(count))))
    rng = np.random.default_rng([seed, 35])
    drawn = [rng.permutation(count) for _ in range(most - 1)]
    return np.stack([np.arange(count), *drawn])  # the order as it is counts as one, so that p is never 0


def _ranks(values: Array) -> Array:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values))


def _correlation(first: Array, second: Array) -> Array:
    """Return Pearson's correlation over the last axis, (…,)."""
    ours, theirs = (one - one.mean(-1, keepdims=True) for one in (first, second))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((ours * theirs).sum(-1) / np.sqrt((ours**2).sum(-1) * (theirs**2).sum(-1)))
