"""Keeps the decisions of recorded requests: device buffers for one step, bounded memory for whole requests.

Letters in shapes: T tokens of a step, L layers of this rank, k slots of a token, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.engines.vllm.spec import Recording

__all__ = ["Copy", "Kept", "LayerSizes", "Recorder", "StepBuffers"]

Array = NDArray[Any]


class LayerSizes(NamedTuple):
    """One layer: its number, k, E, and the factor that vLLM puts on its experts' output, which belongs to weights."""

    number: int
    top_k: int
    experts: int
    scale: float


class StepBuffers:
    """The decisions of the current step, all layers together, at a fixed address."""

    def __init__(self, tokens: int, layers: Sequence[LayerSizes], device: torch.device) -> None:
        self.layers = tuple(layers)
        count, slots = len(layers), max((layer.top_k for layer in layers), default=1)
        experts = max((layer.experts for layer in layers), default=1)
        small = torch.int16 if experts < 2**15 else torch.int32
        self.ids = torch.zeros((tokens, count, slots), dtype=small, device=device)
        self.weights = torch.zeros((tokens, count, slots), dtype=torch.float32, device=device)
        self.logits = torch.zeros((tokens, count, experts), dtype=torch.float32, device=device)

        self.row_bytes = tuple(buffer[0].nbytes for buffer in (self.ids, self.weights, self.logits))
        self._views: tuple[int, list[tuple[Tensor, Tensor, Tensor]]] = (-1, [])

    def put(self, place: int, ids: Tensor, weights: Tensor | None, logits: Tensor | None) -> None:
        """Copy a layer's decisions; rows that are padding are never read."""
        n = len(ids)
        if n > len(self.ids):  # padded beyond what a step can hold
            n = len(self.ids)
            ids = ids[:n]
            weights, logits = (None if values is None else values[:n] for values in (weights, logits))
        if self._views[0] != n:
            self._views = n, [self._view(n, number) for number in range(len(self.layers))]
        for mine, values in zip(self._views[1][place], (ids, weights, logits), strict=True):
            if values is not None:
                mine.copy_(values)

    def _view(self, n: int, place: int) -> tuple[Tensor, Tensor, Tensor]:
        layer = self.layers[place]
        return (
            self.ids[:n, place, : layer.top_k],
            self.weights[:n, place, : layer.top_k],
            self.logits[:n, place, : layer.experts],
        )


@dataclass(eq=False)
class Kept:
    """What is kept of one request."""

    recording: Recording
    until: int = 0  # positions below were seen; rows come in ascending order, those seen again are left out
    first: int | None = None  # position of the first row that is kept
    missing: int = 0  # rows that were due and not computed here: a hole
    dropped: int = 0  # rows that the memory had no room for
    finished: bool = False
    gone: bool = False  # fetched; what still comes is nobody's
    nbytes: int = 0
    chunks: list[tuple[dict[str, Array], int, int]] = field(default_factory=list)  # a step's arrays and rows of them


class Copy(NamedTuple):
    """Rows of a step that belong to a recorded request."""

    kept: Kept
    row: int
    position: int
    size: int


