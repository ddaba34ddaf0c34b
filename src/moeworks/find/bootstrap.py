"""How firm a score is: intervals from resampled documents, and how often an expert stays among the top."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.find.null import Progress, Statistic, strength, weigh
from moeworks.find.scores.base import Tail
from moeworks.find.sides import AGAINST, CONTRAST, Entries

__all__ = ["bootstrap_scores", "intervals", "stability"]

Array = NDArray[Any]
_BLOCK_BYTES = 16 << 20


def resample(entries: Entries, rng: np.random.Generator, count: int) -> Array:
    """Return how often each entry is drawn, (count, n): documents with replacement, as many of each kind as there are.

    Kinds are documents of the contrast side, of the other side, and pairs, whose two entries stay together.
    """
    drawn = np.empty((count, len(entries)))
    single = entries.partner < 0
    for kind in (
        np.flatnonzero(single & (entries.side == CONTRAST)),
        np.flatnonzero(single & (entries.side == AGAINST)),
        np.flatnonzero(~single & (entries.side == CONTRAST)),
    ):
        if not len(kind):
            continue
        picks = rng.integers(0, len(kind), (count, len(kind))) + np.arange(count)[:, None] * len(kind)
        drawn[:, kind] = np.bincount(picks.ravel(), minlength=count * len(kind)).reshape(count, -1)
    second = np.flatnonzero(~single & (entries.side == AGAINST))
    drawn[:, second] = drawn[:, entries.partner[second]]
    return drawn


def bootstrap_scores(
    entries: Entries,
    values: Array,
    sizes: Array,
    statistic: Statistic,
    *,
    samples: int,
    seed: int,
    progress: Progress | None = None,
) -> Array:
    """Return the scores of resampled documents, (samples, experts); the same seed resamples alike for all experts."""
    rng = np.random.default_rng([seed, 2])
    middle = entries.documents[0]
    ends = slice(middle), slice(middle, None)  # the two sides' entries
    scores = np.empty((samples, values.shape[1]))
    size = max(1, min(256, _BLOCK_BYTES // (8 * len(entries))))
    for start in range(0, samples, size):
        drawn = resample(entries, rng, min(size, samples - start))
        first, second = (weigh(drawn[:, end], values[end], sizes[end]) for end in ends)
        scores[start : start + len(drawn)] = statistic(first, second)
        if progress is not None:
            progress("bootstrap", start + len(drawn), samples)
    return scores


def intervals(scores: Array, *, level: float = 0.95) -> tuple[Array, Array]:
    """Return the lower and upper end of the percentile interval, (experts,) each."""
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def stability(scores: Array, *, top: int, tail: Tail = "both") -> Array:
    """Return in which share of the samples an expert is among the `top` largest scores, (experts,).

    Largest are absolute scores or, where only one `tail` is tested, the scores themselves; scores of 0 never count.

    Source: stability-based expert selection of SAFEx (arXiv 2506.17368). Experts that tie for the last place
    all count as in.
    """
    size = strength(scores, tail)
    top = min(top, size.shape[1])
    last = np.partition(size, -top, axis=1)[:, -top, None]  # (samples, 1)
    return np.asarray(((size >= last) & (size > 0)).mean(0))
