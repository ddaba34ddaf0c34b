"""Searches: methods that score sets of experts and no single ones, so that they return what stays.

They are a kind of their own because a set's value is no sum of its members': NAEE compares whole subsets, and a vote
changes with everyone who leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import combinations, product
from math import comb
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moeworks.artefact import LayerShape
from moeworks.contract import selection_scores
from moeworks.edit.scores.base import Array, needs
from moeworks.edit.scores.reconstruction import LayerLoss
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData, Unsupported
from moeworks.registry import Registry

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = ["SEARCHES", "Kept", "Search", "naee", "naee_greedy", "ranked_choice"]


class Kept(NamedTuple):
    """What a search found for one layer."""

    keep: tuple[int, ...]  # ascending
    order: tuple[int, ...]  # all experts, best first; its beginning is `keep` in some order
    loss: float  # of the kept set; NaN where the search has none


# (statistics, kept, *, weights, shape, protected, …options) → Kept
Search = Callable[..., Kept]
SEARCHES: Registry[Search] = Registry("search", "moeworks.edit_searches")


@SEARCHES.register("naee")
@needs("cheap", "rows", "weights", "contract")
def naee(
    statistics: LayerStatistics,
    kept: int,
    *,
    weights: LayerWeights,
    shape: LayerShape,
    protected: Collection[int] = (),
    rows: int = 2048,
    batch: int = 2048,
    limit: int = 20_000,
) -> Kept:
    """Try every subset of a layer's experts and keep the one with which its output moves least; for few experts.

    Source: NAEE, arXiv 2402.14800 (ACL 2024): sum over batches of |Z - Z'|_F, Z' the layer's output with the dropped
    experts' logits at -inf, inputs from the whole model (`layerwise`). Decisions are made again by the model's own
    rule from the kept logits. `order` ranks within kept and within dropped by the loss of removing each alone, so that
    another ratio cut from it is nested and no optimum.

    Args:
        statistics: with rows.
        kept: experts that stay.
        weights, shape: of the same layer.
        protected: experts that stay in any case.
        rows: at most so many rows, evenly spaced.
        batch: rows whose Frobenius norm is taken together.
        limit: refuse more subsets than this.

    Raises:
        BadData: too many subsets; `naee_greedy` is for these.
    """
    candidates = _subsets(shape, kept, protected, limit)
    loss = LayerLoss(statistics, weights, shape, rows=rows)
    every = frozenset(range(shape.experts))
    best: tuple[float, tuple[int, ...]] | None = None
    for subset in candidates:
        value = loss.total(loss.errors(every - set(subset))[0], batch)
        if best is None or value < best[0]:
            best = value, subset
    assert best is not None
    alone = _alone(loss, shape, batch)
    inside = sorted(best[1], key=lambda e: (-alone[e], e))
    outside = sorted(every - set(best[1]), key=lambda e: (-alone[e], e))
    return Kept(best[1], (*inside, *outside), best[0])


@SEARCHES.register("naee_greedy")
@needs("cheap", "rows", "weights", "contract")
def naee_greedy(
    statistics: LayerStatistics,
    kept: int,
    *,
    weights: LayerWeights,
    shape: LayerShape,
    protected: Collection[int] = (),
    rows: int = 1024,
    batch: int = 2048,
    beam: int = 1,
) -> Kept:
    """Take out one expert after another, each time the one that moves the layer's output least; NAEE for many experts.

    The loss is NAEE's; the search is ours, not the paper's. With `beam` the best few sets go on side by side. Removal
    goes on below `kept` along the best set, so that `order` ranks all experts and smaller ratios are nested.
    """
    if beam < 1:
        raise BadData("beam is at least 1.")
    loss = LayerLoss(statistics, weights, shape, rows=rows)
    floor = max(shape.top_k, len(set(protected)), 1)
    states = [_State((), *loss.errors(()))]
    goal, kept_loss = shape.experts - kept, 0.0
    for step in range(shape.experts - min(floor, kept)):
        width = beam if step < goal else 1
        following: dict[frozenset[int], tuple[float, _State]] = {}
        for state in states:
            for expert in _removable(shape, state.removed, protected):
                new = state.without(expert, loss)
                key = frozenset(new.removed)
                value = loss.total(new.errors, batch)
                if key not in following or value < following[key][0]:
                    following[key] = value, new
        if not following:
            break
        ranked = sorted(following.values(), key=lambda pair: (pair[0], pair[1].removed))
        states = [state for _, state in ranked[:width]]
        if step + 1 == goal:  # from here on along the best set alone
            states = states[:1]
            kept_loss = ranked[0][0]
    removed = states[0].removed
    if len(removed) < goal:
        raise BadData(f"layer {shape.layer}: only {len(removed)} experts can go, {goal} were to.")
    alone = _alone(loss, shape, batch)
    rest = sorted(set(range(shape.experts)) - set(removed), key=lambda e: (-alone[e], e))
    order = (*rest, *reversed(removed))
    return Kept(tuple(sorted(order[:kept])), order, kept_loss)


@SEARCHES.register("ranked_choice")
@needs("cheap", "rows", "contract", "weights")
def ranked_choice(
    statistics: LayerStatistics,
    kept: int,
    *,
    weights: LayerWeights,
    shape: LayerShape,
    protected: Collection[int] = (),
    rows: int = 4096,
) -> Kept:
    """Take out the least popular expert again and again; its tokens vote for their next choice.

    Source: RankedChoiceVoting of modelopt 0.47 (wheel read). A token votes for the k best experts that are left by the
    router's selection scores (logits, or probabilities, with the bias), taken once from all experts: groups, and what
    deletion does to a softmax beside a bias, are left out of the vote. Equal votes: the larger number goes.

    Raises:
        Unsupported: the layer's rule is not known.
    """
    contract = shape.contract
    if contract is None or contract.hashed:
        raise Unsupported(f"layer {shape.layer}: its rule is not known or no choice, so that tokens have no next one.")
    logits = np.asarray(statistics.rows().logits, np.float64)
    logits = logits[np.unique(np.linspace(0, len(logits) - 1, min(rows, len(logits))).astype(int))]
    bias = (
        weights.selection_bias.double().cpu().numpy() if contract.bias and weights.selection_bias is not None else None
    )
    choice = selection_scores(logits, contract, bias=bias)
    ranking = np.argsort(-choice, axis=1, kind="stable")  # (n, E)
    alive = np.ones(shape.experts, bool)
    removed: list[int] = []
    while True:
        candidates = _removable(shape, removed, protected)
        if not candidates or alive.sum() <= max(1, min(shape.top_k, kept)):
            break
        left = alive[ranking]
        votes = np.bincount(ranking[left & (left.cumsum(1) <= shape.top_k)], minlength=shape.experts)
        loser = min(candidates, key=lambda e: (votes[e], -e))
        removed.append(loser)
        alive[loser] = False
    if shape.experts - len(removed) > kept:
        raise BadData(f"layer {shape.layer}: only {len(removed)} experts can go, {shape.experts - kept} were to.")
    left = alive[ranking]
    votes = np.bincount(ranking[left & (left.cumsum(1) <= shape.top_k)], minlength=shape.experts)
    rest = sorted(np.flatnonzero(alive).tolist(), key=lambda e: (-votes[e], e))
    order = (*rest, *reversed(removed))
    return Kept(tuple(sorted(order[:kept])), order, float("nan"))


class _State(NamedTuple):
    removed: tuple[int, ...]
    errors: Array  # (n,)
    ids: Array  # (n, k)

    def without(self, expert: int, loss: LayerLoss) -> _State:
        removed = (*self.removed, expert)
        if not loss.local:
            return _State(removed, *loss.errors(removed))
        rows = np.flatnonzero((self.ids == expert).any(1))
        errors, ids = self.errors.copy(), self.ids.copy()
        if len(rows):
            errors[rows], ids[rows] = loss.errors(removed, rows)
        return _State(removed, errors, ids)


def _groups(shape: LayerShape) -> int:
    return shape.contract.groups if shape.contract is not None else 1


def _removable(shape: LayerShape, removed: Sequence[int], protected: Collection[int]) -> list[int]:
    """Experts that may go next: not protected, and in a group that has lost no more than the others."""
    each = shape.experts // _groups(shape)
    left = np.full(_groups(shape), each)
    for expert in removed:
        left[expert // each] -= 1
    gone = {*removed, *protected}
    return [e for e in range(shape.experts) if e not in gone and left[e // each] == left.max()]


def _subsets(shape: LayerShape, kept: int, protected: Collection[int], limit: int) -> list[tuple[int, ...]]:
    groups = _groups(shape)
    each = shape.experts // groups
    if kept % groups:
        raise BadData(f"layer {shape.layer} has {groups} groups; {kept} experts cannot be spread over them equally.")
    must = [sorted(e for e in set(protected) if e // each == group) for group in range(groups)]
    free = [sorted(set(range(group * each, (group + 1) * each)) - set(must[group])) for group in range(groups)]
    if any(len(m) > kept // groups for m in must):
        raise BadData(f"layer {shape.layer} protects more experts than are to stay.")
    number = 1
    for m, f in zip(must, free, strict=True):
        number *= comb(len(f), kept // groups - len(m))
    if number > limit:
        raise BadData(
            f"layer {shape.layer}: {number:,} subsets of {shape.experts} experts are more than {limit:,}; "
            "use naee_greedy, or raise limit."
        )
    parts = [
        [(*m, *chosen) for chosen in combinations(f, kept // groups - len(m))] for m, f in zip(must, free, strict=True)
    ]
    return sorted(tuple(sorted(sum(choice, ()))) for choice in product(*parts))


def _alone(loss: LayerLoss, shape: LayerShape, batch: int) -> Array:
    """Loss of removing each expert alone, (E,); 0 where nothing may be removed."""
    if shape.experts == shape.top_k:
        return np.zeros(shape.experts)
    return np.array([loss.total(loss.errors({expert})[0], batch) for expert in range(shape.experts)])
