"""The one place where the methods of this folder meet torch: loaded when a model is run, never on import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import Unsupported, need

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.peaks import ResidualPeaks
    from moeworks.engines.transformers.unembedding import Unembedding
    from moeworks.examples import Example
    from moeworks.plan import Plan

__all__ = ["as_numpy", "attribute", "influence", "memory", "observe", "reading", "residual_of", "sinks"]


def observe(engine: Engine, *arguments: Any, **options: Any) -> None:
    """Run texts through a model and look inside its experts; see `observe_experts` of the transformers engine."""
    _require("looking inside experts")
    from moeworks.engines.transformers.inside import observe_experts

    observe_experts(engine, *arguments, **options)  # type: ignore[arg-type]


def attribute(engine: Engine, *arguments: Any, **options: Any) -> None:
    """Run texts and attribute next tokens to experts; see `observe_attribution` of the transformers engine."""
    _require("attribution")
    from moeworks.engines.transformers.attribution import observe_attribution

    observe_attribution(engine, *arguments, **options)  # type: ignore[arg-type]


def influence(engine: Engine, *arguments: Any, **options: Any) -> None:
    """Run texts forward and backward; see `observe_influence` of the transformers engine."""
    _require("gradients")
    from moeworks.engines.transformers.gradients import observe_influence

    observe_influence(engine, *arguments, **options)  # type: ignore[arg-type]


def memory(engine: Engine, *, tokens: int, columns: Mapping[int, tuple[int, int]], groups: int) -> dict[str, int]:
    """Return the bytes that gradients over a batch will take, by what for; see `memory_of_gradients`.

    Args:
        engine: the transformers engine.
        tokens: of one batch.
        columns: layer → (first column, experts) of the layers that are looked into.
        groups: of samples that are summed apart.
    """
    _require("gradients")
    if not hasattr(engine, "routers"):
        raise Unsupported(f"the {engine.engine.name} engine has no gradients; take the transformers engine.")
    from moeworks.engines.transformers.experts import open_experts
    from moeworks.engines.transformers.gradients import memory_of_gradients

    routers = [router for router in engine.routers if router.layer in columns]
    sums = sum(8 * groups * router.experts * open_experts(router).neurons for router in routers)
    return memory_of_gradients(engine, tokens=tokens, sums=sums)  # type: ignore[arg-type]


def reading(engine: Engine) -> Unembedding:
    """Return how the model reads its last residual."""
    _require("reading with the unembedding")
    from moeworks.engines.transformers.unembedding import unembedding_of

    return unembedding_of(engine)  # type: ignore[arg-type]


def as_numpy(tensor: Any) -> NDArray[Any]:
    """Return a tensor's values in float64, or as integers, whatever its device and dtype."""
    tensor = tensor.detach()
    return np.asarray((tensor.double() if tensor.is_floating_point() else tensor).cpu().numpy())


def _require(purpose: str) -> None:
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise need("torch and transformers", "transformers", purpose)


def residual_of(engine: Engine) -> AbstractContextManager[ResidualPeaks]:
    """Gather the largest activations of the residual stream inside a `with` block; see `watch_residual`."""
    _require("looking at the residual stream")
    from moeworks.engines.transformers.peaks import watch_residual

    if not hasattr(engine, "session"):
        raise Unsupported(f"the {engine.engine.name} engine shows no residual stream; take the transformers engine.")
    return watch_residual(engine)  # type: ignore[arg-type]


def sinks(
    engine: Engine, examples: Sequence[Example], *, plan: Plan | None, batch_size: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return (max |h|, largest max / median |h|, attention to the first token) under a plan, (layers,) each."""
    with residual_of(engine) as residual:
        from moeworks.engines.transformers.peaks import attention_to_first

        attention = attention_to_first(engine, examples, plan=plan, batch_size=batch_size)  # type: ignore[arg-type]
    return residual.largest, residual.ratio, attention
