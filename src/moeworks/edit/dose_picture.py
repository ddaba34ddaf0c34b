"""The dose curve as a picture: perplexity over the share of experts that goes, by the ranking and at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moeworks.artefact import replace_file
from moeworks.edit.dose import DoseCurve
from moeworks.report.figure import COLOURS, style, tidy

__all__ = ["save_dose_picture"]

WIDTH, HEIGHT, DOTS = 6.4, 3.6, 160  # inches, dots an inch
LOGARITHMIC = 4.0  # times the perplexity from which on a logarithmic axis shows more


def save_dose_picture(curve: DoseCurve, path: str | Path) -> Path:
    """Write the picture as PNG, whole or not at all."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    cut = 100 * np.array([point.cut for point in curve.doses])
    ratio = np.array([point.perplexity.value for point in curve.doses])
    low = np.array([point.perplexity.low for point in curve.doses])
    high = np.array([point.perplexity.high for point in curve.doses])
    known = np.isfinite(low) & np.isfinite(high)
    random = [(100 * point.cut, value) for point in curve.doses for value in point.random]
    with style():
        drawn = Figure(figsize=(WIDTH, HEIGHT), dpi=DOTS, layout="constrained", facecolor="white")
        axes = drawn.subplots()
        limit = 1 + curve.limit
        axes.axhline(limit, color=COLOURS["ink"], linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            f"limit, +{100 * curve.limit:.3g} %",
            (float(cut[-1]), limit),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
        if random:
            across, up = np.array(random).T
            axes.scatter(across, up, s=14, color=COLOURS["control"], alpha=0.6, linewidths=0, zorder=2)
            means = [float(np.mean(point.random)) if point.random else 1.0 for point in curve.doses]
            axes.plot(cut, means, color=COLOURS["control"], linewidth=1.2, label="random experts, mean")
        axes.fill_between(
            cut,
            np.where(known, low, ratio),
            np.where(known, high, ratio),
            color=COLOURS["plan"],
            alpha=0.15,
            linewidth=0,
        )
        axes.plot(cut, ratio, color=COLOURS["plan"], marker="o", markersize=4, label=f"ranked by {curve.method}")
        judged = [found for found in (curve.chosen, curve.beyond) if found is not None]
        axes.scatter(
            [100 * found.cut for found in judged],
            [found.perplexity.value for found in judged],
            marker="D",
            s=34,
            facecolors="white",
            edgecolors=COLOURS["bottom"],
            linewidths=1.4,
            zorder=4,
            label="held-out texts",
        )
        top = max([*ratio, *(value for _, value in random), *(found.perplexity.value for found in judged)])
        if top > LOGARITHMIC:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(cut, [f"{value:.3g} %" for value in cut])
        axes.set_xlabel("experts less")
        axes.set_ylabel("perplexity, times that of the whole model")
        axes.set_title(f"What {Path(curve.model).name} can spare")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.9))
        tidy(axes, grid="y")
        target = Path(path)
        with replace_file(target) as temporary:
            drawn.savefig(temporary, format="png", metadata={"Software": None})
    return target
