"""How differently texts of different labels are routed, layer by layer: languages against English, for instance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData, BadTrace, did_you_mean
from moeworks.stats.counts import add_distributions, add_shares, layer_batches, layers_of
from moeworks.stats.distributions import entropy, jensen_shannon, normalised_divergence, softmax
from moeworks.stats.documents import (
    FEWEST_DOCUMENTS,
    SAMPLE,
    draw_documents,
    percentiles,
    ratio_intervals,
    selected_documents,
)
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["LabelGroups", "Sides", "divergence", "group_sums", "label_groups", "resampled_means", "sides_of"]

Array = NDArray[Any]
Source = Literal["logits", "weights"]
_CHUNK = 1 << 14  # rows at a time, so that float64 copies stay small
_BLOCK_BYTES = 16 << 20


def divergence(
    trace: Trace,
    *,
    label: str = "lang",
    base: str = "en",
    where: Where = Where(),
    source: Source | None = None,
    permutations: int = 1000,
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
    budget_bytes: int = 256 << 20,
) -> pa.Table:
    """Return by how much the routing of each value of a label differs from that of `base`; a row per layer and value.

    The mean routing distribution of a text is the mean over its tokens of the softmax of all logits or, in a trace
    without logits, of the combine weights divided by their sum. Where documents hold texts of both values
    (translations of each other), the divergence is the mean over these documents; otherwise that of all tokens pooled.

    Columns: `layer`, `value`; `divergence`, Jensen–Shannon divided by ln 2, 0 to 1; `normalised`, D_HJS of
    arXiv 2510.04694 (see `normalised_divergence` for its limits); `entropy` and `base_entropy` in nats; `documents`,
    how many were averaged, 0 where pooled; `grouping`, documents or pooled; `source`, logits or weights. And how firm
    they are: `low`, `high`, `normalised_low`, `normalised_high`, 95 % intervals from resampled documents (moved, where
    pooled, so that their mean is the number itself: resampling adds noise, which raises a divergence); `pooled`, the
    divergence / ln 2 of the two mean distributions, `chance`, its mean with the documents' labels permuted, `p` and,
    over all rows of the table (Benjamini–Hochberg), `q`. Where documents hold texts of both values they swap sides at
    random; that leaves a document's own divergence as it is, so that the test is of `pooled`, where all documents have
    to differ in the same direction. Divergences are above 0 by noise alone: read them beside `chance`.

    Args:
        trace: the trace.
        label: the label whose values are compared; texts without it are left out.
        base: the value that all others are compared with.
        where: which tokens and layers count.
        source: logits or weights; by default logits where the trace has them.
        permutations: of the documents' labels.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents.
        seed: of both.
        budget_bytes: memory for sums, documents × experts × 8 bytes; layers that do not fit take further passes.

    Raises:
        BadData: the label or the base is unknown, or nothing is selected.
    """
    read: Source = source or ("logits" if trace.header.logits else "weights")
    layers = layers_of(trace, where)
    groups = label_groups(trace, label, base, where, sample=sample, seed=seed)
    lines: list[dict[str, Any]] = []
    for batch in layer_batches(layers, len(groups.value), budget_bytes=budget_bytes):
        for layer, sums in group_sums(trace, where, groups, batch, read).items():
            lines += [
                {
                    "layer": layer,
                    "value": str(groups.values[value]),
                    **_compare(sums, groups, value),
                    "source": read,
                    **_firmness(sums, groups, value, permutations, bootstrap, seed),
                }
                for value in range(len(groups.values))
                if value != groups.base and (groups.value == value).any()
            ]
    if not lines:
        raise BadData(f"all selected tokens have {label}={base}; there is nothing to compare it with.")
    q = _false_discovery(np.array([line["p"] for line in lines]))
    return pa.Table.from_pylist([{**line, "q": float(one)} for line, one in zip(lines, q, strict=True)])


class LabelGroups(NamedTuple):
    """Texts by value of the label and document: g groups."""

    values: Array  # names of the label's values
    base: int  # index of the base among them
    value: Array  # (g,) index into values
    document: Array  # (g,)
    of_request: Array  # (m,) group of each request, or -1


def label_groups(
    trace: Trace, label: str, base: str, where: Where, *, sample: int = SAMPLE, seed: int = 0
) -> LabelGroups:
    """Return the texts of each value and document; BadData where label or base is unknown."""
    requests = trace.request_table()
    if label not in requests.labels:
        raise BadData(f"no request has a label '{label}'; {did_you_mean(label, requests.labels)}")
    values, value = np.unique(requests.labels[label], return_inverse=True)  # (v,), (m,)
    tokens = selected_documents(trace, where, sample=sample, seed=seed).of_text  # (m,)
    counted = np.flatnonzero((tokens > 0) & (values[value] != ""))
    if base not in values[value[counted]]:
        seen = sorted(set(map(str, values[value[counted]])))
        raise BadData(f"no token with {label}={base} is selected; {did_you_mean(base, seen)}")
    documents = trace.documents()
    keys = value[counted] * (documents.max() + 1) + documents[counted]
    found, group = np.unique(keys, return_inverse=True)  # (g,), (counted,)
    of_request = np.full(len(requests), -1)
    of_request[counted] = group
    return LabelGroups(
        values=values,
        base=int(np.flatnonzero(values == base)[0]),
        value=found // (documents.max() + 1),
        document=found % (documents.max() + 1),
        of_request=of_request,
    )


def group_sums(
    trace: Trace, where: Where, groups: LabelGroups, layers: Mapping[int, int], source: Source
) -> dict[int, Array]:
    """Return the sums of the tokens' routing distributions by group, (g, E), for each layer."""
    sums = {layer: np.zeros((len(groups.value), experts)) for layer, experts in layers.items()}
    requests = trace.request_table()
    for part in trace.parts:
        rows = part.rows()
        group = np.where(where.mask(rows, requests), groups.of_request[rows.request], -1)  # (n,)
        for layer in layers:
            if source == "weights":
                add_shares(sums[layer], group, part.ids(layer), part.weights(layer))
                continue
            logits = part.logits(layer)
            for start in range(0, len(group), _CHUNK):
                chunk = slice(start, start + _CHUNK)
                add_distributions(sums[layer], group[chunk], softmax(logits[chunk]))
    return sums


