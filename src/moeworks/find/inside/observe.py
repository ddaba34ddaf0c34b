"""The one place where the methods of this folder meet torch: loaded when a model is run, never on import."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import need

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.unembedding import Unembedding

__all__ = ["as_numpy", "attribute", "observe", "reading"]


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
