"""Statistics on disk: a folder with `statistics.json`, one safetensors file of sums a layer, and kept rows beside them.

The header is written last, so that a folder with one is whole. A folder depends on a model and a text and on nothing
that is done with it: every score, at every ratio, is a function of it. Folders of the same model are added up by
`statistics_sum.merge_statistics`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import moeworks
from moeworks.artefact import EngineIdentity, Header, ModelIdentity, hash_texts, problems_of, replace_file
from moeworks.edit.collecting.state import STATE
from moeworks.edit.statistics import LayerRows, LayerStatistics
from moeworks.errors import BadData

__all__ = [
    "FORMAT",
    "HEADER",
    "VERSION",
    "LayerEntry",
    "Statistics",
    "StatisticsHeader",
    "layer_file",
    "read_rows",
    "rows_file",
    "save_layer",
    "save_rows",
    "save_statistics",
    "write_header",
]

Array = NDArray[Any]
FORMAT = "moeworks.statistics"
VERSION = 1
HEADER = "statistics.json"


class LayerEntry(BaseModel):
    """One layer of a statistics folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: int = Field(ge=0, description="global layer number")
    experts: int = Field(ge=1, description="routed experts")
    hash: str = Field(description="hash of its arrays")
    rows: int = Field(0, description="kept rows of text")
    refused: dict[str, str] = Field(default_factory=dict, description="arrays that the family cannot give, and why")


class StatisticsHeader(Header):
    """`statistics.json`: what was collected, of which model, from which text."""

    label: str = Field("", description="the label that tells texts apart; empty without one")
    labels: tuple[str, ...] = Field(
        min_length=1, description="its values, in the order of every array's first dimension"
    )
    tokens: tuple[int, ...] = Field(description="tokens of each value of the label, padding not counted")
    texts: int = Field(ge=0, description="number of texts")
    truncated: int = Field(0, description="tokens that did not fit the context and were left out")
    groups: tuple[str, ...] = Field(description="groups of arrays that were collected")
    rows: int = Field(0, description="rows of text that were kept of every layer, at most")
    parts: tuple[str, ...] = Field((), description="hashes of the texts of each collection that was added up")
    settings: dict[str, Any] = Field(default_factory=dict, description="how it was collected")
    layers: tuple[LayerEntry, ...] = Field(min_length=1)
    hash: str = Field("", description="hash of all arrays; plans name it")


def layer_file(folder: Path, layer: int) -> Path:
    """Return where the arrays of a layer are."""
    return folder / f"layer-{layer:05d}.safetensors"


def rows_file(folder: Path, layer: int) -> Path:
    """Return where the kept rows of a layer are."""
    return folder / f"rows-{layer:05d}.safetensors"


@dataclass(frozen=True, eq=False)
class Statistics:
    """A folder of statistics; arrays are read when they are asked for."""

    folder: Path
    header: StatisticsHeader

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a folder.

        Raises:
            BadData: there is none, it is unfinished, damaged, or of a version that this program does not know.
        """
        path = Path(folder)
        file = path / HEADER
        if not file.is_file():
            if (path / STATE).is_file() or (path / "progress.json").is_file():
                raise BadData(f"{path} is an unfinished collection; finish it with resume (--resume).")
            raise BadData(f"there are no statistics in {path}; make them with `moeworks edit score`.")
        try:
            plain = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise BadData(f"{file} is no JSON ({error}); collect again.") from None
        found = (plain.get("format"), plain.get("version")) if isinstance(plain, dict) else (None, None)
        if found[0] != FORMAT:
            raise BadData(f"{file} is no header of statistics (its format is {found[0]!r}).")
        if found[1] != VERSION:
            raise BadData(
                f"{file} is of version {found[1]}, this moeworks ({moeworks.__version__}) reads version {VERSION}."
            )
        try:
            header = StatisticsHeader.model_validate(plain)
        except ValidationError as error:
            raise BadData(f"{file} is damaged: {problems_of(error)}.") from None
        missing = [n for n in (entry.layer for entry in header.layers) if not layer_file(path, n).is_file()]
        missing_rows = [e.layer for e in header.layers if e.rows and not rows_file(path, e.layer).is_file()]
        if missing or missing_rows:
            raise BadData(f"{path} lacks files of layers {sorted({*missing, *missing_rows})}; collect again.")
        return cls(path, header)

    @property
    def layers(self) -> list[int]:
        """Global layer numbers."""
        return [entry.layer for entry in self.header.layers]

    @property
    def model(self) -> ModelIdentity | None:
        """The model they are of."""
        return self.header.model

    @property
    def hash(self) -> str:
        """Hash of all arrays."""
        return self.header.hash

    def __len__(self) -> int:
        return len(self.header.layers)

    def __iter__(self) -> Iterator[LayerStatistics]:
        return (self.layer(number) for number in self.layers)

    def all_layers(self) -> list[LayerStatistics]:
        """Return the statistics of all layers, in order."""
        return list(self)

    def layer(self, number: int) -> LayerStatistics:
        """Return the statistics of one layer.

        Raises:
            BadData: there is no such layer, or its file is damaged.
        """
        entry = self._entry(number)
        arrays = _read(layer_file(self.folder, number))
        sets = (arrays.pop("sets"), arrays.pop("set_counts")) if "sets" in arrays else None
        return LayerStatistics(
            layer=number,
            tokens=np.asarray(self.header.tokens),
            labels=self.header.labels,
            arrays=arrays,
            sets=sets,
            load_rows=partial(read_rows, rows_file(self.folder, number)) if entry.rows else None,
            refused=entry.refused,
        )

    def array(self, name: str, label: str | None = None) -> Array:
        """Return one array of all layers, (L, E, …), labels joined unless one is named.

        Raises:
            BadData: it was not collected, or layers differ in shape; take them one by one then.
        """
        found = [layer.get(name, label) for layer in self]
        if len({array.shape for array in found}) > 1:
            raise BadData(f"layers differ in the shape of '{name}'; take them one by one with layer(n).get('{name}').")
        return np.stack(found)

    def verify(self) -> None:
        """Compare every layer's arrays with the hashes in the header.

        Raises:
            BadData: some differ; all of them are named.
        """
        wrong = [e.layer for e in self.header.layers if hash_arrays(_read(layer_file(self.folder, e.layer))) != e.hash]
        if wrong:
            raise BadData(
                f"{self.folder}: the arrays of layers {wrong} are not those that were written; collect again."
            )

    def _entry(self, number: int) -> LayerEntry:
        for entry in self.header.layers:
            if entry.layer == number:
                return entry
        raise BadData(f"{self.folder} has no layer {number}; it has {', '.join(map(str, self.layers))}.")


def save_layer(folder: Path, statistics: LayerStatistics, *, rows: int = 0) -> LayerEntry:
    """Write the arrays of one layer and return its entry; its rows, if any, are in their place already."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(array) for name, array in statistics.arrays.items()}
    if statistics.sets is not None:
        sets, counts = (np.ascontiguousarray(part) for part in statistics.sets)
        arrays |= {"sets": sets, "set_counts": counts}
    with replace_file(layer_file(folder, statistics.layer)) as temporary:
        save_file(arrays, str(temporary))
    return LayerEntry(
        layer=statistics.layer,
        experts=statistics.experts,
        hash=hash_arrays(arrays),
        rows=rows,
        refused=dict(statistics.refused),
    )


