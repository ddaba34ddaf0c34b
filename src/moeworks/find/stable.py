"""Stability selection: experts that stay among the most used in every resampling of the documents (SAFEx)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks import __version__
from moeworks.address import Address
from moeworks.errors import BadData, did_you_mean
from moeworks.find.amounts import sum_reads
from moeworks.find.artefact import COLUMNS, Scores, ScoresHeader
from moeworks.find.null import Null, Progress, p_values, q_values, smallest_p
from moeworks.find.scores import risk_difference
from moeworks.find.scores.base import Aggregate
from moeworks.find.sides import AGAINST, CONTRAST, Sides, enter
from moeworks.find.tabulate import FEWEST, check_numbers, clause_of, sealed
from moeworks.stats.counts import layers_of
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["StableExperts", "select_stable"]

Array = NDArray[Any]
Group = Literal["control", "detection"]


@dataclass(frozen=True)
class StableExperts:
    """What stability selection found; experts are ordered by address."""

    scores: Scores  # of the group that was asked for
    detection: tuple[Address, ...]  # stable on both sides
    control: tuple[Address, ...]  # stable on the contrast side and not on the other


def select_stable(
    trace: Trace,
    *,
    contrast: Where | str,
    against: Where | str,
    where: Where | str = Where(),
    group: Group = "control",
    most_used: int | None = None,
    subsets: int = 50,
    aggregate: Aggregate = "micro",
    permutations: int = 1000,
    refine: bool = True,
    alpha: float = 0.05,
    within: str | None = None,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> StableExperts:
    """Select the experts that are among the most used in all resamplings of a side's documents, on one side or on both.

    Each side's documents are drawn with replacement `subsets` times; the `most_used` experts by frequency, over the
    whole model, are taken each time; the intersection is top(side). The detection group is top(contrast) and
    top(against) in common (in the paper, of regular and of jailbroken harmful requests), the control group is
    top(contrast) without top(against).

    The score of the control group is the share of resamplings that take an expert on the contrast side minus that on
    the other, of the detection group the smaller of the two. Experts that run everywhere are stable on both sides: a
    detection group is no evidence of anything by itself, so it has no null and nothing passes. Belonging to the
    control group is none either (the last of the most used come and go), so that an expert passes if it belongs to it
    and if it runs more on the contrast side than where whole documents change sides: p and q are of that difference.

    Source: SAFEx (arXiv 2506.17368), by summaries [secondary], which do not say how many are taken: here an eighth
    of all experts unless given. Memory: documents × experts of the model × 8 bytes.

    Raises:
        BadData: a side is empty or has fewer than 5 documents, the sides overlap, or a number is not possible.
    """
    check_numbers(permutations=permutations, bootstrap=subsets, alpha=alpha, top=most_used)
    if group not in ("control", "detection"):
        raise BadData(f"there is no group '{group}'; {did_you_mean(group, ('control', 'detection'))}")
    sides = Sides(clause_of(contrast), clause_of(against), clause_of(where))
    layers = layers_of(trace, sides.where)
    experts = sum(layers.values())
    count = most_used or max(1, experts // 8)
    if count >= experts:
        raise BadData(f"all {experts} experts are among the {count} most used; take fewer.")
    entries = enter(trace, sides, within=within)
    if min(entries.documents) < FEWEST:
        raise BadData(f"a side has {min(entries.documents)} documents; resampling them needs at least {FEWEST}.")
    null = Null(entries)
    most = max(permutations, math.ceil(experts / alpha)) if refine else permutations
    values = sum_reads(trace, sides.rows(trace, entries), entries.tokens, layers, "runs")  # (n, E)
    sizes = entries.tokens.astype(np.float64)
    if aggregate == "macro":
        values, sizes = values / sizes[:, None], np.ones(len(entries))
    rng = np.random.default_rng([seed, 2])
    times = [rng.multinomial(n, np.full(n, 1 / n), size=subsets).astype(np.float64) for n in entries.documents]

    first, second = (
        _among_most_used(drawn, values[mine], sizes[mine], count)
        for drawn, mine in zip(times, (entries.side == CONTRAST, entries.side == AGAINST), strict=True)
    )  # share of the resamplings in which each expert is among the most used of each side, (E,) each
    stable, other = first == 1, second == 1
    q = p = np.full(experts, np.nan)
    passes, score, drawn = np.zeros(experts, bool), np.minimum(first, second), 0
    if group == "control":
        tested = p_values(
            null, values, sizes, risk_difference, permutations=permutations, most=most, seed=seed, tail="upper",
            progress=progress,
        )  # fmt: skip
        p, q, drawn = tested.p, q_values(tested.p), tested.drawn
        score, passes = first - second, stable & ~other & (q <= alpha)
    layer = np.repeat(list(layers), list(layers.values())).astype(np.int32)
    expert = np.concatenate([np.arange(width, dtype=np.int32) for width in layers.values()])
    gone = np.full(experts, np.nan)
    table = pa.table([layer, expert, score, first, second, gone, gone, p, q, first, passes], schema=COLUMNS)

    def named(mask: Array) -> tuple[Address, ...]:
        return tuple(Address(int(layer[row]), int(expert[row])) for row in np.flatnonzero(mask))

    detection, control = named(stable & other), named(stable & ~other)
    note = (
        f"Stable on the contrast side: {int(stable.sum())} of the {count} most used; {len(detection)} of them on the "
        f"other side too (detection group), {len(control)} not (control group)."
    )
    tokens = [int(entries.tokens[entries.side == side].sum()) for side in (CONTRAST, AGAINST)]
    claims = group == "control"
    header = ScoresHeader(
        moeworks=__version__,
        model=trace.header.model,
        engine=trace.header.engine,
        command=command,
        seed=seed,
        text_hash=trace.header.text_hash,
        contrast=str(sides.contrast),
        against=str(sides.against),
        where=str(sides.where),
        method="stability_selection",
        options={"group": group, "most_used": count, "subsets": subsets},
        aggregate=aggregate,
        documents=entries.documents,
        pairs=entries.pairs,
        tokens=(tokens[0], tokens[1]),
        null=null.kind if claims else "none",
        within=within,
        permutations=permutations if claims else 0,
        drawn=drawn,
        exhaustive=claims and null.arrangements <= permutations,
        smallest_p=smallest_p(null, permutations, most, tail="upper") if claims else 1.0,
        alpha=alpha,
        bootstrap=subsets,
        top=count,
        tail="upper",
        quantity="share of resamplings",
        facts={
            "detection": [str(address) for address in detection],
            "control": [str(address) for address in control],
        },
        notes=(note,),
    )
    return StableExperts(sealed(table, header), detection, control)


def _among_most_used(times: Array, values: Array, sizes: Array, count: int) -> Array:
    """Return the share of resamplings in which each expert is among the `count` most used, (E,).

    Experts that tie for the last place all count as in.
    """
    rates = times @ values / (times @ sizes)[:, None]  # (subsets, E)
    last = np.partition(rates, -count, axis=1)[:, -count, None]
    return np.asarray(((rates >= last) & (rates > 0)).mean(0))
