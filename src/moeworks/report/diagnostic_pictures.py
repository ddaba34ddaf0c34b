"""Draws a diagnostic of a trace: its panels, the level by chance dotted beside each, and how to read it below."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from moeworks.artefact import replace_file
from moeworks.errors import BadData
from moeworks.report.diagnostic_panels import Curve, Panel, panels_of
from moeworks.report.figure import COLOURS, figure, style, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_diagnostic", "save_diagnostic"]

Row = Mapping[str, Any]
WIDTH, HEIGHT, DOTS = 10.0, 3.5, 160
# Okabe and Ito's palette, in an order in which neighbours are told apart.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#20242b", "#8a8f98")
MOST_DOTS = 24


def save_diagnostic(what: str, table: pa.Table, path: str | Path, *, source: str = "") -> Path:
    """Write the picture of a diagnostic's table as PNG or SVG, by the file's ending, whole or not at all.

    Raises:
        BadData: the ending is another one.
    """
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise BadData(f"{target} ends in neither .png nor .svg, which a picture is written as.")
    with style():
        drawn = draw_diagnostic(what, table, source=source)
        facts = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        with replace_file(target) as temporary:
            drawn.savefig(temporary, format=kind, dpi=DOTS, facecolor="white", metadata=facts)
    return target


def draw_diagnostic(what: str, table: pa.Table, *, source: str = "", bare: bool = False) -> Figure:
    """Return the figure of a diagnostic's table; to be called within `style`. `bare` is without heading and note."""
    from moeworks.stats.diagnostics import DIAGNOSTICS

    rows = table.to_pylist()
    panels = panels_of(what, rows)
    tall = max((len(_dots(rows, panel)) for panel in panels if panel.kind == "dots"), default=0)
    lines = max((len(_names(rows, panel.series)) for panel in panels if panel.kind == "cells"), default=0)
    drawn, places = figure(WIDTH, max(HEIGHT, 1.5 + 0.2 * tall, 1.6 + 0.24 * lines), columns=len(panels))
    for axes, panel in zip(places, panels, strict=True):
        kept = _kept(rows, panel)
        {"curves": _curves, "dots": _draw_dots, "cells": _cells, "profile": _profile}[panel.kind](axes, panel, kept)
        axes.set_title("\n".join(textwrap.wrap(panel.title, 96 // len(panels))))
    if bare:
        return drawn
    heading = f"{what.replace('_', ' ')}{f', {Path(source).name}' if source else ''}"
    drawn.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
    note = "\n".join(textwrap.wrap(f"{DIAGNOSTICS[what].reading}.", 150))
    drawn.supxlabel(note, x=0.01, ha="left", fontsize=8, color=COLOURS["ink"])
    return drawn


def _kept(rows: Sequence[Row], panel: Panel) -> list[Row]:
    """Return the rows that a panel shows: those of single layers, of the value that it keeps."""
    kept = [row for row in rows if row.get(panel.x, 0) is not None]
    if panel.x == "layer" and "segment" in (rows[0] if rows else {}) and "threshold" in rows[0]:
        kept = [row for row in kept if row["expert"] is None]  # SRP of groups, not of single experts
    if panel.keep is None or not kept:
        return kept
    column, wanted = panel.keep
    nearest = min({row[column] for row in kept}, key=lambda value: abs(value - wanted))
    return [row for row in kept if row[column] == nearest]


def _names(rows: Sequence[Row], columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Return the different values of some columns, in the order of the table."""
    return list(dict.fromkeys(tuple(row[column] for column in columns) for row in rows))


def _curves(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    names = _names(rows, panel.series)
    places = list(dict.fromkeys(row[panel.x] for row in rows))
    numeric = all(isinstance(place, (int, float)) for place in places)
    chosen = [(curve, name) for curve in panel.curves for name in names]
    spread = np.linspace(0, len(chosen) - 1, min(len(chosen), len(SERIES))).round().astype(int)  # first and last too
    levels, single = False, len(chosen) == 1
    for number, (curve, name) in enumerate(chosen[place] for place in spread):
        mine = [row for row in rows if tuple(row[column] for column in panel.series) == name]
        at, columns = _columns(mine, panel, curve, places, numeric)
        colour = SERIES[number]
        if not np.isfinite(columns[curve.column]).any():
            continue
        if curve.low and not panel.mean:
            axes.fill_between(at, columns[curve.low], columns[curve.high], color=colour, alpha=0.16, linewidth=0)
        axes.plot(at, columns[curve.column], "o-", markersize=3, color=colour, label=_label(panel, curve, name, names))
        if curve.chance:
            grey = COLOURS["before"] if single else colour
            axes.plot(at, columns[curve.chance], ":", linewidth=1.3, color=grey)
            levels = True
    if levels:
        axes.plot([], [], ":", linewidth=1.3, color=COLOURS["before"], label="by chance")
    if len(chosen) > len(SERIES):
        axes.plot([], [], " ", label=f"{len(chosen) - len(SERIES)} more in the table")
    _axis(axes, panel, places, numeric)
    if axes.get_legend_handles_labels()[1] and (levels or not single):
        _legend(axes)


def _columns(
    rows: Sequence[Row], panel: Panel, curve: Curve, places: list[Any], numeric: bool
) -> tuple[list[Any], dict[str, Any]]:
    """Return where a curve has points, and its columns there; averaged over rows of one place."""
    wanted = [name for name in (curve.column, curve.low, curve.high, curve.chance) if name]
    at = [place for place in places if any(row[panel.x] == place for row in rows)]
    columns = {}
    for name in wanted:
        found = [[_number(row[name]) for row in rows if row[panel.x] == place] for place in at]
        columns[name] = np.array([float(np.mean(values)) for values in found])
    return (at if numeric else [places.index(place) for place in at]), columns


def _axis(axes: Axes, panel: Panel, places: list[Any], numeric: bool) -> None:
    if panel.log:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    if not numeric:
        axes.set_xticks(range(len(places)), [str(place) for place in places], rotation=45, ha="right")
    elif panel.x == "relative":
        axes.set_xticks(places, [f"{place:g}" for place in places])
    elif all(float(place).is_integer() for place in places):
        every = max(1, math.ceil(len(places) / 12))
        axes.set_xticks(places[::every], [str(int(place)) for place in places[::every]])
    axes.set_xlabel(panel.label or panel.x.replace("_", " "))
    tidy(axes, grid="y")


def _dots(rows: Sequence[Row], panel: Panel) -> list[Row]:
    """Return the rows that dots are drawn of: best ranks first if there are too many."""
    kept = list(_kept(rows, panel))
    rank = max((row.get("rank", 1) for row in kept), default=1)
    while len(kept) > MOST_DOTS and rank > 1:
        rank -= 1
        kept = [row for row in kept if row.get("rank", 1) <= rank]
    return kept[: MOST_DOTS * 2]


def _draw_dots(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    curve, shown = panel.curves[0], _dots(rows, panel)
    lines = np.arange(len(shown))
    found, low, high, chance = (
        np.array([_number(row[name]) if name else math.nan for row in shown])
        for name in (curve.column, curve.low, curve.high, curve.chance)
    )
    axes.hlines(lines, low, high, color=COLOURS["plan"], linewidth=1.8, alpha=0.6)
    axes.scatter(found, lines, s=22, color=COLOURS["plan"], zorder=3)
    axes.scatter(chance, lines, s=34, marker="|", color=COLOURS["control"], zorder=2, label="by chance")
    axes.set_yticks(lines, [_dot_name(row, panel) for row in shown], fontsize=7.5)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel(panel.label or curve.column.replace("_", " "))
    axes.locator_params(axis="x", nbins=5)
    _legend(axes)
    tidy(axes, grid="x")


def _dot_name(row: Row, panel: Panel) -> str:
    if panel.series == ("layer", "first", "second"):
        return f"L{row['layer']}: E{row['first']} + E{row['second']}"
    return " ".join(str(row[column]) for column in panel.series)


def _cells(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    places, names = list(dict.fromkeys(row[panel.x] for row in rows)), _names(rows, panel.series)
    values = np.full((len(names), len(places)), math.nan)
    texts: dict[tuple[int, int], str] = {}
    for row in rows:
        cell = names.index(tuple(row[column] for column in panel.series)), places.index(row[panel.x])
        values[cell] = _number(row[panel.curves[0].column])
        texts[cell] = _cell_text(row, panel, values[cell])
    scale = np.array([_number(row[panel.scale or panel.curves[0].column]) for row in rows])
    largest = float(np.nanmax(scale)) if np.isfinite(scale).any() else 1.0
    image = axes.pcolormesh(
        np.ma.masked_invalid(values), cmap="Blues", vmin=0, vmax=largest or 1.0, edgecolors="white", linewidth=0.8
    )
    if len(places) * len(names) <= 200:
        for (line, column), text in texts.items():
            dark = values[line, column] > 0.6 * (largest or 1.0)
            colour = "white" if dark else COLOURS["ink"]
            axes.text(column + 0.5, line + 0.52, text, ha="center", va="center", fontsize=7, color=colour)
    every = max(1, math.ceil(len(places) / 12))
    axes.set_xticks(np.arange(0, len(places), every) + 0.5, [str(place) for place in places[::every]])
    axes.set_yticks(np.arange(len(names)) + 0.5, [" ".join(map(str, name)) for name in names], fontsize=8)
    axes.set_ylim(len(names), 0)
    axes.set_xlabel(panel.label or panel.x)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    tidy(axes)
    if image.get_array() is not None and panel.text != "result":
        bar = axes.figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05, aspect=18)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=7)


def _cell_text(row: Row, panel: Panel, value: float) -> str:
    if panel.text == "result":
        return {"pass": "✓", "fail": "✗", "not told": "–"}[row["result"]]
    if panel.text:
        return str(row[panel.text])
    return f"{value:.2f}".removeprefix("0") if math.isfinite(value) else ""


def _profile(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    at = range(len(panel.curves))
    for number, row in enumerate(rows[: len(SERIES)]):
        label = " ".join(str(row[column]) for column in panel.series)
        axes.plot(at, [_number(row[curve.column]) for curve in panel.curves], "o-", color=SERIES[number], label=label)
    axes.set_xticks(at, [curve.column for curve in panel.curves])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(panel.label)
    _legend(axes)
    tidy(axes, grid="y")


def _legend(axes: Axes) -> None:
    """Put the legend below the axes and its labels, where it covers no curve."""
    from matplotlib.transforms import ScaledTranslation

    lines = 1 + max((axes.get_xlabel() != "") + _tick_lines(axes), 0)
    below = axes.transAxes + ScaledTranslation(0, -(6 + 12 * lines) / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper left", bbox_to_anchor=(0.0, 0.0), bbox_transform=below, ncols=2,
        fontsize=7.5, frameon=False, borderaxespad=0.0, columnspacing=1.2, handlelength=1.8,
    )  # fmt: skip


def _tick_lines(axes: Axes) -> int:
    """Return how many lines slanted tick labels take beyond the first."""
    texts = [label for label in axes.get_xticklabels() if label.get_rotation()]
    return max((len(label.get_text()) for label in texts), default=0) // 3


def _label(panel: Panel, curve: Curve, name: tuple[Any, ...], names: Sequence[tuple[Any, ...]]) -> str:
    """Return what a legend calls a curve: its own name, and the values of the series where there are several."""
    parts = [curve.name] if curve.name else []
    if len(names) > 1:
        titles = {"segment": "m = {}", "step": "step {}", "factor": "factor {}"}
        parts += [
            titles.get(column, "{}").format("all" if value is None else value)
            for column, value in zip(panel.series, name, strict=True)
            if value != "" and len({one[panel.series.index(column)] for one in names}) > 1
        ]
    return ", ".join(parts) or curve.column.replace("_", " ")


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
