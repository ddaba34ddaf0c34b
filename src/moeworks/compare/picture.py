"""One picture of a comparison: overlap by layer with its interval and chance, and where tokens part first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeworks.artefact import replace_file
from moeworks.report.figure import COLOURS, figure, style, tidy

if TYPE_CHECKING:
    from moeworks.compare.comparison import Comparison

__all__ = ["save_comparison"]

DOTS = 160  # an inch


def save_comparison(found: Comparison, path: str | Path) -> Path:
    """Write the picture as PNG or SVG, by the name's ending, whole or not at all."""
    target = Path(path)
    kind = "svg" if target.suffix.lower() == ".svg" else "png"
    columns = found.layers.to_pydict()
    places = np.arange(len(columns["layer"]))
    with style():
        drawn, (left, right) = figure(8.4, 3.4, 2)
        drawn.set_dpi(DOTS)
        drawn.set_facecolor("white")
        overlap = np.array(columns["overlap"])
        ends = np.array([columns["low"], columns["high"]], float)
        known = np.isfinite(ends).all(0)
        left.vlines(places[known], ends[0, known], ends[1, known], color=COLOURS["plan"], linewidth=1.2)
        left.plot(places, overlap, "o", color=COLOURS["plan"], markersize=4)
        left.plot(places, columns["chance"], "_", color=COLOURS["before"], markersize=10)
        left.annotate(
            "chance", (places[-1], columns["chance"][-1]), xytext=(0, 4), textcoords="offset points", ha="right"
        )
        left.set_ylim(0, 1.04)
        left.set_title("Share of a token's experts that both chose")
        flips, first = np.array(columns["flips"]), np.array(columns["first_flips"])
        right.bar(places, flips, color=COLOURS["faint"], label="another set of experts")
        right.bar(places, first, color=COLOURS["control"], label="and none in the layers before")
        right.set_title("Share of tokens with")
        right.legend(frameon=False, loc="upper left")
        right.margins(y=0.3)
        for axes in (left, right):
            shown = places if len(places) <= 16 else places[:: -(-len(places) // 16)]
            axes.set_xticks(shown, [str(columns["layer"][place]) for place in shown])
            axes.set_xlabel("layer")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
            tidy(axes, grid="y")
        with replace_file(target) as temporary:
            drawn.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return target
