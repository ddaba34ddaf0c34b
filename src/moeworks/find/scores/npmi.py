"""Normalised pointwise mutual information of marker tokens and experts (RICE)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.find.scores.base import SCORES, Side, reads

__all__ = ["above_zero", "normalised_pmi", "npmi"]

Array = NDArray[Any]


def normalised_pmi(together: Array, marker: Array, expert: Array, total: Array | float) -> Array:
    """Return the normalised pointwise mutual information of marker and expert, from -1 to 1.

    With k = `together`, M = `marker`, K = `expert`, T = `total` tokens, which broadcast against each other:

        PMI = log2(k / M) + log2(T / K),  nPMI = PMI / log2(T / k)

    An expert that never runs on the marker has -1, the limit. Where every token is a marker for which the expert ran,
    both logarithms are 0 and nPMI is 0: nothing is learnt.

    Source: RICE (arXiv 2505.14681, eq. for nPMI).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = np.log2(together / marker) + np.log2(total / expert)
        value = pmi / np.log2(total / together)
    value = np.where(together >= total, 0.0, value)
    return np.asarray(np.where(together > 0, value, -1.0))


def above_zero(score: Array, **options: Any) -> Array:
    """Return which experts run more on the marker than elsewhere: others do not belong to it, however sure that is."""
    return np.asarray(score > 0)


@SCORES.register("npmi")
@reads("runs", aggregate="micro", tail="upper", admits=above_zero)
def npmi(contrast: Side, against: Side) -> Array:
    """Return the nPMI of the tokens of the contrast side, taken as the marker, with each expert, (b, experts).

    T is all tokens of both sides. RICE takes one occurrence of the marker per text, this takes all that the clause
    selects; its signed sum over several markers, with a null for tokens within documents, is `find_markers`. Only
    large scores are tested: -1 is common for experts that run rarely, and the method turns experts up only.
    """
    return normalised_pmi(
        contrast.runs, contrast.tokens, contrast.runs + against.runs, contrast.tokens + against.tokens
    )
