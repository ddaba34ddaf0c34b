"""Adds what one layer shows of a pass to its statistics: float64 sums, whole-number counts, largest values.

Letters in shapes: D labels, n rows of a pass, k slots, S slots that ran, E experts, H wide, I neurons. Every row
carries the number of its label, and rows of padding the number D: they fall into a bin of their own that is thrown
away, so that no large tensor is copied to leave them out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.edit.collecting.cost import LayerSize
from moeworks.edit.collecting.products import Products
from moeworks.edit.collecting.sets import distinct_sets, joined_sets
from moeworks.edit.statistics import COLUMNS
from moeworks.engines.transformers.experts import Experts

__all__ = ["COUNTS", "OF_LOGITS", "OF_OUTPUTS", "LayerGather", "Seen"]

Array = NDArray[Any]
COUNTS = ("count", "first", "pairs")  # whole numbers
OF_LOGITS = ("top_logit", "logit_gram")
OF_OUTPUTS = tuple(
    name
    for name, (group, *_) in COLUMNS.items()
    if group in ("means", "everywhere", "neurons", "gradients")
    or name in ("norm", "norm_square", "gated_norm", "turn", "own_turn", "peak")
)
CHUNK = 2048  # slots that are widened to float32 at once: they stay in the cache


class Seen(NamedTuple):
    """What one layer showed of one pass."""

    labels: Tensor  # (n,) number of the label of each row, D for padding
    ids: Tensor  # (n, k)
    weights: Tensor  # (n, k)
    logits: Tensor | None  # (n, E)
    hidden: Tensor | None  # (n, H) what the experts read
    products: Products | None
    turn: Tensor | None  # (n,) max(1 - cos(h, h + R), 0)


@dataclass
class LayerGather:
    """The statistics of one layer so far.

    Attributes:
        layer, experts, top_k: of the router.
        labels: how many values the label has, D.
        names: columns that are wanted, out of COLUMNS.
        inner: how the experts compute, or None where that is not known.
        sets: whether distinct sets of chosen experts are kept.
        refused: columns that this layer cannot give, with the reason; they are dropped.
    """

    layer: int
    experts: int
    top_k: int
    labels: int
    names: Collection[str]
    inner: Experts | None = None
    sets: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)  # (D, E, …)
    _sets: list[tuple[Array, Array]] = field(default_factory=list)

    @property
    def size(self) -> LayerSize:
        """What of it matters for the cost; widths that are not known are 0."""
        if self.inner is None:
            return LayerSize(self.experts, self.top_k, 0, 0, 4)
        down = self.inner.weights.down  # (E, H, I)
        return LayerSize(self.experts, self.top_k, down.shape[1], down.shape[2], down.itemsize)

    def wants(self, *names: str) -> bool:
        """Whether one of these columns is wanted and not refused."""
        return any(name in self.names and name not in self.refused for name in names)

    def refuse(self, names: Collection[str], reason: str) -> None:
        """Leave columns out, for a reason."""
        for name in names:
            if name in self.names:
                self.refused.setdefault(name, reason)
                self.sums.pop(name, None)

    @torch.no_grad()
    def add(self, seen: Seen) -> None:
        """Add one pass."""
        ids, weights = seen.ids.long(), seen.weights
        runs = (weights != 0) & (ids < self.experts)  # (n, k)
        bins = self.labels * self.experts
        real = seen.labels < self.labels
        slot_bin = torch.where(runs & real[:, None], seen.labels[:, None] * self.experts + ids, bins)  # (n, k)
        self._of_router(seen, ids, weights, runs, real, slot_bin)
        if seen.products is not None:
            self._of_outputs(seen, seen.products, weights, slot_bin)
        if self.sets:
            self._add_sets(ids.masked_fill(~runs, -1)[real])

    # ------------------------------------------------------------------ the router alone

    def _of_router(
        self, seen: Seen, ids: Tensor, weights: Tensor, runs: Tensor, real: Tensor, slot_bin: Tensor
    ) -> None:
        gate = _double(weights)
        self._count("count", slot_bin)
        self._sum("gate", slot_bin, gate)
        self._sum("gate_square", slot_bin, gate * gate)
        if self.wants("first", "first_gate"):
            best = gate.masked_fill(~runs, -torch.inf).argmax(-1, keepdim=True)  # (n, 1) the first of equals
            first_bin = slot_bin.gather(-1, best)
            self._count("first", first_bin)
            self._sum("first_gate", first_bin, gate.gather(-1, best))
        if seen.logits is not None and self.wants("top_logit"):
            largest = seen.logits.max(-1)
            place = torch.where(real, seen.labels * self.experts + largest.indices, self.labels * self.experts)
            self._sum("top_logit", place, _double(largest.values))
        if self.wants("pairs", "logit_gram"):
            chosen = torch.zeros(len(ids), self.experts, device=ids.device)
            chosen.scatter_add_(1, ids.clamp(max=self.experts - 1), runs.float())
            for label in torch.unique(seen.labels[real]).tolist():
                rows = seen.labels == label
                if self.wants("pairs"):
                    part = chosen[rows]
                    self._put("pairs", label, (part.T @ part).round().long())  # exact below 2^24 rows a pass
                if seen.logits is not None and self.wants("logit_gram"):
                    logits = _double(seen.logits[rows])
                    self._put("logit_gram", label, logits.T @ logits)

    # ------------------------------------------------------------------ outputs of experts

    def _of_outputs(self, seen: Seen, products: Products, weights: Tensor, slot_bin: Tensor) -> None:
        place = products.rows * weights.shape[-1] + products.slots  # (S,) flat slot
        where = slot_bin.reshape(-1)[place]  # (S,)
        gate = _double(weights.reshape(-1)[place])
        norm, peak, dot = self._sizes(products)
        gated = gate * norm
        self._sum("norm", where, norm)
        self._sum("norm_square", where, norm * norm)
        self._sum("gated_norm", where, gated)
        if dot is not None and seen.hidden is not None:
            width = torch.linalg.vector_norm(seen.hidden, dim=-1, dtype=torch.float32).double().clamp(min=1e-8)  # (n,)
            self._sum("own_turn", where, gated - gate * dot / width[products.rows])
        if seen.turn is not None:
            self._sum("turn", where, gated * seen.turn.double()[products.rows])
        if peak is not None:
            self._largest("peak", where, peak)
        if self.wants("output_sum"):
            self._rows("output_sum", where, products.outputs, None)
        if self.wants("gated_output_sum"):
            self._rows("gated_output_sum", where, products.outputs, gate)
        if self.wants("neuron_square", "neuron_peak", "neuron_gate_peak", "neuron_projection"):
            self._of_neurons(products, where, gate, norm)
        if self.wants("all_output_sum") and seen.hidden is not None:
            self._everywhere(seen.hidden, seen.labels)

    def _sizes(self, products: Products) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return |y|, the largest |y_i| and <x, y> of each slot, (S,) float64 each, computed in float32."""
        wants_peak, wants_dot = self.wants("peak"), self.wants("own_turn")
        same_width = products.inputs.shape[-1] == products.outputs.shape[-1]
        norms, peaks, dots = [], [], []
        for start in range(0, len(products.outputs), CHUNK):
            out = products.outputs[start : start + CHUNK].float()
            norms.append(torch.linalg.vector_norm(out, dim=-1))
            if wants_peak:
                peaks.append(torch.maximum(out.amax(-1), -out.amin(-1)))  # far faster than the infinity norm
            if wants_dot and same_width:
                dots.append(torch.linalg.vecdot(products.inputs[start : start + CHUNK].float(), out))
        empty = torch.zeros(0, dtype=torch.float64, device=products.outputs.device)
        norm = torch.cat(norms).double() if norms else empty
        peak = (torch.cat(peaks).double() if peaks else empty) if wants_peak else None
        dot = (torch.cat(dots).double() if dots else empty) if wants_dot and same_width else None
        return norm, peak, dot

    def _of_neurons(self, products: Products, where: Tensor, gate: Tensor, norm: Tensor) -> None:
        assert products.key is not None
        assert products.gate is not None
        assert self.inner is not None
        key = products.key.float()  # (S, I)
        if self.wants("neuron_square", "neuron_peak"):
            gated = key * gate.float()[:, None]
            if self.wants("neuron_square"):
                self._rows("neuron_square", where, gated.square(), None)
            if self.wants("neuron_peak"):
                self._largest("neuron_peak", where, gated.abs())
        if self.wants("neuron_gate_peak"):
            self._largest("neuron_gate_peak", where, _response(self.inner, products).float().abs())
        if self.wants("neuron_projection"):
            down = self.inner.weights.down
            unit = products.outputs.float() / norm.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
            projected = torch.empty_like(key)
            for expert, (start, stop) in enumerate(zip(products.bounds, products.bounds[1:], strict=False)):
                if stop > start:
                    projected[start:stop] = unit[start:stop] @ down[expert].float()
            self._rows("neuron_projection", where, projected * key, None)

    def _everywhere(self, hidden: Tensor, labels: Tensor) -> None:
        """Run every expert on every row, a chunk at a time; without a norm only the summed keys go through `down`."""
        assert self.inner is not None
        inner, real = self.inner, labels < self.labels
        rows, numbers = hidden[real], labels[real]
        total = self._total("all_output_sum", (inner.weights.down.shape[1],), hidden.device)
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            member = torch.nn.functional.one_hot(numbers[start : start + CHUNK], self.labels).T.float()  # (D, m)
            for expert in range(inner.weights.experts):
                key = inner.rule(*inner.project(expert, part))
                if inner.norm is not None:
                    total[:, expert] += _to(member @ inner.outputs(expert, key).float(), total)
                    continue
                summed = (member @ key.float()) @ inner.weights.down[expert].float().T  # (D, H)
                if inner.weights.down_bias is not None:
                    summed = summed + member.sum(1, keepdim=True) * inner.weights.down_bias[expert].float()
                total[:, expert] += _to(summed, total)

    # ------------------------------------------------------------------ gradients

    @torch.no_grad()
    def add_gradients(self, expert: int, labels: Tensor, key: Tensor, gradient: Tensor) -> None:
        """Add neuron_loss of some rows of one expert.

        Args:
            expert: which one.
            labels: (m,) number of the label of each row.
            key: (m, I) what its down projection read.
            gradient: (m, H) of the loss by its output before it was weighted.
        """
        assert self.inner is not None
        along = gradient.float() @ self.inner.weights.down[expert].float()  # (m, I)
        self._rows("neuron_loss", labels * self.experts + expert, (along * key.float()).square(), None)

    # ------------------------------------------------------------------ sums

    def _total(self, name: str, tail: tuple[int, ...], device: torch.device) -> Tensor:
        if name not in self.sums:
            dtype = torch.int64 if name in COUNTS else torch.float64
            shape = (self.labels, self.experts, *tail)
            self.sums[name] = torch.zeros(shape, dtype=dtype, device="cpu" if device.type == "mps" else device)
        return self.sums[name]

    def _count(self, name: str, where: Tensor) -> None:
        if self.wants(name):
            bins = self.labels * self.experts
            counts = torch.bincount(where.reshape(-1), minlength=bins + 1)[:bins]
            total = self._total(name, (), where.device)
            total += _to(counts.view(self.labels, -1), total)

    def _sum(self, name: str, where: Tensor, values: Tensor) -> None:
        if self.wants(name):
            self._rows(name, where.reshape(-1), values.reshape(-1), None)

    def _rows(self, name: str, where: Tensor, values: Tensor, factor: Tensor | None) -> None:
        """Add rows of values, (S, …), to their bins, in float64."""
        total = self._total(name, tuple(values.shape[1:]), values.device)
        bins = self.labels * self.experts
        added = torch.zeros(bins + 1, *values.shape[1:], dtype=torch.float64, device=total.device)
        for start in range(0, len(values), CHUNK if values.ndim > 1 else max(len(values), 1)):
            part = slice(start, start + CHUNK) if values.ndim > 1 else slice(None)
            rows = _to(_double(values[part]), total)
            if factor is not None:
                rows = rows * _to(factor[part], total)[:, None]
            added.index_add_(0, where[part].to(total.device), rows)
        total += added[:bins].view(total.shape)

    def _largest(self, name: str, where: Tensor, values: Tensor) -> None:
        if not self.wants(name):
            return
        total = self._total(name, tuple(values.shape[1:]), values.device)
        bins = self.labels * self.experts
        largest = torch.zeros(bins + 1, *values.shape[1:], dtype=torch.float64, device=total.device)
        index = where.view(-1, *[1] * (values.ndim - 1)).expand_as(values).to(total.device)
        largest.scatter_reduce_(0, index, _to(values.double(), total), "amax")
        torch.maximum(total, largest[:bins].view(total.shape), out=total)

    def _put(self, name: str, label: int, values: Tensor) -> None:
        total = self._total(name, tuple(values.shape[1:]), values.device)
        total[label] += _to(values, total)

    # ------------------------------------------------------------------ sets

    def _add_sets(self, ids: Tensor) -> None:
        chosen = np.sort(ids.cpu().numpy(), axis=1).astype(np.int32)
        self._sets.append(distinct_sets(chosen, np.ones(len(chosen), np.int64)))
        if sum(len(counts) for _, counts in self._sets[1:]) > max(len(self._sets[0][1]), 65536):
            self._sets = [joined_sets(self._sets)]

    # ------------------------------------------------------------------ in and out

    def finish(self, device: torch.device) -> None:
        """Make sure that every column that is wanted is there, of zeros where no slot ever came."""
        tails = {"pairs": (self.experts,), "logit_gram": (self.experts,)}
        for name in self.names:
            if name in self.refused or name in self.sums:
                continue
            group = COLUMNS[name][0]
            if self.inner is not None and group in ("means", "everywhere"):
                tails[name] = (self.inner.weights.down.shape[1],)
            elif self.inner is not None and group in ("neurons", "gradients"):
                tails[name] = (self.inner.neurons,)
            self._total(name, tails.get(name, ()), device)

    def arrays(self) -> dict[str, Array]:
        """Return the arrays, (D, E, …), and `sets`, (m, k), with `set_counts`, (m,), where they are kept."""
        arrays: dict[str, Array] = {name: total.cpu().numpy() for name, total in self.sums.items()}
        if self.sets:
            self._sets = [joined_sets(self._sets)] if self._sets else []
            none = np.zeros((0, self.top_k), np.int32), np.zeros(0, np.int64)
            arrays["sets"], arrays["set_counts"] = self._sets[0] if self._sets else none
        return arrays

    def load(self, arrays: Mapping[str, Array], device: torch.device) -> None:
        """Go on from arrays that `arrays` gave."""
        place = torch.device("cpu") if device.type == "mps" else device
        self.sums = {
            name: torch.from_numpy(np.array(array)).to(place)
            for name, array in arrays.items()
            if name not in ("sets", "set_counts")
        }
        if self.sets and len(arrays["set_counts"]):
            self._sets = [(np.array(arrays["sets"]), np.array(arrays["set_counts"]))]


def _response(experts: Experts, products: Products) -> Tensor:
    """Return act(gate), (S, I): the slope of the key in `up`, which is the key itself where there is no gate.

    Every known rule is act(gate) * up or act(gate) * (up + 1), clamped far from 0 and 1.
    """
    assert products.gate is not None
    assert products.key is not None
    if experts.weights.gate is None:
        return products.key
    return experts.rule(products.gate, torch.ones_like(products.gate)) - experts.rule(
        products.gate, torch.zeros_like(products.gate)
    )


def _double(values: Tensor) -> Tensor:
    return values.double() if values.device.type != "mps" else values.cpu().double()


def _to(values: Tensor, like: Tensor) -> Tensor:
    return values.to(device=like.device, dtype=like.dtype)
