"""The ways to make experts of a dense layer, by name."""

from __future__ import annotations

from collections.abc import Callable

from moeworks.edit.dense.ffn import Split
from moeworks.errors import BadData, BadPlan
from moeworks.registry import Registry

__all__ = ["UPCYCLINGS", "Upcycling", "needs_inputs", "piece_width"]

# (layer, its inputs or None, *, experts, top_k, shared, seed, others=(), **options) → the split; pure, deterministic.
Upcycling = Callable[..., Split]
UPCYCLINGS: Registry[Upcycling] = Registry("way to make experts", "moeworks.upcyclings")


def needs_inputs(inputs: object, method: str) -> BadData:
    """Return the error for a method that cannot work without rows of text."""
    return BadData(f"'{method}' looks at rows of text; give some with --data (data=).")


def piece_width(neurons: int, experts: int, shared: int) -> int:
    """Return the neurons of each expert when routed and shared ones share out a layer evenly.

    Raises:
        BadPlan: they do not.
    """
    if experts < 1 or shared < 0:
        raise BadPlan(f"{experts} routed and {shared} shared experts are no split; give 1 or more, and 0 or more.")
    width, left = divmod(neurons, experts + shared)
    if left or not width:
        raise BadPlan(
            f"{neurons} neurons cannot be shared out evenly to {experts} routed and {shared} shared experts; their sum "
            f"has to divide {neurons}."
        )
    return width
