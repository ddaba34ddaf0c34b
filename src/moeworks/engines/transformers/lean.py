"""Arguments of a forward pass that spare work whose result nobody reads."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

__all__ = ["lean"]


def lean(model: nn.Module) -> dict[str, Any]:
    """Return what turns off the cache and the vocabulary logits of all but one token, as far as the model knows it."""
    accepted = inspect.signature(model.forward).parameters
    return {name: value for name, value in (("use_cache", False), ("logits_to_keep", 1)) if name in accepted}
