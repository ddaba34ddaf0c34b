"""Affinity: which expert the router gives most probability over the texts of a subject (SEUF)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.address import Address
from moeworks.find.scores.base import SCORES, Report, Side, reads

if TYPE_CHECKING:
    from moeworks.find.artefact import Scores

__all__ = ["affinity"]

Array = NDArray[Any]


def _report(scores: Scores, rates: Array, names: tuple[str, ...], options: dict[str, Any]) -> Report:
    """Name the target, the expert of largest affinity in the whole model, and how far the second one is."""
    rows = scores.top(2).to_pylist()
    if len(rows) < 2:
        return Report({}, ())
    first, second = (str(Address(row["layer"], row["expert"])) for row in rows)
    gap = rows[0]["score"] - rows[1]["score"]
    facts = {"target": first, "second": second, "affinity": rows[0]["score"], "gap": gap}
    note = f"Target: {first} with affinity {rows[0]['score']:.4f}, {gap:.4f} above {second}."
    if not np.isnan(rows[0]["low"]) and rows[0]["low"] <= rows[1]["score"]:
        note += " The second lies within its interval: on other texts another expert may be the target."
    return Report(facts, (note,))


@SCORES.register("affinity")
@reads("probabilities", aggregate="macro", one_sided=True, tail="upper", report=_report)
def affinity(contrast: Side, against: Side) -> Array:
    """Return the mean over texts of the mean router probability of each expert, (b, experts).

    The target is the expert of largest affinity among all layers, one in the whole model. Probabilities are those of
    all experts under the router's own score function, so that the trace needs logits. There is no subtraction of other
    texts; where another side is given, p asks whether as many documents of either side would have as large an affinity.

    Source: SEUF (arXiv 2411.18797, expert attribution); softmax routers there, others are normalised to sum to 1.
    """
    return np.asarray(contrast.rates)
