"""The losses of unlearning, one short function each: forget, retain and anchor, on logits and activations.

Letters in shapes: b texts, w positions, V vocabulary, n tokens, E experts, H hidden size. All arithmetic is float32.
Log-probabilities are natural. Lines tagged [recalled] are from general knowledge of the cited papers, not checked anew.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from moeworks.contract import Contract
from moeworks.errors import BadData, did_you_mean

__all__ = [
    "DEFAULTS",
    "Forget",
    "LossDefaults",
    "anchor_loss",
    "control_vector",
    "defaults_of",
    "gradient_ascent",
    "gradient_difference",
    "next_token_loss",
    "npo",
    "rmu_forget",
    "rmu_retain",
    "router_probabilities",
    "token_log_probabilities",
]

Forget = Literal["ga", "gdiff", "npo", "rmu"]


class LossDefaults(NamedTuple):
    """What a forget loss takes if nothing else is said."""

    retain_weight: float  # lambda
    reads: Literal["tokens", "texts", "activations"]  # what it is a function of


DEFAULTS: dict[str, LossDefaults] = {
    "ga": LossDefaults(0.0, "tokens"),
    "gdiff": LossDefaults(1.0, "tokens"),
    "npo": LossDefaults(1.0, "texts"),
    "rmu": LossDefaults(100.0, "activations"),
}


def defaults_of(loss: str) -> LossDefaults:
    """Return the defaults of a forget loss.

    Raises:
        BadData: there is no such loss.
    """
    if loss not in DEFAULTS:
        raise BadData(f"no forget loss is called '{loss}'; {did_you_mean(loss, get_args(Forget))}")
    return DEFAULTS[loss]


def token_log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of each token given those before it, (b, w - 1), for logits (b, w, V)."""
    return -functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    ).view(len(tokens), -1)


def next_token_loss(log_probabilities: Tensor, counted: Tensor) -> Tensor:
    """Return the mean negative log-probability of the counted tokens, both (b, w - 1): the language-model loss."""
    return -log_probabilities[counted].mean()


def gradient_ascent(log_probabilities: Tensor, counted: Tensor) -> Tensor:
    """GA: the mean log-probability of the forget tokens; descending it raises their loss, without a bound.

    L = mean_t log p(x_t | x_<t). Source: Jang et al. 2023 (arXiv 2210.01504), Yao et al. 2023 (arXiv 2310.10683)
    [recalled].
    """
    return -next_token_loss(log_probabilities, counted)


def gradient_difference(forget: Tensor, retain: Tensor, retain_weight: float = 1.0) -> Tensor:
    """GDIFF: ascent on what is forgotten, descent on what is kept; the sum of GA and lambda times the retain loss.

    L = -NLL(forget) + lambda NLL(retain), from the two losses `gradient_ascent(…)` and `next_token_loss(…)`. Source:
    Liu et al. 2022 (arXiv 2203.12817), as used by TOFU (arXiv 2401.06121) [recalled].
    """
    return forget + retain_weight * retain


def npo(log_probabilities: Tensor, reference: Tensor, counted: Tensor, beta: float = 0.1) -> Tensor:
    """NPO: a bounded ascent that fades for texts that are forgotten already.

    L = (2 / beta) mean_texts log(1 + (p(y|x) / p_ref(y|x))^beta), where p is the probability of a whole text (the sum
    of its tokens' log-probabilities) and p_ref that of the model before unlearning. As beta goes to 0 its gradient is
    that of GA on sums. Source: Zhang et al. 2024 (arXiv 2404.05868), equation of L_NPO [recalled].

    Args:
        log_probabilities: (b, w - 1) of the model in training.
        reference: (b,) sums over the counted tokens of the model before training.
        counted: (b, w - 1) which tokens count.
        beta: the paper's inverse temperature.
    """
    ratio = (log_probabilities * counted).sum(-1) - reference  # (b,)
    loss: Tensor = functional.softplus(beta * ratio).mean() * (2 / beta)
    return loss


def control_vector(width: int, *, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Return RMU's u: a unit vector whose entries are drawn uniformly from 0..1 before it is normalised, (H,)."""
    entries = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    control: Tensor = entries / entries.norm()
    return control.to(device)


def rmu_forget(hidden: Tensor, control: Tensor, steering: float) -> Tensor:
    """RMU on what is forgotten: hidden states after the layer, (n, H), go to one random direction of fixed length.

    L = mean_t || h_t - c u ||^2. Source: Li et al. 2024, WMDP (arXiv 2403.03218), section on RMU [recalled]; the
    released code averages over the H coordinates too, which is this divided by H [recalled].
    """
    return (hidden.float() - steering * control).square().sum(-1).mean()


def rmu_retain(hidden: Tensor, frozen: Tensor) -> Tensor:
    """RMU on what is kept: hidden states (n, H) stay those of the model before training.

    L = mean_t || h_t - h_frozen_t ||^2; same source and same remark as `rmu_forget` [recalled].
    """
    return (hidden.float() - frozen.float()).square().sum(-1).mean()


def anchor_loss(probabilities: Tensor, expert: int) -> Tensor:
    """SEUF's anchor: the target expert stays the one that its router turns to.

    L = mean_t || g_t - onehot(e*) ||^2 over router probabilities g, (n, E), of the tokens that are routed (no padding).
    Source: SEUF, arXiv 2411.18797. The paper's term is this squared error; a summary that is often copied calls it a
    KL divergence, which it is not. The mean over tokens is ours, so that its weight does not hang on the batch size.
    """
    goal = torch.zeros_like(probabilities)
    goal[:, expert] = 1.0
    return (probabilities - goal).square().sum(-1).mean()


def router_probabilities(logits: Tensor, contract: Contract) -> Tensor:
    """Return g, (n, E) float32, for logits (n, E): the twin of `find.amounts.probabilities` with a graph."""
    logits = logits.float()
    if contract.score in ("softmax", "sparsemixer"):
        return logits.softmax(-1)
    scores = logits.sigmoid() if contract.score == "sigmoid" else functional.softplus(logits).sqrt()
    return scores / scores.sum(-1, keepdim=True)
