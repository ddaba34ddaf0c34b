"""When a decision counts as a near-tie: what rounding may turn, by the type of number that the engine computes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["NEAR_TIE", "near_tie_of"]

# A decision is a near-tie if its margin is below this share of the token's largest selection score: rounding of the
# engine's dtype, carried through a model's depth, may turn it.
NEAR_TIE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def near_tie_of(*traces: Trace) -> float:
    """Return the share for the coarsest of the traces' dtypes; where none is known, bfloat16's."""
    dtypes = [trace.header.engine.dtype for trace in traces if trace.header.engine is not None]
    return max((NEAR_TIE.get(dtype, NEAR_TIE["bfloat16"]) for dtype in dtypes), default=NEAR_TIE["bfloat16"])
