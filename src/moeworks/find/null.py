"""The null: what scores look like when whole documents change sides at random, and the p-values from it.

Tokens of one document are not independent, so that a document is exchanged as a whole. A document with tokens on
one side only takes any side, the number of documents per side kept (`labels`); one with tokens on both sides, a pair,
swaps its two sides or not (`flips`). Documents of both kinds may occur together (`labels and flips`).

A pair swaps its two rates, and the numbers of tokens stay where they are: without a difference the two rates are alike
in the mean, whatever their lengths. Were the tokens swapped too, pooled sides of unequal length would not be exchanged
for their like: with 1 token against 200 in each of 60 documents, 21 % of true nulls would get p at most 0.01 (so, 1 %
to 2 %), and with 50 against 200 none p at most 0.05, since whole documents would come to stand against others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

from moeworks.errors import BadData
from moeworks.find.scores.base import Side, Tail
from moeworks.find.sides import CONTRAST, Entries

__all__ = [
    "Null",
    "NullKind",
    "PValues",
    "monte_carlo",
    "p_values",
    "q_values",
    "smallest_p",
    "split",
    "strength",
    "weigh",
]

Array = NDArray[Any]
NullKind = Literal["labels", "flips", "labels and flips"]
Statistic = Callable[[Side, Side], Array]
Progress = Callable[[str, int, int], None]
_ENOUGH = 10  # exceedances after which an expert's p needs no finer resolution
_BLOCK_BYTES = 16 << 20


def weigh(weights: Array, values: Array, sizes: Array) -> Side:
    """Return the sums of one side, given how often each entry counts in it.

    Args:
        weights: (b, n) how often each entry counts, in each of b samples.
        values: (n, experts) runs of each entry, or its rates.
        sizes: (n,) tokens of each entry, or ones.
    """
    return Side(weights @ values, weights @ sizes[:, None])


def split(drawn: Array, values: Array, sizes: Array, factors: Array | None = None) -> tuple[Side, Side]:
    """Return both sides' sums: entries with a one in `drawn`, (b, n), are on the contrast side, all others not.

    `factors`, (2, n), say by how much an entry counts on either side; see `Null.factors`.
    """
    if factors is not None:
        return weigh(drawn * factors[0], values, sizes), weigh((1 - drawn) * factors[1], values, sizes)
    contrast = weigh(drawn, values, sizes)
    return contrast, Side(values.sum(0) - contrast.runs, sizes.sum() - contrast.tokens)


@dataclass(frozen=True)
class Null:
    """The arrangements of a set of documents on two sides that are equally likely when nothing differs."""

    entries: Entries

    def __post_init__(self) -> None:
        if self.arrangements == 1:
            raise BadData(
                "no document can change sides: within each value of the label all documents are on the same side; "
                "choose another label to permute within, or none."
            )

    @property
    def kind(self) -> NullKind:
        """Whether documents' labels are permuted, pairs' sides flipped, or both."""
        pairs = self.entries.pairs
        if not pairs:
            return "labels"
        return "flips" if 2 * pairs == len(self.entries) else "labels and flips"

    @property
    def arrangements(self) -> int:
        """Number of different arrangements, the observed one included."""
        ways = [math.comb(len(group), int(self._sides(group).sum())) for group in self._groups()]
        return math.prod(ways) << self.entries.pairs

    @property
    def mirrored(self) -> bool:
        """Whether every arrangement's mirror image is one too, so that each absolute score comes at least twice."""
        return all(2 * int(self._sides(group).sum()) == len(group) for group in self._groups())

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """Return random arrangements, (count, n) float64: 1 where an entry is on the contrast side."""
        drawn = np.empty((count, len(self.entries)))
        first, second = self._pairs()
        drawn[:, first] = rng.integers(0, 2, (count, len(first)))
        drawn[:, second] = 1 - drawn[:, first]
        for group in self._groups():
            drawn[:, group] = rng.permuted(np.tile(self._sides(group), (count, 1)), axis=1)
        return drawn

    def every(self) -> Array:
        """Return all arrangements, (arrangements, n) float64; only for few documents."""
        first, second = self._pairs()
        groups = self._groups()
        ways = [list(itertools.combinations(group, int(self._sides(group).sum()))) for group in groups]
        drawn = np.zeros((self.arrangements, len(self.entries)))
        flips = itertools.product((0, 1), repeat=len(first))
        for row, (flip, *chosen) in zip(drawn, itertools.product(flips, *ways), strict=True):
            row[first], row[second] = flip, 1 - np.asarray(flip)
            for members in chosen:
                row[list(members)] = 1
        return drawn

    def observed(self) -> Array:
        """Return the arrangement that was seen, (1, n)."""
        return self._sides(np.arange(len(self.entries)))[None]

    def factors(self, sizes: Array) -> Array | None:
        """Return by how much each entry counts on the contrast side and on the other, (2, n), or None for ones.

        An entry on the other side than its own stands for its partner, with the partner's number of tokens.
        """
        first, second = self._pairs()
        if np.array_equal(sizes[first], sizes[second]):
            return None
        factors = np.ones((2, len(self.entries)))
        factors[0, second] = sizes[first] / sizes[second]
        factors[1, first] = sizes[second] / sizes[first]
        return factors

    def _pairs(self) -> tuple[Array, Array]:
        first = np.flatnonzero((self.entries.partner >= 0) & (self.entries.side == CONTRAST))
        return first, self.entries.partner[first]

    def _groups(self) -> list[Array]:
        """Return the entries of unpaired documents by stratum."""
        single = np.flatnonzero(self.entries.partner < 0)
        order = single[np.argsort(self.entries.stratum[single], kind="stable")]
        return [g for g in np.split(order, np.flatnonzero(np.diff(self.entries.stratum[order])) + 1) if len(g)]

    def _sides(self, group: Array) -> Array:
        return np.asarray(self.entries.side[group] == CONTRAST, np.float64)


