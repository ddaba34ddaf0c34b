"""Hooks on a model's routers while something is recorded or steered; without a tap the model is untouched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from moeworks.engines.transformers.inside import Inside, Watch
from moeworks.engines.transformers.layout import Batch, Forward, GenerationBatch, anonymous_batch
from moeworks.engines.transformers.neurons import NeuronEdit, neuron_edit
from moeworks.engines.transformers.steering import Active, TorchEdit, redecide, to_torch
from moeworks.errors import MoeworksError, Unsupported
from moeworks.where import Where

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from moeworks.engines.transformers.replay import Replayer
    from moeworks.families.router import Edit, Router
    from moeworks.plan.compiled import CompiledEdit

__all__ = ["Captured", "Step", "Tap"]


class Captured(NamedTuple):
    """What one router decided in one forward pass, padding included."""

    ids: Tensor  # (n, k) compact integers
    weights: Tensor  # (n, k) in the router's own dtype
    logits: Tensor | None  # (n, E) raw


class Step(NamedTuple):
    """One forward pass: what each row is, and each layer's decisions."""

    forward: Forward
    layers: dict[int, Captured]


@dataclass
class Tap:
    """Records and edits decisions in every forward pass of `model` between enter and exit.

    `batch` says what the rows of the next passes are; without it they are read from the attention mask.
    """

    model: nn.Module
    routers: Sequence[Router]
    edits: Sequence[CompiledEdit] = ()
    replayers: Mapping[str, Replayer] = field(default_factory=dict)
    record: bool = False
    logits: bool = False
    paused: bool = False
    watch: Watch | None = None
    batch: Batch | GenerationBatch | None = None
    inside: Inside | None = None
    steps: list[Step] = field(default_factory=list)
    _handles: list[RemovableHandle] = field(default_factory=list)
    _pass: int = 0
    _forward: Forward | None = None
    _layers: dict[int, Captured] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)
    _masks: dict[tuple[int, torch.device], Tensor | None] = field(default_factory=dict)

    def __enter__(self) -> Tap:
        self._plans = self._compile()
        tapped = [r for r in self.routers if self.record or r.layer in self._plans]
        self.inside = self._look_inside()
        if not tapped and self.inside is None:
            return self
        if self.inside is not None:
            self.inside.attach()  # first: it may refuse, and then nothing must stay behind
        self._expected = {router.layer for router in tapped}
        self._handles = [self.model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for router in tapped:
            self._handles += router.attach(self._decide(router))
        self._handles.append(self.model.register_forward_hook(self._end))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.inside is not None:
            self.inside.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def start(self, batch: Batch | GenerationBatch) -> None:
        """Say what the next forward passes are made of, and forget what was captured before."""
        self.batch, self._pass = batch, 0
        self.steps.clear()

    def _compile(self) -> Mapping[int, list[tuple[int, TorchEdit]]]:
        """Return, by layer, the edits with the index of their where clause."""
        plans: dict[int, list[tuple[int, TorchEdit]]] = {}
        devices = {router.layer: next(router.module.parameters()).device for router in self.routers}
        for index, edit in enumerate(self.edits):
            for layer, vectors in edit.layers.items():
                if vectors.edits_decision:
                    plans.setdefault(layer, []).append((index, to_torch(vectors, devices[layer])))
        return plans

    def _look_inside(self) -> Inside | None:
        """Return what runs the experts where neurons are changed or somebody watches; None where nobody does."""
        edits: dict[int, list[tuple[int, NeuronEdit]]] = {}
        shapes = {router.layer: router for router in self.routers}
        for index, edit in enumerate(self.edits):
            for layer, vectors in edit.layers.items():
                if vectors.neurons:
                    device = next(shapes[layer].module.parameters()).device
                    made = neuron_edit(vectors.neurons, shapes[layer].experts, device)
                    edits.setdefault(layer, []).append((index, made))
        if not edits and self.watch is None:
            return None
        return Inside(
            self.routers,
            edits,
            clauses=[edit.where for edit in self.edits],
            mask=self._mask,
            forward=lambda: self._forward,
            paused=lambda: self.paused,
            watch=self.watch,
        )

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.paused:
            return
        self._seen.clear()
        self._layers = {}
        self._masks.clear()
        self._forward = None
        if self.inside is not None:
            self.inside.begin()
        if not (self.record or self.watch or self.replayers or any(not edit.where.every_token for edit in self.edits)):
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise Unsupported("recording and where clauses need input_ids; this call passes embeddings only.")
        if isinstance(self.batch, GenerationBatch):
            self._forward = self.batch.forward(self._pass, ids)
        else:
            batch = self.batch or anonymous_batch(ids, kwargs.get("attention_mask"))
            self._forward = batch.forward()
        self._pass += 1
        if self._forward.total != ids.numel():
            raise MoeworksError(
                f"this call passes {ids.numel()} tokens where the batch at hand has {self._forward.total}; "
                "run one batch at a time through the engine."
            )

    def _active(self, layer: int, edits: Sequence[tuple[int, TorchEdit]], like: Tensor) -> list[Active]:
        active = []
        for index, edit in edits:
            replay, replayed = self.edits[index].layers[layer].replay, None
            rows = self._mask(index, self.edits[index].where, like.device)
            if replay is not None:
                assert self._forward is not None
                replayed = self.replayers[replay.trace].find(layer, self._forward, rows, like.device, replay.weights)
            active.append(Active(edit, rows, replayed))
        return active

    def _mask(self, index: int, where: Where, device: torch.device) -> Tensor | None:
        key = (index, device)
        if key not in self._masks:
            if where.every_token:
                self._masks[key] = None
            else:
                assert self._forward is not None
                self._masks[key] = self._forward.mask(where, device)
        return self._masks[key]

    def _decide(self, router: Router) -> Edit:
        """Return what happens at every decision of one router: edit, replay, record."""
        layer, edits = router.layer, self._plans.get(router.layer, [])
        compact = torch.uint8 if router.experts <= 256 else torch.int32

        def decide(logits: Tensor | None, weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor] | None:
            if self.paused:
                return None
            if layer in self._seen:
                raise Unsupported(f"the router of layer {layer} ran twice in one forward pass; its rows are ambiguous.")
            self._seen.add(layer)
            if edits:
                ids, weights = redecide(router, logits, weights, ids, self._active(layer, edits, ids))
            if self.record:
                if self.logits and logits is None:
                    raise Unsupported(f"the raw logits of layer {layer} do not show; record without them.")
                self._layers[layer] = Captured(
                    ids.detach().to(compact),
                    weights.detach().clone(),
                    logits.detach().clone() if self.logits and logits is not None else None,
                )
            return (weights, ids) if edits else None

        return decide

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.paused:
            return
        missing = self._expected - self._seen | (self.inside.missing() if self.inside is not None else set())
        if missing:
            raise Unsupported(
                f"the routers of layers {sorted(missing)} did not run in this forward pass, so nothing of them can be "
                "recorded or steered; the model bypasses them (fused kernel?)."
            )
        if self.record:
            assert self._forward is not None
            self.steps.append(Step(self._forward, self._layers))
