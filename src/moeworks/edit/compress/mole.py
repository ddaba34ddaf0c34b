"""Latent experts (MoLE, MoLAE): the experts of a group share one basis, and each has a small matrix in it.

Source: arXiv 2503.23100, abstract read; the formulas are recalled and derived, not taken from the paper's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moeworks.edit.compress.experts import CompressedExperts, WholeExperts, as_rows
from moeworks.edit.compress.factors import Factors, biases, check_rank, compression, transform
from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS
from moeworks.engines.transformers.experts import slices
from moeworks.errors import BadData, BadPlan

__all__ = ["LatentExperts", "mole"]


class LatentExperts(CompressedExperts):
    """Experts in shared bases: `W_i x = A_i (B x)` on the way in, `W_i a = B (A_i a)` on the way out.

    The latents B x are computed once for each row, whatever the number of experts, and B of the way out once for all.
    """

    group: Tensor  # (E,) basis of each expert
    down: Tensor  # (E, r, I)
    down_basis: Tensor  # (G, H, r)
    _outside: Tensor  # (n, H) weighted biases

    def prepare(self, hidden: Tensor) -> Any:
        """Return the latents of each group, (n, G, r), for the projections there are."""
        return {
            name: torch.einsum("nh,grh->ngr", hidden, getattr(self, f"{name}_basis"))
            for name in ("gate", "up")
            if hasattr(self, f"{name}_basis")
        }

    def project(self, expert: int, prepared: Any, rows: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the pre-activations of an expert."""
        group = int(self.group[expert])
        found = {name: latent[rows, group] @ getattr(self, name)[expert].T for name, latent in prepared.items()}
        return found.get("gate"), found["up"]

    def begin(self, hidden: Tensor) -> Tensor:
        """Return zeros (n, G, r): outputs are added up as latents."""
        return hidden.new_zeros(len(hidden), *self.down_basis.shape[::2])

    def add(self, total: Tensor, expert: int, rows: Tensor, key: Tensor, gates: Tensor) -> None:
        """Add an expert's weighted latent output."""
        latent = key @ self.down[expert].T * gates
        total[:, int(self.group[expert])].index_add_(0, rows, latent.to(total.dtype))
        bias = getattr(self, "down_bias", None)
        if bias is not None:
            self._outside = self._outside.index_add(0, rows, (bias[expert] * gates).to(total.dtype))

    def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the experts' outputs; biases of the way out are added beside the latents."""
        self._outside = hidden.new_zeros(len(hidden), self.hidden)
        try:
            return super().forward(hidden, ids, weights)
        finally:
            del self._outside

    def finish(self, total: Tensor) -> Tensor:
        """Return the latents through the bases of the way out, (n, H)."""
        return self._outside + torch.einsum("ngr,ghr->nh", total, self.down_basis)

    def dense(self) -> dict[str, Tensor]:
        """Return the products A_i B and B A_i."""
        group = self.group.long()
        found = {
            name: getattr(self, name) @ getattr(self, f"{name}_basis")[group]
            for name in ("gate", "up")
            if hasattr(self, name)
        }
        return {**found, "down": self.down_basis[group] @ self.down}


