"""Stability selection: experts that stay among the most used in every resampling of the documents (SAFEx)."""

from __future__ import annotations

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
from moeworks.find.null import Null, Progress, smallest_p
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
    permutations: int = 200,
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
    detection group is no evidence of anything by itself, so it has no null and nothing passes. In the control group an
    expert passes if it belongs to it and if, when whole documents change sides, no expert of the model scores as high
    more often than in `alpha` of the arrangements (q is this family-wise p, which the largest score of each
    arrangement gives; stricter than a false discovery rate).

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
    values = sum_reads(trace, sides.rows(trace, entries), entries.tokens, layers, "runs")  # (n, E)
    sizes = entries.tokens.astype(np.float64)
    if aggregate == "macro":
        values, sizes = values / sizes[:, None], np.ones(len(entries))
    rng = np.random.default_rng([seed, 2])
    times = [rng.multinomial(n, np.full(n, 1 / n), size=subsets).astype(np.float64) for n in entries.documents]

    def shares(on_contrast: Array) -> tuple[Array, Array]:
        """Return in which share of the resamplings each expert is among the most used of each side, (E,) each."""
        first, second = (
            _among_most_used(drawn, values[mine], sizes[mine], count)
            for drawn, mine in zip(times, (on_contrast, ~on_contrast), strict=True)
        )
        return first, second

    first, second = shares(entries.side == CONTRAST)
    stable, other = first == 1, second == 1
    p = np.full(experts, np.nan)
    q, passes, score = p, np.zeros(experts, bool), np.minimum(first, second)
    if group == "control":
        score = first - second
        exceeded, beaten = np.ones(experts), np.ones(experts)  # the observed arrangement is one of them
        rng = np.random.default_rng([seed, 1])
        for done in range(permutations):
            drawn = np.subtract(*shares(null.draw(rng, 1)[0] > 0.5))
            exceeded += drawn >= score
            beaten += drawn.max() >= score
            if progress is not None:
                progress("permutations", done + 1, permutations)
        p, q = exceeded / (permutations + 1), beaten / (permutations + 1)
        passes = stable & ~other & (q <= alpha)
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
    tested = group == "control"
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
        null=null.kind if tested else "none",
        within=within,
        permutations=permutations if tested else 0,
        drawn=permutations if tested else 0,
        exhaustive=False,
        smallest_p=smallest_p(null, 0, permutations, tail="upper") if tested else 1.0,
        alpha=alpha,
        bootstrap=subsets,
        top=count,
        tail="upper",
        quantity="share of resamplings",
        facts={
            "detection": [str(address) for address in detection],
            "control": [str(address) for address in control],
            "family_wise": True,
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
