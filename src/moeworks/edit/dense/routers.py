"""Router rows for experts that never had a router: drawn, from mean hidden states, or fitted to what experts can do.

Letters in shapes: n rows, E experts, H wide outside, k chosen experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moeworks.edit.dense.ffn import Ffn, Inputs, Split
from moeworks.errors import BadData

__all__ = ["Aim", "Fit", "domain_labels", "evened", "fit_router", "local_labels", "mean_hidden_rows", "random_rows"]

Aim = Literal["whole", "share"]


@dataclass(frozen=True)
class Fit:
    """How well a linear router follows what it was fitted to, on the rows it was fitted on.

    Attributes:
        divergence: mean KL(labels ‖ router) in nats.
        chance: the same for a router that knows nothing, all experts equal.
        agreement: share of the labels' k best experts that are the router's.
    """

    divergence: float
    chance: float
    agreement: float


def random_rows(experts: int, width: int, *, seed: int, scale: float = 0.02) -> Tensor:
    """Return normal rows, (E, H)."""
    return torch.randn(experts, width, generator=torch.Generator().manual_seed(seed)) * scale


def mean_hidden_rows(inputs: Inputs, experts: int, *, against: str = "") -> Tensor:
    """Return the normalised mean state of each domain's texts at their last token, (E, H); expert i is of domain i.

    mergekit's gate mode `hidden`, with two differences: the state is what the router reads, after the norm, where
    mergekit takes the block's input; and one domain (`against`) can be what is taken off, in place of prompts for each.

    Raises:
        BadData: there are not as many domains as experts.
    """
    names = [name for name in inputs.domains if name != against]
    if len(names) != experts:
        raise BadData(
            f"rows from mean hidden states need one domain for each of {experts} experts; the texts have "
            f"{len(names)} ({', '.join(names)}). Name the label with --by."
        )
    means = {name: _mean(inputs, name) for name in inputs.domains}
    off = means[against] if against else torch.zeros(inputs.hidden.shape[1])
    return torch.nn.functional.normalize(torch.stack([means[name] - off for name in names]), dim=1)


def local_labels(ffn: Ffn, split: Split, inputs: Inputs, top_k: int, *, aim: Aim = "whole") -> Tensor:
    """Return for each row how much each expert should be chosen, (n, E), 0 beyond the k best.

    The score of an expert is −MSE(expert(h), target), the mean over H; labels are the softmax over the k best. With a
    shared part, what that leaves of FFN(h) takes the place of FFN(h); whole copies are compared with FFN(h) itself.

    Args:
        ffn: the dense layer.
        split: its experts.
        inputs: rows of text.
        top_k: k.
        aim: the target is FFN(h) (`whole`: the piece that takes most off what is missing comes first), or FFN(h) k / E
            (`share`: FactorLLM's prior-approximate label, as released). The latter favours pieces that all do their
            small share, and where one piece does all the work it favours the idle ones, which are nearer to k / E.
    """
    target = ffn(inputs.hidden)
    if split.shared is not None:
        target = target - split.shared(inputs.hidden)
    if split.each is not None and aim == "share":
        target = target * (top_k / split.experts)
    errors = [(split.expert(e)(inputs.hidden) - target).square().mean(1) for e in range(split.experts)]
    return _best(-torch.stack(errors, 1), top_k)


def domain_labels(inputs: Inputs, experts: int) -> Tensor:
    """Return 1 for the expert of a row's domain, (n, E)."""
    if len(inputs.domains) != experts:
        raise BadData(f"{experts} experts need texts of {experts} domains; there are {len(inputs.domains)}.")
    return torch.nn.functional.one_hot(inputs.domain, experts).float()


def fit_router(
    hidden: Tensor, labels: Tensor, *, top_k: int, decay: float = 1e-3, steps: int = 100
) -> tuple[Tensor, Fit]:
    """Return rows W, (E, H), whose softmax(W h) is nearest to the labels in mean KL(label ‖ router), and how near.

    Convex, so that there is one answer; by L-BFGS from zero, inputs brought to unit size first. No gradient goes
    through the model. Routers of the stock targets have no bias, so there is none.

    Args:
        hidden: (n, H) what the router reads.
        labels: (n, E) distributions.
        top_k: of the agreement that is reported.
        decay: weight of |W|² at unit size; keeps rows finite where labels can be told apart without error.
        steps: of L-BFGS at most.
    """
    size = float(hidden.float().square().mean().sqrt()) or 1.0
    inputs, rows = hidden.float() / size, torch.zeros(labels.shape[1], hidden.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [rows], max_iter=steps, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -(labels * (inputs @ rows.T).log_softmax(1)).sum(1).mean() + decay * rows.square().sum() / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    found = rows.detach()
    logits = inputs @ found.T
    entropy = torch.special.entr(labels).sum(1)
    divergence = float((-(labels * logits.log_softmax(1)).sum(1) - entropy).mean())
    chance = float((torch.tensor(float(labels.shape[1])).log() - entropy).mean())
    wanted, chosen = labels.topk(top_k, 1).indices, logits.topk(top_k, 1).indices
    agreement = float((wanted[:, :, None] == chosen[:, None]).any(2).float().mean())
    return found / size, Fit(divergence, chance, agreement)


def evened(router: Tensor, hidden: Tensor | None, *, spread: float = 0.01) -> Tensor:
    """Return rows so small that normalised weights of the chosen experts are all about 1 / k; the choice is the same.

    Pieces of one layer have to count 1 each, not by how sure the router is. Scaling a router's rows changes no order,
    so that this is the hard 0/1 gate of FactorLLM and CMoE's untrained weights of 1 in a stock model.

    Args:
        router: (E, H).
        hidden: (n, H) rows on which the largest logit becomes `spread`; without any, the size that normed states have.
        spread: largest logit; weights then lie within that share of 1 / k.
    """
    largest = float((hidden.float() @ router.float().T).abs().max()) if hidden is not None else 0.0
    if hidden is None:
        largest = 3 * float(router.float().norm(dim=1).max())  # a normed state has |h| near sqrt(H): entries of size 1
    return router * (spread / largest) if largest > 0 else router


def _best(scores: Tensor, top_k: int) -> Tensor:
    kept = torch.full_like(scores, -torch.inf)
    best = scores.topk(top_k, 1)
    return kept.scatter(1, best.indices, best.values).softmax(1)


def _mean(inputs: Inputs, name: str) -> Tensor:
    rows = inputs.last & (inputs.domain == inputs.domains.index(name))
    if not bool(rows.any()):
        raise BadData(f"no text of '{name}' was read to its last token; give more texts of it.")
    return inputs.hidden[rows].float().mean(0)
