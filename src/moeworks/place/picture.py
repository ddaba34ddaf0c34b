"""One picture of a cache curve: hit rate over capacity for each policy, between chance and Belady's bound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeworks.artefact import replace_file
from moeworks.report.figure import COLOURS, figure, style, tidy

if TYPE_CHECKING:
    from moeworks.place.curve import CacheCurve

__all__ = ["NAMES", "save_curve"]

DOTS = 160  # an inch
NAMES = {
    "random": "random eviction",
    "fixed": "pinned set",
    "lru": "LRU",
    "lfu": "LFU",
    "lfru": "LFRU",
    "predictor": "predicted use",
    "least_stale": "Least-Stale",
    "sch": "SCH, knows some tokens",
    "belady_forced": "Belady, keeps newcomers",
    "belady": "Belady's bound",
}
# Colour and dash of each line: the two that are compared stand out, the bounds are dark, the rest is thin.
LINES = {
    "random": (COLOURS["before"], ":", 1.0),
    "fixed": (COLOURS["control"], "-", 2.0),
    "lru": (COLOURS["plan"], "-", 2.0),
    "lfu": (COLOURS["bottom"], "-", 1.2),
    "lfru": (COLOURS["bottom"], "--", 1.2),
    "predictor": ("#cc79a7", "-", 1.2),
    "least_stale": ("#e69f00", "-", 1.2),
    "sch": ("#56b4e9", "--", 1.2),
    "belady_forced": (COLOURS["ink"], "--", 1.2),
    "belady": (COLOURS["ink"], "-", 1.4),
}


def save_curve(curve: CacheCurve, path: str | Path) -> Path:
    """Write the picture as PNG or SVG, by the name's ending, whole or not at all."""
    target = Path(path)
    kind = "svg" if target.suffix.lower() == ".svg" else "png"
    rows = curve.table.to_pylist()
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    with style():
        drawn, (axes,) = figure(7.6, 4.3)
        drawn.set_dpi(DOTS)
        drawn.set_facecolor("white")
        for policy in policies:
            mine = [row for row in rows if row["policy"] == policy]
            share = 100 * np.array([row["share"] for row in mine])
            rate, low, high = (100 * np.array([row[name] for row in mine]) for name in ("hit_rate", "low", "high"))
            colour, dash, width = LINES[policy]
            axes.plot(share, rate, dash, color=colour, linewidth=width, label=NAMES[policy], zorder=2 + width)
            if policy in ("lru", "fixed") and np.isfinite(low).all():
                axes.fill_between(share, low, high, color=colour, alpha=0.15, linewidth=0)
        first = [row for row in rows if row["policy"] == policies[0]]
        x, chance = (100 * np.array([row[name] for row in first]) for name in ("share", "chance"))
        axes.plot(x, chance, color=COLOURS["before"], linewidth=0.9, label="chance: random experts held", zorder=1)
        _mark_knee(axes, curve, rows)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 101)
        axes.set_xlabel("experts held, % of all")
        axes.set_ylabel("hit rate, %")
        axes.set_title(_title(curve))
        tidy(axes, grid="both")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), reverse=True)
        with replace_file(target) as temporary:
            drawn.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return target


def _mark_knee(axes: object, curve: CacheCurve, rows: list[dict[str, float]]) -> None:
    """Mark where LRU, or the first policy with a knee, is farthest above chance."""
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    knees = {knee["policy"]: knee for knee in curve.knees.to_pylist() if knee["capacity"] is not None}
    policy = "lru" if "lru" in knees else next(iter(knees), None)
    if policy is None:
        return
    (row,) = [one for one in rows if one["policy"] == policy and one["capacity"] == knees[policy]["capacity"]]
    place = (100 * row["share"], 100 * row["hit_rate"])
    axes.plot(*place, "o", color=LINES[policy][0], markersize=7, markerfacecolor="white", markeredgewidth=1.6, zorder=6)
    axes.annotate(
        f"knee of {NAMES[policy]}:\n{row['held']:g} a layer, {100 * row['hit_rate']:.0f} %",
        place,
        xytext=(14, -30),
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": COLOURS["before"], "linewidth": 0.8, "shrinkB": 5},
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85},
        zorder=7,
    )


def _title(curve: CacheCurve) -> str:
    phases = ", ".join(f"{count:,} {phase}" for phase, count in curve.phases.items())
    place = "One pool" if curve.rules.scope == "pooled" else "One cache per layer"
    return f"{place}, batch {curve.rules.batch}; {phases} tokens of {curve.documents} documents"
