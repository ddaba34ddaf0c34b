"""Layers of experts for tests of merging, and a plain forward and statistics of them, written without the library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerRows, LayerStatistics
from moeworks.edit.transforms import TRANSFORMS

Kind = Literal["silu", "relu2", "gpt_oss"]
KINDS: tuple[Kind, ...] = ("silu", "relu2", "gpt_oss")

Array = NDArray[Any]


def silu(gate: Tensor | None, up: Tensor) -> Tensor:
    assert gate is not None
    return gate * torch.sigmoid(gate) * up


def relu2(gate: Tensor | None, up: Tensor) -> Tensor:
    return torch.relu(up) ** 2


def gpt_oss(gate: Tensor | None, up: Tensor) -> Tensor:
    assert gate is not None
    gate = gate.clamp(max=7.0)
    return (up.clamp(-7.0, 7.0) + 1) * gate * torch.sigmoid(1.702 * gate)


RULES = {"silu": silu, "relu2": relu2, "gpt_oss": gpt_oss}


def random_layer(
    *,
    experts: int = 6,
    neurons: int = 5,
    hidden: int = 4,
    kind: Kind = "silu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> LayerWeights:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    biases: dict[str, Tensor] = {}
    if kind == "gpt_oss":
        biases = {
            "gate_bias": normal(experts, neurons),
            "up_bias": normal(experts, neurons),
            "down_bias": normal(experts, hidden),
            "router_bias": normal(experts),
        }
    return LayerWeights(
        layer=3,
        up=normal(experts, neurons, hidden),
        down=normal(experts, hidden, neurons),
        router=normal(experts, hidden),
        gate=None if kind == "relu2" else normal(experts, neurons, hidden),
        selection_bias=normal(experts) if kind == "silu" else None,
        activation=RULES[kind],
        **biases,
    )


def with_copy(layer: LayerWeights, source: int, target: int, *, order: list[int] | None = None) -> LayerWeights:
    """Return the layer with expert `target` made a copy of `source`, its neurons in another order; routers stay."""
    index = list(range(layer.neurons)) if order is None else order
    tensors = {name: tensor.clone() for name, tensor in layer.per_expert().items()}
    for name in ("gate", "up", "gate_bias", "up_bias"):
        if name in tensors:
            tensors[name][target] = tensors[name][source][index]
    tensors["down"][target] = tensors["down"][source][:, index]
    if "down_bias" in tensors:
        tensors["down_bias"][target] = tensors["down_bias"][source]
    return LayerWeights(layer=layer.layer, activation=layer.activation, **tensors)


def expert_output(layer: LayerWeights, expert: int, hidden: Array) -> tuple[Array, Array]:
    """Return (outputs (n, H), what the down projection reads (n, I)) of one expert by its formula, in float64."""
    rule = layer.activation
    assert rule is not None
    x = torch.as_tensor(hidden).double()
    w = {name: tensor[expert].double() for name, tensor in layer.per_expert().items()}
    none = torch.zeros(1, dtype=torch.float64)
    up = torch.einsum("nh,ih->ni", x, w["up"]) + w.get("up_bias", none)
    gate = torch.einsum("nh,ih->ni", x, w["gate"]) + w.get("gate_bias", none) if "gate" in w else None
    key = rule(gate, up)
    out = torch.einsum("ni,hi->nh", key, w["down"]) + w.get("down_bias", none)
    return out.numpy(), key.numpy()


@dataclass
class Routed:
    """What a plain softmax top-k router with renormalised weights decides."""

    logits: Array  # (n, E)
    ids: Array  # (n, k)
    weights: Array  # (n, k)


def route(layer: LayerWeights, hidden: Array, k: int) -> Routed:
    logits = np.asarray(hidden, np.float64) @ layer.router.double().numpy().T
    if layer.router_bias is not None:
        logits = logits + layer.router_bias.double().numpy()
    ids, weights = [], []
    for row in logits:
        p = np.exp(row - row.max())
        p = p / p.sum()
        chosen = sorted(range(len(p)), key=lambda e: -p[e])[:k]
        ids.append(chosen)
        weights.append([p[e] / sum(p[c] for c in chosen) for e in chosen])
    return Routed(logits, np.array(ids), np.array(weights))


def layer_output(layer: LayerWeights, hidden: Array, k: int = 2) -> Array:
    """Return what the layer adds to the residual stream, (n, H)."""
    routed = route(layer, hidden, k)
    every = [expert_output(layer, expert, hidden)[0] for expert in range(layer.experts)]
    total = np.zeros((len(hidden), layer.down.shape[1]))
    for token in range(len(hidden)):
        for expert, weight in zip(routed.ids[token], routed.weights[token], strict=True):
            total[token] += weight * every[expert][token]
    return total


def statistics_of(layer: LayerWeights, hidden: Array, routed: Routed) -> LayerStatistics:
    """Return every statistic that merging reads, every expert run on every row, one token at a time."""
    experts, wide, neurons, tokens = layer.experts, layer.down.shape[1], layer.neurons, len(hidden)
    every = [expert_output(layer, expert, hidden)[0] for expert in range(experts)]
    arrays: dict[str, Array] = {
        "count": np.zeros(experts, np.int64),
        "gate": np.zeros(experts),
        "norm": np.zeros(experts),
        "gated_norm": np.zeros(experts),
        "logit_gram": np.zeros((experts, experts)),
        "output_sum": np.zeros((experts, wide)),
        "gated_output_sum": np.zeros((experts, wide)),
        "all_output_sum": np.stack([out.sum(0) for out in every]),
        "neuron_gate_peak": np.zeros((experts, neurons)),
    }
    for token in range(tokens):
        arrays["logit_gram"] += np.outer(routed.logits[token], routed.logits[token])
        for expert, weight in zip(routed.ids[token].tolist(), routed.weights[token].tolist(), strict=True):
            y = every[expert][token]
            arrays["count"][expert] += 1
            arrays["gate"][expert] += weight
            arrays["norm"][expert] += np.linalg.norm(y)
            arrays["gated_norm"][expert] += weight * np.linalg.norm(y)
            arrays["output_sum"][expert] += y
            arrays["gated_output_sum"][expert] += weight * y
            peak = np.abs(_gate(layer, expert, np.asarray(hidden[token])))
            arrays["neuron_gate_peak"][expert] = np.maximum(arrays["neuron_gate_peak"][expert], peak)
    rows = LayerRows(
        np.asarray(hidden, np.float32),
        routed.ids,
        routed.weights.astype(np.float32),
        routed.logits.astype(np.float32),
    )
    return LayerStatistics(
        layer=layer.layer,
        tokens=np.array([tokens]),
        labels=("all",),
        arrays={name: array[None] for name, array in arrays.items()},
        load_rows=lambda: rows,
    )


def _gate(layer: LayerWeights, expert: int, x: Array) -> Array:
    """Return a gate response of each neuron, (I,): the sigmoid-weighted pre-activation, of `up` without a gate."""
    tensor = layer.up if layer.gate is None else layer.gate
    z = tensor[expert].double().numpy() @ x
    return np.asarray(z / (1 + np.exp(-z)))


X = np.random.default_rng(7).normal(size=(60, 4))
MERGING = ["mean", "aligned_mean", "mc", "fix_dom", "zipit", "sub_moe", "merge_moe", "ream"]
OPTIONS: dict[str, dict] = {"mc": {"rows": 1.0}}
# What is merged as it stands needs copies in the same order, what aligns does not.
ALIGNING = {"aligned_mean", "mc", "fix_dom", "zipit", "ream"}
ORDER = [3, 0, 4, 1, 2]


def statistics(layer: LayerWeights, hidden: np.ndarray = X) -> LayerStatistics:
    return statistics_of(layer, hidden, route(layer, hidden, 2))


def groups_of(*groups: list[tuple[int, float]], layer: int = 3, experts: int = 6) -> LayerCut:
    return LayerCut(layer=layer, experts=experts, keep=tuple(g[0][0] for g in groups), groups=tuple(map(tuple, groups)))


PAIRS = groups_of([(0, 0.6), (4, 0.4)], [(1, 0.5), (5, 0.5)], [(2, 1.0)], [(3, 1.0)])


def planted(kind: Kind, *, ordered: bool, dtype: torch.dtype = torch.float32) -> LayerWeights:
    """Experts 4 and 5 do what 0 and 1 do, their neurons in another order unless `ordered`."""
    layer = random_layer(kind=kind, dtype=dtype)
    return with_copy(with_copy(layer, 0, 4, order=None if ordered else ORDER), 1, 5, order=None if ordered else ORDER)


def run(name: str, layer: LayerWeights, plan: LayerCut, given: LayerStatistics | None, **options) -> LayerWeights:
    return TRANSFORMS.get(name)(layer, plan, given, **{**OPTIONS.get(name, {}), **options})
