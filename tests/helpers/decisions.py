"""Writes traces whose decisions are given by hand, text by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from helpers.traces import make_header, make_identity
from moeworks.trace import RecordedRows, RequestInfo, Trace, TraceWriter
from moeworks.where import Rows

__all__ = ["Text", "one_expert_texts", "write_texts"]


@dataclass
class Text:
    """One text: labels, document, and for each layer a (tokens, k) list of ids and of weights (1 / k if left out)."""

    labels: Mapping[str, str]
    ids: Mapping[int, Sequence[Sequence[int]]]
    weights: Mapping[int, Sequence[Sequence[float]]] | None = None
    logits: Mapping[int, Any] | None = None
    document: str = ""
    generated: int = 0
    spans: Sequence[Any] = field(default_factory=tuple)
    tokens: Sequence[int] | None = None  # token ids; 0, 1, 2, … if left out


def write_texts(
    path: str | Path, texts: Sequence[Text], *, experts: int | Sequence[int] = 4, header: Any = None, **writer: Any
) -> Trace:
    """Write the texts as a trace and open it; layers and k are those of the first text, the header may be given."""
    layers = list(texts[0].ids)
    top_k = [np.shape(texts[0].ids[layer])[1] for layer in layers]
    header = header or make_header(model=make_identity(layers, experts, top_k))
    logits = texts[0].logits is not None
    with TraceWriter(path, header, logits=logits, **writer) as out:
        for i, text in enumerate(texts):
            n = len(text.ids[layers[0]])
            out.add_request(
                RequestInfo(
                    request=i,
                    tokens=n,
                    prompt_tokens=n - text.generated,
                    document=text.document,
                    labels=dict(text.labels),
                    spans=tuple(text.spans),
                    text_hash=str(i),
                )
            )
            given = text.weights or {
                layer: np.full(np.shape(text.ids[layer]), 1 / k) for layer, k in _zip(layers, top_k)
            }
            phase = np.where(np.arange(n) < n - text.generated, 0, 1)
            out.write(
                RecordedRows(
                    rows=Rows(np.full(n, i), np.arange(n), np.asarray(text.tokens or np.arange(n)), phase),
                    ids={layer: np.asarray(text.ids[layer]) for layer in layers},
                    weights={layer: np.asarray(given[layer], np.float32) for layer in layers},
                    logits={k: np.asarray(v, np.float32) for k, v in text.logits.items()} if text.logits else None,
                )
            )
    return Trace.open(path)


def one_expert_texts(counts: Sequence[tuple[str, str, int, int]]) -> list[Text]:
    """Return top-1 texts of one layer: (value of `side`, document, tokens for which expert 0 runs, other tokens)."""
    return [
        Text({"side": side}, {0: [[0]] * hits + [[1]] * misses}, document=name) for side, name, hits, misses in counts
    ]


def _zip(layers: Sequence[int], top_k: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(layers, top_k, strict=True))
