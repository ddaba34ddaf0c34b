"""LLEP: the excess tokens of busy experts go, with a copy of the expert's weights, to the least loaded GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData

__all__ = ["LeastLoaded", "least_loaded"]

Array = NDArray[Any]


@dataclass(frozen=True)
class LeastLoaded:
    """One batch's plan; E experts, P GPUs.

    Attributes:
        assigned: (E, P) tokens of each expert that each GPU works on.
        moved_tokens: tokens that are not worked on where their expert lives.
        moved_experts: copies of an expert's weights that are sent to another GPU.
        planned: False where the batch was even enough to be left alone.
    """

    assigned: Array
    moved_tokens: int
    moved_experts: int
    planned: bool

    @property
    def loads(self) -> Array:
        """Tokens of each GPU, (P,)."""
        return np.asarray(self.assigned.sum(0))


def least_loaded(
    loads: Array, *, gpus: int, alpha: float = 1.0, fewest: int = 1024, threshold: float = 1.0
) -> LeastLoaded:
    """Return which GPU works on which tokens of one batch.

    Args:
        loads: (E,) tokens of each expert; expert i lives on GPU i // (E / P).
        gpus: P.
        alpha: a GPU takes at most alpha times the even share, as long as anything else is possible.
        fewest: a smaller portion is not moved unless it is all that is left (m, tokens of a worthwhile product).
        threshold: with the largest GPU load / the mean below this, nothing is moved (lambda; the paper's is 1.3,
            and the default here always plans, as the released code does).

    Raises:
        BadData: experts cannot be divided by GPUs.

    Source: arXiv 2601.17111, algorithm with the guard against empty portions that the released code has and the
    pseudocode lacks. Where the text says that an excess below m stays at home, pseudocode and code send it; so do we.
    """
    tokens = np.asarray(loads, np.int64)
    if gpus < 1 or len(tokens) % gpus:
        raise BadData(f"{len(tokens)} experts cannot be divided by {gpus} GPUs; choose numbers that divide.")
    native = np.arange(len(tokens)) // (len(tokens) // gpus)  # (E,)
    pending = np.bincount(native, weights=tokens, minlength=gpus)
    assigned = np.zeros((len(tokens), gpus), np.int64)
    mean = tokens.sum() / gpus
    if not mean or pending.max() / mean < threshold:
        assigned[np.arange(len(tokens)), native] = tokens
        return LeastLoaded(assigned, 0, 0, planned=False)
    capacity = alpha * mean
    done = np.zeros(gpus)
    for expert in np.argsort(-tokens, kind="stable"):
        home, count = int(native[expert]), int(tokens[expert])
        pending[home] -= count
        kept = min(count, max(0, int(capacity - done[home] - pending[home] + 1e-9)))
        assigned[expert, home] += kept
        done[home] += kept
        if count > kept:
            _spill(int(count - kept), home, assigned[expert], done, pending, capacity, fewest)
    away = assigned.copy()
    away[np.arange(len(tokens)), native] = 0
    return LeastLoaded(assigned, int(away.sum()), int((away > 0).sum()), planned=True)


def _spill(left: int, home: int, row: Array, done: Array, pending: Array, capacity: float, fewest: int) -> None:
    """Give `left` tokens of one expert, whose row of assignments is (P,), to other GPUs, the least loaded first."""
    while left:
        took = False
        for gpu in np.argsort(done + pending, kind="stable"):
            portion = min(left, int(capacity - done[gpu] - pending[gpu] + 1e-9))
            if gpu == home or portion <= 0 or (portion < fewest and left > portion):
                continue
            row[gpu] += portion
            done[gpu] += portion
            left -= portion
            took = True
            break  # the order has changed
        if not took:
            others = [gpu for gpu in range(len(done)) if gpu != home] or [home]
            gpu = min(others, key=lambda one: done[one] + pending[one])
            row[gpu] += left
            done[gpu] += left
            return
