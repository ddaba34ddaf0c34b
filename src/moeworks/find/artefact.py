"""The scores artefact: a number per expert, or per neuron of an expert, with its uncertainty and its null."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from moeworks.artefact import Header, problems_of, replace_file
from moeworks.errors import BadData, did_you_mean
from moeworks.find.summary import summary

__all__ = ["COLUMNS", "NEURON_COLUMNS", "Scores", "ScoresHeader"]

Array = NDArray[Any]
_FORMAT, _VERSION, _KEY = "moeworks.scores", 1, b"moeworks"
COLUMNS = pa.schema(
    [
        ("layer", pa.int32()),
        ("expert", pa.int32()),
        ("score", pa.float64()),
        ("contrast_rate", pa.float64()),
        ("against_rate", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("p", pa.float64()),
        ("q", pa.float64()),
        ("stability", pa.float64()),
        ("passes", pa.bool_()),
    ]
)
NEURON_COLUMNS = COLUMNS.insert(2, pa.field("neuron", pa.int32()))  # where a row is one neuron of an expert
# Fields that came after the first version: hashed only where they say something.
_LATER = ("unit", "quantity", "tail", "match", "downweight", "label", "target", "facts", "notes")


class ScoresHeader(Header):
    """What was compared, how, and against which null; the artefact's identity."""

    format: Literal["moeworks.scores"] = "moeworks.scores"
    contrast: str = Field(description="where clause of one side")
    against: str = Field(description="where clause of the other side")
    where: str = Field("", description="where clause of both sides")
    method: str = Field(description="registered name of the score")
    options: dict[str, Any] = Field(default_factory=dict)
    aggregate: Literal["micro", "macro"] = Field(description="all tokens pooled, or the mean over documents")
    documents: tuple[int, int] = Field(description="documents with tokens: contrast, against")
    pairs: int = Field(description="documents that have tokens on both sides")
    tokens: tuple[int, int] = Field(description="tokens compared: contrast, against")
    null: Literal["labels", "flips", "labels and flips", "values", "rotations", "none"] = Field(
        description="documents' labels permuted, pairs' sides flipped, or both; values: documents' values of a label "
        "permuted; rotations: markers moved round their documents; none: the method ranks without a test"
    )
    within: str | None = Field(None, description="label within whose values documents were permuted")
    permutations: int = Field(description="permutations for every expert")
    drawn: int = Field(description="permutations for the experts with the smallest p")
    exhaustive: bool = Field(description="whether these were all arrangements there are")
    smallest_p: float = Field(description="the smallest p that could come out")
    alpha: float = Field(description="false discovery rate; an expert passes if q is at most this")
    bootstrap: int = Field(description="samples of documents behind intervals and stability; 0 if too few documents")
    level: float = Field(0.95, description="coverage of the intervals")
    top: int = Field(description="stability is the share of samples in which an expert is among so many")
    unit: Literal["expert", "neuron"] = Field("expert", description="what a row is")
    quantity: str = Field("", description="what the two rates are means of; empty: shares of tokens an expert ran for")
    tail: Literal["both", "upper"] = Field("both", description="whether p is of absolute scores or of large ones only")
    match: Literal["token"] | None = Field(None, description="what both sides were weighted to have alike")
    downweight: Literal["committee"] | None = Field(None, description="which experts' scores were reduced")
    label: str | None = Field(None, description="label whose values were compared, where these are not two sides")
    target: str | None = Field(None, description="value of the label that was asked for")
    facts: dict[str, Any] = Field(default_factory=dict, description="what the method tells beside the scores")
    notes: tuple[str, ...] = Field((), description="the same in sentences")
    hash: str = Field("", description="of the table and of this header")


