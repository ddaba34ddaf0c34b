"""Writes the model card of an edited checkpoint's folder, with what was measured of it."""

from __future__ import annotations

from pathlib import Path

from moeworks.artefact import replace_file
from moeworks.edit.card import is_hub_id, model_card, source_metadata
from moeworks.edit.checkpoint.source import open_checkpoint
from moeworks.edit.plan import EditPlan
from moeworks.edit.repair import REPORT
from moeworks.edit.verification import Verification

__all__ = ["write_card"]


def write_card(folder: str | Path, against: str, plan: EditPlan, found: Verification) -> Path:
    """Write README.md, whole or not at all; licence and languages are those of the original's card."""
    text = model_card(
        plan,
        base_model=against if is_hub_id(against) and not Path(against).exists() else "",
        metadata=source_metadata(open_checkpoint(against).folder),
        bytes_before=found.bytes_before,
        bytes_after=found.bytes_after,
        comparison=found.comparison,
        repaired=(Path(folder) / REPORT).is_file(),
    )
    target = Path(folder) / "README.md"
    with replace_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target
