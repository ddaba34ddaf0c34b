"""The texts of a probe on their way through a model: which side and which document each token belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.find.sides import AGAINST, CONTRAST, Entries
from moeworks.where import Requests, Rows, Where

if TYPE_CHECKING:
    from moeworks.artefact import ModelIdentity
    from moeworks.examples import Example
    from moeworks.probes.probe import Probe, Split

__all__ = ["NumberedRequests", "Texts", "expert_columns", "texts_of"]

Array = NDArray[Any]


@dataclass(frozen=True)
class NumberedRequests(Requests):
    """Requests that know which example each of them is, as those of a forward pass do."""

    numbers: Array = field(default_factory=lambda: np.zeros(0, np.int64))  # (m,)

    @classmethod
    def of(cls, requests: Requests, numbers: Array) -> NumberedRequests:
        """Return the same requests with their numbers."""
        return cls(**{f.name: getattr(requests, f.name) for f in fields(Requests)}, numbers=numbers)


@dataclass
class Texts:
    """The texts of both sides, and the tokens that were seen of them so far."""

    examples: tuple[Example, ...]
    contrast: Where
    against: Where
    where: Where
    document: Array  # (m,) number of each text's document
    predicted: bool = False  # whether tokens count as targets of a prediction: the first of a text is none
    tokens: Array = field(init=False)  # (2, documents) tokens seen on each side
    _rows: Rows | None = None
    _sides: Array | None = None

    def __post_init__(self) -> None:
        self.tokens = np.zeros((2, self.documents), np.int64)

    @property
    def documents(self) -> int:
        """Number of documents."""
        return int(self.document.max()) + 1

    def sides(self, rows: Rows, requests: Requests) -> Array:
        """Return each row's side, (n,): CONTRAST, AGAINST or -1; tokens of a pass are counted when it is first met.

        Args:
            rows: of one forward pass.
            requests: of its batch, with `numbers` among all texts.

        Raises:
            BadData: a token is on both sides.
        """
        if self._rows is not rows:
            common = self.where.mask(rows, requests, strict=False)
            contrast = self.contrast.mask(rows, requests, strict=False) & common
            against = self.against.mask(rows, requests, strict=False) & common
            if (contrast & against).any():
                raise BadData(
                    f"{int((contrast & against).sum())} tokens are on both sides, '{self.contrast}' and "
                    f"'{self.against}'; a token can be on one only: narrow a clause of the probe."
                )
            side = np.where(contrast, CONTRAST, np.where(against, AGAINST, -1))
            self._rows, self._sides = rows, np.where(rows.position == 0, -1, side) if self.predicted else side
            entry = self._sides * self.documents + self.document_of(rows, requests)
            counted = np.bincount(entry[self._sides >= 0], minlength=self.tokens.size)
            self.tokens += counted.reshape(self.tokens.shape)
        assert self._sides is not None
        return self._sides

    def entries_of(self, rows: Rows, requests: Requests) -> Array:
        """Return side × documents + document of each row, (n,); -1 for rows on neither side."""
        side = self.sides(rows, requests)
        return np.where(side >= 0, side * self.documents + self.document_of(rows, requests), -1)

    def rank(self, rows: Rows, requests: Requests) -> Array:
        """Return how many tokens of the same request and side stand before each row, (n,)."""
        key = rows.request * 3 + self.sides(rows, requests) + 1
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        rank = np.empty(len(key), np.int64)
        rank[order] = np.arange(len(key)) - np.repeat(starts, np.diff(starts, append=len(key)))
        return rank

    def document_of(self, rows: Rows, requests: Requests) -> Array:
        """Return each row's document, (n,)."""
        numbers: Array = requests.numbers  # type: ignore[attr-defined]
        return np.asarray(self.document[numbers][rows.request])

    def present(self) -> Array:
        """Return the (side, document) pairs that have tokens, as indices into side × documents + document.

        Raises:
            BadData: a side has no token.
        """
        for which, clause in ((CONTRAST, self.contrast), (AGAINST, self.against)):
            if not self.tokens[which].any():
                within = "" if self.where.every_token else f" within '{self.where}'"
                raise BadData(f"no token of {len(self.examples)} texts matches the clause '{clause}'{within}.")
        return np.flatnonzero(self.tokens.reshape(-1))

    def entries(self) -> Entries:
        """Return the (side, document) pairs that have tokens, in the order of `present`."""
        present = self.present()
        side, document = present // self.documents, present % self.documents
        index = np.full(2 * self.documents, -1)
        index[present] = np.arange(len(present))
        return Entries(
            side=side,
            document=document,
            tokens=self.tokens.reshape(-1)[present],
            partner=index[(1 - side) * self.documents + document],
            stratum=np.zeros(len(present), np.int64),
            of_request=index.reshape(2, -1)[:, self.document],
        )


def texts_of(probe: Probe, split: Split, *, where: Where | str = "", predicted: bool = False) -> Texts:
    """Return the texts of one split of a probe with its clauses.

    Args:
        probe: the probe.
        split: which of its texts.
        where: tokens and layers that count, in place of the probe's own clause.
        predicted: count tokens as targets of a prediction.

    Raises:
        BadData: the split has no text.
    """
    examples = tuple(probe.texts(split))
    if not examples:
        raise BadData(f"the probe {probe.name} has no text in its split '{split}'.")
    names = [example.document or f"\0{number}" for number, example in enumerate(examples)]
    _, document = np.unique(names, return_inverse=True)
    clause = Where.parse(where) if isinstance(where, str) and where else where
    own = Where.parse(probe.header.where)
    return Texts(
        examples=examples,
        contrast=Where.parse(probe.header.contrast),
        against=Where.parse(probe.header.against),
        where=clause if isinstance(clause, Where) else own,
        document=document,
        predicted=predicted,
    )


def expert_columns(identity: ModelIdentity, where: Where) -> Mapping[int, tuple[int, int]]:
    """Return layer → (first column, number of experts) for the layers that a clause takes, side by side.

    Raises:
        BadData: it takes none of the model's layers, or names one that has no router.
    """
    for number in where.layer or ():
        identity.layer(number)
    columns: dict[int, tuple[int, int]] = {}
    start = 0
    for shape in identity.layers:
        if where.takes_layer(shape.layer):
            columns[shape.layer] = start, shape.experts
            start += shape.experts
    if not columns:
        raise BadData(f"the clause '{where}' takes no layer of {identity.name} that has experts.")
    return columns
