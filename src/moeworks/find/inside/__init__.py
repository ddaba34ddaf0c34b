"""Scores from inside the experts, one short file a method; they run a model, and torch is loaded only then."""

from moeworks.find.inside.activity import activity
from moeworks.find.inside.attribution import attribution
from moeworks.find.inside.base import MODEL_SCORES, ModelScore
from moeworks.find.inside.culnig import culnig
from moeworks.find.inside.neuron_adjust import adjust_plan, neuron_adjust
from moeworks.find.inside.neuron_gap import concentration, neuron_gap
from moeworks.find.inside.router_lens import router_lens
from moeworks.find.inside.super_experts import super_experts

__all__ = [
    "MODEL_SCORES",
    "ModelScore",
    "activity",
    "adjust_plan",
    "attribution",
    "concentration",
    "culnig",
    "neuron_adjust",
    "neuron_gap",
    "router_lens",
    "super_experts",
]
