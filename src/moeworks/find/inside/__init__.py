"""Scores from inside the experts, one short file a method; they run a model, and torch is loaded only then."""

from moeworks.find.inside.activity import activity
from moeworks.find.inside.attribution import attribution
from moeworks.find.inside.base import MODEL_SCORES, ModelScore
from moeworks.find.inside.neuron_gap import concentration, neuron_gap
from moeworks.find.inside.router_lens import router_lens

__all__ = ["MODEL_SCORES", "ModelScore", "activity", "attribution", "concentration", "neuron_gap", "router_lens"]
