"""The products that an experts module makes in its own forward, read and not made again, proved at first use.

Nearly every family runs its experts through one kernel of transformers: slots sorted by expert, one grouped product
into the experts and one out of them. Those two products are read while the module's own forward runs, so that its
output, and with it all routing after it, is the plain model's to the bit, and nothing is computed twice. Where a module
runs in another way (a loop of its own, another kernel) its experts are recomputed beside it, as `observe_experts` does.

Letters in shapes: n rows of a pass, k slots, S slots that ran, E experts with weights, H wide outside, I neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from moeworks.engines.transformers.experts import TOLERANCE, Experts, arguments_of, slices

__all__ = ["ExpertProducts", "Products"]


class Products(NamedTuple):
    """What the slots of one pass computed, sorted by expert; slots of padding are among them."""

    rows: Tensor  # (S,) flat row, padding counted
    slots: Tensor  # (S,) slot of the router's decision
    bounds: tuple[int, ...]  # (E + 1,) the slots of expert e are bounds[e] to bounds[e + 1]
    inputs: Tensor  # (S, H)
    outputs: Tensor  # (S, H) before they are weighted
    key: Tensor | None  # (S, I) what the down projection reads, if it was asked for
    gate: Tensor | None  # (S, I) pre-activation of the gate, or of the only projection where there is no gate


class _Reader(TorchFunctionMode):
    """Sees every torch function that an experts module calls and keeps its two grouped products and its sort."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self._ranges = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in (first, second)]
        self.products: list[list[tuple[Tensor, Tensor]]] = [[], []]  # of each weight: (what went in, what came out)
        self.order: Tensor | None = None  # (n k,) flat slots in the order of the products

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.sort:
            self.order = result.indices
        elif _is_grouped_product(args, result):
            place = args[1].data_ptr()
            for kept, (start, stop) in zip(self.products, self._ranges, strict=True):
                if start <= place < stop:
                    kept.append((args[0], result))
        return result


def _is_grouped_product(args: Any, result: Any) -> bool:
    """Whether a call took (slots, in) and (experts, in, out) to (slots, out)."""
    if len(args) < 2 or not all(isinstance(value, Tensor) for value in (result, args[0], args[1])):
        return False
    return bool(result.ndim == args[0].ndim == 2 and args[1].ndim == 3)