@compression("mole", LatentExperts)
def mole(
    weights: LayerWeights,
    statistics: LayerStatistics | None = None,
    *,
    rank: int,
    groups: int | Sequence[Sequence[int]] = 1,
    expert_rank: int | None = None,
    activations: bool = False,
    damping: float = 0.01,
) -> Factors:
    """Give the experts of a group one basis for each projection, by a joint singular value decomposition.

    Way in: the matrices of the group are stacked, `[W_1; …; W_n] = U S V^T`, and `B = V_r^T`, `A_i = W_i V_r`, which is
    the best for the Frobenius norm. Way out: side by side, and `B = U_r`, `A_i = U_r^T W_i`. With activations, errors
    count as the kept rows weigh them: `W_i C^(1/2)` is decomposed in place of W_i, C the second moment of the layer's
    input, or of what each down projection reads (weighted by the squared combine weight), and C^(1/2) is undone.

    Args:
        weights: one layer.
        statistics: of the same layer, with kept rows, where activations are asked for.
        rank: r, columns of each basis, at most H.
        groups: how many groups of neighbouring experts share a basis, or the groups themselves.
        expert_rank: first cut each matrix to this rank by itself, as the paper does.
        activations: weigh errors by the kept rows.
        damping: share of the mean of C's diagonal that is added to it, so that unseen directions are not lost.

    Raises:
        BadPlan: the rank or the groups do not fit the layer.
        BadData: activations are asked for and no rows were kept, or the rule of the experts is not known.
    """
    hidden = weights.up.shape[2]
    check_rank(rank, hidden, "rank")
    members = _members(groups, weights.experts)
    matrices = {name: getattr(weights, name) for name in ("gate", "up", "down") if getattr(weights, name) is not None}
    if expert_rank is not None:
        check_rank(expert_rank, min(hidden, weights.neurons), "expert_rank")
        matrices = {name: _truncated(matrix, expert_rank) for name, matrix in matrices.items()}
    moments = _second_moments(weights, statistics, damping) if activations else None
    tensors: dict[str, Tensor] = {}
    for name, matrix in matrices.items():
        small = (weights.experts, rank, weights.neurons) if name == "down" else (weights.experts, weights.neurons, rank)
        parts = torch.empty(small, dtype=torch.float64)
        bases = []
        for group in members:
            stack = matrix[group].double()  # (g, I, H) or (g, H, I)
            if name == "down":
                weighed = stack if moments is None else stack @ moments[1][group]
                basis = _directions(torch.einsum("ehi,eji->hj", weighed, stack), rank)  # (H, r)
                bases.append(basis)
                parts[group] = basis.T @ stack
                continue
            root, back = (None, None) if moments is None else moments[0]
            weighed = stack if root is None else stack @ root
            basis = _directions(torch.einsum("eih,eij->hj", weighed, weighed), rank)
            bases.append(basis.T if back is None else basis.T @ back)
            parts[group] = weighed @ basis
        kind = weights.up.dtype
        tensors |= {name: parts.to(kind), f"{name}_basis": torch.stack(bases).to(kind)}
    place = torch.empty(weights.experts, dtype=torch.int64)
    for number, group in enumerate(members):
        place[group] = number
    return Factors(
        method="mole",
        layer=weights.layer,
        experts=weights.experts,
        neurons=weights.neurons,
        hidden=hidden,
        settings={"rank": rank, "expert_rank": expert_rank, "activations": activations, "damping": damping},
        tensors={**tensors, "group": place, **biases(weights)},
    )


@TRANSFORMS.register("mole")
def mole_transform(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    rank: int | None = None,
    groups: int | Sequence[Sequence[int]] = 1,
    expert_rank: int | None = None,
    activations: bool = False,
    damping: float = 0.01,
) -> LayerWeights:
    """Replace each expert by what latent experts (`mole`, same options) keep of it, multiplied out."""
    options = {"rank": rank, "groups": groups, "expert_rank": expert_rank, "damping": damping}
    return transform(weights, plan, statistics, mole, {**options, "activations": activations})


def _members(groups: int | Sequence[Sequence[int]], experts: int) -> list[list[int]]:
    if isinstance(groups, int):
        if groups < 1 or experts % groups:
            raise BadPlan(f"{experts} experts do not make {groups} groups of one size; list the groups instead.")
        size = experts // groups
        return [list(range(start, start + size)) for start in range(0, experts, size)]
    members = [list(group) for group in groups]
    if sorted(expert for group in members for expert in group) != list(range(experts)):
        raise BadPlan(f"the groups have to hold each of the experts 0 to {experts - 1} once.")
    return members


def _directions(gram: Tensor, rank: int) -> Tensor:
    """Return the leading eigenvectors of a symmetric matrix as columns, (H, r), largest first."""
    vectors: Tensor = torch.linalg.eigh((gram + gram.T) / 2).eigenvectors
    return vectors[:, vectors.shape[1] - rank :].flip(1)


def _truncated(matrices: Tensor, rank: int) -> Tensor:
    u, s, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    cut: Tensor = (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]
    return cut


def _second_moments(
    weights: LayerWeights, statistics: LayerStatistics | None, damping: float
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return (C^(1/2), C^(-1/2)) of the input, (H, H) each, and C of each expert's key, (E, I, I); float64, damped."""
    if statistics is None:
        raise BadData("activation-aware factors need statistics with kept rows; give the folder, scored with --rows N.")
    rows, like = statistics.rows(), weights.up
    hidden = as_rows(rows.hidden, like).to(like.dtype)
    gates = as_rows(rows.weights, like).float()
    inputs = hidden.double().T @ hidden.double() / len(hidden)
    inputs += damping * inputs.diagonal().mean() * torch.eye(len(inputs), dtype=inputs.dtype)
    values, vectors = torch.linalg.eigh(inputs)
    values = values.clamp(min=float(values.max()) * 1e-12).sqrt()
    whole = WholeExperts.of(weights)
    keys = torch.zeros(weights.experts, weights.neurons, weights.neurons, dtype=torch.float64)
    for part in slices(as_rows(rows.ids, like).long(), gates, weights.experts):
        key = whole.key(part.expert, hidden, part.rows).double() * gates[part.rows, part.slots, None].double()
        keys[part.expert] = key.T @ key
    keys += damping * keys.diagonal(dim1=1, dim2=2).mean() * torch.eye(weights.neurons, dtype=torch.float64)
    return ((vectors * values) @ vectors.T, (vectors / values) @ vectors.T), keys
