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
        rows: (m,) the steered rows; None where there is none.
    """

    def __init__(self, tokens: int, device: torch.device, *, host_knows: bool) -> None:
        self.slots = torch.zeros(tokens, dtype=torch.int64, device=device)
        self.host_knows = host_knows
        self.steered = self.recorded = False
        self.rows: Tensor | None = None
        self._filled = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do in this step."""
        return self.steered or self.recorded

    def fill(self, slots: NDArray[np.int64], *, recorded: bool) -> None:
        """Set the slots of the step's tokens, (n,); all later places are neutral."""
        steered = np.flatnonzero(slots)
        self.recorded = recorded
        self.steered = bool(len(steered))
        if not self.steered:
            self._neutral()
            return
        n = len(slots)
        self.slots[:n].copy_(_to_host(slots, self.slots), non_blocking=True)
        if self._filled > n:
            self.slots[n : self._filled].zero_()
        self._filled = n
        self.rows = torch.from_numpy(steered).to(self.slots.device)

    def end(self) -> None:
        """Make everything neutral, so that runs that are no step of ours (warming up, idle ranks) stay untouched."""
        self.steered = self.recorded = False
        self._neutral()

    def _neutral(self) -> None:
        if self._filled:
            self.slots[: self._filled].zero_()
        self._filled = 0
        self.rows = None


def _to_host(values: NDArray[np.int64], like: Tensor) -> Tensor:
    """Return values as a tensor that can be copied without waiting: a fresh pinned one where that helps."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory() if like.device.type == "cuda" else tensor
