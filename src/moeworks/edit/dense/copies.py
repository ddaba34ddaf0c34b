"""Experts that are whole feed-forward layers: copies of one (sparse upcycling), or those of several fine-tunes.

Sources: sparse upcycling, arXiv 2212.05055 (recalled); mergekit-moe, code read; BAM, arXiv 2408.08274, abstract read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moeworks.edit.dense.ffn import Ffn, Inputs, Split
from moeworks.edit.dense.registry import UPCYCLINGS
from moeworks.errors import BadData, BadPlan

__all__ = ["bam", "copy", "merge"]


@UPCYCLINGS.register("copy")
def copy(
    ffn: Ffn,
    inputs: Inputs | None = None,
    *,
    experts: int,
    top_k: int = 2,
    shared: int = 0,
    seed: int = 0,
    others: Sequence[Ffn] = (),
    noise: float = 0.0,
) -> Split:
    """Copy the layer E times: sparse upcycling. With normalised weights and no noise, the model computes what it did.

    Args:
        ffn: the dense layer.
        inputs: not used.
        experts: E.
        top_k: not used.
        shared: none are possible: the copies are the whole layer.
        seed: of the noise.
        others: not used.
        noise: standard deviation of what is added to each weight, as a share of its matrix's own; without noise or
            training all experts stay equal.

    Raises:
        BadPlan: shared experts are asked for.
    """
    _no_shared(shared)
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in ("gate", "up", "down"):
        matrix = getattr(ffn, name)
        copies = matrix.expand(experts, -1, -1).clone()
        if noise:
            added = torch.randn(copies.shape, generator=draw) * (noise * float(matrix.float().std()))
            copies = (copies.float() + added).to(matrix.dtype)
        tensors[name] = copies
    return Split(**tensors, act=ffn.act, each=None)


@UPCYCLINGS.register("merge")
def merge(
    ffn: Ffn,
    inputs: Inputs | None = None,
    *,
    experts: int,
    top_k: int = 2,
    shared: int = 0,
    seed: int = 0,
    others: Sequence[Ffn] = (),
) -> Split:
    """Take expert i from the i-th of several fine-tunes of one base: mergekit-moe's way.

    Attention, norms and embeddings stay the base's, whose own feed-forward layers are an expert only if it is listed.

    Raises:
        BadData: another number of models than experts.
        BadPlan: shared experts are asked for.
    """
    _no_shared(shared)
    if len(others) != experts:
        raise BadData(f"{experts} experts are made of {experts} models, not {len(others)}; list them with --expert.")
    if any(other.up.shape != ffn.up.shape for other in others):
        raise BadData(
            "the feed-forward layers of these models differ in shape; they have to be fine-tunes of one base."
        )
    return Split(
        gate=torch.stack([other.gate for other in others]),
        up=torch.stack([other.up for other in others]),
        down=torch.stack([other.down for other in others]),
        act=ffn.act,
        each=None,
    )


@UPCYCLINGS.register("bam")
def bam(
    ffn: Ffn,
    inputs: Inputs | None = None,
    *,
    experts: int,
    top_k: int = 2,
    shared: int = 0,
    seed: int = 0,
    others: Sequence[Ffn] = (),
) -> Split:
    """Do as `merge`; everything else is then the mean of the models' weights, not the base's.

    BAM also makes a soft mixture of the models' attention layers, in parallel with the experts. No stock model has
    that, so that their mean stands here instead: only the feed-forward part is BAM's.
    """
    return merge(ffn, inputs, experts=experts, top_k=top_k, shared=shared, seed=seed, others=others)


def _no_shared(shared: int) -> None:
    if shared:
        raise BadPlan("experts that are whole layers leave nothing to share; use a partition with --shared.")
