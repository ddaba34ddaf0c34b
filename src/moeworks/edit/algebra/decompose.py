"""Factorisations of weight matrices: one basis for several of them, and low rank plus a few rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moeworks.errors import BadData

__all__ = ["JointBasis", "LowRankSparse", "joint_svd", "low_rank_and_sparse", "rank_of_share"]


class JointBasis(NamedTuple):
    """Matrices W_i = basis @ diag(values) @ parts[i] that share their left factor."""

    basis: Tensor  # (rows, r)
    values: Tensor  # (r,) descending
    parts: tuple[Tensor, ...]  # (r, columns of the i-th) each


class LowRankSparse(NamedTuple):
    """A matrix as left @ right + sparse, where `sparse` has some rows alone."""

    left: Tensor  # (rows, r)
    right: Tensor  # (r, columns)
    sparse: Tensor  # (rows, columns), 0 but in the kept rows
    rows: tuple[int, ...]  # kept rows, ascending
    error: float  # |W - product| / |W|, Frobenius

    @property
    def product(self) -> Tensor:
        """The matrix that is left of W, (rows, columns)."""
        return self.left @ self.right + self.sparse

    @property
    def numbers(self) -> int:
        """How many numbers have to be stored."""
        return self.left.numel() + self.right.numel() + len(self.rows) * self.sparse.shape[1]


def joint_svd(matrices: Sequence[Tensor], *, rank: int | None = None) -> JointBasis:
    """Return the singular value decomposition of matrices set side by side, [W_1 … W_n] = U S V^T, split by matrix.

    Args:
        matrices: of equally many rows.
        rank: leading singular values that stay; None for all, and then the parts give the matrices back.

    Raises:
        BadData: no matrix, unequal rows, or a rank below 1.
    """
    if not matrices or len({len(matrix) for matrix in matrices}) != 1:
        raise BadData("matrices that share a left factor have equally many rows.")
    if rank is not None and rank < 1:
        raise BadData(f"a rank of {rank} is not possible; it is 1 or more.")
    left, values, right = torch.linalg.svd(torch.cat(list(matrices), 1), full_matrices=False)
    kept = len(values) if rank is None else min(rank, len(values))
    parts = right[:kept].split([matrix.shape[1] for matrix in matrices], 1)
    return JointBasis(left[:, :kept], values[:kept], tuple(parts))


def rank_of_share(rows: int, columns: int, share: float) -> int:
    """Return the rank at which two factors hold `share` of the numbers of a matrix, rounded up.

    Source: MC-SMoE's released code (arXiv 2310.01334): ceil(share * rows * columns / (rows + columns)).
    """
    if not 0 < share <= 1:
        raise BadData(f"a share of {share} is not possible; it lies above 0 and is at most 1.")
    return min(rows, columns, math.ceil(share * rows * columns / (rows + columns)))


def low_rank_and_sparse(
    matrix: Tensor, *, rank: int, rows: float = 0.1, importance: Tensor | None = None
) -> LowRankSparse:
    """Return a matrix as low rank plus a residual of which some rows stay.

    L = U sqrt(S), R = sqrt(S) V^T of the leading singular values; of W - L R the most important rows stay.

    Args:
        matrix: (rows, columns).
        rank: of the first term.
        rows: share of the residual's rows that stays, rounded to the nearest number.
        importance: (rows,) to choose them by; without it, the mean magnitude of the residual's row.

    Source: MC-SMoE (arXiv 2310.01334). The paper trains for 50 epochs and chooses rows by a running mean of
    |w * gradient|; the choice by magnitude is this library's, for use without training.

    Raises:
        BadData: the rank or the share of rows is not possible.
    """
    if not 1 <= rank <= min(matrix.shape):
        raise BadData(f"a matrix of {matrix.shape[0]} by {matrix.shape[1]} has no part of rank {rank}.")
    if not 0 <= rows <= 1:
        raise BadData(f"a share of rows of {rows} is not possible; it lies from 0 to 1.")
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:rank].sqrt()
    first, second = left[:, :rank] * root, root[:, None] * right[:rank]
    residual = matrix - first @ second
    score = residual.abs().mean(1) if importance is None else importance
    kept = score.argsort(descending=True, stable=True)[: round(rows * len(matrix))].sort().values
    sparse = torch.zeros_like(matrix)
    sparse[kept] = residual[kept]
    size = float(matrix.norm())
    error = float((residual - sparse).norm()) / size if size > 0 else 0.0
    return LowRankSparse(first, second, sparse, tuple(kept.tolist()), error)
