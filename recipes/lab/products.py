"""The two expensive parts of a training step, with hand-written gradients: routed experts, and the cross entropy.

Needs torch. Both are exact in float32; in bfloat16 each matrix product sums in float32. `tests/recipes` compares them
with plain autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["chunked_cross_entropy", "routed_experts"]


ROUND = 64  # oneDNN compiles a kernel for every shape: experts' rows are filled up to few different counts


class _RoutedExperts(torch.autograd.Function):
    """One expert after the other, so that what an expert touches stays in the processor's cache."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, place: Tensor, counts: list[int]
    ) -> Tensor:
        k, slots = weights.shape[1], sum(counts)
        rows = place.new_zeros(slots)  # (slots,) token of each slot
        rows[place] = torch.arange(len(place)) // k
        by_slot = x.new_zeros(slots, 1)  # a slot that only fills up has weight 0
        by_slot[place] = weights.to(x.dtype).view(-1, 1)
        hidden = x.new_empty(slots, gate_up.shape[1])  # (slots, 2 * width)
        outputs = x.new_empty(slots, x.shape[1])  # (slots, hidden)
        parts = zip(*(torch.split(part, counts) for part in (rows, by_slot, hidden, outputs)), strict=True)
        for expert, (of, weight, inner, out) in enumerate(parts):
            torch.mm(x.index_select(0, of), gate_up[expert].t(), out=inner)
            gate, up = inner.chunk(2, 1)
            torch.mm(torch.nn.functional.silu(gate).mul_(up).mul_(weight), down[expert].t(), out=out)
        ctx.save_for_backward(x, gate_up, down, rows, by_slot, hidden, place)
        ctx.counts, ctx.k = counts, k
        return _sum_of_slots(outputs, place, k)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        x, gate_up, down, rows, by_slot, hidden, place = ctx.saved_tensors
        counts, gradient = ctx.counts, gradients[0].to(x.dtype)
        to_gate_up, to_down = torch.empty_like(gate_up), torch.empty_like(down)
        to_rows = x.new_empty(len(rows), x.shape[1])  # (slots, hidden)
        to_weights = torch.empty(len(rows), dtype=torch.float32)  # (slots,)
        parts = zip(*(torch.split(part, counts) for part in (rows, by_slot, hidden, to_rows, to_weights)), strict=True)
        for expert, (of, weight, inner, to_x, to_weight) in enumerate(parts):
            gate, up = inner.chunk(2, 1)
            sigmoid = torch.sigmoid(gate)
            silu = gate * sigmoid
            inside = silu * up
            of_output = gradient.index_select(0, of)
            torch.mm(of_output.t(), inside * weight, out=to_down[expert])
            of_inside = torch.mm(of_output, down[expert])
            to_weight.copy_((of_inside * inside).sum(1))
            of_inside.mul_(weight)
            to_inner = torch.empty_like(inner)
            to_gate, to_up = to_inner.chunk(2, 1)
            torch.mul(of_inside, silu, out=to_up)
            # d silu / d gate = sigmoid + silu * (1 - sigmoid)
            torch.mul(of_inside.mul_(up), torch.addcmul(sigmoid + silu, silu, sigmoid, value=-1), out=to_gate)
            torch.mm(to_inner, gate_up[expert], out=to_x)
            torch.mm(to_inner.t(), x.index_select(0, of), out=to_gate_up[expert])
        to_tokens = _sum_of_slots(to_rows, place, ctx.k)
        return to_tokens, to_weights[place].view(-1, ctx.k), to_gate_up, to_down, None, None


def routed_experts(x: Tensor, weights: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return Σ_k weight_k · down_e(silu(gate_e x) · up_e x), (tokens, hidden), in the dtype of `x`.

    `x` (tokens, hidden), `weights` and `ids` (tokens, k), `gate_up` (experts, 2 * width, hidden) with the gates first,
    `down` (experts, hidden, width); both matrices in the dtype of `x`.
    """
    flat = ids.flatten()
    counts = torch.bincount(flat, minlength=len(gate_up))  # (experts,)
    filled = -(-counts // ROUND) * ROUND
    order = flat.argsort(stable=True)
    shift = (filled.cumsum(0) - filled) - (counts.cumsum(0) - counts)  # (experts,)
    place = torch.empty_like(order)  # (tokens * k,) where each choice stands among the slots, expert by expert
    place[order] = torch.arange(len(order)) + shift[flat[order]]
    mixed: Tensor = _RoutedExperts.apply(x, weights, gate_up, down, place, filled.tolist())  # type: ignore[no-untyped-call]
    return mixed


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient of the logits is computed with the loss, a few tokens at a time, and kept in the dtype of `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        tokens = len(x)
        gradient = x.new_empty(tokens, len(weight))  # (tokens, vocabulary)
        loss = torch.zeros((), dtype=torch.float32)
        for rows, right, part in zip(*(torch.split(part, chunk) for part in (x, targets, gradient)), strict=True):
            torch.mm(rows, weight.t(), out=part)
            logits = part.float()  # (chunk, vocabulary)
            logits.sub_(logits.amax(1, keepdim=True))
            own = logits.gather(1, right.unsqueeze(1))
            total = logits.exp_().sum(1, keepdim=True)
            loss += (total.log() - own).sum()
            logits.div_(total * tokens).scatter_add_(1, right.unsqueeze(1), torch.full_like(own, -1 / tokens))
            part.copy_(logits)
        ctx.save_for_backward(x, weight, gradient)
        return loss / tokens

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, gradient = ctx.saved_tensors
        factor = gradients[0].to(x.dtype)
        return torch.mm(gradient, weight) * factor, torch.mm(gradient.t(), x) * factor, None, None


def chunked_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, *, chunk: int = 256) -> Tensor:
    """Return the mean cross entropy, in nats, of `x @ weight.T` against the targets.

    `x` (tokens, hidden), `weight` (vocabulary, hidden), `targets` (tokens,).
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(x, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return loss


def _sum_of_slots(by_slot: Tensor, place: Tensor, k: int) -> Tensor:
    """Add up the k rows of each token, (tokens, hidden)."""
    return by_slot.index_select(0, place).view(-1, k, by_slot.shape[1]).sum(1)