class Recorder:
    """All recorded requests of one worker.

    Args:
        buffers: of a step.
        budget: bytes of rows that may wait to be fetched; what has no room is dropped by the whole request, counted.
    """

    def __init__(self, buffers: StepBuffers, budget: int) -> None:
        self.buffers, self._budget = buffers, budget
        self._kept: dict[str, Kept] = {}
        self.nbytes = 0
        self.dropped = 0

    def start(self, recording: Recording) -> Kept:
        """Begin to keep a request's rows."""
        kept = Kept(recording, until=recording.start)
        self._kept[recording.key] = kept
        return kept

    def add(self, copies: Sequence[Copy]) -> None:
        """Copy the rows of a step once, and give each request its part."""
        due = [one for one in map(_unseen, copies) if one is not None]
        due = [one for one in due if not self._no_room(one)]
        if not due:
            return
        rows = np.concatenate([np.arange(one.row, one.row + one.size) for one in due])
        whole = len(rows) == rows[-1] + 1  # in order and without gaps, as where every request is recorded
        arrays = {"ids": self._copied(self.buffers.ids, rows, whole)}
        if any(one.kept.recording.weights for one in due):
            arrays["weights"] = self._copied(self.buffers.weights, rows, whole)
        if any(one.kept.recording.logits for one in due):
            arrays["logits"] = self._copied(self.buffers.logits, rows, whole)
        start = 0
        for kept, _, position, count in due:
            kept.first = position if kept.first is None else kept.first
            kept.chunks.append((arrays, start, start + count))
            start += count

    def finish(self, kept: Kept) -> None:
        """Mark a request whose rows are all here; they wait until they are fetched or room is needed."""
        kept.finished = True

    def take(self, key: str) -> dict[str, Any] | None:
        """Return a request's rows and forget them; None where nothing is known under this key.

        Returns:
            `first` position, counts `missing` and `dropped`, and `columns`: name → (dtype, shape, bytes).
        """
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        kept.gone = True
        self.nbytes -= kept.nbytes
        columns = {}
        wanted = kept.recording
        for kind in ("ids", *["weights"] * wanted.weights, *["logits"] * wanted.logits) if kept.chunks else ():
            rows = np.concatenate([arrays[kind][start:stop] for arrays, start, stop in kept.chunks])  # (n, L, …)
            for place, layer in enumerate(self.buffers.layers):
                if wanted.layers is not None and layer.number not in wanted.layers:
                    continue
                values = rows[:, place, : layer.experts if kind == "logits" else layer.top_k]
                if kind == "weights" and layer.scale != 1:
                    values = values * np.float32(layer.scale)
                columns[f"L{layer.number}.{kind}"] = (values.dtype.str, values.shape, values.tobytes())
        return {"first": kept.first or 0, "missing": kept.missing, "dropped": kept.dropped, "columns": columns}

    @property
    def waiting(self) -> int:
        """Requests whose rows are here."""
        return len(self._kept)

    def _copied(self, buffer: Tensor, rows: Array, whole: bool) -> Array:
        if whole:
            return np.array(buffer[: len(rows)].cpu().numpy())
        return np.asarray(buffer[torch.from_numpy(rows).to(buffer.device)].cpu().numpy())

    def _no_room(self, one: Copy) -> bool:
        """Account for the rows of a request; where they find no room, give it up."""
        kept, wanted = one.kept, one.kept.recording
        if not kept.dropped:
            ids, weights, logits = self.buffers.row_bytes
            size = (ids + weights * wanted.weights + logits * wanted.logits) * one.size
            if self.nbytes + size > self._budget:
                self._make_room(size)
            if self.nbytes + size <= self._budget:
                kept.nbytes += size
                self.nbytes += size
                return False
        self._drop(kept, one.size)
        return True

    def _drop(self, kept: Kept, count: int) -> None:
        """Give up a request: all its rows, those to come too, count as dropped."""
        count += sum(stop - start for _, start, stop in kept.chunks)
        self.nbytes -= kept.nbytes
        kept.chunks.clear()
        kept.nbytes = 0
        kept.dropped += count
        self.dropped += count

    def _make_room(self, size: int) -> None:
        """Drop finished requests that nobody fetched, the oldest first."""
        for key in [key for key, kept in self._kept.items() if kept.finished]:
            if self.nbytes + size <= self._budget:
                return
            kept = self._kept.pop(key)
            kept.gone = True
            self._drop(kept, 0)


def _unseen(one: Copy) -> Copy | None:
    """Return the rows that were not kept before, as a request that was preempted runs its first tokens again."""
    kept, row, position, count = one
    skip = max(0, kept.until - position)
    if kept.gone or skip >= count:
        return None
    kept.missing += position + skip - kept.until
    kept.until = position + count
    return Copy(kept, row + skip, position + skip, count - skip)
