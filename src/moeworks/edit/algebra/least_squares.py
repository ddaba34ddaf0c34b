"""The down projection that makes given activations give given outputs, as nearly as can be.

Letters in shapes: n rows, I neurons, H wide outside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moeworks.errors import BadData

__all__ = ["solve_down"]


def solve_down(targets: Tensor, activations: Tensor, *, around: Tensor | None = None) -> Tensor:
    """Return D, (H, I), that makes |activations D^T - targets| least; of several such D the smallest.

    With the letters of MergeMoE this is P Q^+, P = targets^T and Q = activations^T. It is computed in float64 by
    singular values, so that dependent activations, or fewer rows than neurons, do no harm.

    Args:
        targets: (n, H).
        activations: (n, I).
        around: (H, I) from which to depart as little as can be instead of being small; where rows do not determine D,
            these values stay.

    Raises:
        BadData: no rows, numbers of rows that differ, or a number that is not finite.
    """
    if len(targets) != len(activations) or not len(targets):
        raise BadData(f"least squares needs rows of both; there are {len(targets)} and {len(activations)}.")
    q, p = activations.detach().double().cpu(), targets.detach().double().cpu()
    if not bool(torch.isfinite(q).all() and torch.isfinite(p).all()):
        raise BadData("activations or outputs on the kept rows are not finite.")
    start = None if around is None else around.detach().double().cpu()
    if start is not None:
        p = p - q @ start.T
    solution: Tensor = torch.linalg.lstsq(q, p, driver="gelsd").solution.T  # (H, I)
    if start is not None:
        solution = solution + start
    return solution.to(targets)
