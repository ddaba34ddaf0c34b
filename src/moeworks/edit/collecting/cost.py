"""What a collection will cost, known before it starts: tokens, layers, bytes on disk and in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moeworks.edit.collecting.corpus import Corpus
from moeworks.edit.collecting.gather import LayerGather
from moeworks.edit.collecting.kept_rows import row_bytes
from moeworks.edit.statistics import COLUMNS
from moeworks.families.router import Router

__all__ = ["Cost", "cost_of"]


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

    def sentence(self) -> str:
        """Say it in one sentence."""
        extra = f", {self.passes} forward passes and a backward pass each" if self.passes > 1 else ""
        runs = f", {self.expert_runs} experts a token" if self.expert_runs else ""
        rows = f"; {_size(self.rows_bytes)} of kept rows on disk" if self.rows_bytes else ""
        return (
            f"{self.tokens:,} tokens of {self.texts:,} texts × {self.layers} layers in {self.batches:,} batches"
            f"{extra}{runs}; {_size(self.statistics_bytes)} of statistics, about {_size(self.pass_bytes)} more memory "
            f"in a pass{rows}."
        )


def cost_of(corpus: Corpus, gathers: Sequence[LayerGather], routers: Sequence[Router], size: int, rows: int) -> Cost:
    """Return the cost of collecting with batches of `size` texts."""
    widths = [(len(batch), int(corpus.lengths[batch].max())) for batch in corpus.batches(size)]
    largest = max(texts * width for texts, width in widths)
    held, held_rows, statistics = 0, 0, 0
    everywhere = gradients = False
    for gather, router in zip(gathers, routers, strict=True):
        inner = gather.inner
        hidden = inner.weights.down.shape[1] if inner is not None else router.hidden_size
        neurons = inner.neurons if inner is not None else 0
        itemsize = inner.weights.down.itemsize if inner is not None else 4
        tails = {"D E": 1, "D E E": gather.experts, "D E H": hidden, "D E I": neurons}
        wanted = [COLUMNS[name] for name in gather.names if name not in gather.refused]
        groups = {group for group, *_ in wanted}
        everywhere, gradients = everywhere or "everywhere" in groups, gradients or "gradients" in groups
        statistics += 8 * gather.labels * gather.experts * sum(tails[shape] for _, shape, *_ in wanted)
        inside = 5 * neurons * max(itemsize, 4) if "neurons" in groups else 0
        held = max(held, largest * gather.top_k * (2 * hidden * itemsize + inside))
        held_rows += rows * row_bytes(hidden, gather.top_k, gather.experts)
    return Cost(
        texts=len(corpus.lengths),
        tokens=corpus.tokens,
        padded_tokens=sum(texts * width for texts, width in widths),
        batches=len(widths),
        layers=len(gathers),
        passes=2 if gradients else 1,
        expert_runs=max(gather.experts for gather in gathers) if everywhere else 0,
        rows_bytes=held_rows,
        statistics_bytes=statistics,
        pass_bytes=held,
    )


def _size(count: int) -> str:
    for unit, power in (("GB", 30), ("MB", 20), ("kB", 10)):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count} bytes"
