"""Find the experts of marker tokens: signed sums of normalised mutual information, against markers that are moved.

A marker, such as the token that opens a train of thought, stands within documents that also hold everything else, so
that documents cannot change sides. The null leaves routing as it is and moves the markers: the places of all markers of
a document go round it together, by a random distance. So their number in each document, their distances and the
dependence between neighbouring tokens stay; only what the markers stand on changes. What a marker's usual place does
(always last, always after a line break) is not in this null: narrow `where` to comparable places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, BadTrace
from moeworks.find.artefact import Scores
from moeworks.find.null import Progress, monte_carlo
from moeworks.find.scores.base import Traits
from moeworks.find.scores.npmi import above_zero, normalised_pmi
from moeworks.find.tabulate import FEWEST, Columns, as_scores, check_numbers, clause_of
from moeworks.stats.counts import add_runs, layers_of
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["find_markers"]

Array = NDArray[Any]
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class _Places:
    """The selected tokens, documents one after another, and where in them the markers stand."""

    taken: tuple[Array, ...]  # for each part: rows that are selected
    order: Array  # (t,) places of the taken rows, in trace order, when sorted by document
    start: Array  # (d,) first sorted place of each document
    length: Array  # (d,) tokens of each document
    mark: tuple[Array, ...]  # for each marker: (j,) sorted places of its tokens
    of_document: Array  # (t,) document of each sorted place


def find_markers(
    trace: Trace,
    *,
    markers: Mapping[str, float],
    where: Where | str = Where(),
    permutations: int = 1000,
    refine: bool = True,
    bootstrap: int = 200,
    alpha: float = 0.05,
    top: int | None = None,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> Scores:
    """Score every expert by the signed sum of its nPMI with markers, against markers moved round their documents.

        score[e] = sum over markers of sign × nPMI(marker, e)

    Source: RICE (arXiv 2505.14681): + the opening of a thought, - its close, - "alternatively". There one occurrence
    of a marker is counted per text and nothing is tested; here all that the clause selects. Only large scores are
    tested: the method turns experts up. Memory is that of one layer's ids of the selected tokens, beside counts of
    documents × experts × (markers + 1).

    Args:
        trace: the trace.
        markers: clause → sign, as in {"token=12": +1, "token=40": -1}; other numbers weight a marker.
        where: which tokens count at all, and which layers.
        permutations, refine, bootstrap, alpha, top, seed, command, progress: as in `find`.

    Returns:
        The scores. The two rates are those on the tokens of the positive markers, and on all other tokens.

    Raises:
        BadData: there is no marker, none is positive, one selects no token, all of them, or names layers.
    """
    check_numbers(permutations=permutations, bootstrap=bootstrap, alpha=alpha, top=top)
    if not markers or not all(math.isfinite(sign) and sign for sign in markers.values()):
        raise BadData("give at least one marker, each with a sign that is not 0, as in '+token=12'.")
    if max(markers.values()) <= 0:
        raise BadData("no marker is positive; the score says which experts belong to a marker, so give one a plus.")
    clauses = [clause_of(text) for text in markers]
    signs = np.array(list(markers.values()), np.float64)  # (m,)
    common = clause_of(where)
    layers = layers_of(trace, common)
    places = _places(trace, clauses, common)
    documents = len(places.start)
    most = max(permutations, math.ceil(sum(layers.values()) / alpha)) if refine else permutations
    marked = np.zeros((documents, len(clauses)))  # (d, m) tokens of each marker
    for number, mark in enumerate(places.mark):
        marked[:, number] = np.bincount(places.of_document[mark], minlength=documents)
    samples = bootstrap if np.count_nonzero(marked, axis=0).min() >= FEWEST else 0
    positive = np.unique(np.concatenate([mark for mark, sign in zip(places.mark, signs, strict=True) if sign > 0]))
    columns = [
        _score_layer(
            trace, layer, experts, places, signs, marked, positive,
            permutations=permutations, most=most, samples=samples, seed=seed, progress=progress,
        )
        for layer, experts in layers.items()
    ]  # fmt: skip
    carrying = np.count_nonzero(np.bincount(places.of_document[positive], minlength=documents))
    names = [f"{sign:+g} × [{clause}]" for sign, clause in zip(signs, clauses, strict=True)]
    ways = float(np.log(places.length[np.unique(places.of_document[np.concatenate(places.mark)])]).sum())
    return as_scores(
        trace,
        layers,
        columns,
        Traits(aggregate="micro", tail="upper", admits=above_zero),
        names=("markers", "others"),
        options={"markers": {str(clause): float(sign) for clause, sign in zip(clauses, signs, strict=True)}},
        alpha=alpha,
        top=top,
        header={
            "command": command,
            "seed": seed,
            "contrast": " | ".join(str(c) for c, sign in zip(clauses, signs, strict=True) if sign > 0),
            "against": "",
            "where": str(common),
            "method": "npmi",
            "aggregate": "micro",
            "documents": (int(carrying), documents),
            "pairs": int(carrying),
            "tokens": (len(positive), int(places.length.sum()) - len(positive)),
            "null": "rotations",
            "within": None,
            "permutations": permutations,
            "exhaustive": False,
            "smallest_p": max(1 / (most + 1), math.exp(-min(ways, 700.0))),
            "bootstrap": samples,
            "notes": (f"Sum of nPMI: {', '.join(names)}.",),
        },
    )


def _places(trace: Trace, clauses: list[Where], common: Where) -> _Places:
    requests = trace.request_table()
    for clause in clauses:
        if clause.layer is not None:
            raise BadData(f"the marker '{clause}' names layers; put them into where.")
    _, document = np.unique(trace.documents(), return_inverse=True)  # (m,)
    taken, own, flags = [], [], []
    for part in trace.parts:
        rows = part.rows()
        kept = np.flatnonzero(common.mask(rows, requests))
        taken.append(kept)
        own.append(document[rows.request[kept]])
        flags.append(np.stack([clause.mask(rows, requests)[kept] for clause in clauses]))
    if not sum(map(len, taken)):
        raise BadData(f"no token matches '{common}'.")
    whose, flag = np.concatenate(own), np.concatenate(flags, axis=1)  # (t,), (m, t)
    order = np.argsort(whose, kind="stable")
    _, start, dense, length = np.unique(whose[order], return_index=True, return_inverse=True, return_counts=True)
    flag = flag[:, order]
    for clause, mine in zip(clauses, flag, strict=True):
        if not mine.any() or mine.all():
            which = "all tokens" if mine.any() else "no token"
            raise BadData(f"the marker '{clause}' selects {which} within '{common}'; it must be some of them.")
    return _Places(tuple(taken), order, start, length, tuple(np.flatnonzero(mine) for mine in flag), dense)


def _score_layer(
    trace: Trace,
    layer: int,
    experts: int,
    places: _Places,
    signs: Array,
    marked: Array,
    positive: Array,
    *,
    permutations: int,
    most: int,
    samples: int,
    seed: int,
    progress: Progress | None,
) -> Columns:
    """Return what is known of one layer's experts."""
    ids = np.concatenate([part.ids(layer)[rows] for part, rows in zip(trace.parts, places.taken, strict=True)])
    ran = np.concatenate([part.weights(layer)[rows] != 0 for part, rows in zip(trace.parts, places.taken, strict=True)])
    if int(ids.max()) >= experts:
        raise BadTrace(f"a row names expert {ids.max()}, but experts are 0 to {experts - 1}; the trace is altered.")
    ids, ran = ids[places.order], ran[places.order]  # (t, k), documents one after another
    documents, total = len(places.start), len(ids)
    runs = np.zeros((documents, experts))
    add_runs(runs, places.of_document, ids, ran)
    on = np.zeros((len(signs), documents, experts))  # runs on each marker
    for number, mark in enumerate(places.mark):
        add_runs(on[number], places.of_document[mark], ids[mark], ran[mark])
    everything, tokens = runs.sum(0), marked.sum(0)  # (E,), (m,)

    def signed(together: Array, marker: Array, expert: Array, total: Array | float) -> Array:
        """Return scores, (b, E), from (b, m, E), (b, m, 1), (b, 1, E) and (b, 1, 1), or what broadcasts to them."""
        return np.asarray(np.einsum("m,bme->be", signs, normalised_pmi(together, marker, expert, total)))

    score = signed(on.sum(1)[None], tokens[None, :, None], everything[None, None], total)[0]

    def moved(shifts: Array, active: Array | None) -> Array:
        """Score markers that were moved, shifts (b, d)."""
        count = len(shifts)
        together = np.zeros((count, len(signs), experts))
        for number, mark in enumerate(places.mark):
            whose = places.of_document[mark]
            begin, length = places.start[whose], places.length[whose]
            at = begin + (mark - begin + shifts[:, whose]) % length  # (b, j)
            keys = ids[at] + (np.arange(count) * experts)[:, None, None]  # (b, j, k)
            weights = None if ran.all() else ran[at].ravel().astype(np.float64)
            found = np.bincount(keys.ravel(), weights=weights, minlength=count * experts)
            together[:, number] = found.reshape(count, experts)
        scores = signed(together, tokens[None, :, None], everything[None, None], total)
        return scores if active is None else scores[:, active]

    width = max(documents, int(tokens.sum()) * ids.shape[1], experts * len(signs))
    tested = monte_carlo(
        lambda rng, count: rng.integers(0, places.length, (count, documents)),
        moved, score, width=width, permutations=permutations, most=most, seed=seed, tail="upper", progress=progress,
    )  # fmt: skip
    rng = np.random.default_rng([seed, 2])
    resampled = np.empty((samples, experts))
    size = max(1, _BLOCK_BYTES // (8 * max(documents, experts * len(signs))))
    for begin in range(0, samples, size):
        resampled[begin : begin + size] = _resampled(
            rng, min(size, samples - begin), runs, on, marked, places.length, signed
        )
    first = np.zeros((1, experts))
    add_runs(first, np.zeros(len(positive), np.int64), ids[positive], ran[positive])
    rates = np.concatenate([first / len(positive), (everything - first) / (total - len(positive))])
    return Columns(score, rates, rates[0], rates[1], tested.p, tested.drawn, resampled)


def _resampled(
    rng: np.random.Generator, count: int, runs: Array, on: Array, marked: Array, length: Array, signed: Any
) -> Array:
    """Return scores of documents drawn with replacement, (count, E), those with and without markers apart."""
    documents = len(runs)
    times = np.zeros((count, documents))
    kinds = marked > 0  # (d, m)
    _, kind = np.unique(kinds, axis=0, return_inverse=True)
    for which in np.unique(kind):
        members = np.flatnonzero(kind.ravel() == which)
        picks = rng.integers(0, len(members), (count, len(members))) + np.arange(count)[:, None] * len(members)
        times[:, members] = np.bincount(picks.ravel(), minlength=count * len(members)).reshape(count, -1)
    together = np.einsum("bd,mde->bme", times, on, optimize=True)
    return np.asarray(
        signed(together, (times @ marked)[:, :, None], (times @ runs)[:, None], (times @ length)[:, None, None])
    )
