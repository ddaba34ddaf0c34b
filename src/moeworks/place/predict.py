"""How well the experts of a later layer can be foreseen: recall, and what is loaded in vain, on held-out documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean
from moeworks.place.curve import split_documents
from moeworks.place.predictors import PREDICTORS, Chunk, Predictor, make_predictor
from moeworks.stats.counts import layers_of
from moeworks.stats.documents import ratio_intervals
from moeworks.stats.sets import check_ids
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["Prediction", "gather_guesses", "predict_experts", "recall_of"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Prediction:
    """What predictors foresee.

    Attributes:
        table: a row per predictor and target layer, and one with layer null for all: recall (share of the experts that
            ran which were prefetched) with its interval low, high from resampled documents, chance (guesses drawn in
            proportion to load), wasted (experts prefetched in vain a token), wasted_bytes where the bytes of an expert
            are known.
        distance: layers ahead. width: experts prefetched a token and layer; None is as many as the layer chooses.
        documents, tokens, calibration_documents: measured, and learned from.
    """

    table: pa.Table
    distance: int
    width: int | None
    documents: int
    tokens: int
    calibration_documents: int

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        names = ("distance", "width", "documents", "tokens", "calibration_documents")
        return {**{name: getattr(self, name) for name in names}, "rows": self.table.to_pylist()}


def recall_of(guessed: Array, ids: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Return experts found, experts that ran, and experts prefetched in vain, (n,) each.

    Args:
        guessed: (n, w) distinct experts that were prefetched, by any means: the next layer's gate on an early hidden
            state, say.
        ids, weights: (n, k) of the layer, as recorded; a slot of weight 0 did not run.
    """
    ran = weights != 0
    found = ((guessed[:, :, None] == ids[:, None, :]) & ran[:, None, :]).any(2).sum(1)
    return found, ran.sum(1), guessed.shape[1] - found


