"""What a study says about the whole model's routers: divergence by language and layer, and use of experts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from moeworks.examples import Example
from moeworks.probes import Probe, load_probe, probe_names
from moeworks.stats import balance_of, divergence, load
from moeworks.stats.everything import diagnose_all
from moeworks.study.budget import some_documents
from moeworks.study.schema import Divergence, Load, RoutingTable
from moeworks.trace import Trace

__all__ = ["language_divergence", "loads", "parallel_texts", "routing_tables"]

BASE = "en"


def parallel_texts(probes: Iterable[Probe], *, documents: int, seed: int) -> list[Example]:
    """Return texts of all built-in languages and their English translations, `documents` of each language at most.

    Empty where none of the study's probes is about a language (the built-in texts would say nothing of its model).
    """
    if not any(probe.name.startswith("language/") for probe in probes):
        return []
    found: dict[tuple[str, str], Example] = {}
    for name in probe_names():
        if name.startswith("language/"):
            texts = list(load_probe(name).texts("find"))
            for text in some_documents(texts, 2 * documents, seed=seed):
                found.setdefault((text.document, text.labels.get("lang", "")), text)
    return list(found.values())


def language_divergence(trace: Trace) -> Divergence:
    """Return how differently each language is routed from English, by layer; see `moeworks.stats.divergence`."""
    rows = divergence(trace, label="lang", base=BASE).to_pylist()
    layers = sorted({row["layer"] for row in rows})
    groups = sorted({row["value"] for row in rows})
    place = {(row["value"], row["layer"]): row for row in rows}
    full = {layer: math.log(trace.header.shape_of(layer).experts) for layer in layers}

    def grid(name: str) -> tuple[tuple[float | None, ...], ...]:
        return tuple(tuple(_finite(place[group, layer][name]) for layer in layers) for group in groups)

    def share(column: str, group: str, layer: int) -> float:
        return float(place[group, layer][column]) / full[layer]

    return Divergence(
        label="lang",
        base=BASE,
        groups=tuple(groups),
        layers=tuple(layers),
        raw=grid("divergence"),
        normalised=grid("normalised"),
        entropy=tuple(tuple(share("entropy", group, layer) for layer in layers) for group in groups),
        # Each language has its own English translations; their mean stands for English.
        base_entropy=tuple(
            float(np.mean([share("base_entropy", group, layer) for group in groups])) for layer in layers
        ),
    )


def loads(traces: Sequence[Trace]) -> tuple[tuple[Load, ...], int]:
    """Return how evenly each layer's experts are used over several traces together, and over how many tokens."""
    runs: dict[int, np.ndarray] = {}
    for trace in traces:
        table = load(trace)
        layer = np.asarray(table["layer"].to_numpy())
        counts = np.asarray(table["runs"].to_numpy())
        for number in trace.layers:
            runs[number] = runs.get(number, 0) + counts[layer == number]  # (E,)
    found = []
    for number, counts in sorted(runs.items()):
        balance = balance_of(counts)
        found.append(
            Load(
                layer=number,
                experts=len(counts),
                evenness=balance.entropy,
                busiest=balance.busiest * len(counts),
                idle=balance.dead,
            )
        )
    return tuple(found), sum(map(len, traces))


def routing_tables(trace: Trace, *, sample: int, seed: int) -> tuple[RoutingTable, ...]:
    """Return every diagnostic that a trace has data for, of at most so many tokens; see `diagnose_all`."""
    return tuple(
        RoutingTable(
            what=one.what,
            label=one.label,
            base=one.base,
            reason=one.reason,
            columns=None if one.table is None else _columns(one.table),
        )
        for one in diagnose_all(trace, options={"sample": sample}, seed=seed)
    )


def _columns(table: pa.Table) -> dict[str, tuple[Any, ...]]:
    """Return columns as JSON holds them: NaN becomes null."""
    return {
        name: tuple(None if isinstance(value, float) and not math.isfinite(value) else value for value in values)
        for name, values in table.to_pydict().items()
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
