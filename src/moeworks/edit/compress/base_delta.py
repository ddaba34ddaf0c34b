"""A common base and a low-rank difference for each expert (DeltaLLM's algebra, over experts as in D²-MoE).

Sources: DeltaLLM, arXiv 2501.18596, abstract read, details recalled; over experts (D²-MoE, arXiv 2502.17298) recalled:
their Fisher weights need a backward pass and are not computed; the count of tokens can weigh the mean instead.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from moeworks.edit.compress.experts import CompressedExperts
from moeworks.edit.compress.factors import Factors, biases, check_rank, compression, transform
from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS
from moeworks.errors import BadData, BadPlan

__all__ = ["DeltaExperts", "base_delta"]


class DeltaExperts(CompressedExperts):
    """Experts as one base and low-rank differences: `W_i x = base x + out_i (in_i x)`; gate and up share in_i."""

    inner_base: Tensor  # (2 I or I, H)
    inner_out: Tensor  # (E, 2 I or I, r)
    inner_in: Tensor  # (E, r, H)
    down_base: Tensor  # (H, I)
    down_out: Tensor  # (E, H, r)
    down_in: Tensor  # (E, r, I)

    def prepare(self, hidden: Tensor) -> Any:
        """Return the hidden states and the base's pre-activations, computed once for each row."""
        return hidden, hidden @ self.inner_base.T

    def project(self, expert: int, prepared: Any, rows: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the pre-activations of an expert."""
        hidden, base = prepared
        both = base[rows] + hidden[rows] @ self.inner_in[expert].T @ self.inner_out[expert].T  # (m, 2 I) or (m, I)
        if both.shape[1] == self.neurons:
            return None, both
        return both[:, : self.neurons], both[:, self.neurons :]

    def output(self, expert: int, key: Tensor) -> Tensor:
        """Return the down projection of an expert."""
        return key @ self.down_base.T + key @ self.down_in[expert].T @ self.down_out[expert].T

    def dense(self) -> dict[str, Tensor]:
        """Return base plus difference of each expert."""
        inner = self.inner_base + self.inner_out @ self.inner_in  # (E, 2 I or I, H)
        found = {"up": inner[:, -self.neurons :], "down": self.down_base + self.down_out @ self.down_in}
        return found if inner.shape[1] == self.neurons else {"gate": inner[:, : self.neurons], **found}


@compression("base_delta", DeltaExperts)
def base_delta(
    weights: LayerWeights,
    statistics: LayerStatistics | None = None,
    *,
    rank: int,
    base: Literal["mean", "count"] | int = "mean",
) -> Factors:
    """Write each expert as a base that all share and a difference of this rank, the nearest in the Frobenius norm.

    Gate and up projections of an expert count as one (2 I, H) matrix, so that the result is an adapter of one rank on
    the projections as transformers stores them (`lora.save_lora`).

    Args:
        weights: one layer.
        statistics: of the same layer, where the mean is weighted by counts.
        rank: of each difference; 0 leaves the base alone, min(2 I, H) and min(H, I) are exact.
        base: mean of the experts, mean weighted by the tokens each one gets, or one expert itself (as DeltaLLM).

    Raises:
        BadPlan: rank or base do not fit the layer.
        BadData: the mean is to be weighted by counts and there are no statistics, or no token was seen.
    """
    hidden = weights.up.shape[2]
    inner = weights.up if weights.gate is None else torch.cat([weights.gate, weights.up], 1)  # (E, 2 I or I, H)
    check_rank(rank, max(min(inner.shape[1:]), min(hidden, weights.neurons)), "rank")
    share = _share(weights, statistics, base)
    kind, tensors = weights.up.dtype, {}
    for name, matrix in (("inner", inner), ("down", weights.down)):
        middle = torch.einsum("e,eab->ab", share, matrix.double())
        most = min(rank, *matrix.shape[1:])
        # What is stored is what differences are taken from: rounding of the base is made good by them.
        stored = middle.to(kind)
        u, s, v = torch.linalg.svd(matrix.double() - stored.double(), full_matrices=False)
        half = s[:, :most].sqrt()
        tensors[f"{name}_base"] = stored
        tensors[f"{name}_out"] = (u[:, :, :most] * half[:, None, :]).to(kind)  # (E, out, r)
        tensors[f"{name}_in"] = (half[:, :, None] * v[:, :most]).to(kind)  # (E, r, in)
    return Factors(
        method="base_delta",
        layer=weights.layer,
        experts=weights.experts,
        neurons=weights.neurons,
        hidden=hidden,
        settings={"rank": rank, "base": base},
        tensors={**tensors, **biases(weights)},
    )


@TRANSFORMS.register("base_delta")
def base_delta_transform(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    rank: int | None = None,
    base: Literal["mean", "count"] | int = "mean",
) -> LayerWeights:
    """Replace each expert by base plus low-rank difference (`base_delta`, same options), multiplied out."""
    return transform(weights, plan, statistics, base_delta, {"rank": rank, "base": base})


def _share(weights: LayerWeights, statistics: LayerStatistics | None, base: str | int) -> Tensor:
    """Return the weight of each expert in the base, (E,), sum 1."""
    if isinstance(base, int):
        if not 0 <= base < weights.experts:
            raise BadPlan(
                f"layer {weights.layer} has no expert {base} to be the base; it has 0 to {weights.experts - 1}."
            )
        return torch.nn.functional.one_hot(torch.tensor(base), weights.experts).double()
    if base == "mean":
        return torch.full((weights.experts,), 1 / weights.experts, dtype=torch.float64)
    if base != "count":
        raise BadPlan(f"base is mean, count or the number of an expert, not '{base}'.")
    if statistics is None or statistics.experts != weights.experts:
        raise BadData("a mean weighted by counts needs statistics of the same experts; give the folder.")
    counts = torch.as_tensor(statistics.get("count")).double()
    if float(counts.sum()) == 0:
        raise BadData(f"no token reached layer {weights.layer} in these statistics, so that counts weigh nothing.")
    return counts / counts.sum()
