"""Find the experts that carry a contrast: a score for each, tested against a null in which whole documents move."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean
from moeworks.find.amounts import sum_reads
from moeworks.find.artefact import Scores
from moeworks.find.bootstrap import bootstrap_scores
from moeworks.find.committee import committee_weights
from moeworks.find.matching import token_factors
from moeworks.find.null import Null, Progress, PValues, Statistic, p_values, smallest_p, split
from moeworks.find.scores import SCORES
from moeworks.find.scores.base import Aggregate, Side, Traits
from moeworks.find.sides import CONTRAST, Entries, Sides, enter
from moeworks.find.tabulate import FEWEST, Columns, aggregate_of, as_scores, check_numbers, clause_of, resolve
from moeworks.stats.counts import layer_batches, layers_of
from moeworks.where import PHASES, Phase, Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["find", "find_by_phase"]

Array = NDArray[Any]


def find(
    trace: Trace,
    *,
    contrast: Where | str,
    against: Where | str | None,
    where: Where | str = Where(),
    method: str = "risk_difference",
    aggregate: Aggregate | None = None,
    permutations: int = 1000,
    refine: bool = True,
    bootstrap: int = 200,
    alpha: float = 0.05,
    within: str | None = None,
    match: Literal["token"] | None = None,
    downweight: Literal["committee"] | None = None,
    top: int | None = None,
    seed: int = 0,
    command: str = "",
    budget_bytes: int = 256 << 20,
    progress: Progress | None = None,
    **options: Any,
) -> Scores:
    """Score every expert of a trace on a contrast, with a document-permutation null and bootstrap intervals.

    Args:
        trace: the trace.
        contrast: the tokens of one side; experts that run more on them score above 0.
        against: the tokens of the other side. None for a score that looks at one side only: then there is no null,
            and nothing passes.
        where: which tokens count on both sides, and which layers.
        method: registered name of the score.
        aggregate: `micro` pools all tokens of a side, `macro` is the mean over documents of the share within each.
            By default what the method is defined for, or `micro`.
        permutations: permutations of documents for every expert.
        refine: draw on for experts whose p is still unresolved, up to experts / alpha permutations in all, so that
            one expert of a large model can pass; without, an expert often cannot pass alone.
        bootstrap: resamplings of documents behind intervals and stability.
        alpha: false discovery rate; an expert passes if its q is at most this.
        within: a label, `domain` for instance: documents are permuted only among those of the same value, which
            takes this label's own differences out of the null.
        match: `token` weights both sides to the same number of each token id; see `moeworks.find.matching`.
        downweight: `committee` lowers the scores of experts that run everywhere; see `moeworks.find.committee`.
        top: stability is the share of resamplings with the expert among so many largest absolute scores; by default
            as many as pass, at most 10, or 10 if none does.
        seed: of permutations and resamplings.
        command: how this was asked for, for the header.
        budget_bytes: memory for counts, documents × experts × 8 bytes; layers that do not fit are counted in further
            passes (a single layer is never divided).
        progress: called with what is done, how much, and of how much.
        options: of the method.

    Returns:
        The scores, one row per (layer, expert).

    Raises:
        BadData: a side is empty, the sides overlap, a clause or an option is wrong, or no document can change sides.
        BadTrace: the score reads probabilities, and the trace has no logits.
        Unsupported: the score reads probabilities, and a router has none.
    """
    check_numbers(permutations=permutations, bootstrap=bootstrap, alpha=alpha, top=top)
    function, traits = resolve(SCORES, method, options)
    aggregate = aggregate_of(method, traits, aggregate)
    statistic: Statistic = partial(function, **options)
    sides = _sides(method, traits, clause_of(contrast), None if against is None else clause_of(against), where)
    layers = layers_of(trace, sides.where)
    factors = token_factors(trace, sides) if _known("match", match, "token") else None
    if _known("downweight", downweight, "committee") and traits.reads != "runs":
        raise BadData(f"the score '{method}' reads {traits.reads}; only scores of runs can be down-weighted.")
    entries = enter(trace, sides, within=within, factors=factors)
    null = None if against is None else Null(entries)
    most = max(permutations, math.ceil(sum(layers.values()) / alpha)) if refine else permutations
    samples = bootstrap if min(entries.documents[: 2 if null else 1]) >= FEWEST else 0

    names = ("contrast", "against")[: 2 if null else 1]

    columns: list[Columns] = []
    for batch in layer_batches(layers, len(entries), budget_bytes=budget_bytes):
        values = sum_reads(trace, sides.rows(trace, entries, factors), entries.tokens, batch, traits.reads)  # (n, E)
        sizes = entries.tokens.astype(np.float64)
        if aggregate == "macro":
            if options.get(traits.undivided, True):
                values /= sizes[:, None]
            sizes = np.ones(len(entries))
        weights = committee_weights(values.sum(0) / sizes.sum(), batch) if downweight else np.ones(values.shape[1])
        score, rates = _observed(statistic, entries, values, sizes, method)
        tested = PValues(np.full(len(score), np.nan), 0, False)
        if null is not None:
            tested = p_values(
                null, values, sizes, statistic, permutations=permutations, most=most, seed=seed, tail=traits.tail,
                progress=progress,
            )  # fmt: skip
        resampled = bootstrap_scores(entries, values, sizes, statistic, samples=samples, seed=seed, progress=progress)
        columns.append(
            Columns(
                score * weights, rates[: len(names)], rates[0], rates[1], tested.p, tested.drawn, resampled * weights
            )
        )

    return as_scores(
        trace,
        layers,
        columns,
        traits,
        names=names,
        options=options,
        alpha=alpha,
        top=top,
        header={
            "command": command,
            "seed": seed,
            "contrast": str(sides.contrast),
            "against": "" if against is None else str(sides.against),
            "where": str(sides.where),
            "method": method,
            "aggregate": aggregate,
            "documents": entries.documents,
            "pairs": entries.pairs,
            "tokens": tuple(round(float(entries.tokens[entries.side == side].sum())) for side in (0, 1)),
            "null": "none" if null is None else null.kind,
            "within": within,
            "permutations": 0 if null is None else permutations,
            "exhaustive": null is not None and null.arrangements <= permutations,
            "smallest_p": 1.0
            if null is None
            else smallest_p(
                null, permutations, most, tail=traits.tail, sizes=entries.tokens if aggregate == "micro" else None
            ),
            "bootstrap": samples,
            "match": match,
            "downweight": downweight,
            "notes": _notes(factors is not None, downweight is not None),
            **({} if options.get(traits.undivided, True) else {"quantity": "tokens a text"}),
        },
    )


def find_by_phase(trace: Trace, *, where: Where | str = Where(), **arguments: Any) -> dict[Phase, Scores]:
    """Run `find` apart on each phase that the trace has: in prompts many more experts run than while generating.

    Takes the arguments of `find`; false discoveries are controlled in each phase on its own.
    """
    clause = clause_of(where)
    requested = PHASES if clause.phase is None else clause.phase
    seen = np.zeros(len(PHASES), bool)
    for part in trace.parts:
        seen |= np.bincount(part.rows().phase, minlength=len(PHASES)) > 0
    phases = [phase for phase, there in zip(PHASES, seen, strict=True) if there and phase in requested]
    if not phases:
        raise BadData(f"the trace has no token of phase {' or '.join(requested)}.")
    return {phase: find(trace, where=clause.model_copy(update={"phase": (phase,)}), **arguments) for phase in phases}


def _sides(method: str, traits: Traits, contrast: Where, against: Where | None, where: Where | str) -> Sides:
    if against is None and not traits.one_sided:
        raise BadData(f"the score '{method}' compares two sides; say what to compare with (against).")
    common = clause_of(where)
    if traits.phase is not None and all(c is None or c.phase is None for c in (contrast, against, common)):
        common = common.model_copy(update={"phase": traits.phase})
    return Sides(contrast, against, common)


def _notes(matched: bool, downweighted: bool) -> tuple[str, ...]:
    notes = []
    if matched:
        notes.append("Both sides weigh each token id alike; ids of one side only do not count.")
    if downweighted:
        notes.append(
            "Scores of experts that run on most tokens of both sides are reduced; p and q do not change by it."
        )
    return tuple(notes)


def _known(name: str, value: str | None, known: str) -> bool:
    if value not in (None, known):
        raise BadData(f"{name} cannot be '{value}'; {did_you_mean(value, (known,))}")
    return value is not None


def _observed(statistic: Statistic, entries: Entries, values: Array, sizes: Array, method: str) -> tuple[Array, Array]:
    """Return the score of each expert, (E,), and its rates on both sides, (2, E); NaN where there is no other side."""
    contrast, against = split(np.asarray(entries.side == CONTRAST, np.float64)[None], values, sizes)
    if against.tokens[0, 0] == 0:
        against = Side(np.full_like(against.runs, np.nan), np.ones_like(against.tokens))
    score = np.asarray(statistic(contrast, against))
    if score.shape != contrast.runs.shape or not np.isfinite(score).all():
        raise BadData(f"the score '{method}' does not give one finite number per expert; it cannot be tested.")
    return score[0], np.concatenate([contrast.rates, against.rates])
