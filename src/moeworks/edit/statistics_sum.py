"""Adds up statistics of one model over several texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import moeworks
from moeworks.artefact import hash_texts
from moeworks.edit.collecting.sets import joined_sets
from moeworks.edit.statistics import COLUMNS, LayerStatistics
from moeworks.edit.statistics_file import (
    HEADER,
    Statistics,
    StatisticsHeader,
    rows_file,
    save_layer,
    save_rows,
    write_header,
)
from moeworks.errors import BadData

__all__ = ["merge_statistics"]

Array = NDArray[Any]


def merge_statistics(folders: Sequence[str | Path], output: str | Path, *, command: str = "") -> Statistics:
    """Add up statistics of one model over several texts: statistics(A) + statistics(B) = statistics(A and B).

    Whole numbers and largest values are those of one collection over all texts, sums to rounding of float64. Values of
    the label are united. Kept rows stand one after another; a uniform choice of each is no uniform choice of the whole
    where the shares differ.

    Raises:
        BadData: fewer than two folders, other weights, label, groups, arrays or layers, or the same text twice.
    """
    parts = [Statistics.open(folder) for folder in folders]
    target = Path(output)
    _check_mergeable(parts, target)
    first = parts[0].header
    labels = tuple(dict.fromkeys(value for part in parts for value in part.header.labels))
    tokens = dict.fromkeys(labels, 0)
    for part in parts:
        for value, count in zip(part.header.labels, part.header.tokens, strict=True):
            tokens[value] += count
    target.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in parts[0].layers:
        merged = _merged([part.layer(number) for part in parts], labels, np.array([tokens[v] for v in labels]))
        kept = 0
        if merged.load_rows is not None:
            kept = save_rows(rows_file(target, number), [part.layer(number).rows() for part in parts])
        entries.append(save_layer(target, merged, rows=kept))
    hashes = tuple(text for part in parts for text in _texts_of(part.header))
    header = first.model_copy(
        update={
            "moeworks": moeworks.__version__,
            "command": command,
            "seed": first.seed if all(part.header.seed == first.seed for part in parts) else None,
            "text_hash": hash_texts(hashes),
            "labels": labels,
            "tokens": tuple(tokens.values()),
            "texts": sum(part.header.texts for part in parts),
            "truncated": sum(part.header.truncated for part in parts),
            "rows": max(entry.rows for entry in entries),
            "parts": hashes,
            "settings": {"merged": len(parts)},
            "layers": tuple(entries),
        }
    )
    return write_header(target, header)


def _texts_of(header: StatisticsHeader) -> tuple[str, ...]:
    return header.parts or (header.text_hash,)


def _check_mergeable(parts: Sequence[Statistics], target: Path) -> None:
    problems = []
    if len(parts) < 2:
        problems.append("give two folders or more")
    if (target / HEADER).exists():
        problems.append(f"{target} holds statistics already")
    first = parts[0].header if parts else None
    for part in parts[1:]:
        header, name = part.header, str(part.folder)
        assert first is not None
        ours, theirs = (None if h.model is None else (h.model.weight_hash, h.model.shape) for h in (first, header))
        if ours != theirs:
            problems.append(f"{name} is of another model (or other weights of it) than {parts[0].folder}")
            continue
        if header.label != first.label:
            problems.append(f"{name} tells texts apart by '{header.label}', the first by '{first.label}'")
        if set(header.groups) != set(first.groups):
            problems.append(f"{name} holds {', '.join(header.groups)}, the first {', '.join(first.groups)}")
        elif part.layers != parts[0].layers:
            problems.append(f"{name} has layers {part.layers}, the first {parts[0].layers}")
        elif [e.refused.keys() for e in header.layers] != [e.refused.keys() for e in first.layers]:
            problems.append(f"{name} lacks other arrays than the first")
        if bool(header.rows) != bool(first.rows):
            problems.append("some keep rows of text and some do not")
    texts = [text for part in parts for text in _texts_of(part.header)]
    if len(set(texts)) < len(texts):
        problems.append("the same texts are in two of them and would count twice")
    if problems:
        raise BadData(f"these statistics cannot be added up: {'; '.join(problems)}.")


def _merged(layers: Sequence[LayerStatistics], labels: tuple[str, ...], tokens: Array) -> LayerStatistics:
    arrays: dict[str, Array] = {}
    for name, example in layers[0].arrays.items():
        join = np.add if COLUMNS[name][2] == "sum" else np.maximum
        total = np.zeros((len(labels), *example.shape[1:]), example.dtype)
        for layer in layers:
            place = [labels.index(value) for value in layer.labels]
            total[place] = join(total[place], layer.arrays[name])
        arrays[name] = total
    sets = None
    if all(layer.sets is not None for layer in layers):
        sets = joined_sets([layer.sets for layer in layers if layer.sets is not None])
    return LayerStatistics(
        layer=layers[0].layer,
        tokens=tokens,
        labels=labels,
        arrays=arrays,
        sets=sets,
        load_rows=layers[0].load_rows,
        refused=layers[0].refused,
    )
