"""The texts in which each expert is most active, and the tokens its output points to there: what to name it by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.find.inside.observe import as_numpy, observe, reading
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.inside import ExpertPass
    from moeworks.examples import Example
    from moeworks.where import Requests, Rows

__all__ = ["CONTEXTS", "contexts"]

Array = NDArray[Any]
CONTEXTS = pa.schema(
    [
        ("layer", pa.int32()),
        ("expert", pa.int32()),
        ("rank", pa.int32()),
        ("activity", pa.float64()),
        ("example", pa.int64()),
        ("position", pa.int64()),
        ("token", pa.int32()),
        ("text", pa.string()),  # of the token
        ("points_to", pa.list_(pa.string())),  # tokens of W_U y, the strongest first
    ]
)


class _Context(NamedTuple):
    activity: float
    example: int
    position: int
    token: int
    points_to: tuple[int, ...]


def contexts(
    engine: Engine,
    examples: Sequence[Example],
    *,
    n: int = 20,
    points_to: int = 3,
    where: Where | str = Where(),
    batch_size: int = 8,
) -> pa.Table:
    """Return the n texts in which each expert is most active, with the token where it is so.

    Source: "The Expert Strikes Back" (arXiv 2604.02178): the activity of an expert on a token is w_e·‖y_e‖₂, that of a
    text the largest over its tokens; the top texts, each with the top tokens of W_U y_e, are what a reader (or a model,
    in the paper) names the expert from. Of the same notebook of texts half are for naming and half for scoring the
    name, with other experts' texts as counter-examples; that step is left to the reader.

    Streams: n contexts for each expert are kept, and nothing else.

    Args:
        engine: the transformers engine.
        examples: the texts.
        n: texts for each expert.
        points_to: tokens that the output points to, 0 for none.
        where: tokens and layers that count.
        batch_size: texts a forward pass.

    Returns:
        A table with the columns of `CONTEXTS`, by layer, expert and rank.
    """
    if n < 1 or points_to < 0:
        raise BadData("ask for at least 1 text of each expert, and for 0 or more tokens that it points to.")
    clause = Where.parse(where) if isinstance(where, str) else where
    read = reading(engine) if points_to else None
    best: dict[tuple[int, int], list[_Context]] = {}

    def add(seen: ExpertPass, rows: Rows, requests: Requests) -> None:
        value = as_numpy(seen.weights.double().abs() * seen.outputs.double().norm(dim=-1))  # (m,)
        place = as_numpy(seen.rows)
        order = np.lexsort((-value, rows.request[place]))
        first = order[np.flatnonzero(np.diff(rows.request[place][order], prepend=-1))]  # the largest of each text
        kept = best.setdefault((seen.layer, seen.expert), [])
        least = kept[-1].activity if len(kept) == n else -1.0
        first = first[value[first] > least]
        first = first[np.argsort(-value[first], kind="stable")][:n]
        if not len(first):
            return
        tokens = np.zeros((len(first), 0), np.int64)
        if read is not None:
            directions = read.written(seen.outputs[first.tolist()])
            tokens = as_numpy(read.top_tokens(directions, points_to).tokens)
        row = place[first]
        numbers: Array = requests.numbers[rows.request[row]]  # type: ignore[attr-defined]
        kept += [
            _Context(float(a), int(e), int(p), int(t), tuple(map(int, named)))
            for a, e, p, t, named in zip(
                value[first], numbers, rows.position[row], rows.token[row], tokens, strict=True
            )
        ]
        kept.sort(key=lambda context: (-context.activity, context.example))
        del kept[n:]

    observe(engine, examples, add, where=clause, batch_size=batch_size)
    decoder: Any = engine.tokenizer  # type: ignore[attr-defined]
    rows = [
        {
            "layer": layer,
            "expert": expert,
            "rank": rank,
            "activity": found.activity,
            "example": found.example,
            "position": found.position,
            "token": found.token,
            "text": decoder.decode([found.token]),
            "points_to": [decoder.decode([token]) for token in found.points_to],
        }
        for (layer, expert), kept in sorted(best.items())
        for rank, found in enumerate(kept)
    ]
    return pa.Table.from_pylist(rows, schema=CONTEXTS)
