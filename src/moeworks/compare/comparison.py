"""Two traces token by token: overlap, flips and their margins, weight errors, where it starts and probably why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.compare.causes import shift_of_layers
from moeworks.compare.layer import EXAMINED, LayerPair
from moeworks.compare.rows import Matched, match_rows
from moeworks.errors import BadData
from moeworks.stats.counts import layers_of
from moeworks.stats.documents import ratio_intervals
from moeworks.stats.near_ties import NEAR_TIE, near_tie_of
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.artefact import EngineIdentity, ModelIdentity
    from moeworks.trace import Trace

__all__ = ["NEAR_TIE", "Comparison", "compare"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """What two traces have in common and where they part.

    Attributes:
        first, second: the traces' paths.
        models, engines: of each.
        rows: tokens compared.
        only_first, only_second, after_divergence: tokens left out, see `Matched`.
        shift: layers that the second trace's layer axis is moved by; 0 if it is not.
        lacks: what the second or first trace does not tell.
        near_tie: margins in logits below this share of a token's largest logit count as near-ties.
        layers: a row per layer; `overlap` is the mean share of a token's experts that both chose, `chance` k / E,
            `low` and `high` its interval from resampled documents; `flips` the share of tokens with another set,
            `first_flips` the share whose first flip is in this layer; `near_ties` the share of those first flips that
            are near-ties and `near_ties_of_all` that of all tokens (where the first is no larger, flips have another
            cause), `flip_margin` and `margin` the median margins of first flips and of all tokens, in logits
            (NaN without logits); `reordered` the share of tokens with the same set in another slot order;
            `weight_error` and `largest_weight_error` of experts that both chose, relative to the token's total;
            `cause` and `cause_share`; `weight_cause`.
        labels: a row per value of each label asked for and layer: tokens, overlap, flips.
    """

    first: str
    second: str
    models: tuple[ModelIdentity | None, ModelIdentity | None]
    engines: tuple[EngineIdentity | None, EngineIdentity | None]
    rows: int
    only_first: int
    only_second: int
    after_divergence: int
    shift: int
    lacks: tuple[str, ...]
    near_tie: float
    layers: pa.Table
    labels: pa.Table

    @property
    def identical(self) -> bool:
        """Whether every compared token has the same experts in the same slots with the same weights."""
        columns = ("flips", "reordered", "largest_weight_error")
        return not any(any(value > 0 for value in self.layers[name].to_pylist()) for name in columns)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        document = {name: value for name, value in asdict(self).items() if name not in ("layers", "labels")}
        document["models"] = [None if model is None else model.name for model in self.models]
        document["engines"] = [None if engine is None else engine.model_dump() for engine in self.engines]
        return {
            **document,
            "identical": self.identical,
            "layers": self.layers.to_pylist(),
            "labels": self.labels.to_pylist(),
        }


def compare(
    first: Trace,
    second: Trace,
    *,
    where: Where = Where(),
    label: str | None = None,
    near_tie: float | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> Comparison:
    """Compare two traces of the same texts: engines, quantisations, checkpoints, a prompt alone and in a batch.

    Rows are matched by request number and position. Causes are sought in the first trace's logits, on tokens that had
    the same experts in every layer before, since later layers see other inputs; attention may still have carried a
    difference of an earlier token over.

    Args:
        first: the reference; record it with logits to learn margins and causes.
        second: the other.
        where: tokens and layers that count, read on the first.
        label: label whose values are told apart.
        near_tie: see `NEAR_TIE`; by default from the coarser of the two engines' dtypes.
        bootstrap: resamplings of documents.
        seed: of the resamplings and of which rows are examined.

    Raises:
        BadData: nothing fits together: other texts, other layers, other numbers of experts.
    """
    layers = layers_of(first, where)
    _same_shape(first, second, layers)
    matched = match_rows(first, second, where=where)
    tie = near_tie_of(first, second) if near_tie is None else near_tie
    lacks = tuple(dict.fromkeys((*first.header.lacks, *second.header.lacks)))
    rows, requests = first.rows(), first.request_table()
    document = first.documents()[rows.request[matched.first]]  # (n,)
    values = _values(requests.labels, label, rows.request[matched.first])
    undiverged = np.ones(len(matched), bool)  # (n,) the same experts in every layer so far
    lines: list[dict[str, Any]] = []
    told_apart: list[dict[str, Any]] = []
    sample = np.sort(np.random.default_rng([seed, 3]).permutation(len(matched))[:EXAMINED])
    for layer, experts in layers.items():
        found = LayerPair(first, second, matched, layer=layer, experts=experts, with_weights=not lacks)
        line = found.line(undiverged, sample, tie)
        undiverged &= ~found.flipped
        low, high = _interval(found.shared / found.top_k, document, bootstrap, seed)
        lines.append({"layer": layer, **line, "low": low, "high": high})
        told_apart += [{"layer": layer, **row} for row in found.by_value(values)]
    return Comparison(
        first=str(first.path),
        second=str(second.path),
        models=(first.header.model, second.header.model),
        engines=(first.header.engine, second.header.engine),
        rows=len(matched),
        only_first=matched.only_first,
        only_second=matched.only_second,
        after_divergence=matched.after_divergence,
        shift=_shift(first, second, matched, sample[: EXAMINED // 10], layers),
        lacks=lacks,
        near_tie=tie,
        layers=pa.Table.from_pylist(lines),
        labels=pa.Table.from_pylist(told_apart),
    )


def _same_shape(first: Trace, second: Trace, layers: dict[int, int]) -> None:
    """Raise with every layer that the two traces cannot be compared in."""
    problems = []
    for layer, experts in layers.items():
        if layer not in second.layers:
            problems.append(f"{second.path} has no layer {layer}")
        elif (other := second.header.shape_of(layer).experts) != experts:
            problems.append(f"layer {layer} has {experts} experts in {first.path} and {other} in {second.path}")
    if problems:
        raise BadData(f"these traces cannot be compared: {'; '.join(problems)}. Name layers that both have: layer=….")


def _values(labels: Any, label: str | None, request: Array) -> dict[str, Array]:
    """Return each value of the label → (n,) matched rows that have it."""
    if label is None:
        return {}
    if label not in labels:
        known = ", ".join(sorted(set(labels) - {"document"})) or "none"
        raise BadData(f"the first trace has no label '{label}'; labels there: {known}.")
    column = np.asarray(labels[label])[request]
    return {str(value): column == value for value in np.unique(column) if value}


def _interval(shares: Array, document: Array, bootstrap: int, seed: int) -> tuple[float, float]:
    names, entry = np.unique(document, return_inverse=True)
    sums = np.bincount(entry, weights=shares, minlength=len(names))[:, None]
    low, high = ratio_intervals(sums, np.bincount(entry, minlength=len(names)), samples=bootstrap, seed=seed)
    return float(low[0]), float(high[0])


def _shift(first: Trace, second: Trace, matched: Matched, sample: Array, layers: dict[int, int]) -> int:
    pairs = [(first, matched.first[sample]), (second, matched.second[sample])]
    ids = [{layer: trace.take(layer, "ids", rows) for layer in layers} for trace, rows in pairs]
    return shift_of_layers(ids[0], ids[1])
