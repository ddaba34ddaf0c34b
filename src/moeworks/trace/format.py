"""The layout of a trace folder: file names, header, and the Arrow columns of a part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeworks.artefact import Header, LayerShape, problems_of
from moeworks.contract import margins, selection_scores
from moeworks.errors import BadTrace
from moeworks.where import PHASES, Rows, Where

__all__ = [
    "FORMAT",
    "HEADER",
    "PROGRESS",
    "REQUESTS",
    "VERSION",
    "Columns",
    "FileRecord",
    "RecordedRows",
    "RouterValues",
    "TraceHeader",
    "columns_of",
    "part_schema",
    "read_document",
    "read_header",
    "row_bytes",
]

FORMAT: Literal["moeworks.trace"] = "moeworks.trace"
VERSION: Literal[1] = 1
HEADER = "trace.json"
PROGRESS = "progress.json"
REQUESTS = "requests.arrow"

Array = NDArray[Any]
ROW_COLUMNS: Mapping[str, Any] = {"request": np.int32, "position": np.int32, "token": np.int32, "phase": np.uint8}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, kw_only=True)
class RecordedRows:
    """Decisions for n tokens, in the routers' own slot order; a weight of exactly 0 is a slot that did not run."""

    rows: Rows
    ids: Mapping[int, Array]  # layer → (n, k) integers
    weights: Mapping[int, Array]  # layer → (n, k) float32 or float16
    logits: Mapping[int, Array] | None = None  # layer → (n, E) float32


class FileRecord(_Frozen):
    """One file of a trace, as the header knows it."""

    name: str = Field(pattern=r"^[\w.-]+$")
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    hash: str = Field(description="blake2b-128 of the file's bytes, hexadecimal")


class RouterValues(_Frozen):
    """What one router holds beside its contract; with the logits it makes the decision again."""

    layer: int
    selection_bias: tuple[float, ...] | None = Field(None, description="added to the scores before the top-k")
    expert_scale: tuple[float, ...] | None = Field(None, description="factor of each expert's weight")

    @classmethod
    def of(cls, layer: int, bias: Array | None, expert_scale: Array | None) -> RouterValues | None:
        """Return the values from arrays, (E,) or None each; None where there is neither."""
        if bias is None and expert_scale is None:
            return None
        lists = [None if array is None else tuple(map(float, array)) for array in (bias, expert_scale)]
        return cls(layer=layer, selection_bias=lists[0], expert_scale=lists[1])


class TraceHeader(Header):
    """What `trace.json` says of a trace; the writer fills in all fields from `layers` on."""

    format: Literal["moeworks.trace"] = "moeworks.trace"
    settings: dict[str, Any] = Field(default_factory=dict, description="how texts were run: batch, generation, limits")
    layers: tuple[int, ...] = Field((), description="global numbers of the layers that have columns")
    weights: Literal["float32", "float16"] = Field("float32", description="type of the weights columns")
    logits: bool = Field(False, description="whether there are logits columns")
    sample: float | None = Field(None, description="share of rows that was asked for; null: every row")
    lacks: tuple[Literal["weights"], ...] = Field((), description="what its source did not tell; such columns hold NaN")
    values: tuple[RouterValues, ...] = Field((), description="selection biases and factors, of routers that have some")
    parts: tuple[FileRecord, ...] = ()
    requests: FileRecord | None = None
    rows: int = Field(0, description="rows in all parts")
    tokens: int = Field(0, description="tokens that went through the model; padding is none")
    dropped: dict[str, int] = Field(
        default_factory=dict,
        description="rows left out (sampled, sliced), and tokens never processed (truncated_tokens)",
    )
    where: tuple[Where, ...] = Field((), description="the clauses that it was sliced by, in order")
    complete: bool = Field(False, description="true in every trace.json; false only in an unfinished trace's journal")

    def shape_of(self, layer: int) -> LayerShape:
        """Return experts, k and contract of a recorded layer."""
        if layer not in self.layers or self.model is None:
            known = ", ".join(map(str, self.layers))
            raise BadTrace(f"the trace has no layer {layer}; layers recorded: {known}.")
        return self.model.layer(layer)

    def values_of(self, layer: int) -> tuple[Array | None, Array | None]:
        """Return selection bias and expert factors of a layer, (E,) float64 each; None for what was not recorded."""
        found = next((values for values in self.values if values.layer == layer), None)
        if found is None:
            return None, None
        bias, scale = found.selection_bias, found.expert_scale
        return None if bias is None else np.array(bias), None if scale is None else np.array(scale)

    def selection_scores_of(self, layer: int, logits: Array) -> Array | None:
        """Return what the top-k looked at, (n, E), from the logits, (n, E); None where that cannot be told."""
        contract = self.shape_of(layer).contract
        bias, _ = self.values_of(layer)
        if contract is None or contract.hashed or contract.bias != (bias is not None):
            return None
        return selection_scores(logits, contract, bias=bias)

    def margins_of(self, layer: int, logits: Array) -> Array | None:
        """Return the margins of n decisions, (n,), from their logits, (n, E); None where they cannot be told."""
        scores, contract = self.selection_scores_of(layer, logits), self.shape_of(layer).contract
        return None if scores is None or contract is None else margins(scores, contract)


