"""Routes of one request as an answer carries them: a trace's own columns in a base64 Arrow stream, smallest types."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.artefact import ModelIdentity
from moeworks.engines.gating import widen
from moeworks.errors import BadData
from moeworks.serve.fields import Record
from moeworks.trace import RecordedRows
from moeworks.where import PHASES

__all__ = ["encode_routes", "estimate_bytes", "read_routes", "recorded_layers"]

Array = NDArray[Any]
OVERHEAD = 2048  # bytes of schema and framing, at least


def recorded_layers(record: Record, identity: ModelIdentity) -> tuple[int, ...]:
    """Return the layers that a request wants routes of.

    Raises:
        BadData: one of them has no router.
    """
    known = [shape.layer for shape in identity.layers]
    wanted = known if record.layers is None else sorted(set(record.layers))
    if unknown := [layer for layer in wanted if layer not in known]:
        raise BadData(
            f"record.layers: {', '.join(map(str, unknown[:20]))} have no router; layers with routers: "
            f"{', '.join(map(str, known))}."
        )
    return tuple(wanted)


def estimate_bytes(
    record: Record, identity: ModelIdentity, *, prompt: int, new: int, slots: int = 0, half: bool = False
) -> int:
    """Return at most how many bytes of base64 the routes of one choice take.

    Args:
        record: what is asked for.
        identity: the model.
        prompt: tokens of the prompt.
        new: tokens that may be generated.
        slots: experts a token where a plan lets more of them run than the model.
        half: whether weights are kept in 16 bits.
    """
    rows = prompt + max(new - 1, 0)
    if record.start == "generated":
        rows -= prompt
    elif record.start != "prompt":
        rows = max(rows - record.start, 0)
    width = 9  # position, token, phase
    layers = recorded_layers(record, identity)
    for number in layers:
        shape = identity.layer(number)
        k = max(slots, shape.top_k)
        width += k * (1 if shape.experts <= 256 else 2)
        width += k * (2 if half else 4) * record.weights + 4 * shape.experts * record.logits
    framing = OVERHEAD + 700 * len(layers)
    return (rows * width + framing) * 4 // 3 + 4


def encode_routes(choices: Sequence[RecordedRows], record: Record, identity: ModelIdentity) -> dict[str, Any]:
    """Return what an answer's `moeworks.routes` holds.

    Args:
        choices: the rows of each choice of the answer, in order; layers that were not asked for may be there.
        record: what the request asked for.
        identity: the model.

    Returns:
        `format`, `rows`, `bytes` (of the data, base64), `layers` and `data`. With several choices the table has a
        column `choice` before the others. A weight of 0 is a slot that did not run.
    """
    layers = recorded_layers(record, identity)
    slots = {layer: max(recorded.ids[layer].shape[1] for recorded in choices) for layer in layers}
    tables = []
    for number, recorded in enumerate(choices):
        rows, keep = recorded.rows, _kept(recorded, record)
        columns: dict[str, Any] = {"choice": np.full(len(keep), number, np.uint16)} if len(choices) > 1 else {}
        columns |= {
            "position": rows.position[keep].astype(np.uint32),
            "token": rows.token[keep].astype(np.uint32),
            "phase": rows.phase[keep].astype(np.uint8),
        }
        for layer in layers:
            # a gate may leave one choice alone and let more experts run in another
            ids = widen(recorded.ids[layer][keep], slots[layer], fill=recorded.ids[layer][keep])
            columns[f"L{layer}.ids"] = _lists(ids, _ids(identity.layer(layer).experts))
            if record.weights:
                columns[f"L{layer}.weights"] = _lists(widen(recorded.weights[layer][keep], slots[layer]))
            if record.logits and recorded.logits is not None:
                columns[f"L{layer}.logits"] = _lists(recorded.logits[layer][keep])
        tables.append(pa.table(columns))
    table = pa.concat_tables(tables)
    for name in ("position", "token"):
        table = table.set_column(table.column_names.index(name), name, _small(table[name]))
    table = table.replace_schema_metadata({"format": "moeworks.routes 1", "phases": ",".join(PHASES)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    data = base64.b64encode(sink.getvalue()).decode("ascii")
    return {
        "format": "arrow-stream-base64",
        "rows": table.num_rows,
        "bytes": len(data),
        "layers": list(layers),
        "data": data,
    }


def read_routes(answer: Any) -> Any:
    """Return the routes of an answer as a pyarrow table.

    Args:
        answer: what an OpenAI client returned, its `moeworks` field, or the `routes` in it.
    """
    found = answer if isinstance(answer, Mapping) else getattr(answer, "moeworks", None)
    for name in ("moeworks", "routes"):
        if isinstance(found, Mapping) and "data" not in found:
            found = found.get(name, found)
    if not isinstance(found, Mapping) or "data" not in found:
        raise BadData("this answer holds no routes; ask for them with moeworks: {record: {}}.")
    with pa.ipc.open_stream(base64.b64decode(found["data"])) as reader:
        return reader.read_all()


def _kept(recorded: RecordedRows, record: Record) -> Array:
    rows = recorded.rows
    if record.start == "prompt":
        return np.arange(len(rows))
    if record.start == "generated":
        return np.flatnonzero(rows.phase == PHASES.index("generated"))
    return np.flatnonzero(rows.position >= record.start)


def _ids(experts: int) -> Any:
    return np.uint8 if experts <= 256 else np.uint16


def _lists(values: Array, dtype: Any = None) -> Any:
    """Return (n, k) values as a column of fixed-size lists."""
    flat = np.ascontiguousarray(values if dtype is None else values.astype(dtype)).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])


def _small(column: Any) -> Any:
    """Return whole numbers in 16 bits where they fit."""
    values = column.to_numpy()
    return pa.array(values.astype(np.uint16) if not len(values) or values.max() < 2**16 else values)
