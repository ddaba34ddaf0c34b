"""Tries the way to a saved checkpoint before a long collection begins: what cannot be written shows now, not after."""

from __future__ import annotations

from pathlib import Path

from moeworks.edit.apply import Forecast, check_apply, draft_plan
from moeworks.edit.checkpoint.source import Checkpoint, open_checkpoint
from moeworks.edit.plan import EditPlan
from moeworks.edit.transforms import cut

__all__ = ["check_save_path"]


def check_save_path(source: str | Path | Checkpoint, *, keep: float = 0.75, plan: EditPlan | None = None) -> Forecast:
    """Check that a plan could be applied to a checkpoint, and cut its first layer without writing it.

    Args:
        source: `lab`, a folder or a Hub id, or an open checkpoint.
        keep: the share that a plain cut would keep, if no plan is given.
        plan: a plan of the kind that is to be applied in the end.

    Raises:
        BadPlan, BadData, Unsupported: with the reason why nothing could be saved.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    wanted = draft_plan(checkpoint, keep) if plan is None else plan
    forecast = check_apply(checkpoint, wanted)
    first = wanted.layers[0]
    weights = checkpoint.read_layer(first.layer)
    if wanted.pure_cut and weights.experts == first.experts:  # rows beyond the experts are dealt with by apply itself
        cut(weights, first)
    return forecast
