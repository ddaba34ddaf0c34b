"""Makes a trace of a table of decisions, CSV or Parquet: one row for each token and layer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moeworks import __version__
from moeworks.artefact import EngineIdentity, ModelIdentity, hash_texts
from moeworks.errors import BadData
from moeworks.trace.files import new_folder
from moeworks.trace.format import RecordedRows, TraceHeader
from moeworks.trace.importers.layers import fit_layers
from moeworks.trace.reader import Trace
from moeworks.trace.requests import RequestInfo
from moeworks.trace.writer import TraceWriter
from moeworks.where import PHASES, Rows

__all__ = ["import_table"]

Array = NDArray[Any]
KEYS = ("request", "position", "token", "layer")
LABEL = "label."


def import_table(
    source: str | Path,
    path: str | Path,
    *,
    model: ModelIdentity,
    engine: EngineIdentity | None = None,
) -> Trace:
    """Write a trace of a table and open it; the table is held in memory.

    Columns: `request`, `position`, `token`, `layer`, `expert_0` to `expert_(k-1)`; optional are `weight_0` to
    `weight_(k-1)`, `phase` (prompt, generated or forced; prompt if left out), `document` and `label.NAME`. Every token
    has one row for each router of the model; positions of a request follow one another, from 0 or from wherever the
    table begins. Without weights the trace lacks them and its columns hold NaN.

    Raises:
        BadData: columns are missing, a token lacks a layer, or the routes are not the model's; all problems at once.
    """
    table = _read(Path(source))
    names = set(table.column_names)
    missing = [name for name in (*KEYS, "expert_0") if name not in names]
    if missing:
        raise BadData(f"{source} lacks the columns {', '.join(missing)}; it has {', '.join(table.column_names)}.")
    _check_columns(table, source)
    experts, weights = (_numbered(table, prefix) for prefix in ("expert", "weight"))
    assert experts is not None
    if weights is not None and weights.shape != experts.shape:
        raise BadData(f"{source} has another number of weight columns than of expert columns.")
    keys = np.stack([table[name].to_numpy().astype(np.int64) for name in KEYS], 1)  # (rows, 4)
    order = np.lexsort((keys[:, 3], keys[:, 1], keys[:, 0]))
    keys = keys[order]
    layers = np.array([shape.layer for shape in model.layers])
    if len(keys) % len(layers) or not (keys[:, 3].reshape(-1, len(layers)) == layers).all():
        raise BadData(
            f"{source} has not one row for each of the layers {', '.join(map(str, layers))} of every token; each token "
            "needs all routers of the model."
        )
    first = keys[:: len(layers)]  # (n, 4) a row a token
    if (first[:, None, 2] != keys[:, 2].reshape(-1, len(layers))).any():
        raise BadData(f"{source} gives one token different token ids in different layers.")
    gaps = np.flatnonzero((np.diff(first[:, 0]) == 0) & (np.diff(first[:, 1]) != 1))
    if len(gaps):
        raise BadData(
            f"{source}: request {first[gaps[0], 0]} has position {first[gaps[0] + 1, 1]} after {first[gaps[0], 1]}; "
            "positions of a request follow one another."
        )
    routes = fit_layers(experts[order].reshape(len(first), len(layers), -1), _alone(model))
    held = None if weights is None else weights[order].reshape(len(first), len(layers), -1)
    header = TraceHeader(
        moeworks=__version__,
        model=model,
        engine=engine or EngineIdentity(name="table", version="", dtype=""),
        lacks=() if held is not None else ("weights",),
        settings={"imported": "table"},
    )
    rest = table.take(order[:: len(layers)])
    phase = _phase(rest)
    with new_folder(Path(path)) as folder, TraceWriter(folder, header) as writer:
        starts = np.flatnonzero(np.r_[True, np.diff(first[:, 0]) != 0])
        for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(first)], strict=True)):
            part = slice(int(start), int(stop))
            _write(writer, number, first[part], phase[part], rest.slice(start, 1).to_pylist()[0], part, routes, held)
    return Trace.open(path)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path)
        from pyarrow import csv

        return csv.read_csv(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise BadData(f"cannot read {path} as a table: {str(error).splitlines()[0]}") from error


def _check_columns(table: Any, source: str | Path) -> None:
    """Raise with every column of numbers that holds something else, or lacks some."""
    problems = []
    for name in table.column_names:
        whole = name in KEYS or re.fullmatch(r"expert_\d+", name)
        if not whole and not re.fullmatch(r"weight_\d+", name):
            continue
        kind = table.schema.field(name).type
        if not (pa.types.is_integer(kind) or (not whole and pa.types.is_floating(kind))):
            problems.append(f"{name} holds {kind}, not {'whole ' if whole else ''}numbers")
        elif table[name].null_count:
            problems.append(f"{name} lacks {table[name].null_count} of {len(table)} values")
    if problems:
        raise BadData(f"{source}: {'; '.join(problems)}.")


def _numbered(table: Any, prefix: str) -> Array | None:
    """Return the columns prefix_0, prefix_1, … side by side, (rows, k); None if there is none."""
    count = sum(bool(re.fullmatch(rf"{prefix}_\d+", name)) for name in table.column_names)
    if not count:
        return None
    try:
        return np.stack([table[f"{prefix}_{slot}"].to_numpy() for slot in range(count)], 1)
    except KeyError as error:
        raise BadData(f"the {count} columns called {prefix}_N are not numbered from 0 without gaps: {error}.") from None


def _alone(model: ModelIdentity) -> ModelIdentity:
    """Return the model with its routers numbered from 0: the table's layers were matched by name already."""
    return model.model_copy(
        update={"layers": tuple(s.model_copy(update={"layer": n}) for n, s in enumerate(model.layers))}
    )


def _phase(table: Any) -> Array:
    if "phase" not in table.column_names:
        return np.zeros(len(table), np.uint8)
    place = pc.index_in(table["phase"], pa.array(PHASES))
    if place.null_count:
        raise BadData(f"the column phase holds something else than {', '.join(PHASES)}.")
    return np.asarray(place.to_numpy()).astype(np.uint8)


def _write(
    writer: TraceWriter,
    number: int,
    keys: Array,
    phase: Array,
    known: dict[str, Any],
    part: slice,
    routes: dict[int, Array],
    weights: Array | None,
) -> None:
    prompt = int((phase == 0).sum())
    begin = int(keys[0, 1])
    writer.add_request(
        RequestInfo(
            request=number,
            tokens=begin + len(keys),
            prompt_tokens=begin + prompt,
            first_position=begin,
            document=str(known.get("document") or ""),
            labels={n.removeprefix(LABEL): str(v) for n, v in known.items() if n.startswith(LABEL) and v is not None},
            text_hash=hash_texts([",".join(map(str, keys[:, 2]))]),
        )
    )
    layers = writer.layers
    writer.write(
        RecordedRows(
            rows=Rows(np.full(len(keys), number), keys[:, 1], keys[:, 2], phase),
            ids={layer: routes[place][part] for place, layer in enumerate(layers)},
            weights={
                layer: np.full(routes[place][part].shape, np.nan, np.float32)
                if weights is None
                else weights[part, place].astype(np.float32)
                for place, layer in enumerate(layers)
            },
        )
    )