class Columns(NamedTuple):
    """One list column: its name, the layer it is of, its width (k or E) and its numpy type."""

    name: str
    layer: int
    width: int
    dtype: Any


def columns_of(header: TraceHeader) -> list[Columns]:
    """Return the list columns of a part, in file order: ids, weights and perhaps logits of each layer."""
    columns: list[Columns] = []
    for layer in header.layers:
        shape = header.shape_of(layer)
        ids = np.uint8 if shape.experts <= 256 else np.uint16
        columns.append(Columns(f"L{layer}.ids", layer, shape.top_k, ids))
        columns.append(Columns(f"L{layer}.weights", layer, shape.top_k, np.dtype(header.weights).type))
        if header.logits:
            columns.append(Columns(f"L{layer}.logits", layer, shape.experts, np.float32))
    return columns


def part_schema(header: TraceHeader) -> Any:
    """Return the Arrow schema of a part; `phase` is an index into the names in its metadata."""
    fields = [pa.field(name, pa.from_numpy_dtype(dtype), nullable=False) for name, dtype in ROW_COLUMNS.items()]
    for column in columns_of(header):
        item = pa.field("item", pa.from_numpy_dtype(column.dtype), nullable=False)
        fields.append(pa.field(column.name, pa.list_(item, column.width), nullable=False))
    return pa.schema(fields, metadata={"format": f"{FORMAT} {VERSION}", "phases": ",".join(PHASES)})


def row_bytes(header: TraceHeader) -> int:
    """Return the bytes that one row takes in a part."""
    own = sum(int(np.dtype(dtype).itemsize) for dtype in ROW_COLUMNS.values())
    return own + sum(int(column.width * np.dtype(column.dtype).itemsize) for column in columns_of(header))


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path` after checking that it is ours and of a version that we read."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise BadTrace(f"cannot read {path}: {error.strerror}.") from error
    except ValueError:
        raise BadTrace(f"{path} is cut short or altered: it is not JSON; record the trace again.") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BadTrace(f"{path} is not the header of a trace; its format field is not '{FORMAT}'.")
    if document.get("version") != VERSION:
        raise BadTrace(
            f"{path} has version {document.get('version')} of the trace format; this moeworks reads version {VERSION}. "
            f"It was written by moeworks {document.get('moeworks')}."
        )
    return document


def read_header(folder: Path) -> TraceHeader:
    """Return the header of a whole trace.

    Raises:
        BadTrace: `folder` is missing, is not a trace, is an unfinished one, or its header is altered.
    """
    path = folder / HEADER
    if not path.is_file():
        if (folder / PROGRESS).is_file():
            raise BadTrace(
                f"{folder} is an unfinished trace; record again with the same model and data and resume "
                f"(--resume), or overwrite it."
            )
        what = "has no trace.json, so it is not a trace" if folder.is_dir() else "is not a folder"
        raise BadTrace(f"{folder} {what}; give the folder that `record` wrote.")
    document = read_document(path)
    try:
        header = TraceHeader.model_validate(document)
    except ValidationError as error:
        raise BadTrace(f"{path} is altered: {problems_of(error)}.") from None
    if not header.complete or header.requests is None or header.model is None:
        raise BadTrace(f"{path} is altered: it does not describe a whole trace.")
    return header
