"""The diagnostics of routing by name: calls the function of each, and prints its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from moeworks.errors import BadData, did_you_mean
from moeworks.stats.diagnostic_table import DIAGNOSTICS, Diagnostic, DiagnosticName
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["DIAGNOSTICS", "Diagnostic", "DiagnosticName", "cells", "diagnose", "shown"]


def diagnose(
    trace: Trace,
    what: str,
    *,
    where: Where = Where(),
    label: str | None = None,
    base: str | None = None,
    checkpoints: Mapping[int, Trace] | None = None,
    seed: int = 0,
    **options: Any,
) -> pa.Table:
    """Return the table of a diagnostic; see the function of that name for its columns.

    Args:
        trace: the trace; of a saturation or drift, the final one.
        what: name of the diagnostic.
        where: which tokens and layers count.
        label: label whose values are told apart, where the diagnostic does so.
        base: the value that others are compared with, of a divergence and what is made of it.
        checkpoints: step → trace of another checkpoint, of a saturation or drift.
        seed: of everything drawn.
        options: of the diagnostic, by their own names.

    Raises:
        BadData: the name, an option or a label is unknown, or missing where it is needed.
    """
    if what not in DIAGNOSTICS:
        raise BadData(f"no diagnostic is called '{what}'; {did_you_mean(what, DIAGNOSTICS)}")
    one = DIAGNOSTICS[what]
    _check_options(what, options)
    for name, value in (("label", label), ("base", base), ("checkpoints", checkpoints)):
        if value and not one.takes(name):
            raise BadData(f"the diagnostic '{what}' takes no {name}.")
    given: dict[str, Any] = {name: value for name, value in (("label", label), ("base", base)) if value}
    if what == "committee" and not label:
        known = ", ".join(sorted(set(trace.request_table().labels) - {"document"})) or "none"
        raise BadData(f"a standing committee is one over the values of a label: name it; labels here: {known}.")
    if one.takes("seed"):
        given["seed"] = seed
    if not one.takes("checkpoints"):
        return one.function(trace, where=where, **given, **options)
    if not checkpoints:
        raise BadData(f"{what} compares other checkpoints with this trace: give at least one, as step=TRACE.")
    steps = sorted(checkpoints)
    return one.function([checkpoints[step] for step in steps], trace, steps=steps, where=where, **given, **options)


def shown(what: str, table: pa.Table) -> tuple[list[str], list[list[str]]]:
    """Return the headings and cells of a diagnostic's printed table: three digits, intervals in brackets."""
    return cells(DIAGNOSTICS[what].columns, table)


def cells(shown_columns: Sequence[str], table: pa.Table) -> tuple[list[str], list[list[str]]]:
    """Return the headings and cells of some columns: a name, or `name [low high]` for a number with its interval."""
    columns = [_parse(column) for column in shown_columns]

    def cell(row: Mapping[str, Any], name: str, ends: list[str]) -> str:
        interval = f" [{', '.join(_cell(row[end]) for end in ends)}]" if ends else ""
        return _cell(row[name]) + interval

    lines = [[cell(row, *column) for column in columns] for row in table.to_pylist()]
    return [name for name, _ in columns], lines


def _parse(column: str) -> tuple[str, list[str]]:
    name, _, ends = column.partition(" [")
    return name, ends.rstrip("]").split()


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"
    return str(value)


def _check_options(what: str, options: Mapping[str, Any]) -> None:
    """Raise where an option is unknown or of another kind than its default."""
    known = DIAGNOSTICS[what].options
    for name, value in options.items():
        if name not in known:
            raise BadData(f"the diagnostic '{what}' has no option '{name}'; {did_you_mean(name, known)}")
        kinds: tuple[type, ...] = {int: (int,), float: (int, float), tuple: (list, tuple)}.get(
            type(known[name]), (str,)
        )
        numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        right = isinstance(value, kinds) and (kinds == (str,) or all(type(one) in (int, float) for one in numbers))
        if not right:
            raise BadData(f"option {name}={value} of '{what}' is not of the kind of its default, {known[name]}.")
