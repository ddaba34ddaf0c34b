"""Find the experts of the values of a label: languages, domains or classes of answers, two or many at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean
from moeworks.find.amounts import sum_reads
from moeworks.find.artefact import Scores
from moeworks.find.groups import GroupNull, enter_groups
from moeworks.find.null import Progress, monte_carlo, strength
from moeworks.find.scores import GROUP_SCORES
from moeworks.find.scores.base import Aggregate, Groups
from moeworks.find.tabulate import FEWEST, Columns, aggregate_of, as_scores, check_numbers, clause_of, resolve
from moeworks.stats.counts import layer_batches, layers_of
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["find_by_label"]

Array = NDArray[Any]
_BLOCK = 64  # resamplings at a time


def find_by_label(
    trace: Trace,
    *,
    label: str,
    method: str = "dominance",
    target: str | None = None,
    values: tuple[str, ...] | list[str] | None = None,
    where: Where | str = Where(),
    aggregate: Aggregate | None = None,
    permutations: int = 1000,
    refine: bool = True,
    bootstrap: int = 200,
    alpha: float = 0.05,
    within: str | None = None,
    top: int | None = None,
    seed: int = 0,
    command: str = "",
    budget_bytes: int = 256 << 20,
    progress: Progress | None = None,
    **options: Any,
) -> Scores:
    """Score every expert of a trace on the values of a label, against documents whose values are permuted.

    Args:
        trace: the trace.
        label: the label, `lang` for instance; texts without it are left out.
        method: registered name of a score of a label's values.
        target: the value that is asked for; by default each expert is scored on the value that suits it best, where
            the method allows that.
        values: the values that are compared; by default all.
        where, aggregate, permutations, refine, bootstrap, alpha, within, top, seed, command, budget_bytes, progress:
            as in `find`.
        options: of the method.

    Returns:
        The scores. The rates are those of the target and the mean of the others or, without a target, the largest and
        the second largest of all values. What each value has is in the header's facts.

    Raises:
        BadData: the label or a value is unknown, there are fewer than two values, or no document can change its value.
    """
    check_numbers(permutations=permutations, bootstrap=bootstrap, alpha=alpha, top=top)
    function, traits = resolve(GROUP_SCORES, method, options)
    aggregate = aggregate_of(method, traits, aggregate)
    clause = clause_of(where)
    if traits.phase is not None and clause.phase is None:
        clause = clause.model_copy(update={"phase": traits.phase})
    layers = layers_of(trace, clause)
    entries = enter_groups(
        trace, label=label, where=clause, values=None if values is None else tuple(values), within=within
    )
    names = entries.names
    if len(names) < 2:
        raise BadData(f"all selected texts have {label}={names[0]}; there is nothing to compare it with.")
    if target is not None and target not in names:
        raise BadData(f"no token with {label}={target} is selected; {did_you_mean(target, names)}")
    place = None if target is None else names.index(target)
    null = GroupNull(entries)
    most = max(permutations, math.ceil(sum(layers.values()) / alpha)) if refine else permutations
    samples = bootstrap if min(entries.documents) >= FEWEST else 0
    statistic = partial(function, **options)

    columns: list[Columns] = []
    for batch in layer_batches(layers, len(entries), budget_bytes=budget_bytes):
        sums = sum_reads(trace, entries.rows(trace, clause), entries.tokens, batch, traits.reads)  # (n, E)
        sizes = entries.tokens.astype(np.float64)
        if aggregate == "macro":
            if options.get(traits.undivided, True):
                sums /= sizes[:, None]
            sizes = np.ones(len(entries))

        grouped = _grouped(statistic, sums, sizes, names, place, entries.factors(sizes))
        score = grouped(entries.value[None])
        if score.shape != (1, sums.shape[1]) or not np.isfinite(score).all():
            raise BadData(f"the score '{method}' does not give one finite number per expert; it cannot be tested.")
        tested = monte_carlo(
            null.draw,
            grouped,
            strength(score[0], traits.tail),
            width=len(entries) * len(names),
            permutations=permutations,
            most=most,
            seed=seed,
            tail=traits.tail,
            progress=progress,
        )
        resampled = np.empty((samples, sums.shape[1]))
        rng = np.random.default_rng([seed, 2])
        for start in range(0, samples, _BLOCK):
            times = entries.resample(rng, min(_BLOCK, samples - start))
            resampled[start : start + _BLOCK] = grouped(entries.value[None], times=times)
        rates = np.stack([sums[entries.value == g].sum(0) / sizes[entries.value == g].sum() for g in range(len(names))])
        columns.append(Columns(score[0], rates, *_two(rates, place), tested.p, tested.drawn, resampled))

    first = [target] if target is not None else list(names)
    second = [name for name in names if name != target]
    counts = {
        name: (entries.documents[g], int(entries.tokens[entries.value == g].sum())) for g, name in enumerate(names)
    }
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
            "contrast": str(Where(labels={label: tuple(first)})),
            "against": str(Where(labels={label: tuple(second)})),
            "where": str(clause),
            "method": method,
            "aggregate": aggregate,
            "documents": tuple(sum(counts[name][0] for name in side) for side in (first, second)),
            "pairs": entries.pairs,
            "tokens": tuple(sum(counts[name][1] for name in side) for side in (first, second)),
            "null": "values",
            "within": within,
            "permutations": permutations,
            "exhaustive": False,
            "smallest_p": null.smallest_p(most),
            "bootstrap": samples,
            "label": label,
            "target": target,
        },
    )


def _grouped(
    statistic: Callable[[Groups], Array],
    sums: Array,
    sizes: Array,
    names: tuple[str, ...],
    target: int | None,
    factors: Array,
) -> Callable[..., Array]:
    """Return the function from values of entries, (b, n), to scores, (b, E)."""

    def grouped(value: Array, active: Array | None = None, *, times: Array | None = None) -> Array:
        """Score some experts with entries of these values, each counted so many times, (b, n)."""
        chosen = sums if active is None else sums[:, active]
        inside = [(value == g) * (factors[g] if times is None else times) for g in range(len(names))]
        weights = np.stack(inside, axis=1).astype(np.float64).reshape(-1, len(sums))  # (b · g, n)
        runs, tokens = (
            (weights @ summed).reshape(-1, len(names), summed.shape[1]) for summed in (chosen, sizes[:, None])
        )
        return np.asarray(statistic(Groups(runs, tokens, names, target)))

    return grouped


def _two(rates: Array, target: int | None) -> tuple[Array, Array]:
    """Return the two rates that the table shows, (E,) each, from those of all values, (g, E)."""
    if target is not None:
        return rates[target], np.delete(rates, target, axis=0).mean(0)
    ranked = np.sort(rates, axis=0)
    return ranked[-1], ranked[-2]
