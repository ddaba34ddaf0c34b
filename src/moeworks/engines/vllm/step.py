"""What holds for the tokens of the step that runs: their slots, and whether anything is steered or recorded at all."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Step"]


class Step:
    """The token → slot map at a fixed address, refilled before each step.

    Attributes:
        slots: (T,) slot of each token of the step; 0 where nothing is done.
        host_knows: whether code on the host runs in every step, as it does outside of CUDA graphs.
        steered, recorded: whether any row is, in this step.
        weights, logits: whether some recorded request wants them.
        rows: (m,) the steered rows; None where all are or none is.
        row_slots: (m,) their slots.
        used: the slots that occur.
        version: counts changes of rows and slots; decoding, it stays the same for many steps.
    """

    def __init__(self, tokens: int, device: torch.device, *, host_knows: bool) -> None:
        self.slots = torch.zeros(tokens, dtype=torch.int64, device=device)
        self.host_knows = host_knows
        self.steered = self.recorded = self.weights = self.logits = False
        self.rows: Tensor | None = None
        self.row_slots = self.slots[:0]
        self.used: frozenset[int] = frozenset()
        self.version = 0
        self._last: NDArray[np.int64] = np.zeros(0, np.int64)
        self._filled = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do in this step."""
        return self.steered or self.recorded

    def fill(self, slots: NDArray[np.int64], *, recorded: bool, weights: bool = False, logits: bool = False) -> None:
        """Set the slots of the step's tokens, (n,); all later places are neutral."""
        self.recorded, self.weights, self.logits = recorded, weights, logits
        self.steered = bool(slots.any())
        if not self.steered:
            self._neutral()
            return
        if not np.array_equal(slots, self._last):
            steered = np.flatnonzero(slots)
            device = self.slots.device
            self._last = slots
            self.version += 1
            self.used = frozenset(slots[steered].tolist())
            self.row_slots = torch.from_numpy(slots[steered]).to(device)
            self.rows = None if len(steered) == len(slots) else torch.from_numpy(steered).to(device)
        if self.host_knows:
            return  # nobody looks at the map itself
        n = len(slots)
        self.slots[:n].copy_(_to_host(slots, self.slots), non_blocking=True)
        if self._filled > n:
            self.slots[n : self._filled].zero_()
        self._filled = n

    def watch(self) -> None:
        """Let decisions be kept of a step in which nothing is steered."""
        self.steered, self.recorded, self.weights, self.logits = False, True, True, True
        self._neutral()

    def end(self) -> None:
        """Make everything neutral, so that runs that are no step of ours (warming up, idle ranks) stay untouched."""
        self.steered = self.recorded = False
        self._neutral()

    def _neutral(self) -> None:
        if self._filled:
            self.slots[: self._filled].zero_()
        self._filled = 0


def _to_host(values: NDArray[np.int64], like: Tensor) -> Tensor:
    """Return values as a tensor that can be copied without waiting: a fresh pinned one where that helps."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory() if like.device.type == "cuda" else tensor
