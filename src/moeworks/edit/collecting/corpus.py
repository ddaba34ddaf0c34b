"""The texts of a collection as token ids on disk: counted and hashed before anything runs, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.artefact import hash_texts
from moeworks.engines.transformers.layout import Batch
from moeworks.engines.transformers.tokens import Long, Prepared, Reader
from moeworks.errors import BadData
from moeworks.examples import Example

__all__ = ["ALL", "Corpus", "read_corpus"]

Array = NDArray[Any]
ALL = "all"  # the one value where no label tells texts apart


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts in the order of the data; a batch is read from disk when it is its turn.

    Attributes:
        path: file of all token ids, int32, one text after another.
        lengths: (texts,) tokens of each.
        labels: (texts,) number of each text's label in `names`.
        names: values of the label, ascending; `all` alone without a label.
        text_hash: hash of the texts.
        truncated: tokens that did not fit the context and were left out.
    """

    path: Path
    lengths: Array
    labels: Array
    names: tuple[str, ...]
    text_hash: str
    truncated: int

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return int(self.lengths.sum())

    @property
    def starts(self) -> Array:
        """(texts,) number of each text's first token."""
        return np.cumsum(self.lengths) - self.lengths

    def tokens_of_labels(self) -> tuple[int, ...]:
        """Return the tokens of each value of the label."""
        return tuple(int(self.lengths[self.labels == number].sum()) for number in range(len(self.names)))

    def batches(self, size: int) -> list[Array]:
        """Return the texts of each batch: the longest first, so that a lack of memory shows at once."""
        order = np.argsort(-self.lengths, kind="stable")
        return [order[start : start + size] for start in range(0, len(order), size)]

    def batch(self, texts: Sequence[int] | Array, *, pad_left: bool = False) -> Batch:
        """Return some texts as a batch that can run."""
        stored = np.memmap(self.path, np.int32, "r")
        starts = self.starts
        prepared = [
            Prepared(
                number=int(text),
                tokens=tuple(stored[starts[text] : starts[text] + self.lengths[text]].tolist()),
                prompt_tokens=int(self.lengths[text]),
                spans=(),
                labels={},
                document="",
                content="",
                truncated=0,
            )
            for text in texts
        ]
        return Batch(prepared, pad_left=pad_left)

    def rows_of(self, batch: Batch) -> tuple[Array, Array]:
        """Return the label of each flat row of a batch, padding `len(names)`, and its token number, padding -1."""
        forward = batch.forward()
        valid = np.arange(forward.total) if forward.valid is None else forward.valid
        numbers = forward.numbers[forward.rows.request]
        labels, tokens = np.full(forward.total, len(self.names)), np.full(forward.total, -1)
        labels[valid] = self.labels[numbers]
        tokens[valid] = self.starts[numbers] + forward.rows.position
        return labels, tokens


def read_corpus(
    reader: Reader, examples: Iterable[Example], path: Path, *, label: str | None = None, long: Long = "truncate"
) -> Corpus:
    """Turn texts into token ids on disk.

    Raises:
        BadData: there is no text, or some have no such label; the first of them are named.
    """
    lengths: list[int] = []
    found: list[str] = []
    without: list[int] = []
    truncated = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:

        def contents() -> Iterator[str]:
            nonlocal truncated
            for request in reader.read(iter(examples), long=long):
                np.asarray(request.tokens, np.int32).tofile(file)
                lengths.append(len(request.tokens))
                truncated += request.truncated
                if label is not None and label not in request.labels:
                    without.append(request.number + 1)
                found.append(ALL if label is None else request.labels.get(label, ""))
                yield request.content

        text_hash = hash_texts(contents())
    if not lengths:
        raise BadData("there is no text to collect statistics from; the examples are empty.")
    if without:
        places = ", ".join(map(str, without[:5])) + (", …" if len(without) > 5 else "")
        raise BadData(f"{len(without)} of {len(lengths)} texts have no label '{label}' (text {places}).")
    names, labels = np.unique(found, return_inverse=True)
    return Corpus(path, np.asarray(lengths), labels.reshape(-1), tuple(map(str, names)), text_hash, truncated)
