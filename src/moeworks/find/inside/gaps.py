"""The largest activation of every neuron in every prompt: streamed sums over sides and over permuted sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moeworks.find.inside.observe import as_numpy

if TYPE_CHECKING:
    from moeworks.engines.transformers.inside import ExpertPass

__all__ = ["Gaps", "largest_by_group"]

Array = NDArray[Any]


def largest_by_group(values: Any, group: Array, groups: int) -> tuple[Array, Array]:
    """Return the elementwise maximum of the rows of each group, (present, I) float64, and which groups are present.

    Args:
        values: (m, I) tensor.
        group: (m,) group of each row; rows with -1 are left out.
        groups: number of groups.
    """
    kept = np.flatnonzero(group >= 0)
    present, place = np.unique(group[kept], return_inverse=True)
    rows = as_numpy(values)[kept]  # (m, I)
    largest = np.full((len(present), rows.shape[1]), -np.inf)
    order = np.argsort(place, kind="stable")
    if len(order):
        starts = np.flatnonzero(np.diff(place[order], prepend=-1))
        largest = np.maximum.reduceat(rows[order], starts, axis=0)
    assert groups > (present.max() if len(present) else -1)
    return largest, present


@dataclass
class Gaps:
    """Sums of per-prompt maxima of some experts' neurons, under the observed sides and under permuted ones.

    The null needs no maxima to be kept: each arrangement of documents on the two sides is drawn beforehand and has a
    running sum of its own. Memory: arrangements × neurons × 4 bytes, see `nbytes`.
    """

    arrangements: Array  # (b, entries) float32: 1 where an entry is on the contrast side; the first is the observed one
    experts: Mapping[tuple[int, int], int]  # (layer, expert) → place
    neurons: int
    held: Array  # (entries,) prompts of each entry
    absent: Literal["zero", "left_out"] = "zero"  # what a prompt says in which an expert did not run
    sums: Array = field(init=False)  # (experts, b, I) float32, of the contrast side
    counts: Array = field(init=False)  # (experts, b) prompts of the contrast side in which the expert ran
    total: Array = field(init=False)  # (experts, I) float64, of both sides
    squares: Array = field(init=False)  # (experts, I) float64
    prompts: Array = field(init=False)  # (experts,) prompts in which the expert ran

    def __post_init__(self) -> None:
        b, e = len(self.arrangements), len(self.experts)
        self.sums = np.zeros((e, b, self.neurons), np.float32)
        self.counts = np.zeros((e, b))
        self.total, self.squares = np.zeros((e, self.neurons)), np.zeros((e, self.neurons))
        self.prompts = np.zeros(e)
        if self.absent == "zero":
            self.counts += self.arrangements @ self.held
            self.prompts += self.held.sum()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.sums.nbytes + self.counts.nbytes + self.total.nbytes + self.squares.nbytes

    def add(self, seen: ExpertPass, largest: Array, entry: Array) -> None:
        """Add the maxima, (g, I), of the prompts of entries (g,) in which an expert ran."""
        place = self.experts[seen.layer, seen.expert]
        chosen = self.arrangements[:, entry]  # (b, g)
        self.sums[place] += chosen @ largest.astype(np.float32)
        self.total[place] += largest.sum(0)
        self.squares[place] += (largest**2).sum(0)
        if self.absent == "left_out":
            self.counts[place] += chosen.sum(1)
            self.prompts[place] += len(largest)

    def means(self, place: int) -> tuple[Array, Array]:
        """Return the mean maxima of the contrast side and of the other, (b, I) each; NaN where a side has no prompt."""
        counts = self.counts[place][:, None]
        sums = self.sums[place].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums / counts, (self.total[place] - sums) / (self.prompts[place] - counts)

    def studentised(self, place: int) -> Array:
        """Return the differences of means over their standard errors, (b, I); 0 where there is nothing to compare."""
        first, second = self.means(place)
        n, counts = self.prompts[place], self.counts[place][:, None]
        variance = np.maximum(self.squares[place] / max(n, 1) - (self.total[place] / max(n, 1)) ** 2, 0)
        floor = 1e-10 * np.maximum(self.squares[place] / max(n, 1), 1e-30)  # rounding is no spread
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.sqrt(variance * (1 / counts + 1 / (n - counts)))
            t = (first - second) / size
        return np.asarray(np.where(np.isfinite(t) & (variance > floor), t, 0.0))
