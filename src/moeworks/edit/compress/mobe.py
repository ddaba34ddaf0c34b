"""Mixture of basis experts (MoBE): gate and up of an expert are its own matrix times a non-linear mix of shared bases.

Source: arXiv 2508.05257, from third-party notes, not the paper: the form, z-scores, Adam with rate 0.07 on the
Frobenius error are as told there; how it starts is our own (random bases, each expert's matrix by least squares).
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
from moeworks.errors import BadPlan

__all__ = ["BasisExperts", "mobe"]


class BasisExperts(CompressedExperts):
    """Experts with `W_i = A_i f(sum_j share_ij B_j)` for gate and up; the down projection is as it was."""

    down: Tensor  # (E, H, I)

    def matrix(self, name: str, expert: int | slice) -> Tensor:
        """Return one expert's projection (or several) as weights."""
        shares = getattr(self, f"{name}_shares")[expert]  # (…, m)
        mixed = torch.einsum("...m,mrh->...rh", shares, getattr(self, f"{name}_bases"))
        found: Tensor = getattr(self, name)[expert] @ _bend(mixed, self.settings["bend"])
        return found

    def project(self, expert: int, prepared: Any, rows: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the pre-activations of an expert."""
        inputs = prepared[rows]
        gate = inputs @ self.matrix("gate", expert).T if hasattr(self, "gate") else None
        return gate, inputs @ self.matrix("up", expert).T

    def output(self, expert: int, key: Tensor) -> Tensor:
        """Return the down projection of an expert."""
        return key @ self.down[expert].T

    def dense(self) -> dict[str, Tensor]:
        """Return the products; down as it was."""
        found = {name: self.matrix(name, slice(None)) for name in ("gate", "up") if hasattr(self, name)}
        return {**found, "down": self.down}


@compression("mobe", BasisExperts)
def mobe(
    weights: LayerWeights,
    statistics: LayerStatistics | None = None,
    *,
    bases: int,
    rank: int | None = None,
    bend: Literal["silu", "tanh"] = "silu",
    steps: int = 500,
    rate: float = 0.07,
    seed: int = 0,
) -> Factors:
    """Fit each expert's gate and up as its own (I, r) matrix times a bent mix of shared (r, H) bases, by Adam.

    Weights of a projection are divided by their standard deviation first, which goes into the experts' matrices
    afterwards; their mean, close to 0 in trained models, is left out. The best step is kept, not the last.

    Args:
        weights: one layer.
        statistics: not used.
        bases: m, shared matrices of each projection.
        rank: r; I unless given, as the source has it.
        bend: f.
        steps, rate: of Adam.
        seed: of the first bases.

    Raises:
        BadPlan: numbers that make no bases.
    """
    inner = weights.neurons if rank is None else rank
    check_rank(inner, weights.neurons, "rank")
    if bases < 1 or steps < 1 or inner < 1 or bend not in ("silu", "tanh"):
        raise BadPlan("mobe needs bases, rank and steps of 1 or more, and bend silu or tanh.")
    tensors: dict[str, Tensor] = {"down": weights.down}
    for name in ("gate", "up"):
        matrix: Tensor | None = getattr(weights, name)
        if matrix is not None:
            left, shares, shared = _fit(matrix.float(), bases, inner, bend, steps, rate, seed)
            kind = matrix.dtype
            tensors |= {name: left.to(kind), f"{name}_shares": shares.to(kind), f"{name}_bases": shared.to(kind)}
    return Factors(
        method="mobe",
        layer=weights.layer,
        experts=weights.experts,
        neurons=weights.neurons,
        hidden=weights.up.shape[2],
        settings={"bases": bases, "rank": inner, "bend": bend, "steps": steps, "rate": rate, "seed": seed},
        tensors={**tensors, **biases(weights)},
    )


@TRANSFORMS.register("mobe")
def mobe_transform(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    bases: int | None = None,
    rank: int | None = None,
    bend: Literal["silu", "tanh"] = "silu",
    steps: int = 500,
    rate: float = 0.07,
    seed: int = 0,
) -> LayerWeights:
    """Replace gate and up of each expert by what shared bases (`mobe`, same options) keep of them, multiplied out."""
    given = {"bases": bases, "rank": rank, "bend": bend, "steps": steps, "rate": rate, "seed": seed}
    return transform(weights, plan, statistics, mobe, {n: v for n, v in given.items() if v is not None})


def _fit(
    matrices: Tensor, bases: int, rank: int, bend: str, steps: int, rate: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (E, I, r) matrices, (E, m) shares and (m, r, H) bases for (E, I, H) matrices."""
    spread = matrices.std()
    if float(spread) == 0:
        raise BadPlan("all weights of a projection are equal; there is nothing to fit bases to.")
    target, experts = matrices / spread, len(matrices)
    draw = torch.Generator().manual_seed(seed)
    shared = torch.randn(bases, rank, matrices.shape[2], generator=draw)
    wishes = torch.randn(experts, bases, generator=draw)
    with torch.no_grad():
        mixed = _bend(torch.einsum("em,mrh->erh", wishes.softmax(1), shared), bend)
        left = target @ torch.linalg.pinv(mixed)
    learned = [left.requires_grad_(), wishes.requires_grad_(), shared.requires_grad_()]
    optimiser = torch.optim.Adam(learned, lr=rate)
    best, kept = float("inf"), [value.detach().clone() for value in learned]
    with torch.enable_grad():
        for _ in range(steps):
            mixed = _bend(torch.einsum("em,mrh->erh", wishes.softmax(1), shared), bend)
            loss = (left @ mixed - target).square().mean()
            if (now := float(loss.detach())) < best:
                best, kept = now, [value.detach().clone() for value in learned]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return kept[0] * spread, kept[1].softmax(1), kept[2]


def _bend(values: Tensor, how: str) -> Tensor:
    return torch.nn.functional.silu(values) if how == "silu" else values.tanh()
