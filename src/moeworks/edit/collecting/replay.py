"""Runs one decoder layer of a model on inputs that were kept on disk, as it runs inside the whole model.

What a layer is called with beside its input (masks, positions, rotary tables) comes from the model's own forward, in
which the layers before only hand their input on and nothing after it runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moeworks.engines.transformers.lean import lean
from moeworks.errors import BadData, Unsupported

__all__ = ["Inputs", "Replay"]


class Inputs:
    """The input of one layer for all batches, in the model's dtype, padding as it was."""

    def __init__(self, path: Path, sizes: Sequence[tuple[int, int]], tail: Sequence[int], dtype: torch.dtype) -> None:
        """Name the file; `sizes` are (texts, width) of each batch, `tail` the dimensions after them."""
        self.path, self._dtype = path, dtype
        self._shapes = [(texts, width, *tail) for texts, width in sizes]
        self._bytes = [math.prod(shape) * dtype.itemsize for shape in self._shapes]
        self._starts = np.cumsum([0, *self._bytes]).tolist()

    def whole(self) -> bool:
        """Whether the file has the size of all batches."""
        return self.path.is_file() and self.path.stat().st_size == self._starts[-1]

    @contextmanager
    def writing(self) -> Iterator[Callable[[Tensor], None]]:
        """Yield what writes the next batch; the file is on disk when the block ends."""
        with self.path.open("wb") as file:

            def write(hidden: Tensor) -> None:
                flat = hidden.detach().to(device="cpu", dtype=self._dtype).contiguous().reshape(-1)
                flat.view(torch.uint8).numpy().tofile(file)

            yield write
            file.flush()
            os.fsync(file.fileno())

    def read(self, batch: int) -> Tensor:
        """Return the input of one batch."""
        raw = np.fromfile(self.path, np.uint8, self._bytes[batch], offset=self._starts[batch])
        if len(raw) != self._bytes[batch]:
            raise BadData(f"{self.path} is damaged; remove the folder and collect again.")
        return torch.from_numpy(raw).view(self._dtype).reshape(self._shapes[batch])


class _Stop(Exception):
    """Ends a forward pass whose rest is not wanted."""


class Replay:
    """Runs single layers of a model."""

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module]) -> None:
        self._model, self._layers = model, layers
        self.parts = 0  # how many values a layer returns as a tuple, 0 for a bare tensor

    def embed(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return the input of the first layer."""
        return self._call(0, tensors, 1.0)[0]

    def run(self, number: int, tensors: dict[str, Tensor], hidden: Tensor) -> Tensor:
        """Run one layer and return what it gives to the next.

        Raises:
            Unsupported: it does not give one tensor of the shape of its input.
        """
        layer = self._layers[number]
        result: list[Any] = []

        def put(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return _with_hidden(args, kwargs, hidden)

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            result.append(output)
            raise _Stop

        handles = [layer.register_forward_pre_hook(put, with_kwargs=True), layer.register_forward_hook(stop)]
        try:
            self._forward(number, tensors, 1.0)
        finally:
            for handle in handles:
                handle.remove()
        if not result:
            raise Unsupported(
                f"layer {number} did not run in the model's own forward, so layers cannot run one by one."
            )
        (output,) = result
        first = output[0] if isinstance(output, tuple) else output
        rest = output[1:] if isinstance(output, tuple) else ()
        if any(isinstance(part, Tensor) for part in rest) or not isinstance(first, Tensor):
            raise Unsupported(f"layer {number} hands on more than its hidden states, so layers cannot run one by one.")
        if first.shape != hidden.shape:
            raise Unsupported(f"layer {number} changes the shape of its input, so layers cannot run one by one.")
        self.parts = len(output) if isinstance(output, tuple) else 0
        return first

    def check(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Make sure that a layer is given nothing, beside its input, that earlier layers computed.

        Raises:
            Unsupported: it is; running it alone would be wrong.
        """
        if number and not _equal(self._call(number, tensors, 1.0)[1], self._call(number, tensors, -3.0)[1]):
            raise Unsupported(
                f"layer {number} is given more of what earlier layers computed than their hidden states, so layers "
                "cannot run one by one; collect with the whole model in memory."
            )

    def _call(self, number: int, tensors: dict[str, Tensor], factor: float) -> tuple[Tensor, Any]:
        """Return the input of a layer and all else that it is called with."""
        seen: list[tuple[Tensor, Any]] = []

        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            seen.append((args[0] if args else kwargs["hidden_states"], (args[1:], others)))
            raise _Stop

        handle = self._layers[number].register_forward_pre_hook(look, with_kwargs=True)
        try:
            self._forward(number, tensors, factor)
        finally:
            handle.remove()
        if not seen or not isinstance(seen[0][0], Tensor):
            raise Unsupported(f"layer {number} is not given hidden states first, so layers cannot run one by one.")
        return seen[0]

    def _forward(self, number: int, tensors: dict[str, Tensor], factor: float) -> None:
        """Run the model up to a layer; those before it hand their input on, times a factor."""

        def hand_on(*args: Any, **kwargs: Any) -> Any:
            hidden = (args[0] if args else kwargs["hidden_states"]) * factor
            return (hidden, *[None] * (self.parts - 1)) if self.parts else hidden

        for layer in self._layers[:number]:
            layer.__dict__["forward"] = hand_on
        try:
            with torch.inference_mode():
                self._model(**tensors, **lean(self._model))
        except _Stop:
            pass
        finally:
            for layer in self._layers[:number]:
                del layer.__dict__["forward"]


def _with_hidden(args: Any, kwargs: Any, hidden: Tensor) -> Any:
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def _equal(one: Any, other: Any) -> bool:
    """Whether all tensors inside two nests of tuples, lists and dictionaries are equal."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return True
