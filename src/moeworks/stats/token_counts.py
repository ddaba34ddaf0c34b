"""How often each expert ran for each token id, in two halves of the documents; token ids as they are or shuffled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import add_runs
from moeworks.stats.documents import Documents
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Part, Trace

__all__ = ["TokenRows", "Vocabulary", "count_by_token", "token_rows", "vocabulary"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that are selected, numbered 0 to v - 1, and which documents are held out."""

    index: Array  # (largest id + 1,) number of each token id, -1 where none is selected
    tokens: Array  # (2, v) selected tokens of each id in the documents for finding and in those held out
    held_out: Array  # (d,) booleans

    def __len__(self) -> int:
        return int(self.tokens.shape[1])


def vocabulary(trace: Trace, where: Where, documents: Documents, *, seed: int) -> Vocabulary:
    """Split documents at random into halves and count the token ids of each half; reads the row columns once.

    Raises:
        BadData: there is one document only.
    """
    if len(documents) < 2:
        raise BadData("all selected tokens are of one document; token dependence is measured on held-out documents.")
    held_out = np.zeros(len(documents), bool)
    held_out[np.random.default_rng([seed, 12]).permutation(len(documents))[: len(documents) // 2]] = True
    requests = trace.request_table()
    counts = np.zeros((2, 0), np.int64)
    for part in trace.parts:
        rows = part.rows()
        kept = where.mask(rows, requests) & (documents.of_request[rows.request] >= 0)
        half = held_out[documents.of_request[rows.request[kept]]]
        token = rows.token[kept]
        wider = max(int(token.max(initial=0)) + 1, counts.shape[1])
        counts = np.pad(counts, ((0, 0), (0, wider - counts.shape[1])))
        counts += np.stack([np.bincount(token[half == side], minlength=wider) for side in (False, True)])
    present = np.flatnonzero(counts.sum(0))
    index = np.full(counts.shape[1], -1)
    index[present] = np.arange(len(present))
    return Vocabulary(index, counts[:, present], held_out)


class TokenRows(NamedTuple):
    """The selected rows of one part, n of them, as the counts need them."""

    part: Part
    at: Array  # (n,) where they stand in the part
    word: Array  # (n,) number of each row's token id, shuffled or not
    document: Array  # (n,)
    held_out: Array  # (n,) booleans

    def ids(self, layer: int) -> Array:
        """Return their experts, (n, k)."""
        return self._of(self.part.ids(layer))

    def weights(self, layer: int) -> Array:
        """Return their weights, (n, k)."""
        return self._of(self.part.weights(layer))

    def _of(self, column: Array) -> Array:
        return column if len(self.at) == len(column) else column[self.at]


def token_rows(
    trace: Trace, where: Where, documents: Documents, words: Vocabulary, *, shuffle: int | None
) -> Iterator[TokenRows]:
    """Yield the parts of a trace with the token of each row; with `shuffle`, a seed, tokens change places in each text.

    The same seed shuffles alike each time.
    """
    requests = trace.request_table()
    for number, part in enumerate(trace.parts):
        rows = part.rows()
        kept = np.flatnonzero(where.mask(rows, requests) & (documents.of_request[rows.request] >= 0))
        request = rows.request[kept]
        word = words.index[rows.token[kept]]
        if shuffle is not None and len(kept):
            text = np.concatenate([[0], np.cumsum(request[1:] != request[:-1])])  # rows of one text stand together
            drawn = np.random.default_rng([shuffle, 13, number]).random(len(kept))
            word = word[np.argsort(text + drawn)]
        if len(kept):
            document = documents.of_request[request]
            yield TokenRows(part, kept, word, document, words.held_out[document])


def count_by_token(rows: Iterator[TokenRows], layers: Mapping[int, int], words: Vocabulary) -> dict[int, Array]:
    """Return how often each expert ran, layer → (2, v, E): documents for finding, documents held out."""
    v = len(words)
    counts = {layer: np.zeros((2 * v, experts), np.int64) for layer, experts in layers.items()}
    for some in rows:
        entry = some.word + v * some.held_out
        for layer in layers:
            add_runs(counts[layer], entry, some.ids(layer), some.weights(layer))
    return {layer: both.reshape(2, v, -1) for layer, both in counts.items()}
