"""Ternary experts (MoTE): every weight is −1, 0 or 1 times a scale.

Source: arXiv 2506.14435, abstract and public reviews; the absmean rule is BitNet b1.58's. MoTE trains its experts with
this rounding in the loop; here trained experts are rounded afterwards, which costs far more.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from moeworks.edit.compress.experts import CompressedExperts
from moeworks.edit.compress.factors import PROJECTIONS, Factors, biases, compression, transform
from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS
from moeworks.errors import BadPlan

__all__ = ["TernaryExperts", "pack", "ternary", "ternary_codes", "unpack"]


class TernaryExperts(CompressedExperts):
    """Experts as packed ternary codes and scales; a projection is unpacked when it is used."""

    def matrix(self, name: str, expert: int | slice) -> Tensor:
        """Return one expert's projection (or several) as weights."""
        width = self.neurons if name == "down" else self.hidden
        codes = unpack(getattr(self, f"{name}_codes")[expert], width)  # (…, out, in)
        scale = getattr(self, f"{name}_scale")[expert]  # (…, 1, 1) or (…, out, groups)
        matrix: Tensor = codes.to(scale.dtype) * scale.repeat_interleave(width // scale.shape[-1], -1)
        return matrix

    def project(self, expert: int, prepared: Any, rows: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the pre-activations of an expert."""
        inputs = prepared[rows]
        gate = inputs @ self.matrix("gate", expert).T if hasattr(self, "gate_codes") else None
        return gate, inputs @ self.matrix("up", expert).T

    def output(self, expert: int, key: Tensor) -> Tensor:
        """Return the down projection of an expert."""
        return key @ self.matrix("down", expert).T

    def dense(self) -> dict[str, Tensor]:
        """Return scale times code."""
        return {name: self.matrix(name, slice(None)) for name in PROJECTIONS if hasattr(self, f"{name}_codes")}


@compression("ternary", TernaryExperts)
def ternary(
    weights: LayerWeights,
    statistics: LayerStatistics | None = None,
    *,
    group_size: int = 0,
    scale: Literal["absmean", "least_squares"] = "absmean",
) -> Factors:
    """Round every projection of every expert to scale × {−1, 0, 1}; codes take two bits each.

    `scale = mean |W|`, `code = round(clip(W / scale, −1, 1))`. `least_squares` keeps the codes and takes the scale that
    is nearest to the weights, `<W, code> / <code, code>`.

    Args:
        weights: one layer.
        statistics: not used.
        group_size: one scale for so many neighbouring inputs of each row; 0: one for each matrix, as MoTE has.
        scale: how the scale is found once the codes are.

    Raises:
        BadPlan: the group size does not divide the width of a projection, or there is no such scale.
    """
    if scale not in ("absmean", "least_squares"):
        raise BadPlan(f"scale is absmean or least_squares, not '{scale}'.")
    tensors: dict[str, Tensor] = {}
    for name in PROJECTIONS:
        matrix: Tensor | None = getattr(weights, name)
        if matrix is None:
            continue
        codes, factors = ternary_codes(matrix.float(), group_size=group_size, scale=scale)
        tensors |= {f"{name}_codes": pack(codes), f"{name}_scale": factors.to(matrix.dtype)}
    return Factors(
        method="ternary",
        layer=weights.layer,
        experts=weights.experts,
        neurons=weights.neurons,
        hidden=weights.up.shape[2],
        settings={"group_size": group_size, "scale": scale},
        tensors={**tensors, **biases(weights)},
    )


@TRANSFORMS.register("ternary")
def ternary_transform(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    group_size: int = 0,
    scale: Literal["absmean", "least_squares"] = "absmean",
) -> LayerWeights:
    """Round each expert to ternary weights (`ternary`, same options), written in the dtype it had."""
    return transform(weights, plan, statistics, ternary, {"group_size": group_size, "scale": scale})


def ternary_codes(
    matrices: Tensor, *, group_size: int = 0, scale: Literal["absmean", "least_squares"] = "absmean"
) -> tuple[Tensor, Tensor]:
    """Return codes (…, out, in) int8 and scales (…, 1, 1), or with groups (…, out, in / group_size).

    Raises:
        BadPlan: the group size does not divide the width.
    """
    width = matrices.shape[-1]
    if group_size and (group_size < 0 or width % group_size):
        raise BadPlan(f"a group size of {group_size} does not divide a width of {width}.")
    blocks = matrices.reshape(*matrices.shape[:-1], -1, group_size) if group_size else matrices[..., None, :]
    over = (-1,) if group_size else (-3, -2, -1)
    mean = blocks.abs().mean(over, keepdim=True)
    codes = (blocks / mean.clamp(min=torch.finfo(mean.dtype).tiny)).clamp(-1, 1).round()
    if scale == "least_squares":
        mean = (blocks * codes).sum(over, keepdim=True) / codes.square().sum(over, keepdim=True).clamp(min=1)
    factors = mean[..., 0]
    return codes.flatten(-2).to(torch.int8), factors


def pack(codes: Tensor) -> Tensor:
    """Return ternary codes as bytes, four to a byte along the last dimension, the first in the lowest two bits."""
    short = -codes.shape[-1] % 4
    padded = torch.nn.functional.pad(codes + 1, (0, short)).to(torch.uint8)
    fours = padded.reshape(*padded.shape[:-1], -1, 4)
    return (fours << torch.arange(0, 8, 2, dtype=torch.uint8, device=codes.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, width: int) -> Tensor:
    """Return what `pack` was given, int8; `width` is the length of the last dimension."""
    parts = (packed[..., None] >> torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)) & 3
    codes: Tensor = parts.flatten(-2)[..., :width].to(torch.int8) - 1
    return codes
