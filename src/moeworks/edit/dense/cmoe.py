"""CMoE: neurons that nearly every token needs are shared, the others are grouped by the tokens that need them.

Source: arXiv 2502.04416, released code read. The router differs: theirs is bilinear (|û_R·x SiLU(ĝ_R·x)| of each
cluster's representative neuron), stock models have linear ones, so that a linear one is fitted to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from moeworks.edit.dense.ffn import Ffn, Inputs, Split, from_neurons
from moeworks.edit.dense.partition import as_array, balanced_assignment
from moeworks.edit.dense.registry import UPCYCLINGS, needs_inputs, piece_width
from moeworks.edit.dense.routers import fit_router

__all__ = ["activation_rates", "cmoe", "representative_scores"]


@UPCYCLINGS.register("cmoe")
def cmoe(
    ffn: Ffn,
    inputs: Inputs | None = None,
    *,
    experts: int,
    top_k: int = 2,
    shared: int = 1,
    seed: int = 0,
    others: Sequence[Ffn] = (),
    active: int = 10,
) -> Split:
    """Split by which tokens a neuron is among the most active for; the router follows one neuron of each expert.

    1. Mark the `active` neurons of largest |h| of each row, h from normalised inputs and rows (`activation_rates`).
    2. The neurons with the highest rates are shared, as many as `shared` experts have.
    3. The rest goes to E clusters of equal size by an assignment of least L1 distance between columns of marks; centres
       are the columns of the remaining neurons with the highest rates; one pass, as in the released code.
    4. Each cluster's representative is the member nearest to the mean of its columns; its bilinear score, softmax over
       experts, is what the linear router is fitted to.

    Args:
        ffn: the dense layer.
        inputs: rows of text; the paper has 8 × 2,048 tokens.
        experts: routed ones, E; the paper's `nexperts` counts shared ones as well.
        top_k: of the reported agreement of the fit.
        shared: shared ones.
        seed: not used; everything is determined by the rows.
        others: not used.
        active: K_a.

    Raises:
        BadData: no rows.
        BadPlan: the experts cannot be equal.
    """
    if inputs is None:
        raise needs_inputs(inputs, "cmoe")
    width = piece_width(ffn.neurons, experts, shared)
    marks = activation_rates(ffn, inputs.hidden, active=active)  # (n, I)
    rates = marks.mean(0)
    order = rates.argsort(descending=True, stable=True)
    common, rest = order[: shared * width].sort().values, order[shared * width :]
    columns = marks[:, rest]  # (n, m), highest rates first
    centres = columns[:, :experts]  # (n, E)
    # L1 distance of columns of zeros and ones, without n × m × E differences
    distances = columns.sum(0)[:, None] + centres.sum(0) - 2 * columns.T @ centres  # (m, E)
    groups = [sorted(rest[group].tolist()) for group in balanced_assignment(as_array(distances))]
    representatives = [
        group[int((marks[:, group] - marks[:, group].mean(1, keepdim=True)).abs().sum(0).argmin())] for group in groups
    ]
    labels = representative_scores(ffn, inputs.hidden, representatives).softmax(1)
    router, _ = fit_router(inputs.hidden, labels, top_k=top_k)
    return replace(from_neurons(ffn, groups, common.tolist()), router=router)


def activation_rates(ffn: Ffn, hidden: Tensor, *, active: int = 10) -> Tensor:
    """Return 1 where a neuron is among the `active` of largest |h| of a row, (n, I); the mean over rows is its rate.

    `h = act(x̂ Ĝᵀ) ⊙ (x̂ Ûᵀ)` with inputs and rows of gate and up at unit length.
    """
    values = _normalised(ffn, hidden, slice(None)).abs()
    chosen = values.topk(min(active, ffn.neurons), 1).indices
    return torch.zeros_like(values).scatter_(1, chosen, 1.0)


def representative_scores(ffn: Ffn, hidden: Tensor, neurons: Sequence[int]) -> Tensor:
    """Return |û x · act(ĝ x)| of some neurons, (n, E), rows of gate and up at unit length, inputs as they are."""
    chosen = list(neurons)
    gate, up = normalize(ffn.gate[chosen].float(), dim=1), normalize(ffn.up[chosen].float(), dim=1)
    return (ffn.act(hidden.float() @ gate.T) * (hidden.float() @ up.T)).abs()


def _normalised(ffn: Ffn, hidden: Tensor, neurons: slice) -> Tensor:
    x = normalize(hidden.float(), dim=1)
    gate, up = normalize(ffn.gate[neurons].float(), dim=1), normalize(ffn.up[neurons].float(), dim=1)
    return ffn.act(x @ gate.T) * (x @ up.T)
