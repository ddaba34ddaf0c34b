"""Largest activations of the residual stream and attention to the first token, layer by layer, while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeworks.engines.transformers.layout import Batch
from moeworks.engines.transformers.residual import residual_module
from moeworks.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.examples import Example
    from moeworks.plan import Plan

__all__ = ["ResidualPeaks", "attention_to_first", "watch_residual"]

Array = NDArray[Any]


@dataclass
class ResidualPeaks:
    """Extremes over all real tokens so far, one row for each layer of the model, dense ones too."""

    layers: int
    largest: Array = field(init=False)  # (layers,) max |h| after the layer
    ratio: Array = field(init=False)  # (layers,) largest max |h| / median |h| of one token
    position: Array = field(init=False)  # (layers,) position of the token with the largest |h|
    tokens: int = 0

    def __post_init__(self) -> None:
        self.largest, self.ratio = np.zeros(self.layers), np.zeros(self.layers)
        self.position = np.full(self.layers, -1)

    def add(self, layer: int, hidden: Tensor, mask: Tensor | None) -> None:
        """Enter the residual after a layer, (batch, width, H); `mask` is 1 at real tokens."""
        size = hidden.detach().abs().float()
        top, middle = size.amax(-1), size.median(-1).values  # (batch, width)
        ratio = top / middle.clamp(min=torch.finfo(torch.float32).tiny)
        place = torch.arange(top.shape[1], device=top.device).expand_as(top)
        if mask is not None:
            real = mask.to(top.device).bool()
            place = real.long().cumsum(-1) - 1
            top, ratio = top.masked_fill(~real, 0), ratio.masked_fill(~real, 0)
        where = int(top.argmax())
        largest = float(top.reshape(-1)[where])
        if largest > self.largest[layer]:
            self.largest[layer], self.position[layer] = largest, int(place.reshape(-1)[where])
        self.ratio[layer] = max(self.ratio[layer], float(ratio.max()))


@contextmanager
def watch_residual(engine: TransformersEngine) -> Iterator[ResidualPeaks]:
    """Yield what is gathered of the residual stream in every forward pass inside the `with` block.

    Raises:
        Unsupported: the model's layers cannot be found, or one gives something else than (batch, width, hidden).
    """
    modules = _layers(engine)
    peaks = ResidualPeaks(len(modules))
    masks: list[Tensor | None] = [None]

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        masks[0] = kwargs.get("attention_mask")
        ids = kwargs.get("input_ids")
        peaks.tokens += int(masks[0].sum()) if masks[0] is not None else 0 if ids is None else ids.numel()

    def keep(layer: int, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            raise Unsupported(f"layer {layer} gives no single residual stream; its largest activations are not known.")
        peaks.add(layer, hidden, masks[0])

    handles = [engine.model.register_forward_pre_hook(begin, with_kwargs=True)]
    for number, layer in enumerate(modules):
        handles.append(layer.register_forward_hook(lambda module, args, output, number=number: keep(number, output)))
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


def attention_to_first(
    engine: TransformersEngine, examples: Sequence[Example], *, plan: Plan | None = None, batch_size: int = 8
) -> Array:
    """Return the mean share of attention that later tokens pay to the first, (layers,), averaged over heads.

    Layers that report no attention have NaN. The eager attention of transformers runs for it, since the others report
    nothing, and what ran before comes back. Weights are read by hooks of our own: asking the model for them would
    leave hooks of transformers behind.

    Raises:
        Unsupported: no layer reports its attention.
    """
    model: Any = engine.model
    before = model.config._attn_implementation
    modules = _layers(engine)
    sums, counts = np.zeros(len(modules)), np.zeros(len(modules))
    later: list[Tensor] = []

    def add(layer: int, output: Any) -> None:
        attention = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(attention, Tensor) and attention.shape[::2] == later[0].shape:  # (batch, heads, width, …)
            share = attention[..., 0].float().mean(1)[later[0].to(attention.device)]  # (tokens,)
            sums[layer] += float(share.sum())
            counts[layer] += len(share)

    handles = [
        child.register_forward_hook(lambda module, args, output, layer=layer: add(layer, output))
        for layer, module in enumerate(modules)
        for name, child in module.named_children()
        if "attn" in name or "attention" in name
    ]
    try:
        if before != "eager":
            model.set_attn_implementation("eager")
        requests = sorted(engine.reader.read(iter(examples)), key=lambda request: len(request.tokens))
        with engine.session(plan, record=False) as tap, torch.inference_mode():
            for start in range(0, len(requests), batch_size):
                batch = Batch(requests[start : start + batch_size])
                tap.start(batch)
                tensors = batch.tensors(engine.pad_token, model.device)
                later[:] = [tensors["attention_mask"].bool().clone()]
                later[0][:, 0] = False  # the first token attends to nothing else
                model(**tensors, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        if before != "eager":
            model.set_attn_implementation(before)
    if not counts.any():
        raise Unsupported("no layer of this model reports its attention, so that attention sinks are not seen.")
    return np.asarray(np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0))


def _layers(engine: TransformersEngine) -> list[nn.Module]:
    modules: list[nn.Module] = []
    last = max(router.layer for router in engine.routers)
    while True:
        try:
            modules.append(residual_module(engine, len(modules)))
        except Unsupported:
            if len(modules) > last:
                return modules
            raise