def predict_experts(
    trace: Trace,
    *,
    predictors: Sequence[str] | None = None,
    distance: int = 1,
    width: int | None = None,
    stored: int = 100,
    where: Where = Where(),
    calibration_share: float = 0.5,
    expert_bytes: float | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> Prediction:
    """Measure predictors on other documents than they learned from.

    Args:
        trace: the trace.
        predictors: names of `PREDICTORS`; all, unless given.
        distance: layers (of those looked at) between the last one whose route is known and the one predicted.
        width: experts prefetched a token and layer; as many as the layer chooses, unless given.
        stored: texts that the activation-matrix predictor keeps.
        where: tokens and layers that count.
        calibration_share: share of the documents to learn from.
        expert_bytes: bytes of an expert, for the wasted bytes.
        bootstrap, seed: of resampled documents, of the split, of guesses and of which texts are stored.

    Raises:
        BadData: unknown predictor, distance beyond the layers, width beyond the experts, fewer than two documents.
    """
    for name in predictors or ():
        if name not in PREDICTORS:
            raise BadData(f"no predictor is called '{name}'; {did_you_mean(name, PREDICTORS)}")
    names = tuple(name for name in PREDICTORS if predictors is None or name in predictors)
    layers = layers_of(trace, where)
    if not 1 <= distance < len(layers):
        raise BadData(
            f"a distance of {distance} layers is not among {len(layers)} layers; give 1 to {len(layers) - 1}."
        )
    targets = list(layers)[distance:]
    widths = [width if width is not None else trace.header.shape_of(layer).top_k for layer in targets]
    if any(not 1 <= w <= layers[layer] for w, layer in zip(widths, targets, strict=True)):
        raise BadData(f"{width} experts cannot be prefetched of {min(layers.values())}.")
    learned, measured = split_documents(trace, where=where, share=calibration_share, seed=seed)
    experts = list(layers.values())
    made = {n: make_predictor(n, experts, distance=distance, stored=stored, seed=seed) for n in names}
    load = make_predictor("load", experts, distance=distance)
    for _, text in _texts(trace, layers, where, learned):
        for one in (*made.values(), load):
            one.learn(text)
    for one in (*made.values(), load):
        one.finish()
    of_document = {int(document): place for place, document in enumerate(measured)}
    found = {name: np.zeros((len(measured), len(targets))) for name in (*names, "")}  # "" is chance
    ran = np.zeros((len(measured), len(targets)))
    tokens = 0
    generator = np.random.default_rng([seed, 37])
    for document, text in _texts(trace, layers, where, measured):
        place = of_document[document]
        tokens += len(text.token)
        for column, layer_width in enumerate(widths):
            target = column + distance
            actual = text.ran[target]
            ran[place, column] += actual.sum()
            for name, one in made.items():
                found[name][place, column] += _found(one, text, column, target, layer_width, actual)
            noise = generator.gumbel(size=actual.shape)  # the largest of log p + noise: drawn by p, without repeats
            with np.errstate(divide="ignore"):
                guess = np.log(load.scores(text, column, target)) + noise
            found[""][place, column] += np.take_along_axis(actual, _top(guess, layer_width), 1).sum()
    table = _table(names, targets, widths, found, ran, tokens, expert_bytes, bootstrap, seed)
    return Prediction(table, distance, width, len(measured), tokens, len(learned))


def gather_guesses(
    texts: Sequence[Sequence[tuple[Array, Array, Array]]],
    documents: Array,
    layers: Sequence[int],
    experts: Sequence[int],
    *,
    name: str,
    distance: int,
    expert_bytes: float | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> Prediction:
    """Measure guesses that were made elsewhere on half of the documents; chance guesses by the load of the others.

    Args:
        texts: for each text and target layer: guessed ids (n, w), ids and weights (n, k) as they came.
        documents: (texts,) document of each. layers, experts: number and E of the target layers.
        name: what to call the predictor. distance: layers ahead.
        expert_bytes, bootstrap, seed: as in `predict_experts`.

    Raises:
        BadData: fewer than two documents.
    """
    names = np.unique(documents)
    if len(names) < 2:
        raise BadData(f"{len(names)} document is not enough: one is needed for the load, another to measure on.")
    drawn = np.random.default_rng([seed, 17]).permutation(names)
    measured = np.sort(drawn[max(1, len(names) // 2) :])
    load = [np.zeros(count) for count in experts]
    for text, document in zip(texts, documents, strict=True):
        if document not in measured:
            for runs, (_, ids, weights) in zip(load, text, strict=True):
                runs += np.bincount(ids[weights != 0], minlength=len(runs))
    found = {key: np.zeros((len(measured), len(layers))) for key in (name, "")}
    ran = np.zeros((len(measured), len(layers)))
    widths, tokens = [1] * len(layers), 0
    generator = np.random.default_rng([seed, 37])
    for text, document in zip(texts, documents, strict=True):
        if document not in measured:
            continue
        place = int(np.searchsorted(measured, document))
        tokens += len(text[0][0])
        for column, (guessed, ids, weights) in enumerate(text):
            hits, used, _ = recall_of(guessed, ids, weights)
            widths[column] = guessed.shape[1]
            found[name][place, column] += hits.sum()
            ran[place, column] += used.sum()
            with np.errstate(divide="ignore"):
                noisy = np.log(load[column]) + generator.gumbel(size=(len(ids), len(load[column])))
            found[""][place, column] += recall_of(_top(noisy, guessed.shape[1]), ids, weights)[0].sum()
    table = _table([name], layers, widths, found, ran, tokens, expert_bytes, bootstrap, seed)
    return Prediction(table, distance, None, len(measured), tokens, len(names) - len(measured))


def _found(one: Predictor, text: Chunk, known: int, target: int, width: int, actual: Array) -> float:
    scores = one.scores(text, known, target)
    return float(np.take_along_axis(actual, _top(scores, width), 1).sum())


def _top(scores: Array, width: int) -> Array:
    """Return the experts of the largest scores, (n, width), lower numbers first among equals."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :width]


def _texts(trace: Trace, layers: dict[int, int], where: Where, documents: Array) -> Iterator[tuple[int, Chunk]]:
    """Yield the document and the rows of each text of some documents, read text by text."""
    rows, requests, of_request = trace.rows(), trace.request_table(), trace.documents()
    kept = np.flatnonzero(where.mask(rows, requests) & np.isin(of_request, documents)[rows.request])
    if not len(kept):
        return
    edges = np.flatnonzero(np.diff(rows.request[kept])) + 1
    for mine in np.split(kept, edges):
        ran = []
        for layer, count in layers.items():
            ids, weights = trace.take(layer, "ids", mine), trace.take(layer, "weights", mine)
            check_ids(ids, count)
            one = np.zeros((len(mine), count), np.float32)
            np.put_along_axis(one, ids.astype(np.int64), (weights != 0).astype(np.float32), axis=1)
            ran.append(one)
        yield int(of_request[rows.request[mine[0]]]), Chunk(rows.token[mine], ran)


def _table(
    names: Sequence[str],
    targets: Sequence[int],
    widths: Sequence[int],
    found: dict[str, Array],
    ran: Array,
    tokens: int,
    expert_bytes: float | None,
    bootstrap: int,
    seed: int,
) -> pa.Table:
    """Return one row per predictor and layer, and one for all layers together."""
    lines = []
    for name in names:
        columns = [(None, slice(None)), *((layer, slice(n, n + 1)) for n, layer in enumerate(targets))]
        over = np.stack([found[name][:, part].sum(1) for _, part in columns], axis=1)
        under = np.stack([ran[:, part].sum(1) for _, part in columns], axis=1)
        chance = np.stack([found[""][:, part].sum(1) for _, part in columns], axis=1)
        lows, highs = ratio_intervals(over, under, samples=bootstrap, seed=seed)
        for number, (layer, part) in enumerate(columns):
            wasted = sum(widths[part]) - over[:, number].sum() / tokens
            lines.append(
                {
                    "predictor": name,
                    "layer": layer,
                    "recall": float(over[:, number].sum() / under[:, number].sum()),
                    "low": float(lows[number]),
                    "high": float(highs[number]),
                    "chance": float(chance[:, number].sum() / under[:, number].sum()),
                    "wasted": float(wasted),
                    "wasted_bytes": None if expert_bytes is None else float(wasted * expert_bytes),
                }
            )
    numbers = ("recall", "low", "high", "chance", "wasted", "wasted_bytes")
    kinds = [("predictor", pa.string()), ("layer", pa.int64()), *((name, pa.float64()) for name in numbers)]
    return pa.Table.from_pylist(lines, schema=pa.schema(kinds))
