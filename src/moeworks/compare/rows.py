"""Which rows of two traces are the same token in the same context, wherever they stand in their files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.where import PHASES, Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["Matched", "match_rows"]

Array = NDArray[Any]
PROMPT = PHASES.index("prompt")


@dataclass(frozen=True)
class Matched:
    """Rows of two traces that are the same position of the same request with the same tokens so far.

    Attributes:
        first, second: row numbers in each trace, in the order of the first.
        only_first, only_second: rows whose request and position the other trace lacks.
        after_divergence: rows left out because the two texts differ at this token or at one before it, as generated
            texts may.
    """

    first: Array  # (n,)
    second: Array  # (n,)
    only_first: int
    only_second: int
    after_divergence: int

    def __len__(self) -> int:
        return len(self.first)


def match_rows(first: Trace, second: Trace, *, where: Where = Where()) -> Matched:
    """Match the rows of two traces by request number and position; `where` is read on the first.

    Raises:
        BadData: no row is in both, or a token of a prompt differs: then the two do not hold the same texts.
    """
    ours, theirs = first.rows(), second.rows()
    keys = [rows.request.astype(np.int64) << 32 | rows.position.astype(np.int64) for rows in (ours, theirs)]  # (rows,)
    order = np.argsort(keys[1], kind="stable")
    ranked = keys[1][order]
    place = np.searchsorted(ranked, keys[0])  # (rows of the first,)
    place[place == len(ranked)] = 0
    found = ranked[place] == keys[0] if len(ranked) else np.zeros(len(keys[0]), bool)
    mine = np.flatnonzero(found)
    other = order[place[mine]]
    if not len(mine):
        raise BadData(
            f"{first.path} and {second.path} have no request and position in common; record the same data with both."
        )
    differs = ours.token[mine] != theirs.token[other]
    prompt = differs & (ours.phase[mine] == PROMPT)
    if prompt.any():
        row = mine[np.flatnonzero(prompt)[0]]
        raise BadData(
            f"the prompts are not the same: request {ours.request[row]} has token {ours.token[row]} at position "
            f"{ours.position[row]} in {first.path} and another in {second.path}; record the same data with the same "
            "tokenizer and options."
        )
    same = np.ones(len(mine), bool)
    if differs.any():  # rows from the first token on that differs are of another context
        end = np.full(int(ours.request.max()) + 1, np.iinfo(np.int64).max)
        np.minimum.at(end, ours.request[mine][differs], ours.position[mine][differs].astype(np.int64))
        same = ours.position[mine] < end[ours.request[mine]]
    taken = where.mask(ours, first.request_table())[mine]
    if not (same & taken).any():
        raise BadData(f"no token that both traces hold matches the clause '{where}'.")
    return Matched(
        first=mine[same & taken],
        second=other[same & taken],
        only_first=int((~found).sum()),
        only_second=len(keys[1]) - len(mine),
        after_divergence=int((~same & taken).sum()),
    )
