"""The residual stream after some layers, while a model reads whole texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moeworks.engines.transformers.layout import Batch
from moeworks.engines.transformers.lean import lean
from moeworks.errors import Unsupported

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.engines.transformers.tokens import Prepared
    from moeworks.plan import Plan

__all__ = ["read_residual", "residual_module"]


def read_residual(
    engine: TransformersEngine,
    prepared: Sequence[Prepared],
    layers: Sequence[int],
    visit: Callable[[int, Tensor], None],
    *,
    plan: Plan | None = None,
) -> None:
    """Run one batch of texts and show the residual stream after each of some layers, padding left out.

    Args:
        engine: whose model runs.
        prepared: the texts of the batch.
        layers: global layer numbers.
        visit: called with the layer and its residual, (n, H): the tokens of the first text, then of the second, …
        plan: applied while running; None runs the plain model, whatever is applied around.

    Raises:
        Unsupported: a layer's module is not found, or does not give one (batch, width, H) tensor in a pass.
    """
    batch = Batch(prepared)
    forward = batch.forward()
    seen: dict[int, Tensor] = {}

    def keep(layer: int, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if layer in seen or not isinstance(hidden, Tensor) or hidden.shape[:2] != (len(prepared), batch.width):
            raise Unsupported(f"layer {layer} does not give one residual stream for each pass; it cannot be read.")
        seen[layer] = hidden

    with ExitStack() as stack:
        for layer in layers:
            handle = residual_module(engine, layer).register_forward_hook(
                lambda module, inputs, output, layer=layer: keep(layer, output)
            )
            stack.callback(handle.remove)
        tap = stack.enter_context(engine.session(plan, record=False, plain=plan is None))
        tap.start(batch)
        with torch.inference_mode():
            engine.model(**batch.tensors(engine.pad_token, engine.model.device), **lean(engine.model))
    for layer in layers:
        if layer not in seen:
            raise Unsupported(f"layer {layer} did not run in this pass; its residual cannot be read.")
        flat = seen[layer].reshape(-1, seen[layer].shape[-1])  # (batch × width, H)
        if forward.valid is not None:
            flat = flat[torch.from_numpy(forward.valid).to(flat.device)]
        visit(layer, flat)


def residual_module(engine: TransformersEngine, layer: int) -> nn.Module:
    """Return the module whose output is the residual stream after a layer: the one that numbers it.

    Raises:
        Unsupported: there is no such layer beside those with routers.
    """
    for router in engine.routers:
        before, dot, _ = f".{router.name}.".partition(f".{router.layer}.")
        if dot:
            try:
                module: nn.Module = engine.model.get_submodule(f"{before}.{layer}".lstrip("."))
                return module
            except AttributeError:
                break
    raise Unsupported(f"the model has no module for layer {layer} beside those of its routers; its residual is hidden.")
