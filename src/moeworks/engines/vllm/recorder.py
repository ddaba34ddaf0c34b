"""Keeps the decisions of recorded requests: device buffers for one step, bounded memory for whole requests.

Letters in shapes: T tokens of a step, k slots of a token, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.engines.vllm.spec import Recording

__all__ = ["Kept", "LayerBuffer", "Recorder"]

Array = NDArray[Any]


class LayerBuffer:
    """The decisions of the current step in one layer, at a fixed address."""

    def __init__(self, tokens: int, top_k: int, experts: int, device: torch.device) -> None:
        small = experts < 2**15
        self.ids = torch.zeros((tokens, top_k), dtype=torch.int16 if small else torch.int32, device=device)
        self.weights = torch.zeros((tokens, top_k), dtype=torch.float32, device=device)
        self.logits = torch.zeros((tokens, experts), dtype=torch.float32, device=device)

    def put(self, weights: Tensor, ids: Tensor, logits: Tensor | None) -> None:
        """Copy one step's decisions; rows that are padding are never read."""
        n = min(len(ids), len(self.ids))
        self.ids[:n].copy_(ids[:n])
        self.weights[:n].copy_(weights[:n])
        if logits is not None:
            self.logits[:n].copy_(logits[:n, : self.logits.shape[1]])


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
    chunks: list[dict[str, Array]] = field(default_factory=list)


class Recorder:
    """All recorded requests of one worker.

    Args:
        buffers: layer → its buffer of a step.
        scales: layer → factor that vLLM puts on the experts' output, which belongs to the weights.
        budget: bytes of rows that may wait to be fetched; what has no room is dropped by the whole request, counted.
    """

    def __init__(self, buffers: Mapping[int, LayerBuffer], scales: Mapping[int, float], budget: int) -> None:
        self._buffers, self._scales, self._budget = dict(buffers), dict(scales), budget
        self._kept: dict[str, Kept] = {}
        self.nbytes = 0
        self.dropped = 0

    def start(self, recording: Recording) -> Kept:
        """Begin to keep a request's rows."""
        kept = Kept(recording, until=recording.start)
        self._kept[recording.key] = kept
        return kept

    def add(self, kept: Kept, *, row: int, position: int, count: int) -> None:
        """Copy `count` rows of the step's buffers, from `row` on, that are the tokens from `position` on."""
        skip = max(0, kept.until - position)
        if kept.gone or skip >= count:
            return
        row, position, count = row + skip, position + skip, count - skip
        kept.missing += position - kept.until
        kept.until = position + count
        if kept.dropped:
            self._drop(kept, count)
            return
        chunk: dict[str, Array] = {}
        recording = kept.recording
        for layer, buffer in self._buffers.items():
            if recording.layers is not None and layer not in recording.layers:
                continue
            part = slice(row, row + count)
            chunk[f"L{layer}.ids"] = buffer.ids[part].cpu().numpy().copy()
            if recording.weights:
                chunk[f"L{layer}.weights"] = buffer.weights[part].cpu().numpy() * np.float32(self._scales[layer])
            if recording.logits:
                chunk[f"L{layer}.logits"] = buffer.logits[part].cpu().numpy().copy()
        size = sum(values.nbytes for values in chunk.values())
        if self.nbytes + size > self._budget:
            self._make_room(size)
        if self.nbytes + size > self._budget:
            self._drop(kept, count)
            return
        if kept.first is None:
            kept.first = position
        kept.chunks.append(chunk)
        kept.nbytes += size
        self.nbytes += size

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
        for name in kept.chunks[0] if kept.chunks else ():
            values = np.concatenate([chunk[name] for chunk in kept.chunks])
            columns[name] = (values.dtype.str, values.shape, values.tobytes())
        return {"first": kept.first or 0, "missing": kept.missing, "dropped": kept.dropped, "columns": columns}

    @property
    def waiting(self) -> int:
        """Requests whose rows are here."""
        return len(self._kept)

    def _drop(self, kept: Kept, count: int) -> None:
        """Give up a request: all its rows, those to come too, count as dropped."""
        already = 0 if kept.dropped or not kept.chunks else sum(len(next(iter(c.values()))) for c in kept.chunks)
        self.nbytes -= kept.nbytes
        kept.chunks.clear()
        kept.nbytes = 0
        kept.dropped += count + already
        self.dropped += count + already

    def _make_room(self, size: int) -> None:
        """Drop finished requests that nobody fetched, the oldest first."""
        for key in [key for key, kept in self._kept.items() if kept.finished]:
            if self.nbytes + size <= self._budget:
                return
            kept = self._kept.pop(key)
            self._drop(kept, 0)
