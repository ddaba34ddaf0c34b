"""Scores in words: what was compared, how many experts pass, the strongest of them; "No expert passes." is a result."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from moeworks.address import Address

if TYPE_CHECKING:
    from moeworks.find.artefact import Scores, ScoresHeader

__all__ = ["summary"]

_NULLS = {
    "labels": "documents change sides at random",
    "flips": "the two sides of each document are swapped at random",
    "labels and flips": "documents change sides at random, and pairs swap their two sides",
    "values": "documents' values of the label change at random",
    "rotations": "the markers of each document move round it together, by a random distance",
    "none": "none: a ranking without a test",
}


def summary(scores: Scores, n: int) -> str:
    """Return the summary of scores, with the n strongest of the experts that pass."""
    header, experts, noun = scores.header, scores.table.num_rows, f"{scores.unit}s"
    lines = [
        f"{header.method} ({header.aggregate}) of {experts} {noun}, layers {_numbers(scores.layers)}",
        *(f"  {which:<8} {name}: {_side(header, side)}" for side, (which, name) in enumerate(_names(header))),
        *([f"  within   {header.where}"] if header.where else []),
        f"  null     {_null(header)}",
    ]
    if header.null == "none":
        lines.append(f"No test was made, so none of them passes. The strongest of {experts} {noun}:")
        return "\n".join([*lines, *_rows(scores, n, passing=False), *header.notes])
    passing = int(scores.column("passes").sum())
    smallest = float(scores.column("q").min())
    if passing:
        more = int((scores.column("passes") & (scores.column("score") > 0)).sum())
        lines.append(
            f"{passing} of {experts} {noun} pass (q at most {header.alpha:g}): "
            f"{more} {'score' if header.quantity else 'run'} more on the contrast side, {passing - more} less."
        )
        lines += _rows(scores, n)
    else:
        lines.append(f"No {scores.unit} passes. The smallest q is {smallest:.3g}; {header.alpha:g} would pass.")
    return "\n".join([*lines, *_limits(header, experts), *header.notes])


def _numbers(layers: list[int]) -> str:
    """Return layer numbers with runs written as first-last."""
    runs = np.split(layers, np.flatnonzero(np.diff(layers) != 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _names(header: ScoresHeader) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return what is compared with what, each as a heading and the words for it."""
    if header.null == "rotations":
        return ("markers", header.contrast), ("against", "all other tokens")
    if header.label and not header.contrast:
        return ("above", f"the median of {header.label}"), ("below", "or at it")
    if header.label and header.target is None:
        return ("best", f"value of {header.contrast}"), ("against", "the second best")
    against = header.against or ("everything" if header.tokens[1] else "nothing")
    return ("contrast", header.contrast or "everything"), ("against", against)


def _side(header: ScoresHeader, side: int) -> str:
    return f"{header.tokens[side]:,} tokens in {header.documents[side]:,} documents"


def _null(header: ScoresHeader) -> str:
    within = f", within each {header.within}" if header.within else ""
    if header.null == "none":
        return _NULLS["none"]
    if header.exhaustive:
        return f"{_NULLS[header.null]}{within}; all {header.drawn:,} arrangements"
    finer = f" ({header.drawn:,} where p is small)" if header.drawn > header.permutations else ""
    return f"{_NULLS[header.null]}{within}; {header.permutations:,} permutations{finer}"


def _rows(scores: Scores, n: int, *, passing: bool = True) -> list[str]:
    lines = []
    quantity = scores.header.quantity
    level = f"{100 * scores.header.level:g} %"
    for row in scores.top(n, sign=0, passing=passing).to_pylist():
        address = str(Address(row["layer"], row["expert"])) + (f".N{row['neuron']}" if "neuron" in row else "")
        rates = [row["contrast_rate"], row["against_rate"]]
        shown = " against ".join(f"{rate:.3g}" if quantity else f"{rate:.1%}" for rate in rates if not math.isnan(rate))
        score = f"{row['score']:+.3g}" if quantity else f"{row['score']:+.3f}"
        sure = "" if math.isnan(row["q"]) else f", q {row['q']:.2g}"
        interval = "" if math.isnan(row["low"]) else f" [{row['low']:+.3f}, {row['high']:+.3f}] ({level})"
        stable = "" if math.isnan(row["stability"]) else f", in the top {scores.header.top} of {row['stability']:.0%}"
        lines.append(f"  {address:<9} {score}{interval}, {quantity or 'runs on'} {shown}{sure}{stable}")
    if any(np.isfinite(scores.column("stability"))):
        lines.append(f"  (top {scores.header.top}: share of {scores.header.bootstrap} resamplings of the documents)")
    return lines


def _limits(header: ScoresHeader, experts: int) -> list[str]:
    """Say what the null could not have shown, whatever the data."""
    lines: list[str] = []
    if header.unit == "neuron":  # their q is the chance of any false one, which even a single neuron can pass
        return lines
    if not header.bootstrap:
        lines.append("Too few documents for intervals and stability: each side needs at least 5.")
    together = math.ceil(header.smallest_p * experts / header.alpha * (1 - 1e-12))
    if together > experts:
        lines.append(
            f"No expert could have passed: the smallest p that can come out is {header.smallest_p:.2g}. "
            "Use more documents (or more permutations)."
        )
    elif together > 1:
        lines.append(
            f"The smallest p that can come out is {header.smallest_p:.2g}: an expert passes only if at least "
            f"{together} do. More documents (or more permutations) would resolve fewer."
        )
    return lines
