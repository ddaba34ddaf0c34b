"""Methods that train a few parameters of a frozen model; torch is loaded when one is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeworks.lazy import lazily

if TYPE_CHECKING:
    from moeworks.train.affinity import Affinity, affinity_of_trace
    from moeworks.train.expert_drift import ExpertDrift, expert_drift
    from moeworks.train.faults import FAULTS
    from moeworks.train.lens import ceft_settings, router_lens, top_experts
    from moeworks.train.report import UnlearnReport
    from moeworks.train.router_replay import Replaying, replay
    from moeworks.train.routes import check_routes, lay_out, route_problems, routes_of
    from moeworks.train.unlearning import unlearn

_HOMES = {
    "Affinity": "affinity",
    "ExpertDrift": "expert_drift",
    "FAULTS": "faults",
    "Replaying": "router_replay",
    "UnlearnReport": "report",
    "affinity_of_trace": "affinity",
    "ceft_settings": "lens",
    "check_routes": "routes",
    "expert_drift": "expert_drift",
    "lay_out": "routes",
    "replay": "router_replay",
    "route_problems": "routes",
    "router_lens": "lens",
    "routes_of": "routes",
    "top_experts": "lens",
    "unlearn": "unlearning",
}

__all__ = [
    "FAULTS",
    "Affinity",
    "ExpertDrift",
    "Replaying",
    "UnlearnReport",
    "affinity_of_trace",
    "ceft_settings",
    "check_routes",
    "expert_drift",
    "lay_out",
    "replay",
    "route_problems",
    "router_lens",
    "routes_of",
    "top_experts",
    "unlearn",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
