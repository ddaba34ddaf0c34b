"""Counts what routers decide while a model runs, at the cost of a histogram, and gives a small set of readings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moeworks.errors import Unsupported

if TYPE_CHECKING:
    from moeworks.families.router import Edit, Router

__all__ = ["READINGS", "LayerSums", "RoutingMeter", "metered"]

# Name → meaning. The set does not grow with layers, experts or ranks.
READINGS: Mapping[str, str] = {
    "tokens": "tokens routed since the last reading was reset, padding left out",
    "max_violation_mean": "mean over layers of (largest load - mean load) / mean load; 0 is even",
    "max_violation_worst": "the same of the layer where it is largest",
    "worst_layer": "that layer's number",
    "load_entropy_mean": "mean over layers of the entropy of the loads / ln E; 1 is even",
    "effective_experts_mean": "mean over layers of 1 / sum of squared shares",
    "dead_experts": "experts of all layers that got less than a hundredth of their fair share",
    "busiest_share_worst": "largest share of a layer's choices that one expert got",
    "top_weight_mean": "mean over tokens and layers of the largest combine weight's share of the token's total",
    "router_entropy_mean": "mean over tokens and layers of the entropy of the router's softmax / ln E",
    "bias_spread_worst": "largest difference of two selection biases in one layer; 0 without biases",
}
DEAD = 0.01  # share of the fair share


@dataclass
class LayerSums:
    """Running sums of one layer, tensors where the model is, so that nothing waits for the device."""

    counts: Tensor  # (E,)
    sums: Tensor  # (3,): tokens, shares of the largest weights, normalised entropies


@dataclass
class RoutingMeter:
    """Sums over everything that was routed since `reset`; readings are made when somebody asks.

    Attributes:
        routers: the routers that are watched.
        keep: (rows,) true for tokens that count in the pass that runs, or None for all.
        layers: layer → its sums.
    """

    routers: tuple[Router, ...]
    keep: Tensor | None = None
    layers: dict[int, LayerSums] = field(default_factory=dict)
    _running: bool = False

    def begin(self, keep: Tensor | None) -> None:
        """Start a pass of the model; `keep` is as above."""
        self.keep, self._running = keep, True

    def end(self) -> None:
        """End it: routers that run outside, as when activation checkpointing runs a layer again, do not count."""
        self._running = False

    def hook(self, router: Router) -> Edit:
        """Return what counts one router's decisions and changes nothing."""

        def count(logits: Tensor | None, weights: Tensor, ids: Tensor) -> None:
            if self._running:
                with torch.no_grad():
                    self._add(router, logits, weights.detach(), ids)

        return count

    def _add(self, router: Router, logits: Tensor | None, weights: Tensor, ids: Tensor) -> None:
        if self.keep is not None:
            keep = self.keep.to(ids.device)
            if len(keep) != len(ids):
                raise Unsupported(
                    f"layer {router.layer} routed {len(ids)} tokens, the attention mask has {len(keep)}: it cannot be "
                    "said which of them are padding."
                )
            counted = keep.to(torch.float32)
        else:
            counted = torch.ones(len(ids), device=ids.device)
        state = self.layers.get(router.layer)
        if state is None:
            apple = ids.device.type == "mps"  # has no float64; float32 stops counting at 2^24
            sums = torch.zeros(3, dtype=torch.float64, device="cpu" if apple else ids.device)
            counts = torch.zeros(router.experts, dtype=torch.float32 if apple else torch.float64, device=ids.device)
            state = self.layers[router.layer] = LayerSums(counts, sums)
        ran = (weights != 0).to(state.counts.dtype) * counted[:, None]  # selecting rows would wait for the device
        state.counts.scatter_add_(0, ids.reshape(-1).long(), ran.reshape(-1))
        size = weights.float().abs()
        top = (size.amax(-1) / size.sum(-1).clamp(min=1e-30) * counted).sum()
        entropy = top.new_full((), float("nan"))
        if logits is not None:
            log_p = logits.float().log_softmax(-1)
            entropy = -((log_p.exp() * log_p).sum(-1) * counted).sum() / math.log(logits.shape[-1])
        state.sums += torch.stack([counted.sum(), top, entropy]).to(state.sums)

    def loads(self) -> dict[int, Tensor]:
        """Return layer → how often each expert ran, (E,), on the processor."""
        return {layer: state.counts.cpu() for layer, state in sorted(self.layers.items())}

    def readings(self) -> dict[str, float]:
        """Return every reading of `READINGS`; NaN where nothing was routed or a family shows no logits."""
        if not self.layers:
            return {name: float("nan") for name in READINGS} | {"tokens": 0.0}
        violation, entropy, effective, busiest, dead = {}, [], [], [], 0
        tokens, top, uncertain = [], [], []
        for layer, state in self.layers.items():
            counts, sums = state.counts.double().cpu(), state.sums.cpu()
            share = counts / counts.sum().clamp(min=1)
            experts = len(share)
            violation[layer] = float(share.max() * experts - 1)
            entropy.append(float(torch.special.entr(share).sum() / torch.log(torch.tensor(float(experts)))))
            effective.append(float(1 / share.square().sum().clamp(min=1e-30)))
            busiest.append(float(share.max()))
            dead += int((share * experts < DEAD).sum())
            tokens.append(float(sums[0]))
            top.append(float(sums[1] / sums[0].clamp(min=1)))
            uncertain.append(float(sums[2] / sums[0].clamp(min=1)))
        worst = max(violation, key=lambda layer: violation[layer])
        count = len(self.layers)
        return {
            "tokens": max(tokens),
            "max_violation_mean": sum(violation.values()) / count,
            "max_violation_worst": violation[worst],
            "worst_layer": float(worst),
            "load_entropy_mean": sum(entropy) / count,
            "effective_experts_mean": sum(effective) / count,
            "dead_experts": float(dead),
            "busiest_share_worst": max(busiest),
            "top_weight_mean": sum(top) / count,
            "router_entropy_mean": sum(uncertain) / count,
            "bias_spread_worst": max(self._spreads(), default=0.0),
        }

    def _spreads(self) -> Iterator[float]:
        for router in self.routers:
            bias = router.arrays.bias
            if bias is not None:
                yield float((bias.max() - bias.min()).detach())

    def reset(self) -> None:
        """Start anew."""
        self.layers.clear()


