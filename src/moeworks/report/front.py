"""One picture of a search: effect against damage of every setting tried, the front, the floor, and what was chosen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from moeworks.artefact import replace_file
from moeworks.report.figure import COLOURS, style, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from moeworks.prove.tune import Tuned

__all__ = ["draw_front", "save_front"]

DOTS = 160  # an inch


def draw_front(axes: Axes, tuned: Tuned) -> None:
    """Draw every setting with its interval; the front is a line, what breaks the floor is grey."""
    for point in tuned.points:
        colour = COLOURS["plan"] if point.within_limits else COLOURS["before"]
        if math.isfinite(point.effect.high - point.effect.low):
            ends = [point.effect.low, point.effect.high]
            axes.plot([point.divergence] * 2, ends, color=COLOURS["faint"], zorder=1)
        axes.plot(point.divergence, point.effect.value, "o", color=colour, markersize=4, zorder=2)
    front = sorted((p for p in tuned.points if p.on_front), key=lambda point: point.divergence)
    axes.plot([p.divergence for p in front], [p.effect.value for p in front], color=COLOURS["plan"], linewidth=1.0)
    chosen = tuned.points[tuned.chosen]
    axes.plot(chosen.divergence, chosen.effect.value, "o", color=COLOURS["control"], markersize=7, zorder=3)
    axes.annotate(
        f"chosen: {chosen.demote} down, {chosen.promote} up",
        (chosen.divergence, chosen.effect.value),
        textcoords="offset points",
        xytext=(8, 6),
    )
    worst = max(point.divergence for point in tuned.points)
    if worst > tuned.limits.divergence:
        axes.axvline(tuned.limits.divergence, color=COLOURS["control"], linewidth=0.8, linestyle="--")
    axes.axhline(0.0, color=COLOURS["ink"], linewidth=0.6)
    axes.set_xlabel("KL to the unsteered model on neutral text, nats a token")
    axes.set_ylabel(f"effect on {tuned.probe}, dev (expected {tuned.expected})")
    tidy(axes, grid="y")


def save_front(tuned: Tuned, path: str | Path) -> Path:
    """Write the picture as PNG or SVG, by the name's ending, whole or not at all."""
    from matplotlib.figure import Figure

    target = Path(path)
    kind = "svg" if target.suffix.lower() == ".svg" else "png"
    with style():
        drawn = Figure(figsize=(7.0, 4.2), dpi=DOTS, layout="constrained", facecolor="white")
        draw_front(drawn.subplots(), tuned)
        with replace_file(target) as temporary:
            drawn.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return target
