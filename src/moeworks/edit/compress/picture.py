"""Draws energy curves: how much of the weights a low rank holds, layer by layer, single experts and stacked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from moeworks.artefact import replace_file
from moeworks.edit.compress.factors import PROJECTIONS
from moeworks.edit.compress.rank_table import energy_curve, singular_values
from moeworks.edit.layer import LayerWeights
from moeworks.report.figure import style

__all__ = ["save_ranks_picture"]


def save_ranks_picture(layers: Iterable[LayerWeights], path: str | Path) -> Path:
    """Write one panel for each projection as PNG: energy over share of the full rank, a colour for each layer.

    Thin lines are the mean over single experts, thick ones all experts stacked: where the thick line rises early, a
    common basis holds the layer.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    curves: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}
    for weights in layers:
        for projection in PROJECTIONS:
            if getattr(weights, projection) is not None:
                single, stacked = singular_values(weights, projection)
                found = (weights.layer, energy_curve(single).mean(0).numpy(), energy_curve(stacked).numpy())
                curves.setdefault(projection, []).append(found)
    numbers = [layer for layer, *_ in next(iter(curves.values()))]
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(numbers)))
    with style():
        drawn = Figure(figsize=(3.2 * len(curves) + 1, 3.2), dpi=160, layout="constrained", facecolor="white")
        panels = drawn.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for panel, (projection, found_curves) in zip(panels, curves.items(), strict=True):
            for colour, (_, single_curve, stacked_curve) in zip(colours, found_curves, strict=True):
                for curve, width in ((single_curve, 0.8), (stacked_curve, 2.0)):
                    share = np.arange(len(curve) + 1) / len(curve)
                    panel.plot(share, np.concatenate([[0], curve]), color=colour, linewidth=width)
            panel.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle=":")
            panel.set(title=projection, xlabel="share of the full rank", xlim=(0, 1), ylim=(0, 1))
        panels[0].set_ylabel("share of the squared weights")
        handles = [Line2D([], [], color=colour, label=f"layer {n}") for colour, n in zip(colours, numbers, strict=True)]
        if len(handles) > 12:
            handles = [handles[0], handles[-1]]
        handles += [
            Line2D([], [], color="0.3", linewidth=0.8, label="one expert, mean"),
            Line2D([], [], color="0.3", linewidth=2.0, label="all experts, stacked"),
        ]
        drawn.legend(handles=handles, loc="outside right upper", frameon=False)
        target = Path(path)
        with replace_file(target) as temporary:
            drawn.savefig(temporary, format="png", metadata={"Software": None})
    return target
