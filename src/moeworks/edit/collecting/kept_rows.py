"""Kept rows of calibration text: a seeded uniform choice of tokens, the same in every layer, written in place on disk.

The file of a layer is a plain safetensors file made at its full size at once; rows are written to their place in it as
they come, so that memory does not grow, and a row that is written twice (after a kill) is the same row.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.edit.collecting.gather import Seen
from moeworks.errors import Unsupported

__all__ = ["KeptRows", "choose_rows"]

Array = NDArray[Any]


def choose_rows(tokens: int, rows: int, seed: int) -> Array:
    """Return the numbers of the tokens that are kept, ascending: `rows` of all, uniformly; all if there are fewer."""
    if rows >= tokens:
        return np.arange(tokens)
    return np.sort(np.random.default_rng(seed).choice(tokens, rows, replace=False))


class KeptRows:
    """Writes the kept rows of one layer."""

    def __init__(self, path: Path, chosen: Array, *, resume: bool) -> None:
        self.path, self._chosen, self._resume = path, chosen, resume
        self._arrays: dict[str, Array] = {}

    def add(self, seen: Seen, tokens: Array) -> None:
        """Write the rows of a pass that are to be kept; `tokens` numbers every flat row, padding -1."""
        if seen.hidden is None or seen.logits is None:
            raise Unsupported("rows cannot be kept: inputs of experts or raw logits of this family do not show.")
        place = np.searchsorted(self._chosen, tokens)
        place[place == len(self._chosen)] = 0
        taken = np.flatnonzero((self._chosen[place] == tokens) & (tokens >= 0))
        columns: dict[str, Tensor | None] = {
            "hidden": seen.hidden,
            "ids": seen.ids,
            "weights": seen.weights,
            "logits": seen.logits,
        }
        if not self._arrays:
            self._open(columns)
        if not len(taken):
            return
        index = torch.from_numpy(taken).to(seen.hidden.device)
        for name, array in self._arrays.items():
            values: Tensor | None = columns[name]
            assert values is not None
            part = values[index]
            array[place[taken]] = (part.int() if name == "ids" else part.float()).cpu().numpy()

    def flush(self) -> None:
        """Put everything on the disk."""
        for array in self._arrays.values():
            base: Any = array
            base.flush()

    def _open(self, columns: dict[str, Tensor | None]) -> None:
        """Make the file if it is not there, with a header as safetensors wants it, and map its arrays."""
        header: dict[str, Any] = {}
        end = 0
        for name, values in columns.items():
            assert values is not None
            shape = [len(self._chosen), values.shape[-1]]
            start, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "I32" if name == "ids" else "F32", "shape": shape, "data_offsets": [start, end]}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        first = 8 + len(encoded)
        if not (self._resume and self.path.is_file() and self.path.stat().st_size == first + end):
            with self.path.open("wb") as file:
                file.write(len(encoded).to_bytes(8, "little") + encoded)
                file.truncate(first + end)
        for name, entry in header.items():
            dtype = np.int32 if entry["dtype"] == "I32" else np.float32
            offset = first + entry["data_offsets"][0]
            self._arrays[name] = np.memmap(self.path, dtype, "r+", offset=offset, shape=tuple(entry["shape"]))
