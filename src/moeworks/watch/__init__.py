"""Watches routing while a model trains or serves: a meter, a Trainer callback, Prometheus text, honest losses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moeworks.watch.callback import RoutingCallback
    from moeworks.watch.losses import balance_loss, bias_step, z_loss
    from moeworks.watch.meter import READINGS, RoutingMeter, metered
    from moeworks.watch.prometheus import routing_registry, serve_metrics
    from moeworks.watch.setup import TrainingSetup, training_setup

_HOMES = {
    "READINGS": "meter",
    "RoutingCallback": "callback",
    "RoutingMeter": "meter",
    "TrainingSetup": "setup",
    "balance_loss": "losses",
    "bias_step": "losses",
    "metered": "meter",
    "routing_registry": "prometheus",
    "serve_metrics": "prometheus",
    "training_setup": "setup",
    "z_loss": "losses",
}

__all__ = [
    "READINGS",
    "RoutingCallback",
    "RoutingMeter",
    "TrainingSetup",
    "balance_loss",
    "bias_step",
    "metered",
    "routing_registry",
    "serve_metrics",
    "training_setup",
    "z_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moeworks.watch' has no attribute '{name}'")
    return getattr(import_module(f"moeworks.watch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
