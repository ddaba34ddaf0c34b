"""Bootstrap intervals over documents: items of one document are drawn together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.plan.evidence import Interval

__all__ = ["FEWEST_DOCUMENTS", "LEVEL", "Resamples", "document_numbers"]

FEWEST_DOCUMENTS = 5  # below, resampling documents says nothing
LEVEL = 0.95
Array = NDArray[np.float64]


def document_numbers(documents: Sequence[str]) -> NDArray[np.int64]:
    """Return the document of each item, (n,), numbered from 0; an empty name is a document of its own."""
    names = [f"d{name}" if name else f"i{index}" for index, name in enumerate(documents)]
    return np.asarray(np.unique(names, return_inverse=True)[1], np.int64)


class Resamples:
    """How often each document, and each of some controls, is drawn in every bootstrap sample.

    With fewer than `FEWEST_DOCUMENTS` documents an interval is infinite on both sides: nothing is known.

    Percentile intervals (Efron and Tibshirani 1993, chapter 13) of means over items. All intervals of one evaluation
    share their draws, so that differences are resampled in pairs. Controls are drawn too: a handful of random plans is
    a sample of all that might have been drawn.

    Args:
        documents: (n,) the document of each item, from `document_numbers`.
        controls: number of controls.
        samples: bootstrap samples.
        seed: of the draws.
    """

    def __init__(self, documents: NDArray[np.int64], *, controls: int = 0, samples: int = 1000, seed: int = 0) -> None:
        self._documents = documents
        self._count = int(documents.max(initial=-1)) + 1
        if samples < 1:
            raise BadData(f"{samples} bootstrap samples give no interval; use at least 1, better 1000.")
        generator = np.random.default_rng([seed, 3])
        shares = np.full(self._count, 1 / self._count)
        self._drawn = generator.multinomial(self._count, shares, size=samples).astype(
            np.float64
        )  # (samples, documents)
        self._items = self._drawn @ np.bincount(documents, minlength=self._count)  # (samples,)
        self._controls = (
            generator.multinomial(controls, np.full(controls, 1 / controls), size=samples) / controls
            if controls
            else np.zeros((samples, 0))
        )  # (samples, controls)

    def interval(self, values: Array) -> Interval:
        """Return the mean of (n,) values over items, with its interval."""
        return self._interval(float(values.mean()), self._means(values[:, None])[:, 0])

    def ratio(self, values: Array, weights: Array) -> Interval:
        """Return the sum of (n,) values over the sum of (n,) weights, a mean a token say, with its interval."""
        drawn = self._drawn @ np.stack([self._sums(values), self._sums(weights)], axis=1)  # (samples, 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._interval(float(values.sum() / weights.sum()), drawn[:, 0] / drawn[:, 1])

    def excess(self, values: Array, controls: Array) -> Interval:
        """Return the mean of (n,) values minus the mean of (controls, n) others, with its interval."""
        difference = self._means(values[:, None])[:, 0] - (self._means(controls.T) * self._controls).sum(1)
        return self._interval(float(values.mean() - controls.mean()), difference)

    def _sums(self, values: Array) -> Array:
        """Return the sum of (n,) values of each document, (documents,)."""
        return np.asarray(np.bincount(self._documents, values, minlength=self._count))

    def _means(self, values: Array) -> Array:
        """Return the means over items of (n, m) values in each sample, (samples, m)."""
        sums = np.zeros((self._count, values.shape[1]))
        np.add.at(sums, self._documents, values)
        return np.asarray(self._drawn @ sums / self._items[:, None])

    def _interval(self, value: float, samples: Array) -> Interval:
        if self._count < FEWEST_DOCUMENTS:
            return Interval(value=value, low=-math.inf, high=math.inf, level=LEVEL)
        low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(value=value, low=float(low), high=float(high), level=LEVEL)
