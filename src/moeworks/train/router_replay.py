"""Replays recorded routes while a model trains: ids are forced, weights are computed anew and carry gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moeworks.errors import BadData, RunFailed, Unsupported
from moeworks.families import torch_contract
from moeworks.families.discover import discover

if TYPE_CHECKING:
    from moeworks.families.router import Edit, Router

__all__ = ["Replaying", "replay"]


@dataclass
class Replaying:
    """What a replay has done so far.

    Attributes:
        layers: global numbers of the routers, in order.
        passes: how often each of them decided inside the block.
    """

    layers: tuple[int, ...]
    passes: dict[int, int] = field(default_factory=dict)
    _counts: list[Tensor] = field(default_factory=list)  # (3,) each: replayed, changed, forced with weight 0

    @property
    def tokens(self) -> int:
        """Tokens and layers that were replayed."""
        return self._sum(0)

    @property
    def changed(self) -> int:
        """Tokens and layers for which the replayed set is not what the router would have chosen."""
        return self._sum(1)

    @property
    def dead(self) -> int:
        """Forced experts with weight 0, which no gradient comes through."""
        return self._sum(2)

    def _sum(self, place: int) -> int:
        return sum(int(counts[place]) for counts in self._counts)


@contextmanager
def replay(model: nn.Module, routes: Any, *, routers: Sequence[Router] | None = None) -> Iterator[Replaying]:
    """Force recorded experts on every forward pass inside the block; other tokens decide as ever.

    Combine weights are those of the forced experts by the router's own rule, from its own logits: the gradient reaches
    the router through them, as when it chose these experts itself (router replay of RL training, R3, arXiv 2510.11370
    [known from summaries]). Activation checkpointing, which runs a layer again, gets the same experts again.

    Args:
        model: a stock model; a wrapper that has it as `module` (DDP, FSDP) is looked through.
        routes: (B, W, L, k) ids for the batch that is about to run, -1 where nothing is forced; see `lay_out`.
        routers: what `moeworks.families.discover` found of the model; found anew at every call unless given, which
            takes longer than a training step should.

    Raises:
        BadData: the routes do not fit the routers or the batch.
        Unsupported: a router's rule is not proved, or it has no logits to weigh by.
        RunFailed: at the end of the block, if a router never decided: the replay was bound to modules that the model
            does not run. Also where a forced expert has weight 0, which no gradient comes through.
    """
    inner: Any = model
    while isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    routers = discover(inner) if routers is None else routers
    forced = torch.as_tensor(routes)
    problems = [f"layer {r.layer}: {r.opaque or 'it is hash-routed'}" for r in routers if _closed(r)]
    if problems:
        raise Unsupported(f"routes cannot be replayed: {'; '.join(problems)}.")
    if forced.ndim != 4 or forced.shape[2] != len(routers):
        raise BadData(
            f"routes of shape {tuple(forced.shape)} are not (texts, width, {len(routers)} layers, slots); routers are "
            f"in layers {', '.join(str(router.layer) for router in routers)}."
        )
    state = Replaying(tuple(router.layer for router in routers))
    flat = forced.reshape(-1, *forced.shape[2:])  # (B * W, L, k)
    handles = []
    try:
        for place, router in enumerate(routers):
            handles += router.attach(_force(router, flat[:, place], state))
        yield state
    finally:
        for handle in handles:
            handle.remove()
    idle = [str(layer) for layer in state.layers if not state.passes.get(layer)]
    if idle:
        raise RunFailed(
            f"the routers of layers {', '.join(idle)} never decided while routes were replayed: the replay is bound to "
            "modules that the model does not run; open the block on the model that is called, after it was wrapped."
        )
    if state.dead:
        raise RunFailed(f"{state.dead} forced experts have weight 0, which no gradient comes through.")


def _closed(router: Router) -> bool:
    return router.contract is None or router.contract.hashed


def _force(router: Router, ids: Tensor, state: Replaying) -> Edit:
    contract, detail = router.contract, router.detail
    assert contract is not None

    def edit(logits: Tensor | None, weights: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        if logits is None:
            raise Unsupported(f"the router of layer {router.layer} shows no logits to weigh forced experts by.")
        if len(own) != len(ids):
            raise BadData(f"layer {router.layer} decides for {len(own)} tokens, the routes are for {len(ids)}.")
        if own.shape[1] != ids.shape[1]:
            raise BadData(f"layer {router.layer} takes {own.shape[1]} experts a token, the routes have {ids.shape[1]}.")
        here = ids.to(own.device)
        known = (here >= 0).all(-1, keepdim=True)  # (n, 1)
        chosen = torch.where(known, here, own.long()).to(own.dtype)
        scale = router.arrays.expert_scale
        again = torch_contract.combine_weights(logits.reshape(len(own), -1), chosen.long(), contract, detail, scale)
        differs = (here.sort(-1).values != own.long().sort(-1).values).any(-1, keepdim=True)
        dead = known & (again == 0)
        # Kept on the device and added up when somebody asks: a pass must not wait for it in every layer.
        state._counts.append(torch.stack([known.sum(), (known & differs).sum(), dead.sum()]).detach())
        state.passes[router.layer] = state.passes.get(router.layer, 0) + 1
        return torch.where(known, again.to(weights.dtype), weights), chosen

    return edit
