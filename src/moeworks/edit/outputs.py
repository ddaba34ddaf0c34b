"""The full list of tensors of an edited checkpoint, each with its shape and how it is made, before any is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moeworks.edit.checkpoint.convert import pack, unpack
from moeworks.edit.checkpoint.files import Reader
from moeworks.edit.checkpoint.layout import LayerLayout
from moeworks.edit.checkpoint.names import is_extra, split
from moeworks.edit.checkpoint.source import Checkpoint
from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import EditPlan
from moeworks.edit.rewrite import Options, Rewrite
from moeworks.edit.tables import replace_in_table
from moeworks.edit.transformed import new_layer
from moeworks.errors import RunFailed

__all__ = ["Output", "Sources", "meta_reader", "outputs"]

_TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_FLAT = ("flat_gate", "flat_up", "flat_down")


class Sources:
    """What tensors are made from while a checkpoint is written: one reader, and the last layer that was computed."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._reader = Reader(checkpoint.files)
        self._layer: tuple[str, dict[str, Tensor]] = ("", {})

    def view(self, name: str) -> Tensor:
        """Return an old tensor as it is; its file stays mapped until `release`."""
        return self._reader.get(name)

    def copied(self, name: str, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what `change` makes of an old tensor; the file is unmapped at once."""
        reader = Reader(self._checkpoint.files)
        try:
            before = reader.get(name)
            changed = change(before)
            shares = changed.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
            return changed.clone(memory_format=torch.contiguous_format) if shares else changed
        finally:
            reader.close()

    def computed(self, key: str, name: str, make: Callable[[Reader], dict[str, Tensor]]) -> Tensor:
        """Return a tensor of a layer that is computed as a whole; the layer is let go of tensor by tensor."""
        if self._layer[0] != key or name not in self._layer[1]:
            self._layer = ("", {})
            reader = Reader(self._checkpoint.files)
            self._layer = (key, make(reader))
            reader.close()
        return self._layer[1].pop(name)

    def release(self) -> None:
        """Unmap the files of the tensors that were returned as they are."""
        self._reader.close()


@dataclass(frozen=True, eq=False)
class Output:
    """A tensor of the new checkpoint: its shape, its dtype as safetensors spells it, its bytes, and how it is made."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    make: Callable[[Sources], Tensor]


def outputs(
    checkpoint: Checkpoint, plan: EditPlan, planned: Sequence[Rewrite], options: Options, statistics: Any
) -> list[Output]:
    """Return every tensor of the new checkpoint in a fixed order: that of the old one, each edited layer in one run."""
    by_prefix = {rewrite.layout.prefix: rewrite for rewrite in planned}
    edited = {name: r.layout.prefix for r in planned for name in r.layout.names if not _untouched(r)}
    dropped: set[str] = set()
    if plan.extra_layers == "drop":
        dropped = {name for name in checkpoint.files.tensors if _is_dropped(name, checkpoint)}
    found: list[Output] = []
    done: set[str] = set()
    for name, stored in checkpoint.files.tensors.items():
        if name in dropped:
            continue
        prefix = edited.get(name)
        if prefix is None:
            found.append(Output(name, stored.shape, stored.dtype, stored.nbytes, _same(name)))
        elif prefix not in done:
            done.add(prefix)
            rewrite = by_prefix[prefix]
            if rewrite.raw:
                found += _cut(checkpoint, rewrite, options)
            else:
                found += _computed(checkpoint, plan, rewrite, options, statistics)
    return found


def meta_reader(checkpoint: Checkpoint, layout: LayerLayout) -> Callable[[str], Tensor]:
    """Return a reader that gives tensors without values, to see what shapes come out."""

    def get(name: str) -> Tensor:
        stored = checkpoint.files.tensors[name]
        dtype = _TORCH.get(stored.dtype, torch.uint8)  # what torch has no name for is no plain float either
        return torch.empty(stored.shape, dtype=dtype, device="meta")

    return get


def _untouched(rewrite: Rewrite) -> bool:
    whole = rewrite.kept == tuple(range(rewrite.layout.experts)) and not rewrite.padding
    return whole and rewrite.raw


def _is_dropped(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a tensor belongs to a layer for multi-token prediction."""
    if is_extra(name):
        return True
    place = split(name)
    stems = {checkpoint.layouts[layer].prefix.removesuffix(f"{layer}.") for layer in checkpoint.layers}
    layers = checkpoint.settings.layers
    return place is not None and layers is not None and place[0] in stems and place[1] >= layers


def _same(name: str) -> Callable[[Sources], Tensor]:
    return lambda sources: sources.view(name)


def _cut(checkpoint: Checkpoint, rewrite: Rewrite, options: Options) -> list[Output]:
    """Return the tensors of a layer whose experts are copied one by one, whatever their dtype and layout."""
    layout, kept = rewrite.layout, list(rewrite.kept)
    tensors = checkpoint.files.tensors
    found: list[Output] = []
    beyond = [expert for expert in sorted(layout.numbered) if expert >= layout.experts]
    for place, expert in enumerate([*kept, *beyond] if layout.numbered else []):
        for part, name in layout.numbered[expert].items():
            stored = tensors[name]
            new = layout.numbered_name(place, part)
            found.append(Output(new, stored.shape, stored.dtype, stored.nbytes, _same(name)))
    stacked = [(name, role) for role, name in layout.stacked.items()] + [(name, "side") for name in layout.side]
    for name, role in stacked:
        stored = tensors[name]
        shape, dimension, rows = _rows(layout, role, stored.shape, kept)
        new_shape = (*shape[:dimension], len(rows), *shape[dimension + 1 :])
        nbytes = stored.nbytes // shape[dimension] * len(rows)
        found.append(Output(name, new_shape, stored.dtype, nbytes, _taken(name, dimension, rows)))
    if layout.table:
        stored = tensors[layout.table]
        found.append(
            Output(layout.table, stored.shape, stored.dtype, stored.nbytes, _renumbered(checkpoint, rewrite, options))
        )
    return found


def _rows(
    layout: LayerLayout, role: str, shape: tuple[int, ...], kept: list[int]
) -> tuple[tuple[int, ...], int, list[int]]:
    """Return along which dimension a tensor is cut, and to which rows."""
    if role in _FLAT:  # rows of each expert one below the other
        size = shape[0] // layout.experts
        return shape, 0, [expert * size + row for expert in kept for row in range(size)]
    dimension = 1 if role == "selection_bias" and len(shape) == 2 else 0
    return shape, dimension, [*kept, *range(layout.experts, shape[dimension])]


def _taken(name: str, dimension: int, rows: list[int]) -> Callable[[Sources], Tensor]:
    index = torch.tensor(rows)
    return lambda sources: sources.copied(name, lambda tensor: _select(tensor, dimension, index))


def _select(tensor: Tensor, dimension: int, index: Tensor) -> Tensor:
    if tensor.dtype.is_floating_point and tensor.itemsize < 2:  # torch cannot select among 8-bit floats
        return tensor.view(torch.uint8).index_select(dimension, index).view(tensor.dtype)
    return tensor.index_select(dimension, index)


def _renumbered(checkpoint: Checkpoint, rewrite: Rewrite, options: Options) -> Callable[[Sources], Tensor]:
    layout = rewrite.layout

    def make(sources: Sources) -> Tensor:
        router = sources.copied(layout.stacked["router"], lambda tensor: tensor[: layout.experts])
        return sources.copied(
            layout.table,
            lambda table: replace_in_table(
                table, router, rewrite.kept, replace=options.tables == "replace", layer=layout.layer
            ),
        )

    return make


def _computed(
    checkpoint: Checkpoint, plan: EditPlan, rewrite: Rewrite, options: Options, statistics: Any
) -> list[Output]:
    """Return the tensors of a layer that is made anew; their shapes are known before they are."""
    layout = rewrite.layout
    get = meta_reader(checkpoint, layout)
    old = unpack(layout, get, interleaved=checkpoint.interleaved)
    expected = _reshaped(old, rewrite.experts, rewrite.neurons or old.neurons)
    shapes = pack(layout, expected, get, interleaved=checkpoint.interleaved)
    made_of = {tensor.dtype: code for code, tensor in ((c, torch.empty(0, dtype=d)) for c, d in _TORCH.items())}

    def make(reader: Reader) -> dict[str, Tensor]:
        layer = checkpoint.unpack(layout, reader)
        reader.close()  # stacked experts are copies by now; the pages of their files need not stay
        new = new_layer(layer, rewrite, plan, options, statistics, groups=checkpoint.settings.group_count)
        del layer
        packed = pack(layout, new, reader.get, interleaved=checkpoint.interleaved)
        wrong = [name for name, tensor in packed.items() if tensor.shape != shapes[name].shape]
        if wrong or set(packed) != set(shapes):
            raise RunFailed(
                f"the transform '{plan.transform}' gave layer {layout.layer} another shape than its plan says: "
                f"{', '.join(wrong[:3]) or 'other tensors'}."
            )
        return packed

    def maker(name: str) -> Callable[[Sources], Tensor]:
        return lambda sources: sources.computed(layout.prefix, name, make)

    return [
        Output(name, tuple(tensor.shape), made_of[tensor.dtype], tensor.nbytes, maker(name))
        for name, tensor in shapes.items()
    ]


def _reshaped(old: LayerWeights, experts: int, neurons: int) -> LayerWeights:
    """Return a layer without values with another number of experts and neurons."""

    def resized(name: str, tensor: Tensor) -> Tensor:
        shape = [experts, *tensor.shape[1:]]
        if name in ("gate", "up", "gate_bias", "up_bias"):
            shape[1] = neurons
        elif name == "down":
            shape[2] = neurons
        return tensor.new_empty(shape)

    changed: Mapping[str, Any] = {name: resized(name, tensor) for name, tensor in old.per_expert().items()}
    return replace(old, **changed)