@contextmanager
def metered(model: nn.Module) -> Iterator[RoutingMeter]:
    """Watch a stock model inside the block; the attention mask of each call tells which tokens count.

    Raises:
        Unsupported: the model has no routers, or a pass is laid out so that padding cannot be told.
    """
    from moeworks.families.discover import discover

    inner: Any = model
    while isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    routers = tuple(discover(inner))
    if not routers:
        raise Unsupported(f"{type(inner).__name__} has no routers that it declares; there is nothing to watch.")
    meter = RoutingMeter(routers)
    handles = [handle for router in routers for handle in router.attach(meter.hook(router))]
    handles.append(
        inner.register_forward_pre_hook(lambda module, args, kwargs: _begin(meter, kwargs), with_kwargs=True)
    )
    handles.append(inner.register_forward_hook(lambda module, args, output: meter.end(), always_call=True))
    try:
        yield meter
    finally:
        for handle in handles:
            handle.remove()


def _begin(meter: RoutingMeter, kwargs: Mapping[str, Any]) -> None:
    """Take the mask of the pass that begins; in a decode step it is longer than the tokens that are routed."""
    mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
    keep = None
    if isinstance(mask, Tensor) and mask.ndim == 2:
        width = mask.shape[1] if ids is None else ids.shape[1]
        keep = mask[:, -width:].reshape(-1).bool()
    meter.begin(keep)
