"""From sums per document to scores of experts: difference of means, document null, intervals, stability."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks import __version__
from moeworks.artefact import hash_texts
from moeworks.errors import BadData, did_you_mean
from moeworks.find.artefact import COLUMNS, Scores, ScoresHeader, hash_scores
from moeworks.find.bootstrap import bootstrap_scores, intervals, stability
from moeworks.find.null import Null, p_values, q_values, smallest_p, split
from moeworks.find.scores.base import Side

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.find.inside.texts import Texts

__all__ = ["Aggregate", "difference", "finished", "tested"]

Array = NDArray[Any]
Aggregate = Literal["micro", "macro"]
_FEWEST = 5  # documents a side below which resampling them says nothing


def difference(contrast: Side, against: Side) -> Array:
    """Return the difference of the means of both sides, (b, experts)."""
    return np.asarray(contrast.rates - against.rates)


def tested(
    engine: Engine,
    texts: Texts,
    sums: Array,
    columns: Mapping[int, tuple[int, int]],
    *,
    method: str,
    quantity: str,
    aggregate: Aggregate,
    options: dict[str, Any],
    permutations: int,
    bootstrap: int,
    alpha: float,
    seed: int,
    command: str,
) -> Scores:
    """Return scores of experts with p and q from permuted documents, as `moeworks.find` gives them for traces.

    Args:
        engine: that ran.
        texts: with the tokens that were seen.
        sums: (2 × documents, experts) sums over the tokens of each side and document.
        columns: layer → (first column, experts).
        method, quantity, options: for the header.
        aggregate: micro takes the mean over all tokens of a side, macro the mean over documents of theirs.
        permutations: of documents for every expert; those with the smallest p are drawn on.
        bootstrap: resamplings of documents.
        alpha: false discovery rate.
        seed: of both.
        command: for the header.
    """
    if aggregate not in ("micro", "macro"):
        raise BadData(f"there is no aggregate '{aggregate}'; {did_you_mean(aggregate, ('micro', 'macro'))}")
    if permutations < 1 or bootstrap < 1 or not 0 < alpha < 1:
        raise BadData("permutations and bootstrap are at least 1, and alpha lies between 0 and 1.")
    entries = texts.entries()
    values, sizes = sums[texts.present()], entries.tokens.astype(np.float64)
    if aggregate == "macro":
        values, sizes = values / sizes[:, None], np.ones(len(entries))
    null = Null(entries)
    contrast, against = split(null.observed(), values, sizes)
    score = difference(contrast, against)[0]  # (experts,)
    if not np.isfinite(score).all():
        raise BadData(f"the score '{method}' is not finite for every expert; the model's activations overflow.")
    most = max(permutations, math.ceil(len(score) / alpha))
    drawn = p_values(null, values, sizes, difference, permutations=permutations, most=most, seed=seed)
    q = q_values(drawn.p)
    passes = q <= alpha
    samples = bootstrap if min(entries.documents) >= _FEWEST else 0
    resampled = bootstrap_scores(entries, values, sizes, difference, samples=samples, seed=seed)
    low, high = intervals(resampled) if samples else np.full((2, len(q)), np.nan)
    top = min(int(passes.sum()), 10) or 10
    table = pa.table(
        [
            np.repeat(list(columns), [experts for _, experts in columns.values()]).astype(np.int32),
            np.concatenate([np.arange(experts, dtype=np.int32) for _, experts in columns.values()]),
            score,
            contrast.rates[0],
            against.rates[0],
            low,
            high,
            drawn.p,
            q,
            stability(resampled, top=top) if samples else np.full(len(q), np.nan),
            passes,
        ],
        schema=COLUMNS,
    )
    return finished(
        engine,
        texts,
        table,
        command=command,
        seed=seed,
        method=method,
        options=options,
        aggregate=aggregate,
        null=null.kind,
        permutations=permutations,
        drawn=drawn.drawn,
        exhaustive=drawn.exhaustive,
        smallest_p=smallest_p(null, permutations, most),
        alpha=alpha,
        bootstrap=samples,
        top=top,
        quantity=quantity,
    )


def finished(engine: Engine, texts: Texts, table: pa.Table, **fields: Any) -> Scores:
    """Return scores whose header says which model and texts they are of, its hash filled in."""
    entries = texts.entries()
    header = ScoresHeader(
        moeworks=__version__,
        model=engine.identity,
        engine=engine.engine,
        text_hash=hash_texts(example.content() for example in texts.examples),
        contrast=str(texts.contrast),
        against=str(texts.against),
        where=str(texts.where),
        documents=entries.documents,
        pairs=entries.pairs,
        tokens=(int(texts.tokens[0].sum()), int(texts.tokens[1].sum())),
        unit="neuron" if "neuron" in table.column_names else "expert",
        **fields,
    )
    return Scores(table, header.model_copy(update={"hash": hash_scores(table, header)}))
