"""Experts from what neurons do on texts of different domains: Read-ME's masks, and the partition of unified models.

Sources: Read-ME, arXiv 2410.19123, model code read, the script that makes its masks is not published;
SparseUnifiedModel, arXiv 2512.02351, README read. How a neuron's importance is measured is therefore our own: mean
|key| times |down column|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from moeworks.edit.dense.ffn import Ffn, Inputs, Split, from_neurons
from moeworks.edit.dense.partition import contiguous
from moeworks.edit.dense.registry import UPCYCLINGS, needs_inputs, piece_width
from moeworks.edit.dense.routers import domain_labels, fit_router
from moeworks.errors import BadData, BadPlan

__all__ = ["importance", "read_me", "unified"]


@UPCYCLINGS.register("read_me")
def read_me(
    ffn: Ffn,
    inputs: Inputs | None = None,
    *,
    experts: int,
    top_k: int = 1,
    shared: int = 1,
    seed: int = 0,
    others: Sequence[Ffn] = (),
    width: int = 0,
) -> Split:
    """Make an expert of the neurons that matter most for each domain; what matters for all of them is shared.

    Experts may have neurons in common, so that the sum of all is not the dense layer. Read-ME has one router for all
    layers, a small causal transformer on token embeddings that gives each token one expert id throughout, known before
    the first layer. No stock model has that: here each layer has a linear router, fitted to the domain of the text a
    row is from, and layers may choose differently.

    Args:
        ffn: the dense layer.
        inputs: rows of text labelled by domain; as many domains as experts.
        experts: E.
        top_k: experts of a token; Read-ME has 1, and more than 1 count common neurons twice.
        shared: shared experts of that width (Read-ME's residual neurons).
        seed: not used.
        others: not used.
        width: neurons of each expert; an even share of the layer unless given.

    Raises:
        BadData: no rows, or another number of domains than experts.
        BadPlan: more neurons than there are, or more than one expert a token.
    """
    if inputs is None:
        raise needs_inputs(inputs, "read_me")
    if top_k != 1:
        raise BadPlan("read_me gives each token one expert (--top-k 1): its experts overlap, so that two would double.")
    labels = domain_labels(inputs, experts)
    size = width or piece_width(ffn.neurons, experts, shared)
    if size * (shared + 1) > ffn.neurons:
        raise BadPlan(
            f"{shared} shared and one routed expert of {size} neurons are more than the {ffn.neurons} there are."
        )
    each = importance(ffn, inputs)  # (D, I)
    ranks = each.argsort(1, descending=True).argsort(1)  # 0 is the most important one
    order = ranks.max(0).values.argsort(stable=True)  # needed by every domain first
    common = order[: size * shared].sort().values
    free = torch.ones(ffn.neurons, dtype=torch.bool)
    free[common] = False
    chosen = [
        each[domain].masked_fill(~free, -torch.inf).topk(size).indices.sort().values.tolist()
        for domain in range(experts)
    ]
    router, _ = fit_router(inputs.hidden, labels, top_k=1)
    return replace(from_neurons(ffn, chosen, common.tolist()), router=router, each=None)  # one expert, weight 1


@UPCYCLINGS.register("unified")
def unified(
    ffn: Ffn,
    inputs: Inputs | None = None,
    *,
    experts: int,
    top_k: int = 2,
    shared: int = 0,
    seed: int = 0,
    others: Sequence[Ffn] = (),
) -> Split:
    """Order neurons by which of two domains needs them, and cut the order into pieces: specialists at both ends.

    Each domain's importance is divided by its sum first. Shared are the neurons of largest smaller share. The first
    experts serve the first domain, the last ones the second; every neuron is in one piece.

    Args:
        ffn: the dense layer.
        inputs: rows of two domains (understanding and generation, in the source).
        experts, shared: pieces.
        top_k: not used.
        seed: not used.
        others: not used.

    Raises:
        BadData: no rows, or not two domains.
        BadPlan: the pieces cannot be equal.
    """
    if inputs is None:
        raise needs_inputs(inputs, "unified")
    if len(inputs.domains) != 2:
        raise BadData(
            f"'unified' tells two domains apart; the texts have {len(inputs.domains)}. Name a label with --by."
        )
    width = piece_width(ffn.neurons, experts, shared)
    each = importance(ffn, inputs)
    share = each / each.sum(1, keepdim=True)  # (2, I)
    common = share.min(0).values.argsort(descending=True, stable=True)[: width * shared].sort().values
    order = (share[0] - share[1]).argsort(descending=True, stable=True).tolist()
    taken = set(common.tolist())
    return from_neurons(ffn, contiguous([n for n in order if n not in taken], width), common.tolist())


def importance(ffn: Ffn, inputs: Inputs) -> Tensor:
    """Return mean |key_j| |down_j| of each neuron over the rows of each domain, (D, I)."""
    keys = ffn.keys(inputs.hidden).abs()  # (n, I)
    size = ffn.down.float().norm(dim=0)
    return torch.stack([keys[inputs.domain == d].mean(0) * size for d in range(len(inputs.domains))])