def mean_distributions(sums: Array) -> Array:
    """Return mean distributions from sums of distributions, (documents, E)."""
    total = sums.sum(-1, keepdims=True)  # tokens, less those for which no expert ran
    if not (total > 0).all():
        raise BadTrace("no expert ran for any token of a document; it has no routing distribution.")
    return np.asarray(sums / total)


class Sides(NamedTuple):
    """One value's texts and the base's in one layer."""

    ours: Array  # (a, E) sums of distributions of documents, or distributions where documents hold both
    theirs: Array  # (b, E)
    paired: bool  # whether a row of both is the same document

    def means(self) -> tuple[Array, Array]:
        """Return the distributions that are compared, (documents, E) each: one row where pooled."""
        if self.paired:
            return self.ours, self.theirs
        return mean_distributions(self.ours.sum(0, keepdims=True)), mean_distributions(
            self.theirs.sum(0, keepdims=True)
        )


def sides_of(sums: Array, groups: LabelGroups, value: int) -> Sides:
    """Return one value's texts and the base's from the sums of the groups, (g, E)."""
    ours, theirs = np.flatnonzero(groups.value == value), np.flatnonzero(groups.value == groups.base)
    shared, first, second = np.intersect1d(groups.document[ours], groups.document[theirs], return_indices=True)
    if len(shared):
        return Sides(mean_distributions(sums[ours[first]]), mean_distributions(sums[theirs[second]]), True)
    return Sides(sums[ours], sums[theirs], False)


