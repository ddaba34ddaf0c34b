"""Documents as the unit of uncertainty: tokens of one document are not independent, so that documents are resampled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = [
    "BLOCKS",
    "FEWEST_DOCUMENTS",
    "LEVEL",
    "SAMPLE",
    "Documents",
    "add_sums",
    "blocks_of_documents",
    "draw_documents",
    "percentiles",
    "ratio_intervals",
    "sample_documents",
    "selected_documents",
]

Array = NDArray[Any]
FEWEST_DOCUMENTS = 5  # below, resampling documents says nothing
LEVEL = 0.95
BLOCKS = 64  # groups of documents that are resampled together where sums for every document would not fit
SAMPLE = 1 << 20  # tokens; more of them narrow intervals that are narrow already
_BLOCK_BYTES = 16 << 20


class Documents(NamedTuple):
    """The documents that have selected tokens, numbered from 0 in the order of the trace: d documents."""

    of_request: Array  # (m,) document of each request, -1 where nothing of it is selected
    tokens: Array  # (d,) selected tokens
    of_text: Array  # (m,) selected tokens of each request

    def __len__(self) -> int:
        return len(self.tokens)


def selected_documents(trace: Trace, where: Where, *, sample: int = 0, seed: int = 0) -> Documents:
    """Go through a trace's rows once and return which documents have selected tokens.

    With `sample`, documents are drawn at random until they have so many tokens; the others count as not selected.

    Raises:
        BadData: no token is selected.
    """
    requests = trace.request_table()
    of_text = np.zeros(len(requests), np.int64)
    for part in trace.parts:
        rows = part.rows()
        of_text += np.bincount(rows.request[where.mask(rows, requests)], minlength=len(requests))
    counted = np.flatnonzero(of_text)
    if not len(counted):
        raise BadData(f"no token matches the clause '{where}'.")
    of_request = np.full(len(requests), -1)
    _, of_request[counted] = np.unique(trace.documents()[counted], return_inverse=True)
    tokens = np.bincount(of_request[counted], weights=of_text[counted]).astype(np.int64)
    found = Documents(of_request, tokens, of_text)
    taken = sample_documents(found, sample, seed=seed)
    if taken.all():
        return found
    number = np.where(taken, np.cumsum(taken) - 1, -1)
    of_request = np.where(of_request >= 0, number[of_request], -1)
    return Documents(of_request, tokens[taken], np.where(of_request >= 0, of_text, 0))


def sample_documents(documents: Documents, tokens: int, *, seed: int) -> Array:
    """Return which documents to look at, (d,) booleans: drawn at random until they have `tokens`; 0 takes all."""
    if tokens < 0:
        raise BadData(f"sample={tokens} is no number of tokens; 0 takes all of them.")
    if not tokens or tokens >= documents.tokens.sum():
        return np.ones(len(documents), bool)
    order = np.random.default_rng([seed, 21]).permutation(len(documents))
    before = np.cumsum(documents.tokens[order]) - documents.tokens[order]
    taken = np.zeros(len(documents), bool)
    taken[order[before < tokens]] = True
    return taken


def blocks_of_documents(taken: Array, *, seed: int, most: int = BLOCKS) -> tuple[Array, int]:
    """Return the block of each document, (d,) and -1 where it is not taken, and how many blocks there are.

    Blocks are random groups of documents of equal number, so that resampling them is resampling documents.
    """
    chosen = np.flatnonzero(taken)
    count = min(most, len(chosen))
    block = np.full(len(taken), -1)
    block[np.random.default_rng([seed, 22]).permutation(chosen)] = np.arange(len(chosen)) % count
    return block, count


def add_sums(sums: Array, entry: Array, values: Array) -> None:
    """Add values, (n,), to `sums`, (entries,) float64, by entry; fast where rows of one entry stand together.

    Rows whose entry is -1 are left out.
    """
    kept = np.flatnonzero(entry >= 0)
    if not len(kept):
        return
    here, chosen = (entry, values) if len(kept) == len(entry) else (entry[kept], values[kept])
    starts = np.concatenate([[0], np.flatnonzero(np.diff(here)) + 1])  # where runs of one entry begin
    np.add.at(sums, here[starts], np.add.reduceat(chosen, starts, dtype=np.float64))


def draw_documents(count: int, *, samples: int, seed: int) -> Iterator[Array]:
    """Yield how often each of `count` documents is drawn, (b, count) float64, in blocks that add up to `samples`."""
    if samples < 1:
        raise BadData(f"{samples} bootstrap samples give no interval; use at least 1, better 200.")
    generator = np.random.default_rng([seed, 11])
    size = max(1, min(256, _BLOCK_BYTES // (8 * count)))
    for start in range(0, samples, size):
        block = min(size, samples - start)
        picks = generator.integers(0, count, (block, count)) + np.arange(block)[:, None] * count
        yield np.bincount(picks.ravel(), minlength=block * count).reshape(block, count).astype(np.float64)


def percentiles(samples: Array, documents: int, *, centre: Array | float | None = None) -> tuple[Array, Array]:
    """Return both ends of the 95 % percentile interval of resampled values, (samples, …) → (…) each.

    With fewer than 5 documents they are NaN: nothing is known. With `centre`, the samples are moved so that their
    mean is there: resampling adds noise of its own, which raises numbers such as a divergence of pooled tokens.

    Source: percentile intervals, Efron and Tibshirani 1993, chapter 13.
    """
    if documents < FEWEST_DOCUMENTS:
        return np.full(samples.shape[1:], np.nan), np.full(samples.shape[1:], np.nan)
    moved = samples if centre is None else samples - samples.mean(0) + centre
    low, high = np.quantile(moved, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def ratio_intervals(over: Array, under: Array, *, samples: int, seed: int) -> tuple[Array, Array]:
    """Return the interval of sums of `over`, (d, c), divided by sums of `under`, (d,) or (d, c): (c,) each."""
    base = under[:, None] if under.ndim == 1 else under
    ratios = [
        _ratio(drawn @ over, drawn @ base) for drawn in draw_documents(len(over), samples=samples, seed=seed)
    ]  # (b, c)
    return percentiles(np.concatenate(ratios), len(over))


def _ratio(over: Array, under: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(over / under)
