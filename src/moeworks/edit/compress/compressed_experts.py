"""Compressed experts: the strongest experts of a token run, the others only scale their input by a small vector.

Source: arXiv 2503.00634, paper text read, its repository not. The text gives one vector θ_e of width H; its count of
parameters implies one for each projection (2 H + I), which is not implemented.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moeworks.edit.compress.experts import WholeExperts
from moeworks.edit.compress.factors import Factors, compression
from moeworks.edit.layer import Activation, LayerWeights
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadPlan

__all__ = ["VectorExperts", "compressed_experts"]


class VectorExperts(WholeExperts):
    """Main experts run on `h ⊙ θ`, θ the mean of the auxiliary experts' vectors by their weights; θ_e is trained.

    Of a token's k slots the `main` ones of largest weight run, with the router's own weights. All experts are held:
    memory stays, computation shrinks. The vectors start at 1, which is the same as dropping the auxiliary experts;
    `theta.requires_grad_()` and any training loop go on from there.
    """

    theta: Tensor  # (E, H)

    def __init__(self, factors: Factors, activation: Activation | None) -> None:
        super().__init__(factors, activation)
        self.main = int(factors.settings["main"])

    def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the main experts' outputs, (n, H).

        Raises:
            BadPlan: the router chooses fewer experts than are to be main ones.
        """
        if not 1 <= self.main <= ids.shape[1]:
            raise BadPlan(
                f"{self.main} main experts of {ids.shape[1]} that the router chooses; give 1 to {ids.shape[1]}."
            )
        order = weights.sort(dim=1, descending=True, stable=True).indices
        ids, weights = ids.gather(1, order), weights.gather(1, order)
        aside, share = ids[:, self.main :], weights[:, self.main :]
        runs = (aside < self.experts) & (share != 0)
        share = torch.where(runs, share, 0)
        total = share.sum(1, keepdim=True)
        vectors = self.theta[aside.clamp(max=self.experts - 1).long()]  # (n, k - main, H)
        mixed = torch.einsum(
            "na,nah->nh", (share / total.clamp(min=torch.finfo(total.dtype).tiny)).to(vectors), vectors
        )
        scaled = torch.where(total > 0, hidden * mixed.to(hidden.dtype), hidden)  # nothing aside: the input as it is
        return super().forward(scaled, ids[:, : self.main], weights[:, : self.main])


@compression("compressed_experts", VectorExperts)
def compressed_experts(weights: LayerWeights, statistics: LayerStatistics | None = None, *, main: int) -> Factors:
    """Keep the experts and add a vector of ones for each: untrained compressed experts.

    Args:
        weights: one layer.
        statistics: not used.
        main: experts of a token that run, k_m; the paper finds half of k best.
    """
    if main < 1:
        raise BadPlan(f"{main} main experts leave nothing to run; give 1 or more.")
    tensors: dict[str, Any] = {
        n: t for n, t in weights.per_expert().items() if n.split("_")[0] in ("gate", "up", "down")
    }
    return Factors(
        method="compressed_experts",
        layer=weights.layer,
        experts=weights.experts,
        neurons=weights.neurons,
        hidden=weights.up.shape[2],
        settings={"main": main},
        tensors={**tensors, "theta": torch.ones(weights.experts, weights.up.shape[2], dtype=weights.up.dtype)},
    )
