"""The model that is trained: stock Qwen3-MoE or GLM-4-MoE in every number, arranged for a fast backward pass on a CPU.

Needs torch. Weights are float32 masters; with `half=True` products, attention and the residual's branches run in
bfloat16 while the residual stream, norms, routers and the loss stay in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.lab.products import chunked_cross_entropy, routed_experts
from recipes.lab.router import Decision, Router, RouterSettings

__all__ = ["LanguageModel", "ModelSettings", "fuse"]

EPSILON = 1e-6


@dataclass(frozen=True)
class ModelSettings:
    """Sizes of the model."""

    router: RouterSettings
    vocabulary: int = 8192
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    expert_width: int = 96
    context: int = 256
    rope_theta: float = 10000.0
    half: bool = True

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


class Attention(nn.Module):
    """Causal attention with normalised queries and keys and rotary positions."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.qkv = nn.Linear(settings.hidden, 3 * settings.hidden, bias=False)
        self.out = nn.Linear(settings.hidden, settings.hidden, bias=False)
        self.query_norm = nn.Parameter(torch.ones(settings.head_width))
        self.key_norm = nn.Parameter(torch.ones(settings.head_width))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend over `x` (batch, tokens, hidden)."""
        settings = self.settings
        projected = functional.linear(x, self.qkv.weight.to(x.dtype))
        query, key, value = projected.view(*x.shape[:2], 3, settings.heads, settings.head_width).unbind(2)
        query = _rotated(query, self.query_norm, cos, sin).transpose(1, 2)  # (batch, heads, tokens, head width)
        key = _rotated(key, self.key_norm, cos, sin).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(query, key, value.transpose(1, 2), is_causal=True)
        return functional.linear(mixed.transpose(1, 2).flatten(2), self.out.weight.to(x.dtype))


class Experts(nn.Module):
    """Gated experts, and a shared one where the router's `combine` says so."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        experts, hidden, width = settings.router.experts, settings.hidden, settings.expert_width
        self.router = Router(hidden, settings.router)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))
        self.shared = settings.router.combine == "sum_and_shared"
        if self.shared:
            self.shared_gate_up = nn.Parameter(torch.empty(2 * width, hidden))
            self.shared_down = nn.Parameter(torch.empty(hidden, width))

    def forward(self, x: Tensor, routed_from: Tensor) -> tuple[Tensor, Decision]:
        """Route by `routed_from` (tokens, hidden) float32, compute on `x`, the same in the dtype of products."""
        decision = self.router(routed_from)
        mixed = routed_experts(
            x, decision.weights, decision.ids, self.gate_up.to(x.dtype), self.down.to(x.dtype)
        )  # (tokens, hidden)
        if self.shared:
            inside = _gated(functional.linear(x, self.shared_gate_up.to(x.dtype)))
            mixed = mixed + functional.linear(inside, self.shared_down.to(x.dtype))
        return mixed, decision


class Block(nn.Module):
    """Attention, then experts, each on the normalised residual stream."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.dtype = torch.bfloat16 if settings.half else torch.float32
        self.attention_norm = nn.Parameter(torch.ones(settings.hidden))
        self.experts_norm = nn.Parameter(torch.ones(settings.hidden))
        self.attention = Attention(settings)
        self.experts = Experts(settings)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Decision]:
        """Return the residual stream (batch, tokens, hidden) and what the router decided."""
        x = x + self.attention(_norm(x, self.attention_norm).to(self.dtype), cos, sin)
        normed = _norm(x, self.experts_norm).flatten(0, 1)
        mixed, decision = self.experts(normed.to(self.dtype), normed)
        return x + mixed.view_as(x), decision


class LanguageModel(nn.Module):
    """Embedding, blocks, norm, and the embedding again as the head."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = nn.Parameter(torch.empty(settings.vocabulary, settings.hidden))
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.Parameter(torch.ones(settings.hidden))
        frequencies = settings.rope_theta ** -(torch.arange(0, settings.head_width, 2) / settings.head_width)
        angles = torch.outer(torch.arange(settings.context).float(), frequencies).repeat(1, 2).unsqueeze(1)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos(), persistent=False)  # (context, 1, head width)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialise()

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return [cast(Block, block) for block in self.blocks]

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            if name == "embedding" or "router" in name:
                deviation = 0.02
            elif name.endswith("out.weight") or "down" in name:
                deviation = 1e-3  # branches start small, so that the residual stream starts as the embedding
            else:
                deviation = 1 / math.sqrt(parameter.shape[-1])
            nn.init.normal_(parameter, std=deviation)

    def hidden_states(self, ids: Tensor) -> tuple[Tensor, list[Decision]]:
        """Return the normalised last hidden states (batch, tokens, hidden) and the decision of every layer."""
        x = functional.embedding(ids, self.embedding)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        decisions = []
        for block in self.layers:
            x, decision = block(x, cos, sin)
            decisions.append(decision)
        return _norm(x, self.norm), decisions

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, list[Decision]]:
        """Return the mean cross entropy in nats and the decisions; `ids` and `targets` are (batch, tokens)."""
        x, decisions = self.hidden_states(ids)
        dtype = torch.bfloat16 if self.settings.half else torch.float32
        loss = chunked_cross_entropy(x.flatten(0, 1).to(dtype), self.embedding.to(dtype), targets.flatten())
        return loss, decisions


def fuse() -> None:
    """Compile what is many small steps over memory, norms and rotations, into one each."""
    for name in ("_norm", "_rotated"):
        globals()[name] = torch.compile(globals()[name])


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, EPSILON)


def _rotated(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    normed = _norm(x.float(), weight)  # (batch, tokens, heads, head width)
    first, second = normed.chunk(2, -1)
    return (normed * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def _gated(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return functional.silu(gate) * up
