"""Key Space Detection: a box around what a model looks like inside on texts of one skill, as a condition on prompts.

Source: Effective Skill Unlearning (arXiv 2503.21730), box and bisection as in its released code: the keys of the last
token (what a down projection reads) on texts of the skill; box = mean ± k·std with the smallest k that covers all of
them; a prompt inside mean ± alpha·k·std in every dimension is taken to need the skill.

Differences. The smallest k is the largest |x - mean| / std, which is written down directly; the released bisection
finds it to 1e-5. alpha, which the paper tunes by hand (0.06 to 1.4), is calibrated on held-out texts of the skill by
split conformal prediction: a box of thousands of dimensions accepts almost nothing that it has not seen, so that alpha
does the work. Two things to put a box on besides the keys of a dense layer: the keys of one expert, and the shares of
tokens for which each expert of each layer ran (`routing_frequencies`), which need a trace and no neurons.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["Box", "Frequencies", "routing_frequencies"]

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Box:
    """mean ± alpha·k·std in d dimensions; plain numbers, so that it can stand in a JSON document as it is."""

    mean: tuple[float, ...]  # (d,)
    std: tuple[float, ...]  # (d,) population standard deviation, at least the floor it was fitted with
    k: float  # the smallest factor that covers every point it was fitted on
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise BadData(f"a box needs as many means as deviations, not {len(self.mean)} and {len(self.std)}.")
        if not all(map(math.isfinite, (*self.mean, *self.std, self.k, self.alpha))):
            raise BadData("a box holds numbers that are not finite; fit it again.")
        if min(self.std) < 0 or self.k < 0 or self.alpha < 0:
            raise BadData("deviations, k and alpha of a box are never below 0; fit it again.")

    @classmethod
    def fit(cls, points: Array, *, floor: float = 0.0) -> Box:
        """Return the smallest box of the form mean ± k·std that covers all points.

        Args:
            points: (n, d) what the texts of the skill look like, one row each, n at least 2.
            floor: the smallest deviation of a dimension. With 0, a dimension in which all points are equal accepts
                nothing but that very value; on routing frequencies, where many experts never ran, one over the
                tokens of a prompt lets one stray token pass.

        Raises:
            BadData: fewer than two points, or numbers that are not finite.
        """
        points = _points(points)
        if len(points) < 2:
            raise BadData(f"a box needs at least 2 points to know their spread, not {len(points)}.")
        if floor < 0:
            raise BadData(f"the smallest deviation is {floor}; it cannot be below 0.")
        mean, std = points.mean(0), points.std(0)
        equal = np.ptp(points, axis=0) == 0  # rounding of the mean must not make a spread where there is none
        mean[equal], std[equal] = points[0, equal], 0.0
        std = np.maximum(std, floor)
        k = float(_radii(points, mean, std).max())
        return cls(mean=tuple(mean.tolist()), std=tuple(std.tolist()), k=k)

    @property
    def dimensions(self) -> int:
        """Number of dimensions."""
        return len(self.mean)

    def radius(self, points: Array) -> Array:
        """Return the largest |x - mean| / std of each point, (n,); infinite where a dimension has no spread."""
        points = _points(points)
        if points.shape[1] != self.dimensions:
            raise BadData(f"points of {points.shape[1]} dimensions cannot be held against a box of {self.dimensions}.")
        return _radii(points, np.asarray(self.mean), np.asarray(self.std))

    def contains(self, points: Array) -> NDArray[np.bool_]:
        """Return which points lie inside, (n,); the faces belong to the box."""
        return np.asarray(self.radius(points) <= self.alpha * self.k)

    def calibrate(self, held_out: Array, *, coverage: float = 0.9) -> Box:
        """Return the same box with the alpha that takes in a new text of the skill with a probability of `coverage`.

        alpha·k becomes the ceil((n + 1)·coverage)-th smallest radius of the n held-out points (split conformal
        prediction), which holds for any distribution if held-out and new texts are drawn alike.

        Args:
            held_out: (n, d) points of the skill that the box was not fitted on.
            coverage: share of new texts of the skill that should lie inside, between 0 and 1.

        Raises:
            BadData: too few points for this coverage, or too many of them outside whatever alpha is.
        """
        if not 0 < coverage < 1:
            raise BadData(f"a coverage of {coverage} is not a share between 0 and 1.")
        radii = np.sort(self.radius(held_out))
        rank = math.ceil((len(radii) + 1) * coverage - 1e-9)
        if rank > len(radii):
            raise BadData(
                f"{len(radii)} held-out points cannot show a coverage of {coverage:g}; "
                f"at least {math.ceil(coverage / (1 - coverage) - 1e-9)} are needed."
            )
        wanted = float(radii[rank - 1])
        if not math.isfinite(wanted) or (self.k == 0 and wanted > 0):
            raise BadData(
                f"{int((~np.isfinite(radii)).sum()) or len(radii)} of {len(radii)} held-out points differ from the "
                "box in a dimension where all its points are equal; fit it with a floor above 0."
            )
        alpha = wanted / self.k if self.k else 0.0
        while alpha * self.k < wanted:  # rounding must not leave the point out that alpha was taken from
            alpha = math.nextafter(alpha, math.inf)
        return dataclasses.replace(self, alpha=alpha)

    def as_json(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {"mean": list(self.mean), "std": list(self.std), "k": self.k, "alpha": self.alpha}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Box:
        """Return the box that `as_json` wrote.

        Raises:
            BadData: a field is missing, unknown or no number.
        """
        try:
            mean, std = (tuple(map(float, document[name])) for name in ("mean", "std"))
            k, alpha = (float(document[name]) for name in ("k", "alpha"))
        except (KeyError, TypeError, ValueError) as error:
            raise BadData(f"this is not a box, which has the fields mean, std, k and alpha: {error}.") from None
        return cls(mean=mean, std=std, k=k, alpha=alpha)


@dataclass(frozen=True)
class Frequencies:
    """How often each expert ran in each text: the cheapest picture of a prompt from inside."""

    rates: Array  # (requests, experts of all layers) share of the text's tokens, layers side by side
    requests: Array  # (requests,) their numbers in the trace
    layers: dict[int, int]  # layer → number of experts, in the order of the columns


def routing_frequencies(trace: Trace, *, where: Where | str = Where(phase=("prompt",))) -> Frequencies:
    """Return the routing frequencies of every request that has selected tokens.

    Args:
        trace: the trace.
        where: tokens and layers that count; by default those of the prompt, which are known before anything is
            generated.

    Raises:
        BadData: the clause selects no token.
    """
    from moeworks.stats.counts import add_runs, layers_of

    clause = Where.parse(where) if isinstance(where, str) else where
    layers = layers_of(trace, clause)
    table = trace.request_table()
    counts = np.zeros((len(table), sum(layers.values())))  # (requests, experts)
    tokens = np.zeros(len(table), np.int64)
    ends = np.cumsum([0, *layers.values()])
    for part in trace.parts:
        rows = part.rows()
        entry = np.where(clause.mask(rows, table), rows.request, -1)  # (n,)
        tokens += np.bincount(entry[entry >= 0], minlength=len(table))
        for layer, start, stop in zip(layers, ends[:-1], ends[1:], strict=True):
            add_runs(counts[:, start:stop], entry, part.ids(layer), part.weights(layer))
    present = np.flatnonzero(tokens)
    if not len(present):
        raise BadData(f"no token matches the clause '{clause}'; nothing can be said of any prompt.")
    return Frequencies(counts[present] / tokens[present, None], present, layers)


def _points(points: Array) -> Array:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or not points.shape[1]:
        raise BadData(f"points of a box are rows of numbers, (n, d), not an array of shape {points.shape}.")
    if not np.isfinite(points).all():
        raise BadData("a point holds numbers that are not finite.")
    return points


def _radii(points: Array, mean: Array, std: Array) -> Array:
    """Return (n,); 0 / 0 is 0: a point that equals the mean where there is no spread is inside."""
    distance = np.abs(points - mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(distance == 0, 0.0, distance / std).max(1))
