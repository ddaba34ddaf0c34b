"""Segment routing best performance: how well one choice of experts serves several neighbouring tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.compiled import compiled
from moeworks.stats.counts import layers_of
from moeworks.stats.documents import BLOCKS, FEWEST_DOCUMENTS, LEVEL, SAMPLE, draw_documents
from moeworks.stats.kernels import count_windows
from moeworks.stats.stretches import Stretches, stretches_of, whole_lengths
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["Best", "best_segment_router", "srp"]

Array = NDArray[Any]
Level = Literal["layer", "expert"]
_BUDGET_BYTES = 128 << 20  # for counts of windows


class Best(NamedTuple):
    """The best router of whole segments, for each histogram."""

    f1: Array  # (…)
    threshold: Array  # (…) a*: an expert is on in segments where it runs for at least so many tokens
    size: Array  # (…) rho hat: runs that it makes / runs that there are


def best_segment_router(windows: Array) -> Best:
    """Return SRP from how many windows have a = 0 … m runs, (…, m + 1); NaN where nothing ran.

    SRP = max over a* of 2 Σ{a ≥ a*} a n(a) / (m Σ{a ≥ a*} n(a) + Σ a n(a))

    Of equally good thresholds the lowest is taken. Source: arXiv 2505.16056, section on SRP.
    """
    length = windows.shape[-1] - 1
    numbers = np.asarray(windows, np.float64)
    on = np.cumsum(numbers[..., ::-1], -1)[..., ::-1]  # (…, m + 1) windows that are on, by threshold
    found = np.cumsum((numbers * np.arange(length + 1))[..., ::-1], -1)[..., ::-1]
    runs = found[..., :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = np.where(runs > 0, 2 * found / (length * on + runs), np.nan)
        threshold = np.argmax(np.nan_to_num(f1, nan=-1.0), -1)
        best = np.take_along_axis(f1, threshold[..., None], -1)[..., 0]
        size = length * np.take_along_axis(on, threshold[..., None], -1)[..., 0] / runs[..., 0]
    return Best(best, threshold, np.where(runs[..., 0] > 0, size, np.nan))


def srp(
    trace: Trace,
    *,
    where: Where = Where(),
    segments: Sequence[int] = (4, 16, 64, 256),
    level: Level = "layer",
    label: str | None = None,
    sample: int = SAMPLE // 2,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return how well a router that decides once for m neighbouring tokens could do: a row per value, layer, length m.

    f(e, p) is for how many of the m tokens from p on expert e runs (every p, within a text). A segment router switches
    e on for all m tokens or for none; the best one does so where f is at least a*, one threshold for the group of
    experts. SRP is its F1 against the true runs: 1, one choice serves all m tokens.

    Columns: `layer` (null: all layers in one group), `expert` (null: all experts of the layer), `value` of the label
    ("" without one), `segment` m; `srp`, its 95 % interval `low`, `high` (basic: twice the value less the quantiles of
    resampled documents, as published: the best threshold of a resample is best by luck too) and `chance`, what tokens
    of the same loads that follow each other independently give; `threshold` a*; `size` (rho hat), runs that the best
    router makes / true runs; `windows`, `tokens`, `documents`.

    Source: arXiv 2505.16056, SRP and group SRP; chance is ours. [formulas checked against the official functions]

    Args:
        trace: the trace.
        where: which tokens and layers count.
        segments: lengths m.
        level: layer gives groups by layer and of the whole model, expert adds a row for every expert.
        label: a label whose values are told apart.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents (of at most 64 random groups of documents where there are more).
        seed: of both.

    Raises:
        BadData: a length is below 1, no text is as long, or the label is unknown.
        MissingExtra: numba is not installed.
    """
    segments = whole_lengths("segments", segments)
    if level not in ("layer", "expert"):
        raise BadData(f"level={level}: SRP is by layer or by expert.")
    count = compiled(count_windows)
    layers = layers_of(trace, where)
    values = 1 if label is None else len(set(trace.request_table().labels.get(label, ())))
    cells = max(values, 1) * max(layers.values()) * (max(segments) + 1)
    blocks = min(BLOCKS, max(8, _BUDGET_BYTES // (8 * cells)))
    texts = stretches_of(trace, where, label=label, sample=sample, most_blocks=blocks, seed=seed)
    longest = int((texts.stop - texts.start).max())
    if longest < min(segments):
        raise BadData(f"the longest text has {longest} neighbouring tokens, a segment {min(segments)}; name shorter.")
    shape = len(texts.values), texts.blocks
    whole = {m: np.zeros((2, *shape, m + 1)) for m in segments}  # windows of all layers, and those by chance
    lines: list[dict[str, Any]] = []
    for layer, experts in layers.items():
        slots = texts.slots(layer)
        for m in segments:
            counts = np.zeros((shape[0] * shape[1], experts, m + 1), np.int64)
            count(slots, texts.start, texts.stop, texts.entry, m, counts)
            windows = counts.reshape(*shape, experts, m + 1)
            for value in range(shape[0]):
                mine = windows[value]  # (blocks, E, m + 1)
                null = _independent(mine.sum(0))  # (E, m + 1)
                known = {"layer": layer, "expert": None, "value": texts.values[value], "segment": m}
                lines.append({**known, **_line(mine.sum(1), null.sum(0), texts, bootstrap, seed)})
                whole[m][0, value] += mine.sum(1)
                whole[m][1, value, 0] += null.sum(0)
                if level == "expert":
                    lines += [
                        {**known, "expert": e, **_line(mine[:, e], null[e], texts, bootstrap, seed)}
                        for e in range(experts)
                    ]
    for m, value in ((m, value) for m in segments for value in range(shape[0])):
        known = {"layer": None, "expert": None, "value": texts.values[value], "segment": m}
        lines.append({**known, **_line(whole[m][0, value], whole[m][1, value].sum(0), texts, bootstrap, seed)})
    return pa.Table.from_pylist([line for line in lines if line["windows"]])


def _independent(windows: Array) -> Array:
    """Return the histograms, (E, m + 1), if tokens followed each other independently at each expert's own load."""
    from scipy.stats import binom

    length = windows.shape[-1] - 1
    total = windows.sum(-1, keepdims=True)
    rate = (windows * np.arange(length + 1)).sum(-1, keepdims=True) / np.maximum(total * length, 1)
    return np.asarray(total * binom.pmf(np.arange(length + 1), length, rate))


def _line(windows: Array, null: Array, texts: Stretches, bootstrap: int, seed: int) -> dict[str, Any]:
    """Return one row from the windows of each block, (blocks, m + 1)."""
    found = best_segment_router(windows.sum(0))
    low = high = np.nan
    if texts.blocks >= FEWEST_DOCUMENTS and found.f1 == found.f1:
        drawn = np.concatenate(
            [
                best_segment_router(weights @ windows).f1
                for weights in draw_documents(texts.blocks, samples=bootstrap, seed=seed)
            ]
        )
        ends = np.nanquantile(drawn, [(1 + LEVEL) / 2, (1 - LEVEL) / 2])
        low, high = 2 * found.f1 - ends
    return {
        "srp": float(found.f1),
        "low": float(low),
        "high": float(high),
        "chance": float(best_segment_router(null).f1),
        "threshold": int(found.threshold),
        "size": float(found.size),
        "windows": int(windows.sum()),
        "tokens": texts.tokens,
        "documents": texts.documents,
    }
