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
    rate = np.asarray(rates, np.float64)
    pairs = np.diag(rate)
    always, maybe = np.flatnonzero(rate >= 1 - _CLOSE), np.flatnonzero((rate > 0) & (rate < 1 - _CLOSE))
    pairs[always] = rate  # an expert of every set is beside another as often as that one is there at all
    pairs[:, always] = rate[:, None]
    left = size - len(always)
    if left < 2 or len(maybe) <= left:
        return pairs  # what is left is one expert, or no choice
    odds = _odds(rate[maybe], left)
    whole, without = _symmetric(odds, left), _without_each(odds, left)  # (left + 1,), (e, left + 1)
    both = _leave_out(np.broadcast_to(without[:, None, :], (len(odds), len(odds), left + 1)), odds[None, :])
    found = odds[:, None] * odds[None, :] * both[..., left - 2] / whole[left]  # (e, e)
    found = np.where(odds[:, None] >= odds[None, :], found, found.T)  # the smaller one left out last loses no digits
    np.fill_diagonal(found, rate[maybe])
    pairs[np.ix_(maybe, maybe)] = np.maximum(found, 0.0)
    return pairs


def _odds(rate: Array, size: int) -> Array:
    """Return the odds, (e,), whose sets have these rates; by fixed-point iteration."""
    odds = rate / (1 - rate)
    for _ in range(_STEPS):
        odds = odds / np.exp(np.log(odds).mean())
        without = _without_each(odds, size)
        found = odds * without[:, size - 1] / _symmetric(odds, size)[size]
        if np.abs(found - rate).max() < _CLOSE:
            break
        odds = rate / (1 - rate) * without[:, size] / without[:, size - 1]
    return np.asarray(odds)


def _symmetric(odds: Array, size: int) -> Array:
    """Return the elementary symmetric polynomials of degree 0 to `size`, (size + 1,)."""
    found = np.zeros(size + 1)
    found[0] = 1.0
    for one in odds:
        found[1:] += one * found[:-1]
    return found


def _without_each(odds: Array, size: int) -> Array:
    """Return the polynomials of all variables but one, (e, size + 1); sums of positive numbers alone lose no digits."""
    found = np.zeros((len(odds), size + 1))
    found[:, 0] = 1.0
    others = ~np.eye(len(odds), dtype=bool)
    for one, left in zip(odds, others, strict=True):
        found[:, 1:] += one * left[:, None] * found[:, :-1]
    return found


def _leave_out(polynomials: Array, odds: Array) -> Array:
    """Return the polynomials, (…, size + 1), without one of their variables, (…,)."""
    found = np.empty(polynomials.shape)
    found[..., 0] = 1.0
    for degree in range(1, polynomials.shape[-1]):
        found[..., degree] = polynomials[..., degree] - odds * found[..., degree - 1]
    return found
