"""Routing readings of a vLLM server: workers sum up what every token was routed to, the front end joins their sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from moeworks.engines.vllm.recorder import StepBuffers
from moeworks.watch import RoutingMeter
from moeworks.watch.meter import LayerSums

__all__ = ["METER", "FetchedMeter", "StepMeter"]

METER = "MOEWORKS_VLLM_METER"  # environment variable: set where workers are to sum up their routing
PENDING_BYTES = 16 * 2**20  # decisions that wait to be counted together: one pass over many steps costs little


class StepMeter:
    """Sums of one worker's layers.

    Args:
        buffers: where the decisions of a step are.
        biases: layer → its selection bias, live, or None.
    """

    def __init__(self, buffers: StepBuffers, biases: Mapping[int, Tensor | None]) -> None:
        self._buffers = buffers
        self._routers: Any = tuple(
            SimpleNamespace(
                layer=layer.number, experts=layer.experts, arrays=SimpleNamespace(bias=biases.get(layer.number))
            )
            for layer in buffers.layers
        )
        self._meter = RoutingMeter(self._routers)
        self._counts = [self._meter.hook(router) for router in self._routers]
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._rows, self._most = 0, max(1, PENDING_BYTES // max(1, sum(buffers.row_bytes)))

    def add(self, rows: int) -> None:
        """Take in the first rows of the step's buffers; those beyond are padding."""
        if not self._routers:
            return
        buffers = self._buffers
        self._pending.append(
            (buffers.ids[:rows].clone(), buffers.weights[:rows].clone(), buffers.logits[:rows].clone())
        )
        self._rows += rows
        if self._rows >= self._most:
            self._count()

    def _count(self) -> None:
        if not self._pending:
            return
        ids, weights, logits = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
        self._pending, self._rows = [], 0
        self._meter.begin(None)
        for place, layer in enumerate(self._buffers.layers):
            k = layer.top_k
            self._counts[place](logits[:, place, : layer.experts], weights[:, place, :k], ids[:, place, :k])
        self._meter.end()

    def sums(self) -> dict[int, tuple[list[float], list[float], float]]:
        """Return, for each layer, how often each expert ran, (tokens, top shares, entropies), and the spread of its
        bias."""
        self._count()
        spreads = {router.layer: _spread(router.arrays.bias) for router in self._routers}
        return {
            layer: (one.counts.tolist(), one.sums.tolist(), spreads[layer]) for layer, one in self._meter.layers.items()
        }


def _spread(bias: Tensor | None) -> float:
    return 0.0 if bias is None else float((bias.max() - bias.min()).detach())


class FetchedMeter(RoutingMeter):
    """Readings of sums that are fetched from the workers whenever somebody asks.

    Args:
        fetch: returns what `StepMeter.sums` gives on each worker; None from one that keeps none.
    """

    def __init__(self, fetch: Callable[[], Sequence[dict[int, Any] | None]]) -> None:
        super().__init__(())
        self._fetch = fetch
        self._biases: list[float] = []

    def readings(self) -> dict[str, float]:
        """Return every reading of `READINGS`; a pipeline's ranks each have layers of their own."""
        found = {layer: sums for rank in self._fetch() if rank for layer, sums in rank.items()}
        self.layers.clear()
        for layer, (counts, sums, _) in sorted(found.items()):
            self.layers[layer] = LayerSums(torch.tensor(counts), torch.tensor(sums, dtype=torch.float64))
        self._biases = [spread for _, _, spread in found.values()]
        return super().readings()

    def _spreads(self) -> Iterator[float]:
        yield from self._biases
