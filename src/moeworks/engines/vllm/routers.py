"""From a router of vLLM to a contract, proved by letting both decide on random logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moeworks.contract import Contract
from moeworks.engines.vllm.bank import Bank
from moeworks.engines.vllm.decide import DETAIL, decide_rows
from moeworks.errors import MoeworksError
from moeworks.families.torch_contract import selection_scores

__all__ = ["Found", "read_router"]

TOKENS = 256
TOLERANCE = 1e-5  # of weights: vLLM sums them in its own order
TIE = 1e-6
_SCORES = {"softmax": "softmax", "sigmoid": "sigmoid", "sqrtsoftplus": "sqrt_softplus"}


@dataclass(frozen=True, eq=False)
class Found:
    """What is known of one router."""

    experts: int
    top_k: int
    contract: Contract | None  # with the factor that `routing` weights carry, not the one on the experts' output
    bias: Tensor | None  # (E,) float32, live
    output_scale: float  # factor that vLLM puts on the experts' output instead of on the weights
    opaque: str = ""  # why there is no contract


def read_router(
    router: Any,
    *,
    output_scale: float,
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    experts: int | None = None,
) -> Found:
    """Return the contract of a router, or why there is none.

    Args:
        router: a `BaseRouter` of vLLM.
        output_scale: `routed_scaling_factor` of the runner around it.
        hidden: width of hidden states.
        dtype: of the router's logits.
        device: where it runs.
        experts: how many the model has; a router counts the copies that EPLB gives some of them too.
    """
    experts, top_k = experts or int(router.global_num_experts), int(router.top_k)
    contract, bias, reason = None, None, _unreadable(router)
    if not reason:
        bias = getattr(router, "e_score_correction_bias", None)
        contract = _contract(router, experts, top_k, bias is not None)
        try:
            reason = _differs(router, contract, bias, hidden, dtype, device)
        except (MoeworksError, RuntimeError, AssertionError, TypeError) as error:
            reason = f"its decision could not be compared with ours ({str(error).splitlines()[0]})"
    if reason:
        return Found(experts, top_k, None, None, output_scale, reason)
    return Found(experts, top_k, contract, bias, output_scale)


def _unreadable(router: Any) -> str:
    """Return why a router's rule cannot be told from its attributes."""
    name = type(router).__name__
    if getattr(router, "_hash_indices_table", None) is not None:
        return "its ids come from a table of token ids"
    if getattr(router, "custom_routing_function", None) is not None:
        return "it decides by a function of its own model"
    if getattr(router, "num_fused_shared_experts", 0):
        return "shared experts are fused into its slots"
    if getattr(router, "zero_expert_type", None) is not None:
        return "it has experts without weights"
    if getattr(router, "bias_vl", None) is not None:
        return "its bias depends on the token"
    if not hasattr(router, "renormalize") or getattr(router, "scoring_func", None) not in _SCORES:
        return f"the rule of {name} is not known"
    return ""


def _contract(router: Any, experts: int, top_k: int, bias: bool) -> Contract:
    groups = getattr(router, "num_expert_group", None) if getattr(router, "use_grouped_topk", True) else None
    return Contract(
        experts=experts,
        top_k=top_k,
        score=_SCORES[router.scoring_func],  # type: ignore[arg-type]
        bias=bias,
        groups=groups or 1,
        groups_kept=(router.topk_group or 1) if groups else 1,
        group_score="max" if groups and not bias else "top_2_sum",
        renormalise=bool(router.renormalize),
        scale=float(getattr(router, "routed_scaling_factor", 1.0)),
    )


def _differs(
    router: Any, contract: Contract, bias: Tensor | None, hidden: int, dtype: torch.dtype, device: torch.device
) -> str:
    """Return how our decisions on shuffled logits differ from the router's.

    In float32 the rule is compared; in half precision, in which some routers weigh, no more than its rounding. A kernel
    that takes no float32 is compared in the model's dtype alone.
    """
    reason = _compared(router, contract, bias, hidden, dtype, device)
    if reason or dtype == torch.float32:
        return reason
    try:
        return _compared(router, contract, bias, hidden, torch.float32, device)
    except RuntimeError:
        return ""


def _compared(
    router: Any, contract: Contract, bias: Tensor | None, hidden: int, dtype: torch.dtype, device: torch.device
) -> str:
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(TOKENS, contract.experts, generator=generator).argsort(-1)
    logits = torch.linspace(-3, 3, contract.experts)[order].to(dtype).to(device)  # apart, in half precision too
    states = torch.zeros(TOKENS, hidden, dtype=dtype, device=device)
    weights, ids = router._compute_routing(states, logits.clone(), None)
    bank = Bank(1, contract.experts, device)
    slots = torch.zeros(TOKENS, dtype=torch.int64, device=device)
    ours, our_ids = decide_rows(logits, bank.gather(slots, frozenset()), contract, bias=bias)
    dense = [
        torch.zeros(TOKENS, contract.experts, device=device).scatter_(1, i.long(), w.float())
        for w, i in ((weights, ids), (ours, our_ids))
    ]
    ranked = selection_scores(logits.float(), contract, DETAIL, bias).sort(-1, descending=True).values
    tied = (ranked.diff(dim=-1).abs() < TIE).any(-1)  # (n,) rows with equal scores, which may go either way
    gap = (dense[0] - dense[1]).abs().amax(-1)[~tied]
    if len(gap) < TOKENS // 8:
        return "nearly all of its decisions are ties"
    worst = float(gap.max())
    allowed = TOLERANCE if dtype == torch.float32 else 4 * torch.finfo(dtype).eps * contract.scale
    return "" if worst < allowed else f"its weights differ from ours by up to {worst:.2g}"
