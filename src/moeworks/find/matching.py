"""Token-matched sides: weights that give both sides the same number of each token id, so that vocabulary cancels.

Where one side says other words than the other, experts that follow token ids differ between the sides whatever the
behaviour. Each token id counts as often as on the side that has fewer of it: a token of an id that occurs a times on
its side and b times on the other weighs min(a, b) / a, and an id of one side only weighs 0.

Source: the control that RASET (arXiv 2605.29708) and the token-id findings of OpenMoE (arXiv 2402.01739) ask for;
weighting in place of drawing tokens away uses all of them and has no seed. The weights are those of the observed sides
also in the null, whose arrangements of documents are therefore matched on average only: p is on the large side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.find.sides import AGAINST, CONTRAST, Sides

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["token_factors"]

Array = NDArray[Any]


def token_factors(trace: Trace, sides: Sides) -> Array:
    """Return by how much a token counts on each side, (2, largest token id + 1).

    Raises:
        BadData: no token id occurs on both sides, or there is but one side.
    """
    if sides.against is None:
        raise BadData("tokens can be matched between two sides only; say what to compare with (against).")
    counts = np.zeros((2, 1))  # (2, vocabulary), grown as ids are met
    for part, _, side in sides.parts(trace):
        token = part.rows().token
        found = [np.bincount(token[side == which]) for which in (CONTRAST, AGAINST)]
        width = max(counts.shape[1], *map(len, found), int(token.max(initial=0)) + 1)
        counts = np.pad(counts, ((0, 0), (0, width - counts.shape[1])))
        for which in (CONTRAST, AGAINST):
            counts[which, : len(found[which])] += found[which]
    shared = counts.min(0)  # (vocabulary,)
    if not shared.any():
        raise BadData(
            f"no token id occurs both in contrast '{sides.contrast}' and against '{sides.against}'; there is nothing "
            "to match."
        )
    return np.asarray(np.divide(shared, counts, out=np.zeros_like(counts), where=counts > 0))
