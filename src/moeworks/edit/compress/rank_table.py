"""How much of each projection a low rank holds, for single experts and for all of a layer stacked: ask this first.

Letters in shapes: E experts, I neurons of each, H wide outside, s singular values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import torch
from torch import Tensor

from moeworks.edit.compress.factors import PROJECTIONS
from moeworks.edit.layer import LayerWeights
from moeworks.errors import BadData

__all__ = ["FRACTIONS", "SCHEMA", "effective_rank", "energy_curve", "rank_for", "ranks", "stable_rank"]

FRACTIONS = (0.0625, 0.125, 0.25, 0.5, 0.75)
_ENERGY = tuple(f"energy_{round(100 * fraction)}" for fraction in FRACTIONS)
SCHEMA = pa.schema(
    [
        ("layer", pa.int32()),
        ("projection", pa.string()),
        ("expert", pa.int32()),  # none: all experts of the layer, stacked
        ("rows", pa.int64()),
        ("columns", pa.int64()),
        ("effective_rank", pa.float64()),
        ("stable_rank", pa.float64()),
        ("rank_90", pa.int32()),
        ("rank_99", pa.int32()),
        *[(name, pa.float64()) for name in _ENERGY],
    ]
)


def effective_rank(values: Tensor) -> Tensor:
    """Return exp(H(p)) with p = s / sum s, (…,), for singular values (…, s) (Roy and Vetterli, 2007).

    It counts directions by size: s for equal singular values, 1 for one alone. All-zero matrices have 0.
    """
    share = values.double() / values.double().sum(-1, keepdim=True)
    return torch.where(values.sum(-1) > 0, torch.special.entr(share).sum(-1).exp(), 0.0)


def stable_rank(values: Tensor) -> Tensor:
    """Return |W|_F^2 / |W|_2^2, (…,), for singular values (…, s) in descending order; all-zero matrices have 0."""
    squares = values.double().square()
    return torch.where(squares[..., 0] > 0, squares.sum(-1) / squares[..., 0], 0.0)


def energy_curve(values: Tensor) -> Tensor:
    """Return the share of |W|_F^2 that the first 1, 2, … singular values hold, (…, s), values in descending order.

    1 minus it is the square of the relative error of the best matrix of that rank. All-zero matrices have 1.
    """
    squares = values.double().square().cumsum(-1)
    return torch.where(squares[..., -1:] > 0, squares / squares[..., -1:], 1.0)


def rank_for(curve: Tensor, share: float) -> Tensor:
    """Return the smallest rank whose energy reaches a share, (…,), for energy curves (…, s)."""
    return (curve < share).sum(-1).clamp(max=curve.shape[-1] - 1) + 1


def singular_values(weights: LayerWeights, projection: str) -> tuple[Tensor, Tensor]:
    """Return singular values of each expert, (E, min(I, H)), and of the stacked experts, (min(E I, H),); descending.

    Gate and up are stacked one above the other, down side by side: the outer width is what the experts share, and the
    singular values of the stack are what a common basis (`mole`) can hold of it.

    Raises:
        BadData: the layer has no such projection.
    """
    matrices: Tensor | None = getattr(weights, projection) if projection in PROJECTIONS else None
    if matrices is None:
        raise BadData(f"the experts of layer {weights.layer} have no projection '{projection}'.")
    single = torch.linalg.svdvals(matrices.float())
    wide = matrices.double() if projection == "down" else matrices.double().transpose(1, 2)  # (E, H, I)
    gram = torch.einsum("ehi,eji->hj", wide, wide)  # (H, H); never the stack itself
    stacked = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()
    return single, stacked[: min(len(gram), wide.shape[0] * wide.shape[2])]


def ranks(layers: Iterable[LayerWeights]) -> pa.Table:
    """Return the effective and stable rank and the energy of low ranks, a row for each expert and projection.

    Of each layer and projection the first row, without an expert, is of all experts stacked. `rank_90` and `rank_99`
    are the smallest ranks that hold 90 and 99 % of the squared weights; `energy_25` is what a quarter of the full rank
    holds. Layers are read one after another. A random matrix has high ranks as well: compare with it, not with 1.
    """
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
    for weights in layers:
        for projection in PROJECTIONS:
            matrices: Tensor | None = getattr(weights, projection)
            if matrices is None:
                continue
            single, stacked = singular_values(weights, projection)
            rows, width = matrices.shape[1:]
            experts = weights.experts
            tall = (rows, experts * width) if projection == "down" else (experts * rows, width)
            _append(columns, weights.layer, projection, [None], tall, stacked[None])
            _append(columns, weights.layer, projection, list(range(experts)), (rows, width), single)
    return pa.table(columns, schema=SCHEMA)


def _append(
    columns: dict[str, list[object]],
    layer: int,
    projection: str,
    experts: Sequence[int | None],
    shape: tuple[int, int],
    values: Tensor,
) -> None:
    curve, count = energy_curve(values), len(values)
    columns["layer"] += [layer] * count
    columns["projection"] += [projection] * count
    columns["expert"] += experts
    columns["rows"] += [shape[0]] * count
    columns["columns"] += [shape[1]] * count
    columns["effective_rank"] += effective_rank(values).tolist()
    columns["stable_rank"] += stable_rank(values).tolist()
    columns["rank_90"] += rank_for(curve, 0.9).tolist()
    columns["rank_99"] += rank_for(curve, 0.99).tolist()
    for name, fraction in zip(_ENERGY, FRACTIONS, strict=True):
        place = max(round(fraction * values.shape[-1]), 1) - 1
        columns[name] += curve[:, place].tolist()