def write_header(folder: Path, header: StatisticsHeader) -> Statistics:
    """Write the header with the hash of everything, the last step."""
    whole = header.model_copy(update={"hash": hash_texts([e.hash for e in header.layers] + [*header.labels])})
    with replace_file(folder / HEADER) as temporary:
        temporary.write_text(whole.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Statistics.open(folder)


def save_statistics(
    folder: str | Path,
    layers: Iterable[LayerStatistics],
    *,
    model: ModelIdentity,
    groups: Sequence[str],
    texts: int,
    text_hash: str,
    label: str = "",
    engine: EngineIdentity | None = None,
    **more: Any,
) -> Statistics:
    """Write statistics that are at hand, kept rows too, to a folder.

    Args:
        folder: must not hold statistics.
        layers: in layer order, one at a time.
        model: whose they are.
        groups: which groups of arrays they hold.
        texts, text_hash: what they were collected from.
        label: the label that tells texts apart.
        engine: what ran the model.
        **more: further fields of the header.

    Raises:
        BadData: there are statistics in the folder already.
    """
    path = Path(folder)
    if (path / HEADER).exists():
        raise BadData(f"{path} holds statistics already; choose another folder or remove it.")
    path.mkdir(parents=True, exist_ok=True)
    entries, first = [], None
    for statistics in layers:
        first = first or statistics
        kept = 0
        if statistics.load_rows is not None:
            kept = save_rows(rows_file(path, statistics.layer), [statistics.rows()])
        entries.append(save_layer(path, statistics, rows=kept))
    if first is None:
        raise BadData("there is no layer to write statistics of.")
    header = StatisticsHeader(
        format=FORMAT,
        version=VERSION,
        moeworks=moeworks.__version__,
        model=model,
        engine=engine,
        text_hash=text_hash,
        label=label,
        labels=first.labels,
        tokens=tuple(int(count) for count in first.tokens),
        texts=texts,
        groups=tuple(groups),
        rows=max(entry.rows for entry in entries),
        layers=tuple(entries),
        **more,
    )
    return write_header(path, header)


# ---------------------------------------------------------------------- files


def hash_arrays(arrays: Mapping[str, Array]) -> str:
    """Return the hash of named arrays: names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}:{array.dtype.str}:{array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays: dict[str, Array] = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise BadData(f"{path} is damaged ({error}); collect again.") from None
    return arrays


def read_rows(path: Path) -> LayerRows:
    """Read the kept rows of a layer from their file."""
    arrays = _read(path)
    return LayerRows(arrays["hidden"], arrays["ids"], arrays["weights"], arrays["logits"])


def save_rows(path: Path, parts: Sequence[LayerRows]) -> int:
    """Write kept rows, several parts one after another, and return how many there are."""
    from safetensors.numpy import save_file

    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in LayerRows._fields}
    with replace_file(path) as temporary:
        save_file(arrays, str(temporary))
    return len(arrays["ids"])
