"""Options that several `place` commands share: which tokens count, and the bytes of an expert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from moeworks.artefact import ModelIdentity
    from moeworks.trace import Trace
    from moeworks.where import Where

__all__ = ["Batch", "ExpertBytes", "Hidden", "PhaseName", "Precision", "TraceFolder", "WhereClause"]

TraceFolder = Annotated[Path, typer.Argument(metavar="TRACE", help="A trace's folder.", show_default=False)]
WhereClause = Annotated[str, typer.Option("--where", help="Tokens and layers that count, as in 'lang=fr layer=3,4'.")]
PhaseName = Annotated[
    Literal["prompt", "generated", "forced"] | None,
    typer.Option("--phase", help="Only tokens of this phase count.", show_default=False),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Texts that run together, step by step.")]
ExpertBytes = Annotated[
    str, typer.Option("--expert-bytes", metavar="BYTES", help="Bytes of an expert as it is served, as in 9.4MB.")
]
Hidden = Annotated[
    int | None,
    typer.Option(
        "--hidden", min=1, help="Width of the residual stream, for the bytes of an expert.", show_default=False
    ),
]
Precision = Annotated[
    str, typer.Option("--precision", help="bfloat16, fp8, int4, mxfp4 …, or bits of a weight as a number.")
]


def clause(where: str, phase: str | None) -> Where:
    """Return the clause of --where and --phase together."""
    from moeworks.errors import BadData
    from moeworks.where import Where

    found = Where.parse(where)
    if phase is None:
        return found
    if found.phase is not None:
        raise BadData("--phase and a phase in --where say the same thing twice; give one.")
    return Where.model_validate({**found.model_dump(), "phase": (phase,)})


def bytes_of_expert(model: ModelIdentity | None, given: str, hidden: int | None, precision: str) -> float | None:
    """Return the bytes of an expert as asked for, or None where nothing was said of them."""
    from moeworks.place.timing import expert_bytes_of, parse_bytes

    if given:
        return parse_bytes(given)
    return None if hidden is None else expert_bytes_of(model, hidden=hidden, precision=precision)


def open_trace(path: Path) -> Trace:
    """Open a trace."""
    from moeworks.trace import Trace

    return Trace.open(path)


def shown(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a number with three digits and its interval."""
    if value is None or value != value:
        return "-"
    text = f"{value:.3f}"
    return text if low is None or high is None or low != low else f"{text} [{low:.3f}, {high:.3f}]"
