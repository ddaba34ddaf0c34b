"""Losses that keep routers balanced, in the forms that are published, blind to padding, each saying which form it is.

Letters in shapes: n tokens of one layer, E experts, k slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from moeworks.errors import BadData

__all__ = ["balance_loss", "bias_step", "z_loss"]

Form = Literal["megatron", "transformers"]
Over = Literal["layers", "concatenated"]


def balance_loss(
    probabilities: Sequence[Tensor],
    ids: Sequence[Tensor],
    *,
    mask: Tensor | None = None,
    form: Form = "megatron",
    over: Over = "layers",
) -> Tensor:
    """Return the load-balance loss of a model's routers: E * sum over experts of f_e P_e.

    P_e is the mean probability of expert e over tokens, f_e how often it was chosen: by choices, T k, in the form of
    Megatron-LM (1 at perfect balance), by tokens, T, in that of transformers (k at perfect balance), so that the same
    coefficient means k times as much there. transformers also concatenates the layers before it takes means, which lets
    one layer's imbalance make up for another's; `over="layers"` takes the mean of the layers' own losses instead, as
    the Switch Transformer (arXiv 2101.03961, section 2.2) and Megatron-LM do.

    Args:
        probabilities: of each layer, (n, E), rows that sum to 1: softmax of logits, or sigmoids divided by their sum.
        ids: of each layer, (n, k).
        mask: (n,) true for tokens that count; without, all do.
        form, over: see above.

    Raises:
        BadData: shapes do not fit, or probabilities do not sum to 1 (transformers 5.0 to 5.2 hand out probabilities
            under the name of logits: a softmax of those is no distribution that anybody chose by).
    """
    if len(probabilities) != len(ids) or not ids:
        raise BadData(f"{len(probabilities)} layers of probabilities and {len(ids)} of ids; each layer needs both.")
    for probability, chosen in zip(probabilities, ids, strict=True):
        _check_shapes(probability, chosen, mask)
    with torch.no_grad():  # one look for all layers, so that training waits for the device once
        apart = torch.stack([(p.sum(-1) - 1).abs().max().clamp(min=-p.min()) for p in probabilities]).max()
    if not float(apart) < 1e-2:
        raise BadData("rows of probabilities do not sum to 1; hand over the softmax of raw logits.")
    losses: list[Tensor] = []
    pairs = [_kept(p, i, mask) for p, i in zip(probabilities, ids, strict=True)]
    if over == "concatenated":
        pairs = [(torch.cat([p for p, _ in pairs]), torch.cat([i for _, i in pairs]))]
    for probability, chosen in pairs:
        experts = probability.shape[-1]
        counts = torch.bincount(chosen.reshape(-1), minlength=experts).to(probability.dtype)  # (E,)
        share = counts / (chosen.numel() if form == "megatron" else len(chosen))
        losses.append(experts * (share * probability.mean(0)).sum())
    return torch.stack(losses).mean()


def z_loss(logits: Sequence[Tensor], *, mask: Tensor | None = None) -> Tensor:
    """Return the mean over tokens and layers of logsumexp(z)^2, which keeps logits small (ST-MoE, arXiv 2202.08906).

    Args:
        logits: of each layer, (n, E), raw.
        mask: (n,) true for tokens that count.
    """
    kept = [one if mask is None else one[mask.reshape(-1).bool()] for one in logits]
    return torch.stack([torch.logsumexp(one.float(), -1).square().mean() for one in kept]).mean()


@torch.no_grad()
def bias_step(bias: Tensor, ids: Tensor, *, rate: float = 1e-3, mask: Tensor | None = None) -> Tensor:
    """Add to a selection bias, (E,), in place, what loss-free balancing adds after a step; return the loads, (E,).

    b_e += rate * sign(mean load - load of e): DeepSeek-V3 (arXiv 2412.19437, section 2.1.2), loss-free balancing
    (arXiv 2408.15664). Loads are of all tokens of the step: with data parallelism add the loads up first.

    Args:
        bias: (E,), changed.
        ids: (n, k) experts chosen in the step.
        rate: the step.
        mask: (n,) true for tokens that count.
    """
    chosen = ids if mask is None else ids[mask.reshape(-1).bool()]
    load = torch.bincount(chosen.reshape(-1), minlength=len(bias)).to(bias.dtype)  # (E,)
    bias += rate * torch.sign(load.mean() - load)
    return load


def _check_shapes(probability: Tensor, ids: Tensor, mask: Tensor | None) -> None:
    if probability.ndim != 2 or ids.ndim != 2 or len(probability) != len(ids):
        raise BadData(
            f"probabilities {tuple(probability.shape)} and ids {tuple(ids.shape)} are not (tokens, experts) and "
            "(tokens, slots) of the same tokens."
        )
    if mask is not None and mask.numel() != len(ids):
        raise BadData(f"the mask has {mask.numel()} tokens, the routers decided for {len(ids)}.")


def _kept(probability: Tensor, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if mask is None:
        return probability, ids
    keep = mask.reshape(-1).bool()
    return probability[keep], ids[keep]
