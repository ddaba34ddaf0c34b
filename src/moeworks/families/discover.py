"""From a loaded model to its routers, each with a proved contract or the reason why it has none."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from moeworks.families.candidates import Candidate
from moeworks.families.declarations import Declared, declared_routers
from moeworks.families.derive import derive
from moeworks.families.exceptions import EXCEPTIONS
from moeworks.families.observe import hidden_size_of
from moeworks.families.router import Router, RouterArrays, Slot

__all__ = ["Survey", "discover", "survey"]


@dataclass(frozen=True, eq=False)
class Survey:
    """The routers of a model and the declared ones that are not taken: module name → reason."""

    routers: list[Router]
    left_out: dict[str, str]


def discover(
    model: nn.Module, *, tokens: int = 256, seed: int = 0, layers: Collection[int] | None = None
) -> list[Router]:
    """Return the routers of a model's text decoder in layer order, proved where that is possible.

    The model, its buffers and the global random state are left as they were. With `layers` only the routers of these
    are looked at: the others may have no weights yet.
    """
    return survey(model, tokens=tokens, seed=seed, layers=layers).routers


def survey(model: nn.Module, *, tokens: int = 256, seed: int = 0, layers: Collection[int] | None = None) -> Survey:
    """Do what `discover` does and also name the routers that are left out, such as a vision tower's."""
    declared, left_out = declared_routers(model)
    declared = [place for place in declared if layers is None or place.layer in layers]
    dtype = _input_dtype(model)
    exceptions = set(EXCEPTIONS.names())
    routers: list[Router] = []
    known: list[Candidate] = []
    for place in declared:
        router = _undecided(place, dtype)
        kind = type(place.module).__name__
        if kind in exceptions:
            router = EXCEPTIONS.get(kind)(router)
        router = replace(router, arrays=_arrays(router), hidden_size=hidden_size_of(router.module))
        router = derive(router, known=known, tokens=tokens, seed=seed)
        if router.contract is not None and (router.contract, router.detail) not in known:
            known.insert(0, (router.contract, router.detail))
        routers.append(router)
    return Survey(routers, left_out)


def _undecided(place: Declared, dtype: torch.dtype) -> Router:
    """Return the router without a contract and without its values."""
    experts = getattr(place.holder, "experts", None)
    return Router(
        layer=place.layer,
        name=place.name,
        module=place.module,
        holder=place.holder,
        experts_module=experts if isinstance(experts, nn.Module) and experts is not place.module else None,
        input_dtype=dtype,
    )


def _arrays(router: Router) -> RouterArrays:
    """Find the selection bias, the factor of each expert and a hash's table by their names and shapes."""
    bias = scale = table = None
    for name in inspect.signature(router.module.forward).parameters:
        if "bias" in name and isinstance(getattr(router.holder, name, None), torch.Tensor):
            bias = Slot(router.holder, name)
    for owner in (router.module, *router.module.children()):
        for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
            if not tensor.is_floating_point():
                table = Slot(owner, name) if tensor.ndim == 2 and table is None else table
            elif name.endswith(("_bias", "biases")):
                bias = bias or Slot(owner, name)
            elif "expert_scale" in name:
                scale = scale or Slot(owner, name)
    return replace(router.arrays, bias_slot=bias, expert_scale_slot=scale, table_slot=table)


def _input_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the hidden states: the embedding's, or that of the first floating tensor."""
    find_embedding: Any = getattr(model, "get_input_embeddings", None)
    weight = None if find_embedding is None else getattr(find_embedding(), "weight", None)
    if isinstance(weight, torch.Tensor) and weight.is_floating_point():
        return weight.dtype
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
