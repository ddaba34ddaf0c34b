"""Arguments and options that the proof commands of `edit` share, and how they become texts and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moeworks.edit.plan import EditPlan
    from moeworks.edit.statistics_file import Statistics
    from moeworks.examples import Example

__all__ = [
    "Data",
    "EditPlanFile",
    "NewTokens",
    "Prompts",
    "StatisticsFolder",
    "WriteEvidence",
    "add_evidence",
    "check_evidence_file",
    "read_data",
    "read_statistics",
]

EditPlanFile = Annotated[
    Path, typer.Option("--plan", metavar="PLAN", help="The edit plan, of `moeworks edit plan`.", show_default=False)
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Texts to measure on, as of record; labels lang and domain are told apart.",
        show_default="built-in neutral texts",
    ),
]
StatisticsFolder = Annotated[
    Path | None,
    typer.Option("--statistics", metavar="STATS", help="What the plan was made from, if its merge needs them."),
]
Prompts = Annotated[
    int, typer.Option("--prompts", min=0, help="Texts that are continued, for loops and overlap; 0: neither.")
]
NewTokens = Annotated[int, typer.Option("--new-tokens", min=1, help="At most so many after each prompt.")]
WriteEvidence = Annotated[bool, typer.Option("--write-evidence", help="Write what was measured into the plan's file.")]


def check_evidence_file(plan: Path | None) -> None:
    """Refuse, before anything is measured, to write evidence where there is no file of a plan."""
    from moeworks.errors import BadData

    if plan is None or str(plan) == "-":
        raise BadData("evidence is written into a plan's file; name one with --plan.")


def add_evidence(plan: EditPlan, path: Path, **evidence: Any) -> None:
    """Write a plan again with more evidence."""
    from moeworks.edit.files import save_edit_plan

    save_edit_plan(plan.model_copy(update={"evidence": {**(plan.evidence or {}), **evidence}}), path)


def read_data(source: str | None) -> list[Example] | None:
    """Return the examples of a source, or None where none is named."""
    if source is None:
        return None
    from moeworks.data import read_examples

    return list(read_examples(source))


def read_statistics(folder: Path | None) -> Statistics | None:
    """Open a folder of statistics, if one is named."""
    if folder is None:
        return None
    from moeworks.edit.statistics_file import Statistics

    return Statistics.open(folder)
