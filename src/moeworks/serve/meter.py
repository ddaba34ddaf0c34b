"""Counts routing and requests of a server, at hardly any cost a token, as a small fixed set of Prometheus series."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moeworks.watch import RoutingMeter, routing_registry

if TYPE_CHECKING:
    from moeworks.families.router import Router

__all__ = ["RequestCounts", "ServerMeter"]

PASSES = 256  # passes that are kept before they are counted together


class _LockedMeter(RoutingMeter):
    """A meter that is read while another thread counts."""

    def __init__(self, routers: tuple[Router, ...]) -> None:
        super().__init__(routers)
        self.lock = threading.Lock()

    def readings(self) -> dict[str, float]:
        with self.lock:
            return super().readings()


class RequestCounts:
    """Counters of requests and tokens beside the routing readings of a meter: the series of every server of plans."""

    def __init__(self, routing: RoutingMeter) -> None:
        from prometheus_client import Counter, Gauge

        self.registry = routing_registry(routing)
        self._requests = Counter(
            "moeworks_requests", "requests answered", ["endpoint", "status"], registry=self.registry
        )
        self._tokens = Counter("moeworks_tokens", "tokens of answered requests", ["phase"], registry=self.registry)
        self._steered = Counter("moeworks_steered_requests", "requests under a plan", registry=self.registry)
        self._running = Gauge("moeworks_requests_waiting", "requests in the server", registry=self.registry)
        self._plans = Gauge("moeworks_plans", "plans that the server knows by name", registry=self.registry)
        for phase in ("prompt", "generated"):
            self._tokens.labels(phase)

    def watch_sizes(self, waiting: Callable[[], int], plans: Callable[[], int]) -> None:
        """Say where the numbers of waiting requests and of plans are read."""
        self._running.set_function(waiting)
        self._plans.set_function(plans)

    def answered(self, path: str, status: int) -> None:
        """Count an answer; paths are three kinds, so that the set of series stays small."""
        kinds = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
        self._requests.labels(kinds.get(path, "other"), f"{status // 100}xx" if status else "none").inc()

    def ran(self, prompt: int, generated: int, steered: bool) -> None:
        """Count the tokens of a choice."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("generated").inc(generated)
        self._steered.inc(steered)

    def text(self) -> bytes:
        """Return everything as Prometheus text."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))


class ServerMeter(RequestCounts):
    """Counts what the routers of a model in this process decide.

    Decisions are kept as they are while a request runs and counted together afterwards: one histogram a layer and
    request instead of one a layer and token.
    """

    def __init__(self, routers: Sequence[Router]) -> None:
        self.routers = tuple(routers)
        self.routing = _LockedMeter(self.routers)
        super().__init__(self.routing)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is routed inside the block; enter it after a tap, so that it sees what the tap decides."""
        kept: dict[int, list[tuple[Tensor | None, Tensor, Tensor]]] = {router.layer: [] for router in self.routers}
        last = self.routers[-1].layer if self.routers else 0

        def keep(layer: int) -> Any:
            mine = kept[layer]

            def hook(logits: Tensor | None, weights: Tensor, ids: Tensor) -> None:
                mine.append((logits, weights, ids))
                if layer == last and len(mine) >= PASSES:
                    self._count(kept)

            return hook

        handles = [handle for router in self.routers for handle in router.attach(keep(router.layer))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._count(kept)

    def _count(self, kept: dict[int, list[tuple[Tensor | None, Tensor, Tensor]]]) -> None:
        with self.routing.lock, torch.inference_mode():
            self.routing.begin(None)
            for router in self.routers:
                passes = kept[router.layer]
                if passes:
                    logits = [z for z, _, _ in passes if z is not None]
                    count = self.routing.hook(router)
                    count(
                        torch.cat(logits) if len(logits) == len(passes) else None,
                        torch.cat([weights for _, weights, _ in passes]),
                        torch.cat([ids for _, _, ids in passes]),
                    )
                    passes.clear()
            self.routing.end()
