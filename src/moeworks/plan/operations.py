"""Every operation's formula, in numpy: the reference that engines mirror and are tested against.

Letters: z raw logits (n, E), n tokens, E experts, k experts chosen by the model, k' by a `top_k` operation. The kinds
of operation act in this order, whatever their order in the plan; within a kind, in list order:

1. `add`: z[e] += strength × unit. The unit is taken from the raw logits, before any edit: 1 (logit), the population
   standard deviation over experts (std), or maximum - minimum (spread) of the token.
2. choice = selection scores of z, in the contract's own selection space (score, bias). Where these weigh experts
   against each other (a softmax beside a bias), those masked in step 5 are left out of the softmax, so that a mask is
   the same as deleting them. The token's top and bottom of z and of choice are taken here, once.
3. `promote`: z[e] = top of z + margin; choice[e] = top + (top - bottom) + 1 of choice.
4. `demote`: z[e] = bottom of z - margin; choice[e] = bottom of choice - 1.
5. `mask` with refill: z[e] = choice[e] = -inf; choice stays -inf when groups are filled, so it is never chosen.
6. ids = the K = max(k, k') best of the edited choice, groups as in the contract.
7. weights = combine weights of the edited z over the first k' (else k) slots; slots beyond have weight 0: they do not
   run. For contracts that score first, edited z re-enter the softmax, so that weights follow (SteerMoE, arXiv
   2509.09660, section 3); edits of choice only decide who is chosen.
8. `replay` puts the ids of a trace in place of all that, on rows where the trace has a decision; weights are the
   trace's, or the combine weights of the unedited logits.
9. `mask` without refill: weight 0 in the experts' slots (MoTE, arXiv 2502.11096). `renormalise` multiplies the
   remaining weights so that the token's total is as before; a total of 0 stays 0.
10. `scale`: weight × factor (RICE, arXiv 2505.14681). `renormalise` keeps the token's total.
11. `neurons` is no part of the decision: `moeworks.plan.neurons` says what it does inside the experts that run.

Rows on which no operation is active keep the router's own decision; where other rows have more slots, theirs beyond k
have weight 0. Where several clauses take the same token, its operations count as one list: all clauses' edits of one
step, one after another, before the next step; tops and bottoms are taken once. Arithmetic is float64; engines use
float32, never less (in bfloat16 a margin of 0.01 is lost beside a logit of 4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.contract import Contract, Decision, combine_weights, keep_best_groups, select, selection_scores
from moeworks.errors import BadData, BadPlan
from moeworks.plan.compiled import LayerEdit, compile_layer
from moeworks.plan.schema import Operation, Scale

__all__ = ["Replayed", "apply", "apply_edits"]

Array = NDArray[Any]


class Replayed(NamedTuple):
    """What a trace says about the n tokens at hand, for one layer."""

    ids: Array  # (n, k)
    weights: Array  # (n, k)
    found: Array  # (n,) whether the trace has this token; other rows are not looked at


def apply(
    logits: Array,
    contract: Contract,
    operations: Sequence[Operation],
    *,
    layer: int,
    bias: Array | None = None,
    expert_scale: Array | None = None,
    ids: Array | None = None,
    masks: Sequence[Array | None] | None = None,
    replay: Mapping[str, Replayed] | None = None,
) -> Decision:
    """Decide for the n tokens of one layer under some operations.

    Args:
        logits: raw router logits, (n, E).
        contract: the layer's rule.
        operations: as in a plan; experts of other layers and operations that leave this layer out do nothing here.
        layer: global layer number.
        bias, expert_scale: (E,) values of the layer, exactly when the contract has them.
        ids: (n, k) given ids, exactly for hash-routed layers.
        masks: for each operation the rows it is active on, (n,) booleans; None stands for all.
        replay: for each trace that a `replay` operation names, what it says about these rows.

    Returns:
        ids and weights, (n, K) with K = max(k, every k').

    Raises:
        BadData: shapes or layer values do not fit; a logit is not finite.
        BadPlan: the operations contradict each other or cannot be done in this layer.
    """
    masks = [None] * len(operations) if masks is None else masks
    if len(masks) != len(operations):
        raise BadData(f"{len(masks)} row masks were given for {len(operations)} operations.")
    pairs = sorted(zip(operations, masks, strict=True), key=lambda pair: isinstance(pair[0], Scale))  # step 10 is last
    edits = [(compile_layer([operation], layer, contract.experts), mask) for operation, mask in pairs]
    return apply_edits(logits, contract, edits, bias=bias, expert_scale=expert_scale, ids=ids, replay=replay)


def apply_edits(
    logits: Array,
    contract: Contract,
    edits: Sequence[tuple[LayerEdit | None, Array | None]],
    *,
    bias: Array | None = None,
    expert_scale: Array | None = None,
    ids: Array | None = None,
    replay: Mapping[str, Replayed] | None = None,
) -> Decision:
    """Decide for the n tokens of one layer under compiled edits, each with its rows; None edits do nothing.

    This is the form that engines mirror; `apply` compiles each operation on its own and calls it.
    """
    raw = np.asarray(logits, np.float64)
    _check(raw, contract, ids)
    active = [(edit, _rows(mask, len(raw))) for edit, mask in edits if edit is not None]
    if contract.hashed and any(edit.edits_choice for edit, _ in active):
        raise BadPlan("a hash-routed layer takes its ids from the token ids; only weights can be edited there.")
    z = _add(raw, active)
    if ids is None:
        z, ids = _choose(z, contract, bias, active)
    weights = _weigh(z, ids, contract, expert_scale, active)
    ids, weights = _replay(raw, ids, weights, contract, expert_scale, active, replay or {})
    return Decision(ids, _reweigh(ids, weights, active))


Active = Sequence[tuple[LayerEdit, Array]]


def _check(z: Array, contract: Contract, ids: Array | None) -> None:
    if z.ndim != 2 or z.shape[1] != contract.experts:
        raise BadData(f"logits of shape {z.shape} are not (tokens, {contract.experts}).")
    if not np.isfinite(z).all():
        raise BadData("router logits contain NaN or infinity; no decision can be made from them.")
    if contract.hashed != (ids is not None):
        raise BadData("the ids of a hash-routed layer come from its table, and only they; pass them as ids.")


def _rows(mask: Array | None, n: int) -> Array:
    rows = np.ones(n, bool) if mask is None else np.asarray(mask)
    if rows.shape != (n,) or rows.dtype != bool:
        raise BadData(f"a row mask of {rows.dtype} {rows.shape} does not say which of {n} tokens count.")
    return rows


def _add(raw: Array, active: Active) -> Array:
    z = raw.copy()
    units = (np.ones(len(raw)), raw.std(-1), np.ptp(raw, -1))  # (n,) each
    for edit, rows in active:
        for strength, unit in zip((edit.add_logit, edit.add_std, edit.add_spread), units, strict=True):
            if strength.any():
                z += (rows * unit)[:, None] * strength
    return z


def _choose(z: Array, contract: Contract, bias: Array | None, active: Active) -> tuple[Array, Array]:
    """Return the edited logits (n, E) and the ids (n, K)."""
    masked = np.zeros(z.shape, bool)
    for edit, rows in active:
        masked |= rows[:, None] & edit.masked
    compares = contract.bias and contract.score == "softmax" and contract.order == "score_first"
    choice = selection_scores(np.where(masked, -np.inf, z) if compares else z, contract, bias=bias)
    z_top, z_bottom = z.max(-1, keepdims=True), z.min(-1, keepdims=True)  # (n, 1)
    top, bottom = choice.max(-1, keepdims=True), choice.min(-1, keepdims=True)
    for edit, rows in active:
        hit = rows[:, None] & edit.promote
        z = np.where(hit, z_top + edit.promote_margin, z)
        choice = np.where(hit, top + (top - bottom) + 1, choice)
    for edit, rows in active:
        hit = rows[:, None] & edit.demote
        z = np.where(hit, z_bottom - edit.demote_margin, z)
        choice = np.where(hit, bottom - 1, choice)
    z, choice = np.where(masked, -np.inf, z), np.where(masked, -np.inf, choice)
    if contract.groups > 1:
        choice = np.where(masked, -np.inf, keep_best_groups(choice, contract))
    slots = max([contract.top_k, *(edit.top_k for edit, _ in active if edit.top_k is not None)])
    if slots > contract.experts:
        raise BadPlan(f"top_k {slots} of {contract.experts} experts is not possible.")
    ungrouped = dataclasses.replace(contract, top_k=slots, groups=1, groups_kept=1)
    return z, select(choice, ungrouped)


def _weigh(z: Array, ids: Array, contract: Contract, expert_scale: Array | None, active: Active) -> Array:
    widths = np.full(len(z), contract.top_k)
    for edit, rows in active:
        if edit.top_k is not None:
            widths[rows] = edit.top_k
    weights = np.zeros(ids.shape)  # (n, K)
    for width in np.unique(widths):
        rows = widths == width
        weights[rows, :width] = combine_weights(z[rows], ids[rows, :width], contract, expert_scale=expert_scale)
    return weights


def _replay(
    raw: Array,
    ids: Array,
    weights: Array,
    contract: Contract,
    expert_scale: Array | None,
    active: Active,
    traces: Mapping[str, Replayed],
) -> tuple[Array, Array]:
    for edit, rows in active:
        if edit.replay is None:
            continue
        if edit.replay.trace not in traces:
            raise BadData(f"the decisions of {edit.replay.trace}, which are to be replayed, were not given.")
        recorded = traces[edit.replay.trace]
        if recorded.ids.shape != ids.shape:
            raise BadData(f"replayed ids of shape {recorded.ids.shape} do not fit the router's {ids.shape}.")
        take = rows & recorded.found
        ids, weights = ids.copy(), weights.copy()
        ids[take] = recorded.ids[take]
        if edit.replay.weights:
            weights[take] = recorded.weights[take]
        else:
            weights[take] = combine_weights(raw[take], ids[take], contract, expert_scale=expert_scale)
    return ids, weights


def _reweigh(ids: Array, weights: Array, active: Active) -> Array:
    for edit, rows in active:
        for step in edit.weight_steps:
            new = weights * np.where(rows[:, None], step.factor[ids], 1.0)
            if step.renormalise:
                total, left = weights.sum(-1, keepdims=True), new.sum(-1, keepdims=True)
                new *= np.divide(total, left, out=np.ones_like(left), where=left != 0)
            weights = new
    return weights
