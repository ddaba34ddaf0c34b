"""Opens what can be trained: a transformers engine, by name or as it is, that no plan steers at the moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeworks.engines.transformers.engine import TransformersEngine
from moeworks.errors import BadPlan, Unsupported

if TYPE_CHECKING:
    from moeworks.engines.base import Engine

__all__ = ["opened"]


def opened(model: str | Engine, purpose: str) -> TransformersEngine:
    """Return the engine.

    Raises:
        Unsupported: the engine holds no torch model.
        BadPlan: a plan is applied, so that what was trained would only fit the steered model.
    """
    if isinstance(model, str):
        from moeworks.engines import load

        model = load(model)
    if not isinstance(model, TransformersEngine):
        raise Unsupported(f"{purpose} needs gradients, which only the transformers engine has; load the model with it.")
    if model.plan is not None:
        raise BadPlan(f"{purpose} trains the plain model; leave the `with steered(…)` block first.")
    return model
