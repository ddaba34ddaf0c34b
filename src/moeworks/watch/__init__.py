"""Watches routing while a model trains or serves: a meter, a Trainer callback, Prometheus text, honest losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeworks.lazy import lazily

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

__getattr__, __dir__ = lazily(__name__, _HOMES)