@dataclass(frozen=True)
class PValues:
    """Two-sided p-values and how finely they could come out."""

    p: Array  # (experts,)
    drawn: int  # permutations that the experts with the smallest p went through; all of them if exhaustive
    exhaustive: bool


def smallest_p(null: Null, permutations: int, most: int, *, tail: Tail = "both", sizes: Array | None = None) -> float:
    """Return the smallest p that can come out: with few documents there are few arrangements, whatever is drawn.

    `sizes` are the tokens of each entry where they are pooled: pairs of unequal sides have no mirror image.
    """
    alike = 2 if null.mirrored and tail == "both" and (sizes is None or null.factors(sizes) is None) else 1
    floor = float(Fraction(alike, null.arrangements))  # the count itself may overflow a float
    return floor if null.arrangements <= permutations else max(floor, 1 / (most + 1))


def p_values(
    null: Null,
    values: Array,
    sizes: Array,
    statistic: Statistic,
    *,
    permutations: int,
    most: int,
    seed: int,
    tail: Tail = "both",
    progress: Progress | None = None,
) -> PValues:
    """Return how often an arrangement at random scores as far from 0 as the observed one, per expert.

    Few arrangements are all gone through, and p is their exact share; otherwise see `monte_carlo`.

    Args:
        null: the arrangements.
        values: (n, experts) runs or rates of each entry.
        sizes: (n,) tokens of each entry, or ones.
        statistic: from two sides to scores, (b, experts).
        permutations: draws that every expert gets.
        most: draws at most.
        seed: of the draws; the same seed draws the same permutations, whatever the experts.
        tail: `upper` asks how often a score is as large, in place of as far from 0.
        progress: called with what is done, how much, and of how much.
    """

    factors = null.factors(sizes)

    def evaluate(drawn: Array, active: Array | None) -> Array:
        return statistic(*split(drawn, values if active is None else values[:, active], sizes, factors))

    observed = strength(evaluate(null.observed(), None)[0], tail)  # (experts,)
    if null.arrangements <= permutations:
        scores = strength(evaluate(null.every(), None), tail)
        return PValues((~(scores < _bar(observed))).mean(0), null.arrangements, True)
    return monte_carlo(
        null.draw, evaluate, observed, width=len(null.entries), permutations=permutations, most=most, seed=seed,
        tail=tail, progress=progress,
    )  # fmt: skip


def monte_carlo(
    draw: Callable[[np.random.Generator, int], Array],
    evaluate: Callable[[Array, Array | None], Array],
    observed: Array,
    *,
    width: int,
    permutations: int,
    most: int,
    seed: int,
    tail: Tail = "both",
    progress: Progress | None = None,
) -> PValues:
    """Return p-values of drawn arrangements: p = (1 + exceedances) / (1 + permutations) after `permutations` draws.

    Experts with fewer than 10 exceedances are drawn on, up to `most`, so that false-discovery control over a whole
    model can resolve them (sequential Monte Carlo p-values, Besag and Clifford 1991: an expert that stops early has a
    p no smaller than 11 / (1 + draws), so that each p stays valid at every level).

    Args:
        draw: from a generator and a count to so many arrangements, (count, width).
        evaluate: from arrangements and the experts that still matter (None: all) to their scores, (count, experts).
        observed: (experts,) strength of the observed scores.
        width: numbers in an arrangement; with it, blocks of them stay small.
        permutations, most, seed, tail, progress: as in `p_values`.
    """
    bar = _bar(observed)
    rng = np.random.default_rng([seed, 1])
    exceeded = np.zeros(len(bar), np.int64)
    drawn = np.zeros(len(bar), np.int64)
    active, done, goal = np.arange(len(bar)), 0, permutations
    while True:
        every = len(active) == len(bar)
        for count in _blocks(goal - done, width):
            scores = strength(evaluate(draw(rng, count), None if every else active), tail)
            exceeded[active] += (~(scores < bar[active])).sum(0)  # a score of NaN counts as far
            done += count
            if progress is not None:
                progress("permutations", done, goal)
        drawn[active] = done
        active = active[exceeded[active] < _ENOUGH]
        if done >= most or not len(active):
            return PValues((exceeded + 1) / (drawn + 1), done, False)
        goal = min(4 * done, most)


def strength(scores: Array, tail: Tail) -> Array:
    """Return what is tested of a score: its distance from 0, or itself."""
    return np.abs(scores) if tail == "both" else np.asarray(scores)


def _bar(observed: Array) -> Array:
    """Return what a score must reach to be as far as the observed one: equal scores may differ by rounding."""
    largest = float(np.abs(observed).max(initial=0.0))
    return np.asarray(observed - 1e-10 * max(largest, 1e-10))


def q_values(p: Array) -> Array:
    """Return Benjamini–Hochberg q-values over all experts of the model, (experts,)."""
    return np.asarray(false_discovery_control(p, method="bh"))


def _blocks(count: int, entries: int) -> Iterator[int]:
    """Yield how many arrangements to draw at a time, so that a block of them stays small."""
    size = max(1, min(256, _BLOCK_BYTES // (8 * entries)))
    while count > 0:
        yield min(size, count)
        count -= size
