"""What the picture of each diagnostic shows: panels, their columns, and the level by chance beside each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["PANELS", "Curve", "Panel", "has_few_values", "panels_of"]

FEW_VALUES = 5  # of a label: so many have curves with intervals, more become a map


@dataclass(frozen=True)
class Curve:
    """One column of the table: its interval, its level by chance, and its name where a panel shows several."""

    column: str
    low: str = ""
    high: str = ""
    chance: str = ""
    name: str = ""


@dataclass(frozen=True)
class Panel:
    """One axes of a picture.

    Attributes:
        title: what it shows.
        curves: columns; of dots and cells the first alone.
        kind: curves over x; dots with intervals, a line a row; cells of x by `series`; profile, the curves as places.
        x: column of the horizontal axis; numbers, or names in the order of the table.
        series: columns whose values have a curve each (or, for dots and cells, a line each).
        text: column whose value is written into each cell, in place of the number.
        keep: (column, value): only rows with it; the nearest value there is.
        scale: column whose largest value has the strongest colour of cells; the curve's own without.
        mean: whether rows of the same x and series are averaged (over layers).
        label: of the horizontal axis; the column's own name without.
        log: whether x is drawn on a scale of powers of two.
    """

    title: str
    curves: tuple[Curve, ...]
    kind: Literal["curves", "dots", "cells", "profile"] = "curves"
    x: str = "layer"
    series: tuple[str, ...] = ()
    text: str = ""
    keep: tuple[str, float] | None = None
    scale: str = ""
    mean: bool = False
    label: str = ""
    log: bool = False


def _with_interval(column: str, chance: str = "", name: str = "") -> Curve:
    return Curve(column, f"{column}_low", f"{column}_high", chance, name)


def _main(column: str, chance: str = "chance", name: str = "") -> Curve:
    return Curve(column, "low", "high", chance, name)


_HIT_RATE = (
    Panel("Hit rate by size of the cache, mean over layers", (Curve("hit_rate", chance="chance"),), x="relative",
          series=("segment",), mean=True, label="capacity / experts that run a token"),
    Panel("Hit rate by layer, twice the experts that run", (_main("hit_rate"),), series=("segment",),
          keep=("relative", 2.0)),
)  # fmt: skip

PANELS: Mapping[str, tuple[Panel, ...]] = {
    "anomalies": (
        Panel("Mass on the value's own experts", (Curve("mass"),), "cells", series=("value",)),
        Panel("The same, values exchanged (chance)", (Curve("chance"),), "cells", series=("value",), scale="mass"),
        Panel("Degraded experts", (Curve("degraded"),), "cells", series=("value",), text="degraded"),
    ),
    "balance": (
        Panel(
            "Largest load above the mean (MaxVio)",
            (
                _with_interval("max_violation", "max_violation_chance", "all tokens"),
                Curve("batch_max_violation", "batch_low", "batch_high", "batch_chance", "batch by batch"),
            ),
            series=("phase",),
        ),
        Panel(
            "Evenness",
            (
                _with_interval("entropy", "entropy_chance", "entropy (1 is even)"),
                _with_interval("gini", "gini_chance", "Gini (0 is even)"),
            ),
            series=("phase",),
        ),
        Panel(
            "Share of runs on the busiest experts",
            (
                Curve("top_10", chance="top_10_chance", name="10 %"),
                Curve("top_5", chance="top_5_chance", name="5 %"),
                Curve("top_1", chance="top_1_chance", name="1 %"),
            ),
            series=("phase",),
        ),
    ),
    "chunk_sparsity": (
        Panel("Experts left alone by m tokens, mean over layers", (Curve("sparsity", chance="load_chance"),), x="chunk",
              mean=True, label="tokens m", log=True),
        Panel("By layer, 8 tokens together", (_main("sparsity", "load_chance"),), keep=("chunk", 8)),
    ),
    "coactivation": (
        Panel("Pairs of largest lift for their chance", (_main("lift"),), "dots", series=("layer", "first", "second")),
        Panel("Share of pairs that are others than by chance", (Curve("moved", chance="moved_chance"),), mean=True),
    ),
    "committee": (
        Panel("Mass of each value's top experts", (_main("top_share"),)),
        Panel("How alike the tops of two values are",
              (Curve("jaccard", "jaccard_low", "jaccard_high", "jaccard_permuted"),)),
    ),
    "confidence": (
        Panel(
            "Means over tokens",
            (
                _with_interval("entropy", name="entropy (1: undecided)"),
                _with_interval("top_k_mass", "top_k_mass_chance", "probability of the chosen"),
                _with_interval("top_weight", name="largest weight"),
            ),
        ),
        Panel("Share of near-ties", (_with_interval("near_ties"),)),
        Panel("z-loss", (_with_interval("z_loss"),)),
    ),
    "divergence": (
        Panel("Divergence from the base (JS / ln 2)", (Curve("divergence"),), "cells", series=("value",)),
        Panel("Divided by what entropies allow", (Curve("normalised"),), "cells", series=("value",)),
        Panel("Pooled divergence by chance", (Curve("chance"),), "cells", series=("value",), scale="divergence"),
    ),
    "drift": (
        Panel("Divergence of the loads", (_main("divergence"),), series=("step",)),
        Panel("Overlap of single choices", (_with_interval("overlap", "overlap_load_chance"),), series=("step",)),
    ),
    "drops": (
        Panel("Simulated drop rate, 1.25 × the even share at most",
              (Curve("simulated_drop_rate", "low", "high", "chance"),), series=("value",), keep=("factor", 1.25)),
        Panel("By the limit, mean over layers and values", (Curve("simulated_drop_rate", chance="chance"),), x="factor",
              mean=True, label="limit / even share"),
    ),
    "paths": (
        Panel("Tokens on the most frequent paths", (_main("top_share"),), x="layers", label="layers of the path"),
        Panel("Entropy of paths (nats)", (Curve("entropy", chance="entropy_chance"),), x="layers",
              label="layers of the path"),
    ),
    "position_specialisation": (
        Panel("Runs that go elsewhere, mean over layers", (Curve("distance", chance="chance"),),
              x="positions", mean=True),
        Panel("By layer", (Curve("distance"),), "cells", series=("positions",)),
    ),
    "repetition": (
        Panel("Experts shared with the token before", (_with_interval("overlap", "overlap_chance"),)),
        Panel("Same first choice as the token before",
              (_with_interval("first_choice", "first_choice_load_chance"),)),
    ),
    "reuse_distance": (
        Panel("Tokens until an expert is used again (median)", (_with_interval("gap", "gap_chance"),)),
        Panel("Recently used experts until then (mean)", (_with_interval("distance", "distance_chance"),)),
        Panel("First uses in a text", (Curve("first_uses"),)),
    ),
    "sanity": (Panel("Share of tokens that fail each check", (Curve("share"),), "cells", series=("check",),
                     text="result"),),
    "saturation": (
        Panel("Overlap with the final choice", (Curve("overlap", chance="load_chance"),), series=("step",)),
        Panel("Above chance", (_main("saturation", ""),), series=("step",)),
    ),
    "sch_rolling": _HIT_RATE,
    "sch_static": _HIT_RATE,
    "specialisation": (
        Panel("Share of runs that go elsewhere", (Curve("distance"),), "cells", series=("value",), keep=("rank", 1)),
        Panel("The same by chance", (Curve("distance_chance"),), "cells", series=("value",), keep=("rank", 1),
              scale="distance"),
        Panel("Most specialised expert: its number, shaded by its log ratio", (Curve("log_ratio"),), "cells",
              series=("value",), text="expert", keep=("rank", 1)),
    ),
    "srp": (
        Panel("One choice of experts for m tokens (F1)", (_main("srp"),), series=("value", "segment")),
        Panel("What the best choice runs / what ran", (Curve("size"),), series=("value", "segment")),
    ),
    "task_correlation": (Panel("Correlation of divergence with task scores", (_main("correlation"),)),),
    "token_dependence": (
        Panel("Experts foretold by the token id", (_main("dependence"),)),
        Panel("Routing information in the token id",
              (Curve("information", "information_low", "information_high", "information_chance"),)),
    ),
    "token_overlap": (
        Panel(
            "Jaccard index of two tokens' experts",
            (
                _with_interval("same_token", name="same token id"),
                _with_interval("different_token", "chance", "different token ids"),
            ),
        ),
    ),
    "transitions": (
        Panel("Information on the next layer's experts", (_main("information"),)),
        Panel("Next experts foretold", (Curve("foretold", chance="foretold_chance"),)),
    ),
    "u_shape": (
        Panel("Mean divergence", (Curve("first"), Curve("middle"), Curve("last")), "profile", series=("value",),
              label="layers"),
        Panel("Ends less middle", (_main("difference"),), "dots", series=("value",)),
    ),
    "vocabulary_specialisation": (
        Panel("Share of a token id on its most frequent expert", (_main("specialisation"),)),
        Panel("Token ids that no shuffling explains", (Curve("own", chance="own_chance"),)),
    ),
}  # fmt: skip

_FEW: Mapping[str, tuple[Panel, ...]] = {
    "anomalies": (
        Panel("Weight on the value's own experts", (_main("mass"),), series=("value",)),
        Panel("Degraded experts", (Curve("degraded", chance="degraded_chance"),), series=("value",)),
    ),
    "divergence": (
        Panel("Divergence from the base (JS / ln 2)", (_main("divergence", ""),), series=("value",)),
        Panel("Divided by what entropies allow", (_with_interval("normalised"),), series=("value",)),
        Panel("All documents pooled, and exchanged", (Curve("pooled", chance="chance"),), series=("value",)),
    ),
    "specialisation": (
        Panel("Share of runs that go elsewhere",
              (Curve("distance", "distance_low", "distance_high", "distance_chance"),), series=("value",),
              keep=("rank", 1)),
        Panel("Log ratio of the most specialised expert", (Curve("log_ratio", "low", "high", "chance"),),
              series=("value",), keep=("rank", 1)),
        Panel("Its number, shaded by its log ratio", (Curve("log_ratio"),), "cells", series=("value",), text="expert",
              keep=("rank", 1)),
    ),
}  # fmt: skip


def panels_of(what: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Panel, ...]:
    """Return the panels of a diagnostic: of few values of a label curves with intervals, of many a map."""
    return _FEW[what] if what in _FEW and has_few_values(rows) else PANELS[what]


def has_few_values(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a table tells apart so few values of a label that each has a curve."""
    return len({row["value"] for row in rows if "value" in row}) <= FEW_VALUES
