"""Offers the readings of a routing meter as Prometheus text: one gauge each, no labels, so that the set stays small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from moeworks.errors import need
from moeworks.watch.meter import READINGS, RoutingMeter

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["PREFIX", "routing_registry", "serve_metrics"]

PREFIX = "moeworks_routing_"


def routing_registry(meter: RoutingMeter) -> CollectorRegistry:
    """Return a registry whose gauges are the meter's readings at the moment they are scraped.

    Give it to the exporter that is there already (`prometheus_client.make_asgi_app(registry)`), or call
    `serve_metrics`. Readings are of everything since the meter was last reset.
    """
    try:
        from prometheus_client import CollectorRegistry
        from prometheus_client.core import GaugeMetricFamily
    except ImportError:
        raise need("prometheus_client", "watch", "Prometheus text") from None

    class Readings:
        """What the registry asks at every scrape."""

        def collect(self) -> Iterator[Any]:
            for name, value in meter.readings().items():
                yield GaugeMetricFamily(PREFIX + name, READINGS[name], value=value)

    registry = CollectorRegistry()
    registry.register(Readings())
    return registry


def serve_metrics(meter: RoutingMeter, *, port: int = 9465, address: str = "127.0.0.1") -> Any:
    """Serve the readings at `http://ADDRESS:PORT/metrics` from a thread; return (server, thread).

    `server.shutdown()` ends it. It listens on loopback unless another address is given.
    """
    registry = routing_registry(meter)
    from prometheus_client import start_http_server

    return start_http_server(port, addr=address, registry=registry)
