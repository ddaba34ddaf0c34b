"""The experts of one router, recomputed one at a time by the module's own rules, so that what is inside them shows.

Letters in shapes: n rows of a forward pass, k slots, m rows of one expert, H wide outside, I neurons inside.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moeworks.errors import Unsupported
from moeworks.families.expert_weights import ExpertWeights, expert_weights
from moeworks.families.router import Router

__all__ = ["TOLERANCE", "Experts", "Slice", "activation_rule", "arguments_of", "open_experts", "slices"]

# Largest difference to the module's own output, relative to the sum of the magnitudes that were added up: kernels sum
# in another order, and a module may round between its steps where we do not.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 8e-3, torch.bfloat16: 4e-2}

Rule = Callable[[Tensor | None, Tensor], Tensor]  # (gate (m, I) or None, up (m, I)) -> key (m, I)


class Slice(NamedTuple):
    """The rows of a pass that one expert runs for."""

    expert: int
    taken: bool  # whether these are rows that somebody asked for
    rows: Tensor  # (m,) flat rows, padding counted
    slots: Tensor  # (m,) slot of the router's decision


@dataclass(frozen=True, eq=False)
class Experts:
    """How the experts of one router compute: projections, activation rule, down projection, norm if there is one."""

    router: Router
    module: nn.Module  # called as (hidden, ids, weights)
    weights: ExpertWeights
    rule: Rule
    norm: Callable[[Tensor], Tensor] | None

    @property
    def neurons(self) -> int:
        """Neurons of one expert, I."""
        return self.weights.up.shape[1]

    @property
    def identity(self) -> bool:
        """Whether ids beyond the experts with weights hand the input on (LongCat); elsewhere they do nothing."""
        return hasattr(self.module, "identity_expert")

    def project(self, expert: int, inputs: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the pre-activations (gate, up), (m, I) each; the gate is None where experts have none."""
        w = self.weights
        gate = None if w.gate is None else _linear(inputs, w.gate[expert], w.gate_bias, expert)
        return gate, _linear(inputs, w.up[expert], w.up_bias, expert)

    def outputs(self, expert: int, key: Tensor) -> Tensor:
        """Return what an expert gives out before it is weighted, (m, H)."""
        out = _linear(key, self.weights.down[expert], self.weights.down_bias, expert)
        return out if self.norm is None else self.norm(out)

    def compare(self, hidden: Tensor, ids: Tensor, weights: Tensor, own: Tensor) -> None:
        """Check on some rows that all this gives the module's own output, (n, H).

        Raises:
            Unsupported: it does not; the message says by how much.
        """
        with torch.no_grad():
            wide = torch.promote_types(own.dtype, torch.float32)
            total = torch.zeros(own.shape, dtype=wide, device=own.device)
            size = torch.zeros(len(own), dtype=wide, device=own.device)  # (n,) of all that was added up
            for part in slices(ids, weights, self.weights.experts):
                inputs = hidden[part.rows]
                out = self.outputs(part.expert, self.rule(*self.project(part.expert, inputs)))
                out = (out * weights[part.rows, part.slots, None]).to(wide)
                total.index_add_(0, part.rows, out)
                size.index_add_(0, part.rows, out.abs().amax(-1))
            if self.identity:
                total += self.passed_on(hidden, ids, weights)
                size += hidden.to(wide).abs().amax(-1)
            size = size.clamp(min=torch.finfo(wide).tiny)
            # NaN beside NaN is agreement: a model that overflows is not ours to mend.
            apart = torch.nan_to_num((total - own.to(wide)).abs().amax(-1) / size, nan=0.0)
            same = bool((total.isnan().any(-1) == own.isnan().any(-1)).all())
        worst, allowed = float(apart.max()) if len(apart) else 0.0, TOLERANCE.get(own.dtype, 4e-2)
        if worst > allowed or not same:
            raise Unsupported(
                f"the experts of '{self.router.name}' compute by another rule than the one that is known of them "
                f"(their output differs by {worst:.1e} of its size, {allowed:.0e} is rounding), so that nothing inside "
                "them can be read or changed."
            )

    def passed_on(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Return what identity experts add, (n, H) in float32 or wider."""
        share = weights.masked_fill(ids < self.weights.experts, 0).sum(-1, keepdim=True)  # (n, 1)
        return (hidden * share).to(torch.promote_types(hidden.dtype, torch.float32))


def open_experts(router: Router) -> Experts:
    """Return how the experts of a router compute.

    Raises:
        Unsupported: they are no module that is given a decision, their weights are not at hand, or they are quantised.
    """
    module = router.experts_module
    if module is None:
        raise Unsupported(
            f"the experts of '{router.name}' are not called with the router's decision, or their input is weighted "
            "and not their output; what is inside them cannot be told apart by expert."
        )
    if getattr(module, "_is_expert_parallel", False):
        raise Unsupported(f"the experts of '{router.name}' are spread over processes; load the model without that.")
    weights = expert_weights(router)
    if weights.down.device.type == "meta":
        raise Unsupported(f"the experts of '{router.name}' are offloaded; load the model so that all weights are held.")
    norm = getattr(module, "post_expert_norm", None) if getattr(module, "has_post_expert_norm", False) else None
    return Experts(router, module, weights, _rule(router, module, weights), norm)


def activation_rule(router: Router) -> Rule:
    """Return the activation rule of a router's experts, whose weights need not be held (a model on the meta device).

    Raises:
        Unsupported: they are no module that is given a decision, or do not show their activation.
    """
    if router.experts_module is None:
        raise Unsupported(f"the experts of '{router.name}' are no module that shows its activation function.")
    return _rule(router, router.experts_module, expert_weights(router))


def _rule(router: Router, module: nn.Module, weights: ExpertWeights) -> Rule:
    """Return the activation rule: the module's `_apply_gate` if it has a gate and that method, else its activation."""
    apply_gate: Any = getattr(module, "_apply_gate", None)
    activation: Any = next(
        (
            getattr(owner, name)
            for owner in (module, getattr(module, "mlp", None))
            for name in ("act_fn", "activation_fn", "activation")
            if callable(getattr(owner, name, None))
        ),
        None,
    )
    if weights.gate is not None and apply_gate is not None:
        interleaved = getattr(module, "is_concatenated", True) is False

        def fused(gate: Tensor | None, up: Tensor) -> Tensor:
            assert gate is not None
            pair = torch.stack([gate, up], -1).flatten(-2) if interleaved else torch.cat([gate, up], -1)  # (m, 2 I)
            result = apply_gate(pair)
            assert isinstance(result, Tensor)
            return result

        return fused
    if activation is None:
        raise Unsupported(f"the experts of '{router.name}' do not show their activation function.")

    def plain(gate: Tensor | None, up: Tensor) -> Tensor:
        result = activation(up) if gate is None else activation(gate) * up
        assert isinstance(result, Tensor)
        return result

    return plain


def slices(ids: Tensor, weights: Tensor, experts: int, taken: Tensor | None = None) -> Iterator[Slice]:
    """Yield the rows of each expert that runs, in ascending order; slots whose weight is exactly 0 do not run.

    Args:
        ids: (n, k) expert of each slot; ids from `experts` on have no weights and are left out.
        weights: (n, k) combine weights.
        experts: experts that have weights.
        taken: (n,) rows that are wanted, which come in slices of their own; None where all are.
    """
    top_k = ids.shape[-1]
    runs = ((weights != 0) & (ids < experts)).reshape(-1)
    place = runs.nonzero().squeeze(-1)  # (s,) flat slots
    keys = ids.reshape(-1)[place].long() * 2
    if taken is not None:
        keys = keys + (~taken[place // top_k]).long()
    order = keys.sort(stable=True)
    place, counts = place[order.indices], torch.bincount(order.values, minlength=2 * experts).tolist()
    start = 0
    for key, count in enumerate(counts):
        if count:
            part = place[start : start + count]
            yield Slice(key // 2, key % 2 == 0, part // top_k, part % top_k)
            start += count


def arguments_of(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return (hidden, ids, weights) of a call to an experts module, whatever the family names them."""
    given = list(args) if not kwargs else list(inspect.signature(forward).bind(*args, **kwargs).arguments.values())
    if len(given) != 3 or not all(isinstance(value, Tensor) for value in given):
        raise Unsupported("experts that are called with something else than (hidden, ids, weights) cannot be seen.")
    return tuple(given)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, expert: int) -> Tensor:
    """Return inputs @ weight^T + bias in the weights' dtype; `weight` is (out, in)."""
    return nn.functional.linear(inputs.to(weight.dtype), weight, None if bias is None else bias[expert])
