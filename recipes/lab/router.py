"""One router as seven exchangeable slots: unit, score, transform, edit, select, weight, combine.

Needs torch. A variant of the literature is a function under a new name in one of the tables below, and nothing else
changes. The lab model is (token, linear, softmax, none, top_k, renormalise, sum), its sister `lab-sigmoid` (token,
linear, sigmoid, load_bias, grouped_top_k, renormalise_scale, sum_and_shared).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Decision", "Router", "RouterSettings", "balance_loss", "z_loss"]


@dataclass(frozen=True)
class RouterSettings:
    """What fills each slot, and the numbers they need."""

    experts: int
    top_k: int
    unit: Literal["token"] = "token"
    score: Literal["linear"] = "linear"
    transform: Literal["softmax", "sigmoid"] = "softmax"
    edit: Literal["none", "load_bias"] = "none"
    select: Literal["top_k", "grouped_top_k"] = "top_k"
    weight: Literal["renormalise", "renormalise_scale", "keep"] = "renormalise"
    combine: Literal["sum", "sum_and_shared"] = "sum"
    groups: int = 1
    kept_groups: int = 1
    scale: float = 1.0


@dataclass(frozen=True)
class Decision:
    """What a router decided for a batch of tokens."""

    ids: Tensor  # (tokens, k)
    weights: Tensor  # (tokens, k) float32
    logits: Tensor  # (tokens, experts) float32
    scores: Tensor  # (tokens, experts) float32, before any edit
    counts: Tensor  # (experts,) tokens that each expert gets


def _top_k(selection: Tensor, settings: RouterSettings) -> Tensor:
    return selection.topk(settings.top_k, -1).indices


def _grouped_top_k(selection: Tensor, settings: RouterSettings) -> Tensor:
    """DeepSeek-V3: a group counts by the sum of its two best experts; only experts of the best groups can be chosen."""
    by_group = selection.view(len(selection), settings.groups, -1)  # (tokens, groups, experts of a group)
    kept = by_group.topk(2, -1).values.sum(-1).topk(settings.kept_groups, -1).indices  # (tokens, kept)
    mask = torch.zeros(by_group.shape[:2], dtype=torch.bool).scatter_(1, kept, True)
    return _top_k(by_group.masked_fill(~mask.unsqueeze(-1), float("-inf")).flatten(1), settings)


def _renormalised(chosen: Tensor) -> Tensor:
    return chosen / chosen.sum(-1, keepdim=True)


SCORE: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": lambda hidden, experts: nn.Linear(hidden, experts, bias=False)
}
TRANSFORM: dict[str, Callable[[Tensor], Tensor]] = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid}
SELECT: dict[str, Callable[[Tensor, RouterSettings], Tensor]] = {"top_k": _top_k, "grouped_top_k": _grouped_top_k}
WEIGHT: dict[str, Callable[[Tensor, RouterSettings], Tensor]] = {
    "keep": lambda chosen, settings: chosen,
    "renormalise": lambda chosen, settings: _renormalised(chosen),
    "renormalise_scale": lambda chosen, settings: _renormalised(chosen) * settings.scale,
}


class Router(nn.Module):
    """Decides which experts run for each token; always in float32."""

    def __init__(self, hidden: int, settings: RouterSettings) -> None:
        super().__init__()
        self.settings = settings
        self.score = SCORE[settings.score](hidden, settings.experts)
        self.load_bias: Tensor
        self.register_buffer("load_bias", torch.zeros(settings.experts))  # (experts,) stays 0 where `edit` is none

    def forward(self, x: Tensor) -> Decision:
        """Decide for `x` (tokens, hidden)."""
        settings = self.settings
        with torch.autocast("cpu", enabled=False):
            logits = self.score(x.float())  # (tokens, experts)
            scores = TRANSFORM[settings.transform](logits)
            ids = SELECT[settings.select](scores.detach() + self.load_bias, settings)
            weights = WEIGHT[settings.weight](scores.gather(-1, ids), settings)
        counts = torch.bincount(ids.flatten(), minlength=settings.experts)
        return Decision(ids, weights, logits, scores, counts)

    @torch.no_grad()
    def update_load_bias(self, counts: Tensor, rate: float) -> None:
        """Raise the bias of experts that got less than their fair share by `rate`, lower the others'.

        Auxiliary-loss-free balancing as in DeepSeek-V3 (section 2.1.2): the sign of the error, after every step.
        """
        if self.settings.edit == "load_bias":
            load = counts.float()
            self.load_bias += rate * torch.sign(load.mean() - load)


def balance_loss(decision: Decision) -> Tensor:
    """Return E · Σ f_i P_i, 1 at perfect balance; f_i is the share of choices, P_i the mean normalised score."""
    shares = decision.counts.float() / decision.counts.sum()  # (experts,)
    mean = (decision.scores / decision.scores.sum(-1, keepdim=True)).mean(0)  # (experts,)
    return len(shares) * (shares * mean).sum()


def z_loss(decision: Decision) -> Tensor:
    """Return the mean squared log of the logits' partition sum, which keeps logits small."""
    return torch.logsumexp(decision.logits, -1).square().mean()