@dataclass
class ExpertProducts:
    """Reads the products of one experts module, pass after pass.

    Attributes:
        experts: how the experts compute.
        inside: whether keys and pre-activations are wanted too.
        own: whether the module's own products are read; None until the first pass has shown whether they can be.
    """

    experts: Experts
    inside: bool = False
    own: bool | None = None
    _proved: bool = False

    def run(self, forward: Callable[..., Tensor], args: Any, kwargs: Any) -> tuple[Tensor, Products]:
        """Run the module's own forward and return its output and what it was made of.

        Raises:
            Unsupported: the module computes by another rule than the one that is known of it.
        """
        hidden, ids, weights = arguments_of(forward, args, kwargs)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        products = None
        if self.own is not False and (first := self._first_weight()) is not None:
            with _Reader(first, self.experts.module.down_proj) as reader:  # type: ignore[arg-type]
                output = forward(*args, **kwargs)
            products = self._read(reader, ids)
        else:
            output = forward(*args, **kwargs)
        if not self._proved:
            flat = output.reshape(hidden.shape[0], -1)
            if products is not None and not self._explains(products, hidden, ids, weights, flat):
                products = None
            self.own = products is not None
            if products is None:
                self.experts.compare(hidden, ids, weights, flat)
            self._proved = True
        return output, self._recompute(hidden, ids, weights) if products is None else products

    def _first_weight(self) -> Tensor | None:
        module: Any = self.experts.module
        if getattr(getattr(module, "config", None), "_experts_implementation", None) != "grouped_mm":
            return None
        return getattr(module, "gate_up_proj", None) if module.has_gate else getattr(module, "up_proj", None)

    def _read(self, reader: _Reader, ids: Tensor) -> Products | None:
        """Return the products that were seen, or None if they are not one in and one out for all slots."""
        (into, out), order = reader.products, reader.order
        if len(into) != 1 or len(out) != 1 or order is None or len(order) != ids.numel():
            return None
        (inputs, projected), (key, outputs) = into[0], out[0]
        if len(outputs) != len(order) or len(projected) != len(order):
            return None
        top_k, total = ids.shape[-1], self.experts.weights.experts
        counts = torch.bincount(ids.reshape(-1), minlength=total)[:total]
        bounds = (0, *counts.cumsum(0).tolist())
        stop = bounds[-1]  # slots after it belong to experts without weights
        if self.experts.norm is not None:
            outputs = self.experts.norm(outputs[:stop])
        return Products(
            rows=order[:stop] // top_k,
            slots=order[:stop] % top_k,
            bounds=bounds,
            inputs=inputs[:stop],
            outputs=outputs[:stop],
            key=key[:stop] if self.inside else None,
            gate=self._gate_of(projected[:stop]) if self.inside else None,
        )

    def _gate_of(self, projected: Tensor) -> Tensor:
        if self.experts.weights.gate is None:
            return projected
        if getattr(self.experts.module, "is_concatenated", True) is False:
            return projected[:, 0::2]
        return projected[:, : projected.shape[1] // 2]

    def _recompute(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Products:
        """Run the experts beside the module, one after another."""
        experts = self.experts
        parts = []
        counts = [0] * experts.weights.experts
        for part in slices(ids, weights, experts.weights.experts):
            inputs = hidden[part.rows]
            gate, up = experts.project(part.expert, inputs)
            key = experts.rule(gate, up)
            counts[part.expert] = len(part.rows)
            inside = (key, up if gate is None else gate) if self.inside else ()
            parts.append((part.rows, part.slots, inputs, experts.outputs(part.expert, key), *inside))
        bounds = (0, *torch.tensor(counts).cumsum(0).tolist())
        if not parts:
            empty = torch.empty(0, dtype=torch.long, device=hidden.device)
            none = hidden[:0], hidden.new_empty(0, experts.weights.down.shape[1])
            inside_none = hidden.new_empty(0, experts.neurons) if self.inside else None
            return Products(empty, empty, bounds, *none, inside_none, inside_none)
        rows, slots, inputs, outputs, *inside_all = (torch.cat(column) for column in zip(*parts, strict=True))
        key_all, gate_all = inside_all if self.inside else (None, None)
        return Products(rows, slots, bounds, inputs, outputs, key_all, gate_all)

    def _explains(self, products: Products, hidden: Tensor, ids: Tensor, weights: Tensor, output: Tensor) -> bool:
        """Whether the weighted sum of the products is the module's own output, row by row, to rounding."""
        with torch.no_grad():
            wide = torch.promote_types(output.dtype, torch.float32)
            weight = weights[products.rows, products.slots].to(wide)
            weighted = torch.where(weight[:, None] != 0, products.outputs.to(wide) * weight[:, None], 0)
            total = torch.zeros(output.shape, dtype=wide, device=output.device)
            total.index_add_(0, products.rows, weighted)
            size = torch.zeros(len(output), dtype=wide, device=output.device)
            size.index_add_(0, products.rows, weighted.abs().amax(-1))
            if self.experts.identity:
                total += self.experts.passed_on(hidden, ids, weights)
                size += hidden.to(wide).abs().amax(-1)
            size = size.clamp(min=torch.finfo(wide).tiny)
            apart = torch.nan_to_num((total - output.to(wide)).abs().amax(-1) / size, nan=0.0)
            same_nan = bool((total.isnan().any(-1) == output.isnan().any(-1)).all())
        return same_nan and (not len(apart) or float(apart.max()) <= TOLERANCE.get(output.dtype, 4e-2))
