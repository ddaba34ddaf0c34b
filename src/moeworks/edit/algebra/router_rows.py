"""What becomes of the router when several experts become one: a checkpoint has one row for each expert that is left.

Slices and centroids' rows are `LayerWeights.select`. Letters in shapes: E experts, K kept, H wide outside, n rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moeworks.edit.layer import LayerWeights
from moeworks.errors import BadData, Unsupported

__all__ = ["add_fractions", "fitted_rows", "group_logits"]

AGREE = 5e-2  # of the logits' spread: what half precision leaves; another input is off by far more


def add_fractions(router: Tensor, keep: Sequence[int], fractions: Tensor) -> Tensor:
    """Return the kept rows with a fraction of every other row added, (K, H), in the router's dtype.

    Args:
        router: (E, H).
        keep: experts that stay.
        fractions: (E, K) of row o that is added to the row of the i-th kept expert.

    Source: DERN (arXiv 2509.10377) [secondary]: W[r] += (neurons moved from o to r / neurons of o) W[o].
    """
    wide = router.detach().to(torch.promote_types(router.dtype, torch.float32))
    return (wide[list(keep)] + fractions.to(wide).T @ wide).to(router.dtype)


def group_logits(logits: Tensor, members: Sequence[int]) -> Tensor:
    """Return log of the sum of exp of the members' logits, (n,): the group's softmax mass as one logit."""
    return torch.logsumexp(logits[:, list(members)].double(), 1)


def fitted_rows(
    weights: LayerWeights, keep: Sequence[int], groups: Sequence[Sequence[int]], hidden: Tensor, logits: Tensor
) -> Tensor:
    """Return router rows that give each group's softmax mass as nearly as a row can, (K, H), in the router's dtype.

    The row of a group of several is fitted by least squares to `group_logits` on kept rows of text, departing from its
    centre's row as little as can be; the centre's bias stays. Groups of one keep their row to the bit. A log of a sum
    of exponentials is not linear, so this is an approximation [derived]; for sigmoid routers mass adds up differently
    and the centre's row is the plainer choice.

    Args:
        weights: the layer before.
        keep: the centre of each group.
        groups: the members of each, the centre among them.
        hidden: (n, H) input of the router.
        logits: (n, E) raw.

    Raises:
        Unsupported: the logits are not the router's rows times `hidden`: it has a norm or projection of its own.
        BadData: there are no rows.
    """
    if not len(hidden):
        raise BadData("a router row is fitted on rows of text; there are none.")
    rows, x = weights.router.detach().double().cpu(), hidden.double().cpu()
    bias = torch.zeros(len(rows), dtype=torch.float64)
    if weights.router_bias is not None:
        bias = weights.router_bias.detach().double().cpu()
    z = logits.double().cpu()
    if x.shape[1] != rows.shape[1] or float((x @ rows.T + bias - z).abs().max()) > AGREE * float(z.std()):
        raise Unsupported(
            f"the router of layer {weights.layer} does more than multiply its rows with the hidden state, so that a "
            "row cannot be fitted to logits; keep the centre's row."
        )
    fitted = weights.router.detach()[list(keep)].clone()
    for place, (centre, members) in enumerate(zip(keep, groups, strict=True)):
        if len(members) > 1:
            start = rows[centre]
            missing = group_logits(z, members) - bias[centre] - x @ start  # (n,)
            change = torch.linalg.lstsq(x, missing[:, None], driver="gelsd").solution[:, 0]
            fitted[place] = (start + change).to(fitted)
    return fitted
