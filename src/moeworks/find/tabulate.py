"""From the numbers of each batch of layers to the scores artefact: false discovery control, intervals, report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks import __version__
from moeworks.errors import BadData, did_you_mean
from moeworks.find.artefact import COLUMNS, Scores, ScoresHeader, hash_scores
from moeworks.find.bootstrap import intervals, stability
from moeworks.find.null import q_values
from moeworks.find.scores.base import Aggregate, Reads, Traits, traits_of
from moeworks.registry import Registry
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["FEWEST", "Columns", "as_scores", "check_numbers", "clause_of", "resolve", "sealed"]

Array = NDArray[Any]
FEWEST = 5  # documents a side below which resampling them says nothing
LEVEL = 0.95
QUANTITIES: dict[Reads, str] = {"runs": "", "weights": "mean weight", "probabilities": "mean probability"}


class Columns(NamedTuple):
    """What is known of the experts of a batch of layers."""

    score: Array  # (E,)
    rates: Array  # (sides or groups, E)
    contrast_rate: Array  # (E,)
    against_rate: Array  # (E,)
    p: Array  # (E,), NaN without a null
    drawn: int
    resampled: Array  # (samples, E)


def resolve(registry: Registry[Any], method: str, options: Mapping[str, Any]) -> tuple[Any, Traits]:
    """Return a registered score and its traits.

    Raises:
        BadData: it has no such option.
    """
    known = registry.options(method)
    for name in options:
        if name not in known:
            raise BadData(f"the score '{method}' has no option '{name}'; {did_you_mean(name, known)}")
    function = registry.get(method)
    return function, traits_of(function)


def as_scores(
    trace: Trace,
    layers: Mapping[int, int],
    columns: list[Columns],
    traits: Traits,
    *,
    names: tuple[str, ...],
    options: dict[str, Any],
    alpha: float,
    top: int | None,
    header: dict[str, Any],
) -> Scores:
    """Return the scores artefact.

    Args:
        trace: what the scores are of.
        layers: number of experts of each layer, in the order of the columns.
        columns: one for each batch of layers.
        traits: of the score.
        names: what the rates' rows are: sides or values of a label.
        options: of the method, for its threshold, its report and the header.
        alpha, top: as in `find`.
        header: the fields of the header that only the caller knows.
    """
    score, p = (np.concatenate([getattr(c, name) for c in columns]) for name in ("score", "p"))
    if header["null"] == "none":
        q, passes = p, np.zeros(len(p), bool)
    else:
        q = q_values(p)
        passes = q <= alpha
        if traits.admits is not None:
            passes &= traits.admits(score, **options)
    top = top or min(int(passes.sum()), 10) or 10
    resampled = np.concatenate([c.resampled for c in columns], axis=1)  # (samples, experts of the model)
    low, high = intervals(resampled, level=LEVEL) if len(resampled) else np.full((2, len(q)), np.nan)
    firm = stability(resampled, top=top, tail=traits.tail) if len(resampled) else np.full(len(q), np.nan)
    table = pa.table(
        [
            np.repeat(list(layers), list(layers.values())).astype(np.int32),
            np.concatenate([np.arange(experts, dtype=np.int32) for experts in layers.values()]),
            score,
            *(np.concatenate([getattr(c, name) for c in columns]) for name in ("contrast_rate", "against_rate")),
            low,
            high,
            p,
            q,
            firm,
            passes,
        ],
        schema=COLUMNS,
    )
    full = ScoresHeader(
        **{
            "moeworks": __version__,
            "model": trace.header.model,
            "engine": trace.header.engine,
            "text_hash": trace.header.text_hash,
            "options": options,
            "alpha": alpha,
            "level": LEVEL,
            "top": top,
            "tail": traits.tail,
            "quantity": QUANTITIES[traits.reads],
            "drawn": max(c.drawn for c in columns),
            **header,
        }
    )
    scores = Scores(table, full)
    if traits.report is not None:
        rates = np.concatenate([c.rates for c in columns], axis=1)  # (sides or groups, experts of the model)
        report = traits.report(scores, rates, names, options)
        update = {"facts": {**full.facts, **report.facts}, "notes": (*full.notes, *report.notes)}
        full = full.model_copy(update=update)
    return sealed(table, full)


def sealed(table: pa.Table, header: ScoresHeader) -> Scores:
    """Return scores whose header has the hash of both."""
    return Scores(table, header.model_copy(update={"hash": hash_scores(table, header)}))


def clause_of(clause: Where | str) -> Where:
    """Return a clause that may be given as text."""
    return Where.parse(clause) if isinstance(clause, str) else clause


def aggregate_of(method: str, traits: Traits, aggregate: Aggregate | None) -> Aggregate:
    """Return the aggregate that was asked for, or that the method is defined for.

    Raises:
        BadData: there is none of that name, or the method is not defined for it.
    """
    if aggregate not in (None, "micro", "macro"):
        raise BadData(f"there is no aggregate '{aggregate}'; {did_you_mean(aggregate, ('micro', 'macro'))}")
    if traits.aggregate is not None and aggregate not in (None, traits.aggregate):
        raise BadData(f"the score '{method}' is defined for aggregate {traits.aggregate} only; leave aggregate out.")
    return aggregate or traits.aggregate or "micro"


def check_numbers(*, permutations: int, bootstrap: int, alpha: float, top: int | None) -> None:
    """Refuse numbers that give no null, no interval, no false discovery rate or no stability."""
    if permutations < 1:
        raise BadData(f"{permutations} permutations give no null; use at least 1, better 1000.")
    if bootstrap < 1:
        raise BadData(f"{bootstrap} bootstrap samples give no interval; use at least 1, better 200.")
    if not 0 < alpha < 1:
        raise BadData(f"alpha {alpha} is not a false discovery rate; it lies between 0 and 1.")
    if top is not None and top < 1:
        raise BadData(f"stability among the top {top} says nothing; use at least 1.")
