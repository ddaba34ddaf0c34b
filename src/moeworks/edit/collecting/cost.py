"""What a collection will cost, known before it starts: tokens, layers, bytes on disk and in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from moeworks.edit.collecting.corpus import Corpus
from moeworks.edit.statistics import COLUMNS

__all__ = ["Cost", "LayerSize", "cost_of", "row_bytes"]


class LayerSize(NamedTuple):
    """What of a layer matters for the cost."""

    experts: int
    top_k: int
    hidden: int
    neurons: int
    itemsize: int  # bytes of a weight


@dataclass(frozen=True)
class Cost:
    """What a collection takes, beside the model itself.

    Attributes:
        texts, tokens, padded_tokens: padding runs through the model too.
        batches, layers: forward passes, and layers with routers.
        passes: forward passes for each batch: 1, with gradients 2 and a backward pass.
        expert_runs: how many experts run for each token in place of k; more only where every expert is asked for.
        rows_bytes: of the kept rows on disk.
        statistics_bytes: of the sums, held in memory and written at every checkpoint.
        pass_bytes: what is held of one layer of the largest batch, an estimate.
        replay_bytes: of inputs on disk, where the model goes through memory a layer at a time.
    """

    texts: int
    tokens: int
    padded_tokens: int
    batches: int
    layers: int
    passes: int
    expert_runs: int
    rows_bytes: int
    statistics_bytes: int
    pass_bytes: int
    replay_bytes: int = 0

    def sentence(self) -> str:
        """Say it in one sentence."""
        extra = f", {self.passes} forward passes and a backward pass each" if self.passes > 1 else ""
        runs = f", {self.expert_runs} experts a token" if self.expert_runs else ""
        rows = f"; {_size(self.rows_bytes)} of kept rows on disk" if self.rows_bytes else ""
        if self.replay_bytes:
            rows += f"; {_size(self.replay_bytes)} of layer inputs on disk"
        return (
            f"{self.tokens:,} tokens of {self.texts:,} texts × {self.layers} layers in {self.batches:,} batches"
            f"{extra}{runs}; {_size(self.statistics_bytes)} of statistics, about {_size(self.pass_bytes)} more memory "
            f"in a pass{rows}."
        )


def row_bytes(hidden: int, top_k: int, experts: int) -> int:
    """Return the bytes of one kept row of one layer."""
    return 4 * hidden + 8 * top_k + 4 * experts


def cost_of(
    corpus: Corpus, sizes: Sequence[LayerSize], names: Collection[str], batch_size: int, rows: int, *, replay: int = 0
) -> Cost:
    """Return the cost of collecting these arrays of some layers with batches of `batch_size` texts.

    `replay` is the bytes of one row of a layer's input where inputs are kept on disk from layer to layer, else 0.
    """
    widths = [(len(batch), int(corpus.lengths[batch].max())) for batch in corpus.batches(batch_size)]
    largest = max(texts * width for texts, width in widths)
    padded = sum(texts * width for texts, width in widths)
    groups = {COLUMNS[name][0] for name in names}
    held, held_rows, statistics = 0, 0, 0
    for size in sizes:
        tails = {"D E": 1, "D E E": size.experts, "D E H": size.hidden, "D E I": size.neurons}
        statistics += 8 * len(corpus.names) * size.experts * sum(tails[COLUMNS[name][1]] for name in names)
        inside = 5 * size.neurons * max(size.itemsize, 4) if "neurons" in groups else 0
        held = max(held, largest * size.top_k * (2 * size.hidden * size.itemsize + inside))
        held_rows += rows * row_bytes(size.hidden, size.top_k, size.experts)
    return Cost(
        texts=len(corpus.lengths),
        tokens=corpus.tokens,
        padded_tokens=padded,
        batches=len(widths),
        layers=len(sizes),
        passes=2 if "gradients" in groups else 1,
        expert_runs=max(size.experts for size in sizes) if "everywhere" in groups else 0,
        rows_bytes=held_rows,
        statistics_bytes=statistics,
        pass_bytes=held,
        replay_bytes=2 * padded * replay,
    )


def _size(count: int) -> str:
    for unit, power in (("GB", 30), ("MB", 20), ("kB", 10)):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count} bytes"
