"""Random sets of k distinct experts with given loads and nothing else: how often two of them run together by chance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pairs_by_chance"]

Array = NDArray[Any]
_STEPS, _CLOSE = 500, 1e-9


def pairs_by_chance(rates: Array, size: int) -> Array:
    """Return how likely two experts are both in a random set of `size` different experts, (E, E); diagonal: the rates.

    Of all ways to draw sets whose experts have these rates it is the one of largest entropy (conditional Poisson
    sampling): sets are as likely as the product of their experts' odds. Even use gives k (k - 1) / (E (E - 1)), less
    than (k / E) squared, since the experts of a token are different ones.

    Source: Chen, Dempster and Liu 1994, "Weighted finite population sampling to maximize entropy".

    Args:
        rates: (E,) how likely each expert is in the set; they sum to `size`.
        size: how many experts a set has.
    """
    rate = np.clip(np.asarray(rates, np.float64), 0.0, 1 - 1e-6)
    inside = np.flatnonzero(rate > 0)
    pairs = np.diag(np.asarray(rates, np.float64))
    if size < 2 or len(inside) <= size:  # with no choice at all, the sets are known
        if 2 <= size == len(inside):
            pairs[np.ix_(inside, inside)] = 1.0
        return pairs
    odds = _odds(rate[inside], size)
    whole = _symmetric(odds, size)  # (size + 1,)
    without = _leave_out(np.broadcast_to(whole, (len(odds), size + 1)), odds)  # (e, size + 1)
    both = _leave_out(
        np.broadcast_to(without[:, None, :], (len(odds), len(odds), size + 1)), np.broadcast_to(odds, (len(odds),) * 2)
    )  # (e, e, size + 1)
    found = odds[:, None] * odds[None, :] * both[..., size - 2] / whole[size]
    np.fill_diagonal(found, rate[inside])
    pairs[np.ix_(inside, inside)] = np.maximum((found + found.T) / 2, 0.0)
    return pairs


def _odds(rate: Array, size: int) -> Array:
    """Return the odds, (e,), whose sets have these rates; by fixed-point iteration."""
    odds = rate / (1 - rate)
    for _ in range(_STEPS):
        odds = odds / np.exp(np.log(odds).mean())
        whole = _symmetric(odds, size)
        without = _leave_out(np.broadcast_to(whole, (len(odds), size + 1)), odds)
        found = odds * without[:, size - 1] / whole[size]
        if np.abs(found - rate).max() < _CLOSE:
            break
        odds = rate / (without[:, size - 1] / without[:, size]) / (1 - rate)
    return np.asarray(odds)


def _symmetric(odds: Array, size: int) -> Array:
    """Return the elementary symmetric polynomials of degree 0 to `size`, (size + 1,)."""
    found = np.zeros(size + 1)
    found[0] = 1.0
    for one in odds:
        found[1:] += one * found[:-1]
    return found


def _leave_out(polynomials: Array, odds: Array) -> Array:
    """Return the polynomials, (…, size + 1), without one of their variables, (…,)."""
    found = np.empty(polynomials.shape)
    found[..., 0] = 1.0
    for degree in range(1, polynomials.shape[-1]):
        found[..., degree] = polynomials[..., degree] - odds * found[..., degree - 1]
    return found