def _compare(sums: Array, groups: LabelGroups, value: int) -> dict[str, Any]:
    """Compare one value's texts with the base's in one layer."""
    sides = sides_of(sums, groups, value)
    p, q = sides.means()
    normalised = normalised_divergence(p, q)
    finite = np.isfinite(normalised)
    return {
        "divergence": float(jensen_shannon(p, q).mean() / np.log(2)),
        "normalised": float(normalised[finite].mean()) if finite.any() else float("nan"),
        "entropy": float(entropy(p).mean()),
        "base_entropy": float(entropy(q).mean()),
        "documents": len(p) if sides.paired else 0,
        "grouping": "documents" if sides.paired else "pooled",
    }


def _firmness(
    sums: Array, groups: LabelGroups, value: int, permutations: int, bootstrap: int, seed: int
) -> dict[str, float]:
    """Return intervals of both divergences, and the pooled one beside its null."""
    if permutations < 1:
        raise BadData(f"{permutations} permutations give no null; use at least 1, better 1000.")
    sides = sides_of(sums, groups, value)
    ours, theirs = sides.ours, sides.theirs
    p, q = sides.means()
    pooled = float(jensen_shannon(p.mean(0), q.mean(0)) / np.log(2))
    null = np.concatenate([jensen_shannon(*pair) for pair in _rearranged(sides, permutations, seed)]) / np.log(2)
    ends = dict.fromkeys(("", "normalised_"), (np.nan, np.nan))
    fewest = min(len(ours), len(theirs))
    if fewest >= FEWEST_DOCUMENTS:
        for name, measure in (("", jensen_shannon), ("normalised_", normalised_divergence)):
            unit = np.log(2) if not name else 1.0
            observed = measure(p, q) / unit  # (documents,), one where pooled
            finite = np.isfinite(observed)
            if not finite.any():
                continue
            if sides.paired:
                low, high = ratio_intervals(
                    np.where(finite, observed, 0.0)[:, None], finite.astype(float), samples=bootstrap, seed=seed
                )
                ends[name] = float(low[0]), float(high[0])
            else:
                drawn = [resampled_means(side, bootstrap, seed + i) for i, side in enumerate((ours, theirs))]
                low, high = percentiles(measure(*drawn) / unit, fewest, centre=float(observed[0]))
                ends[name] = max(float(low), 0.0), float(high)
    return {
        "low": ends[""][0],
        "high": ends[""][1],
        "normalised_low": ends["normalised_"][0],
        "normalised_high": ends["normalised_"][1],
        "pooled": pooled,
        "chance": float(null.mean()),
        "p": float((1 + (null >= pooled - 1e-12).sum()) / (1 + len(null))),
    }


def _rearranged(sides: Sides, count: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Yield the two mean distributions, (b, E) each, of documents that changed sides at random."""
    rng = np.random.default_rng([seed, 16])
    both = np.concatenate([sides.ours, sides.theirs])  # (n, E)
    ours, total = len(sides.ours), both.sum(0)
    size = max(1, min(256, _BLOCK_BYTES // (8 * len(both))))
    for start in range(0, count, size):
        block = min(size, count - start)
        drawn = np.zeros((block, len(both)))
        if sides.paired:
            drawn[:, :ours] = rng.integers(0, 2, (block, ours))
            drawn[:, ours:] = 1 - drawn[:, :ours]
        else:
            drawn[:, :ours] = 1
            drawn = rng.permuted(drawn, axis=1)
        first = drawn @ both
        yield mean_distributions(first), mean_distributions(total - first)


def resampled_means(sums: Array, samples: int, seed: int) -> Array:
    """Return the mean distribution of resampled documents, (samples, E)."""
    return np.concatenate([mean_distributions(w @ sums) for w in draw_documents(len(sums), samples=samples, seed=seed)])


def _false_discovery(p: Array) -> Array:
    """Return Benjamini–Hochberg q-values."""
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q
