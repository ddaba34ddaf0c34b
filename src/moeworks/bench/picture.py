"""The league as heat maps: methods down, probes across; one PNG for detection and one for steering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moeworks.artefact import replace_file
from moeworks.bench.schema import DetectCell, SteerCell
from moeworks.bench.table import mean, methods_of, of, probes_of
from moeworks.report.figure import COLOURS, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["save_detection", "save_steering"]

DOTS, ROW, COLUMN = 110, 0.27, 0.78  # dots an inch; inches
Grid = NDArray[np.float64]


def save_detection(cells: Sequence[DetectCell], path: Path) -> None:
    """Draw, for each model, the share of seeds in which a method's claims are all of the truth, or are none."""
    panels = []
    for model in dict.fromkeys(cell.model for cell in cells):
        mine = [cell for cell in cells if cell.model == model]
        rows, columns = methods_of(mine), probes_of(mine)
        grid, words = np.full((len(rows), len(columns)), np.nan), [[""] * len(columns) for _ in rows]
        for i, method in enumerate(rows):
            for j, probe in enumerate(columns):
                found = of(mine, method=method, probe=probe)
                grid[i, j], words[i][j] = _right(found)
        title = f"{model}: experts claimed (mean of seeds); blue right, red false, white nothing of what is there"
        panels.append((title, rows, columns, grid, words))
    _save(panels, path)


def _right(cells: Sequence[DetectCell]) -> tuple[float, str]:
    """Return how right the claims are, -1 to 1 or NaN where nobody knows, and the words of the cell."""
    if not cells:
        return np.nan, "not run"
    if all(cell.null == "none" for cell in cells):
        return np.nan, "no null"
    claims = mean(float(len(cell.claims)) for cell in cells) or 0.0
    words = f"{claims:.1f}"
    kind = cells[0].kind
    if kind == "probe":
        return np.nan, words
    if kind == "planted":
        return sum(map(_found, cells)) / len(cells), words
    return 1 - 2 * sum(bool(cell.claims) for cell in cells) / len(cells), words


def _found(cell: DetectCell) -> float:
    """Return the F1 of the claims, from -1 (all false) to 1 (all of the truth and nothing else); 0 without claims."""
    return 4 * cell.hits / (len(cell.claims) + len(cell.sought)) - 1 if cell.claims else 0.0


def save_steering(cells: Sequence[SteerCell], path: Path) -> None:
    """Draw, for each model, the share of seeds in which a plan works, or breaks the model, and its effect.

    A plan that is said to work where no expert carries the behaviour is drawn as one that breaks the model.
    """
    panels = []
    for model in dict.fromkeys(cell.model for cell in cells):
        mine = [cell for cell in cells if cell.model == model]
        rows, columns = methods_of(mine), probes_of(mine)
        grid, words = np.full((len(rows), len(columns)), np.nan), [[""] * len(columns) for _ in rows]
        for i, method in enumerate(rows):
            for j, probe in enumerate(columns):
                found = of(mine, method=method, probe=probe)
                if not found:
                    words[i][j] = "not run"
                    continue
                works = sum(cell.verdict == "works" for cell in found)
                breaks = sum(cell.verdict == "breaks the model" for cell in found)
                right = 1 if found[0].kind in ("planted", "probe") else -1  # nothing can work where nothing carries it
                grid[i, j] = (right * works - breaks) / len(found)
                effect = mean(None if cell.effect is None else cell.effect.value for cell in found)
                words[i][j] = "" if effect is None else f"{effect:+.2g}"
        title = f'{model}: effect on held-out items; blue works; red breaks the model, or "works" where nothing can'
        panels.append((title, rows, columns, grid, words))
    _save(panels, path)


def _save(panels: Sequence[tuple[str, list[str], list[str], Grid, list[list[str]]]], path: Path) -> None:
    from matplotlib.figure import Figure

    heights = [0.95 + ROW * len(rows) for _, rows, _, _, _ in panels]
    width = max(9.0, 2.9 + COLUMN * max(len(columns) for _, _, columns, _, _ in panels))
    with style():
        drawn = Figure(figsize=(width, sum(heights)), dpi=DOTS, layout="constrained", facecolor="white")
        axes = drawn.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for place, panel in zip(axes, panels, strict=True):
            _draw(place, *panel)
        with replace_file(path) as temporary:
            drawn.savefig(temporary, format="png", metadata={"Software": None})


def _draw(axes: Axes, title: str, rows: list[str], columns: list[str], grid: Grid, words: list[list[str]]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    axes.set_facecolor("#f2f3f5")  # where there is nothing to judge
    colours = LinearSegmentedColormap.from_list("league", [COLOURS["control"], "#ffffff", COLOURS["plan"]])
    axes.imshow(np.ma.masked_invalid(grid), cmap=colours, vmin=-1, vmax=1, aspect="auto")
    for i, line in enumerate(words):
        for j, word in enumerate(line):
            dark = not np.isnan(grid[i, j]) and abs(grid[i, j]) > 0.7
            axes.text(j, i, word, ha="center", va="center", fontsize=7, color="white" if dark else COLOURS["ink"])
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=25, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.set_title(title, fontsize=8.5, pad=10, loc="left")
