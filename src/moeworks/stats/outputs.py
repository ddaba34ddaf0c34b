"""HoME's three anomalies measured on what experts put out: collapse, degradation and underfitting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.anomalies import describe_masses
from moeworks.stats.documents import FEWEST_DOCUMENTS, draw_documents, percentiles
from moeworks.stats.label_blocks import LabelBlocks

if TYPE_CHECKING:
    from moeworks.edit.statistics import LayerStatistics
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.examples import Example

__all__ = ["OutputAnomalies", "measure_outputs", "output_anomalies", "with_blocks"]

Array = NDArray[Any]
LABEL = "moeworks block"  # of texts: value of the label and block of documents
SEPARATOR = "\t"
_NOISE_DRAWS = 200
COLLAPSE_READING = (
    "spread: how unlike experts are in the size of what they put out (std / mean of their mean |y|), largest: the "
    "loudest / the median; chance: all experts alike, as many tokens; silent: neurons that never did anything"
)
DOMAINS_READING = (
    "degraded: common experts that became one value's own; mass: share of output (weight × |y|) from experts of its "
    "own, low where a value leans on common ones; chance: the documents' values exchanged"
)


@dataclass(frozen=True)
class OutputAnomalies:
    """Three anomalies of experts, from their outputs.

    Attributes:
        collapse: a row per layer: `spread` with its interval `low`, `high`, `chance` and `p`; `largest`, `smallest`
            (mean output of the loudest and the quietest expert / the median's), `silent` with `silent_low`,
            `silent_high` (NaN unless neurons were collected), `experts` that were counted, `tokens`, `blocks`.
        domains: a row per layer and value of the label, columns as of `anomalies`: degradation and underfitting with
            weight × output as mass; None without a label.
    """

    collapse: pa.Table
    domains: pa.Table | None


def output_anomalies(
    layers: Iterable[LayerStatistics],
    *,
    private: float = 0.8,
    times: float = 1.5,
    fewest: int = 50,
    eps: float = 0.01,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> OutputAnomalies:
    """Return HoME's anomalies of statistics that `moeworks.edit.collect` made of texts `with_blocks`.

    - collapse, experts whose outputs differ so much in size that a gate cannot compare them: per layer the standard
      deviation over experts of the mean |y| (y before it is weighted) / their mean. `chance` is what as many tokens
      would give if all experts drew |y| from one distribution (normal means of the pooled variance; tokens taken as
      independent), `p` the share of such draws that are as large. `silent`: share of neurons whose largest |g a| is
      below `eps` × the layer's median; by chance 0. HoME speaks of units that are zero for over 90 % of the outputs;
      here a neuron counts only if it is never above, over all tokens of its expert.
    - degradation and underfitting as in `anomalies`, with an expert's share of a value's weight × |y| in place of its
      weight alone.

    Experts with fewer than `fewest` tokens count in neither `spread` nor `silent`. Outputs of shared experts are not
    in these statistics: how far a value leans on them cannot be told.

    Source: HoME (arXiv 2408.05430), a recommendation model, [known from summaries]; what its anomalies mean in a
    language model is our reading, and so are all thresholds.

    Args:
        layers: the statistics; the group `neurons` is needed for `silent`.
        private, times, permutations: as of `anomalies`.
        fewest, eps: see above.
        bootstrap: resamplings of blocks of documents.
        seed: of all that is drawn.

    Raises:
        BadData: the statistics are not of texts `with_blocks`, hold no norms, or no expert ran often enough.
    """
    if not 0 < private < 1 or times <= 1 or permutations < 1 or fewest < 2 or not 0 < eps < 1:
        raise BadData(
            f"private={private}, times={times}, permutations={permutations}, fewest={fewest}, eps={eps}: 0 to 1, above "
            "1, at least 1, at least 2, 0 to 1."
        )
    collapse: list[dict[str, Any]] = []
    domains: list[dict[str, Any]] = []
    for one in layers:
        missing = [name for name in ("count", "norm", "norm_square", "gated_norm") if name not in one.arrays]
        if missing:
            raise BadData(f"layer {one.layer}: the statistics hold no {', '.join(missing)}; collect the group cheap.")
        collapse.append({"layer": one.layer, **_collapse(one, fewest, eps, bootstrap, seed)})
        blocks, places = _blocks(one)
        if len(blocks.values) > 1:
            mass = np.zeros((*blocks.shape, one.experts))
            mass.reshape(-1, one.experts)[places] = one.arrays["gated_norm"]
            whole = replace(blocks, tokens=mass.sum(-1))  # shares of a value's whole output, in place of per token
            lines = describe_masses(mass, whole, private, times, permutations, bootstrap, seed)
            domains += [
                {"layer": one.layer, **line, "tokens": int(own.sum())}
                for line, own in zip(lines, blocks.tokens, strict=True)
            ]
    if not collapse:
        raise BadData("there are no statistics of any layer.")
    return OutputAnomalies(pa.Table.from_pylist(collapse), pa.Table.from_pylist(domains) if domains else None)


def measure_outputs(
    engine: TransformersEngine,
    examples: Iterable[Example],
    folder: str | Path,
    *,
    label: str = "",
    blocks: int = 16,
    neurons: bool = True,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> OutputAnomalies:
    """Run texts through a model, keep the statistics of its experts' outputs in a folder, and return the anomalies.

    Args:
        engine: a loaded model (transformers engine).
        examples: the texts.
        folder: where the statistics go; must not exist.
        label: tells texts apart for degradation and underfitting; without, collapse alone.
        blocks: random groups of documents of each value, the unit of chance and interval.
        neurons: look at single neurons too (`silent`).
        batch_size, seed, progress: as of `moeworks.edit.collect`.

    Raises:
        BadData: there is no text, or none with the label. Unsupported: what `collect` cannot read.
    """
    from moeworks.edit.collect import collect

    groups = ("cheap", "neurons") if neurons else ("cheap",)
    texts = with_blocks(examples, label, blocks=blocks, seed=seed)
    found = collect(
        engine, texts, folder, label=LABEL, groups=groups, batch_size=batch_size, seed=seed, progress=progress
    )
    return output_anomalies(found, seed=seed)


def with_blocks(examples: Iterable[Example], label: str = "", *, blocks: int = 16, seed: int = 0) -> Iterator[Example]:
    """Yield texts with a label that names value and random block of their document, for `collect(label=…)`.

    Texts without the label are left out. The documents of a value are dealt to blocks in a random order.

    Raises:
        BadData: no text has the label.
    """
    given = list(examples)
    if blocks < 1:
        raise BadData(f"blocks={blocks}: at least 1.")
    kept = [
        (number, one.labels.get(label, "") if label else "all", one.document or f"text {number}")
        for number, one in enumerate(given)
    ]
    kept = [one for one in kept if one[1]]
    if not kept:
        raise BadData(f"no text has the label '{label}'.")
    rng = np.random.default_rng([seed, 41])
    block: dict[tuple[str, str], int] = {}
    for value in sorted({value for _, value, _ in kept}):
        documents = sorted({document for _, own, document in kept if own == value})
        for place, drawn in enumerate(rng.permutation(len(documents)).tolist()):
            block[value, documents[drawn]] = place % blocks
    for number, value, document in kept:
        name = f"{value}{SEPARATOR}{block[value, document]:04d}"
        yield given[number].model_copy(update={"labels": {**given[number].labels, LABEL: name}})


def _blocks(one: LayerStatistics) -> tuple[LabelBlocks, Array]:
    """Return values × blocks of the statistics' labels, and the place of each label in them, flat."""
    pairs = [label.rpartition(SEPARATOR)[::2] for label in one.labels]
    if not all(number.isdecimal() and value for value, number in pairs):
        raise BadData("these statistics are not of texts with blocks of documents; see `with_blocks`.")
    values = tuple(sorted({value for value, _ in pairs}))
    count = 1 + max(int(number) for _, number in pairs)
    places = np.array([values.index(value) * count + int(number) for value, number in pairs])
    tokens = np.zeros(len(values) * count)
    tokens[places] = one.tokens
    grid = tokens.reshape(len(values), count)
    documents = (grid > 0).sum(1)  # blocks: documents are not told apart inside them
    return LabelBlocks(values, np.zeros(0, np.int64), grid, documents, several=False), places


def _collapse(one: LayerStatistics, fewest: int, eps: float, bootstrap: int, seed: int) -> dict[str, Any]:
    count, norm, square = (np.asarray(one.arrays[name], float) for name in ("count", "norm", "norm_square"))  # (D, E)
    counted = np.flatnonzero(count.sum(0) >= fewest)
    if len(counted) < 2:
        raise BadData(f"layer {one.layer}: {len(counted)} experts ran for {fewest} tokens; run more texts.")
    count, norm, square = count[:, counted], norm[:, counted], square[:, counted]
    found, means = _spread(count.sum(0), norm.sum(0))
    mean = norm.sum() / count.sum()
    variance = max(square.sum() / count.sum() - mean**2, 0.0)
    rng = np.random.default_rng([seed, 42])
    drawn = mean + rng.standard_normal((_NOISE_DRAWS, len(counted))) * np.sqrt(variance / count.sum(0))
    null = drawn.std(1) / drawn.mean(1)
    again = np.concatenate(
        [
            _spread(weights @ count, weights @ norm)[0]
            for weights in draw_documents(len(count), samples=bootstrap, seed=seed)
        ]
    )
    low, high = percentiles(again, len(count), centre=float(found))
    middle = float(np.median(means))
    return {
        "spread": float(found),
        "low": max(float(low), 0.0) if low == low else float("nan"),
        "high": float(high),
        "chance": float(null.mean()),
        "p": float((1 + (null >= found - 1e-12).sum()) / (1 + _NOISE_DRAWS)),
        "largest": float(means.max() / middle) if middle else float("nan"),
        "smallest": float(means.min() / middle) if middle else float("nan"),
        **_silent(one, counted, eps, bootstrap, seed),
        "experts": len(counted),
        "tokens": int(np.sum(one.tokens)),
        "blocks": len(count),
    }


def _spread(count: Array, norm: Array) -> tuple[Array, Array]:
    """Return std / mean over experts of their mean output, and these means; (…, E) → (…), (…, E)."""
    means = norm / np.maximum(count, 1)
    means = np.where(count > 0, means, np.nan)
    return np.nanstd(means, -1) / np.nanmean(means, -1), means


def _silent(
    one: LayerStatistics, counted: Sequence[int] | Array, eps: float, bootstrap: int, seed: int
) -> dict[str, float]:
    nothing = dict.fromkeys(("silent", "silent_low", "silent_high"), float("nan"))
    if "neuron_peak" not in one.arrays:
        return nothing
    peak = np.asarray(one.arrays["neuron_peak"])[:, counted]  # (D, e, I)
    whole = peak.max(0)
    level = eps * float(np.median(whole))
    found = float((whole <= level).mean())
    if len(peak) < FEWEST_DOCUMENTS:
        return {**nothing, "silent": found}
    shares = np.array(
        [
            (peak[weights > 0].max(0) <= level).mean()
            for many in draw_documents(len(peak), samples=min(bootstrap, 50), seed=seed)
            for weights in many
        ]
    )
    low, high = percentiles(shares, len(peak), centre=found)
    return {"silent": found, "silent_low": max(float(low), 0.0), "silent_high": float(high)}
