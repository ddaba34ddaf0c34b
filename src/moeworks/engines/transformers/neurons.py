"""Changes of neurons inside experts, on torch tensors: the twin of `moeworks.plan.neurons`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moeworks.engines.transformers.experts import Slice
from moeworks.errors import Unsupported
from moeworks.plan.neurons import NeuronStep, Site

__all__ = ["NeuronEdit", "TorchStep", "edited", "neuron_edit", "touched_rows"]


@dataclass(frozen=True, eq=False)
class TorchStep:
    """One operation on the listed neurons of one expert, on the device of its weights."""

    action: str
    neurons: Tensor  # (s,)
    numbers: Mapping[str, Tensor]  # (s,) float32 each

    def __call__(self, v: Tensor) -> Tensor:
        """Return the changed values of the listed neurons, (m, s), computed in float32 or wider."""
        wide = v if v.dtype == torch.float64 else v.float()
        if self.action == "zero":
            new = torch.zeros_like(wide)
        elif self.action == "scale":
            new = wide * self.numbers["factor"]
        elif self.action == "reflect":
            new = 2 * self.numbers["mean"] - wide
        elif self.action == "clamp":
            new = self.numbers["value"].expand_as(wide)
        elif self.action == "adjust":
            new = self._adjusted(wide)
        else:
            raise Unsupported(f"this engine has no formula for the neuron action '{self.action}'.")
        return new.to(v.dtype)

    def _adjusted(self, v: Tensor) -> Tensor:
        mean, std, other_mean, other_std = (self.numbers[n] for n in ("mean", "std", "other_mean", "other_std"))
        z = (v - mean) / std
        ratio = (z**2 - ((v - other_mean) / other_std) ** 2) / 2 + (std / other_std).log()
        stay = ratio.clamp(max=0).exp()
        changed = (ratio <= 0) & (self._chance(v) >= stay / (1 + stay))
        return torch.where(changed, other_mean - z * other_std, v)

    def _chance(self, v: Tensor) -> Tensor:
        z = (v.float() - self.numbers["mean"]) / self.numbers["std"]
        x = (z.nan_to_num().clamp(-1e4, 1e4) * 256).floor().long() * 1_000_003 + (self.neurons + 1) * 7_919_113
        x = x % 2**31
        for shift, factor in ((15, 739_982_445), (12, 695_872_825)):
            x = (x ^ (x >> shift)) * factor % 2**31
        return (x ^ (x >> 15)).double() / 2**31


@dataclass(frozen=True, eq=False)
class NeuronEdit:
    """All changes of neurons of one clause in one layer."""

    steps: Mapping[tuple[int, Site], Sequence[TorchStep]]  # (expert, site) → steps in order
    listed: Tensor  # (E,) bool: experts with a changed neuron


def neuron_edit(steps: Sequence[NeuronStep], experts: int, device: torch.device) -> NeuronEdit:
    """Return the steps of a layer with E `experts` on a device."""
    by_place: dict[tuple[int, Site], list[TorchStep]] = {}
    listed = torch.zeros(experts, dtype=torch.bool)
    for step in steps:
        numbers = {name: torch.from_numpy(v.astype(np.float32)).to(device) for name, v in step.numbers.items()}
        neurons = torch.from_numpy(step.neurons.astype(np.int64)).to(device)
        by_place.setdefault((step.expert, step.site), []).append(TorchStep(step.action, neurons, numbers))
        listed[step.expert] = True
    return NeuronEdit(by_place, listed.to(device))


def touched_rows(active: Sequence[tuple[NeuronEdit, Tensor | None]], ids: Tensor, weights: Tensor) -> Tensor | None:
    """Return the flat rows, (n,), in which a changed expert runs and the clause holds; None if there is none."""
    touched: Tensor | None = None
    for edit, rows in active:
        known = ids < len(edit.listed)  # an id equal to the number of experts stands for none
        hit = (edit.listed[ids.long().clamp(max=len(edit.listed) - 1)] & known & (weights != 0)).any(-1)  # (n,)
        hit = hit if rows is None else hit & rows
        touched = hit if touched is None else touched | hit
    return touched if touched is not None and bool(touched.any()) else None


def edited(active: Sequence[tuple[NeuronEdit, Tensor | None]], part: Slice, site: Site, values: Tensor) -> Tensor:
    """Return an expert's values at one site, (m, I), after all steps there: the tensor itself where there is none.

    Args:
        active: edits with the flat rows that their clause takes, None for all.
        part: the rows at hand.
        site: where.
        values: what the expert computed.
    """
    for edit, rows in active:
        for step in edit.steps.get((part.expert, site), ()):
            v = values[:, step.neurons]  # (m, s)
            new = step(v)
            if rows is not None:
                new = torch.where(rows[part.rows, None], new, v)
            values = values.index_copy(1, step.neurons, new)
    return values
