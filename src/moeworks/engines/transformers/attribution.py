"""Direct logit attribution of expert outputs: how much each expert that ran adds to the logit of the next token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeworks.engines.transformers.inside import ExpertPass, PassRequests, observe_experts
from moeworks.engines.transformers.unembedding import unembedding_of
from moeworks.errors import Unsupported
from moeworks.examples import Example
from moeworks.where import Rows, Where

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["Attributed", "Norm", "next_tokens", "observe_attribution"]

Array = NDArray[Any]
Norm = Literal["final", "layer"]
# (layer, expert, rows (m,), contributions (m,), rows of the pass, its requests)
Attributed = Callable[[int, int, Array, Array, Rows, PassRequests], None]


def next_tokens(rows: Rows) -> Array:
    """Return the token that comes after each row in its request, (n,); -1 after the last one."""
    following = np.full(len(rows), -1, np.int64)
    same = rows.request[1:] == rows.request[:-1]
    following[:-1][same] = rows.token[1:][same]
    return following


def observe_attribution(
    engine: TransformersEngine,
    examples: Iterable[Example],
    observer: Attributed,
    *,
    where: Where = Where(),
    norm: Norm = "layer",
    centred: bool = False,
    batch_size: int = 8,
) -> None:
    """Run texts and show, for each expert that ran, what it adds to the logit of the token that came next.

    DLA = W_U[next] · (u_e · gain · rsqrt(mean(h²) + eps)) with u_e = w_e·y_e, in the units of the model's logits; a
    layer norm takes the mean off u_e and h first. An expert that did not run adds 0 and is not shown. Where a family
    norms or scales what the experts of a layer add to the residual, contributions are of u_e before that.

    Args:
        engine, examples, where, batch_size: as in `observe_experts`.
        observer: called with layer, expert, rows of the pass and the contributions there.
        norm: h is the residual after the expert's own layer (`layer`, as in the paper's code), or the one that the
            final norm reads (`final`): then contributions of all parts of the model add up to the logit.
        centred: take the mean over the vocabulary off W_U, so that a contribution that raises all tokens is none.

    Raises:
        Unsupported: see `unembedding_of` and `observe_experts`.
    """
    reading = unembedding_of(engine)
    mean = reading.rows.mean(0) if centred else None
    pending: list[tuple[ExpertPass, Array, Tensor]] = []
    scales: dict[int, Tensor] = {}  # layer → (batch, width)
    now: list[tuple[Rows, PassRequests, Tensor]] = []

    def collect(seen: ExpertPass, rows: Rows, requests: PassRequests) -> None:
        if not now or now[0][0] is not rows:
            now[:] = [(rows, requests, torch.from_numpy(next_tokens(rows)))]
        target = now[0][2].to(seen.rows.device)[seen.rows]  # (m,)
        kept = (target >= 0).nonzero().squeeze(-1)
        device = reading.rows.device
        directions = reading.rows[target[kept].to(device)]  # (kept, H)
        directions = directions if mean is None else directions - mean
        written = reading.written(seen.outputs[kept].float() * seen.weights[kept, None].float()).to(device)
        pending.append((seen, seen.rows[kept].cpu().numpy(), reading.factor * (written * directions).sum(-1)))

    def flush(module: nn.Module, args: Any) -> None:
        if not pending:
            return
        rows, requests, _ = now[0]
        final = reading.scale(args[0]) if norm == "final" else None
        for seen, place, value in pending:
            scale = scales[seen.layer] if final is None else final
            factor = scale[rows.request[place], rows.position[place]].to(value.device)  # texts are padded on the right
            observer(seen.layer, seen.expert, place, (factor * value).double().cpu().numpy(), rows, requests)
        pending.clear()
        scales.clear()

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            scales[layer] = reading.scale(output if isinstance(output, Tensor) else output[0])

        return hook

    handles = [reading.norm.register_forward_pre_hook(flush)]
    if norm == "layer":
        modules = dict(engine.model.named_modules())
        for router in engine.routers:
            found = re.match(r"(.*?\.\d+)\.", router.name)
            if found is None:
                raise Unsupported(
                    f"the layer of the router '{router.name}' is not known by its name; take norm='final'."
                )
            handles.append(modules[found[1]].register_forward_hook(keep(router.layer)))
    try:
        observe_experts(engine, examples, collect, where=where, batch_size=batch_size)
    finally:
        for handle in handles:
            handle.remove()
