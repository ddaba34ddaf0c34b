"""Diagnostics of routing as pictures with words, for the report of a study and the report of a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from moeworks import __version__
from moeworks.artefact import replace_file
from moeworks.report.diagnostic_panels import PANELS, has_few_values
from moeworks.report.diagnostic_pictures import draw_diagnostic
from moeworks.report.diagnostic_words import HOW_TO_READ, words_of
from moeworks.report.figure import style, to_svg
from moeworks.report.page import environment, style_sheet
from moeworks.report.words import number, plain, routers
from moeworks.stats.diagnostics import shown
from moeworks.stats.everything import READING_ORDER, Told, diagnose_all
from moeworks.stats.sanity import sentence
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["render_trace", "routing_sections", "save_trace_report"]

MOST_ROWS = 200  # of a table in the page; the whole is what `inspect --json` gives


def save_trace_report(
    trace: Trace,
    path: str | Path,
    *,
    where: Where = Where(),
    label: str | None = None,
    base: str | None = None,
    checkpoints: dict[int, Trace] | None = None,
    seed: int = 0,
    workers: int = 1,
    command: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write all diagnostics of a trace as one page, whole or not at all.

    Args:
        trace, where, label, base, checkpoints, seed, workers, say: as of `moeworks.stats.everything.diagnose_all`.
        path: the file.
        command: how this was asked for, for the page.

    Raises:
        RunFailed: the trace fails a check that makes numbers wrong.
    """
    told = diagnose_all(
        trace,
        where=where,
        label=label,
        base=base,
        checkpoints=checkpoints,
        seed=seed,
        workers=workers,
        say=say,
    )
    html = render_trace(trace, told, where=where, seed=seed, command=command)
    target = Path(path)
    with replace_file(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def render_trace(
    trace: Trace, told: Sequence[Told], *, where: Where = Where(), seed: int = 0, command: str = ""
) -> str:
    """Return the page of a trace's diagnostics; the same tables give the same bytes."""
    header = trace.header
    checks = next((one.table for one in told if one.what == "sanity" and one.table is not None), None)
    return (
        environment()
        .get_template("trace.html.j2")
        .render(
            css=style_sheet(),
            name=Path(trace.path).name,
            tokens=len(trace),
            texts=trace.requests.num_rows,
            model=header.model,
            engine=header.engine,
            lacks=header.lacks,
            logits=header.logits,
            text_hash=header.text_hash,
            where=str(where),
            seed=seed,
            command=command,
            version=__version__,
            sanity="" if checks is None else sentence(checks).capitalize(),
            routers=[] if header.model is None else routers(header.model),
            sections=routing_sections(told),
            missing=[(plain(one.what), one.reason) for one in told if one.table is None],
            how_to_read=HOW_TO_READ,
        )
    )


def routing_sections(told: Iterable[Told], *, prefix: str = "routing") -> list[dict[str, Any]]:
    """Return for the template: sections in reading order, each with its pictures, words and tables."""
    by_name = {one.what: one for one in told if one.table is not None}
    sections = []
    for place, (title, names) in enumerate(READING_ORDER.items(), 1):
        pictures = [_picture(by_name[name], f"{prefix}-{name}") for name in names if name in by_name]
        if pictures:
            sections.append({"title": title, "anchor": f"{prefix}-{place}", "pictures": pictures})
    return sections


def _picture(one: Told, name: str) -> dict[str, Any]:
    table = one.table
    assert table is not None
    words = words_of(one.what, few=has_few_values(table.to_pylist()))
    found = _found(one.what, table)
    with style():
        drawn = draw_diagnostic(one.what, table, bare=True)
        svg = to_svg(drawn, name=name, description=f"{words.question} {found}".strip())
    headings, lines = shown(one.what, table)
    return {
        "what": one.what,
        "title": words.question,
        "svg": svg,
        "how": words.how,
        "found": found,
        "by": f"by {one.label}" + (f", from {one.base}" if one.base else "") if one.label else "",
        "headings": headings,
        "rows": lines[:MOST_ROWS],
        "left_out": max(0, len(lines) - MOST_ROWS),
        "tokens": _tokens(table),
    }


def _found(what: str, table: pa.Table) -> str:
    """Return the picture's main number in words: its mean over the table's rows, and that of its level by chance."""
    panel = PANELS[what][0]
    curve = panel.curves[0]
    if what in ("sanity", "u_shape", "coactivation") or panel.kind == "profile":
        return ""
    rows = [row for row in table.to_pylist() if row.get("layer", 0) is not None]
    if panel.keep and rows:
        column, wanted = panel.keep
        nearest = min({row[column] for row in rows}, key=lambda value: abs(value - wanted))
        rows = [row for row in rows if row[column] == nearest]

    def mean(column: str) -> float | None:
        values = [row[column] for row in rows if row[column] is not None and not math.isnan(row[column])]
        return sum(values) / len(values) if values else None

    chance = curve.chance or next((name for name in ("distance_chance", "chance") if name in table.column_names), "")
    value, level = mean(curve.column), mean(chance) if chance else None
    if value is None:
        return ""
    said = f"Mean of what the first panel shows: {number(value)}"
    return f"{said}; by chance {number(level)}." if level is not None else f"{said}."


def _tokens(table: pa.Table) -> int | None:
    if "tokens" not in table.column_names:
        return None
    found = [value for value in table["tokens"].to_pylist() if value is not None]
    return int(max(found)) if found else None