@dataclass(frozen=True)
class Scores:
    """A number per (layer, expert[, neuron]): how much it belongs to the contrast side, and how sure that is.

    `table` has the columns of `COLUMNS`, or of `NEURON_COLUMNS`, rows by layer, expert and neuron. `score` is in the
    method's unit (for `risk_difference` a difference of shares, -1 to 1), `low` and `high` end its bootstrap
    interval, `p` is two-sided against the permutation null, `q` after Benjamini–Hochberg over all rows, `stability` the
    share of bootstrap samples in which the expert is among the `header.top` largest absolute scores. Intervals and
    stability are NaN with too few documents; p and q are NaN, and nothing passes, where the header's null is `none`.
    """

    table: pa.Table
    header: ScoresHeader

    @property
    def unit(self) -> Literal["expert", "neuron"]:
        """What a row is."""
        return "neuron" if "neuron" in self.table.column_names else "expert"

    @property
    def layers(self) -> list[int]:
        """Global numbers of the layers that have scores, ascending."""
        return [int(layer) for layer in np.unique(self.column("layer"))]

    def column(self, name: str) -> Array:
        """Return one column, (rows,)."""
        if name not in self.table.column_names:
            raise BadData(f"scores have no column '{name}'; {did_you_mean(name, self.table.column_names)}")
        return np.asarray(self.table[name].to_numpy())

    def top(self, n: int, *, sign: int = +1, passing: bool = False) -> pa.Table:
        """Return the rows of the n strongest experts (or neurons), strongest first; fewer where there are fewer.

        Args:
            n: how many.
            sign: +1 those that run more on the contrast side, -1 those that run less, 0 both by absolute score.
            passing: only those that pass the false discovery rate.
        """
        score = self.column("score")
        strength = np.abs(score) if sign == 0 else score * sign
        places = [self.column(name) for name in ("neuron", "expert", "layer") if name in self.table.column_names]
        order = np.lexsort((*places, -strength))
        kept = strength[order] > 0
        if passing:
            kept &= self.column("passes")[order]
        return self.table.take(order[kept][:n])

    def matrix(self, column: str = "score") -> Array:
        """Return a column as (layers, experts), rows in the order of `layers`, NaN where a layer has no such expert.

        Raises:
            BadData: there is no such column, or the scores are of neurons.
        """
        values = self.column(column).astype(np.float64)
        if self.unit == "neuron":
            raise BadData("scores of neurons have no grid of experts; read their table, or its top rows.")
        expert = self.column("expert")
        grid = np.full((len(self.layers), int(expert.max()) + 1), np.nan)
        grid[np.searchsorted(self.layers, self.column("layer")), expert] = values
        return grid

    def summary(self, n: int = 10) -> str:
        """Return in words what was compared, how many experts pass, and the n strongest of them."""
        return summary(self, n)

    def save(self, path: str | Path) -> Path:
        """Write the scores as one Arrow file; `path` is the old file or the whole new one, never a part."""
        table = self.table.replace_schema_metadata({_KEY: self.header.model_dump_json()})
        with (
            replace_file(path) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read scores.

        Raises:
            BadData: there is no such file, it holds something else, is of an unknown version, cut short or altered.
        """
        try:
            with pa.OSFile(str(path), "rb") as source, pa.ipc.open_file(source) as reader:
                table = reader.read_all()
        except FileNotFoundError:
            raise BadData(f"there is no file {path}; make scores with: moeworks find TRACE -o {path}.") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise BadData(f"{path} is not a scores file, or is cut short ({error}); make it again.") from None
        metadata = (table.schema.metadata or {}).get(_KEY)
        if metadata is None:
            raise BadData(f"{path} is an Arrow file without a header of moeworks; scores are made by: moeworks find.")
        header = _header(metadata, path)
        table = table.replace_schema_metadata(None)
        wanted = NEURON_COLUMNS if header.unit == "neuron" else COLUMNS
        if table.schema != wanted:
            raise BadData(
                f"{path} has columns {table.column_names}, not those of scores: {wanted.names}; make it again."
            )
        if header.hash != hash_scores(table, header):
            raise BadData(f"{path} was altered after it was made: its hash does not fit; make it again.")
        return cls(table, header)


def hash_scores(table: pa.Table, header: ScoresHeader) -> str:
    """Return the hash of a table and of its header without the hash."""
    fields = ScoresHeader.model_fields
    silent = {n for n in _LATER if getattr(header, n) == fields[n].get_default(call_default_factory=True)}
    content = header.model_copy(update={"hash": ""}).model_dump_json(exclude=silent)
    digest = hashlib.blake2b(content.encode(), digest_size=16)
    for name in table.column_names:
        digest.update(np.ascontiguousarray(table[name].to_numpy()).tobytes())
    return digest.hexdigest()


def _header(metadata: bytes, path: str | Path) -> ScoresHeader:
    try:
        found = json.loads(metadata)
        if found["format"] != _FORMAT:
            raise BadData(f"{path} holds {found['format']}, not scores; make scores with: moeworks find.")
        if found["version"] != _VERSION:
            raise BadData(
                f"{path} has version {found['version']} of the scores format; this moeworks reads {_VERSION}."
            )
        return ScoresHeader.model_validate_json(metadata)
    except ValidationError as error:
        raise BadData(f"the header of {path} cannot be read: {problems_of(error)}.") from None
    except (ValueError, KeyError, TypeError):
        raise BadData(f"the header of {path} cannot be read; make it again.") from None
