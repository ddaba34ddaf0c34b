"""Scores that say which experts, or which of their neurons, to keep; one registry each, higher is kept."""

from moeworks.edit.scores import aimer, combine, counts, outputs, reconstruction, shape
from moeworks.edit.scores.base import EDIT_SCORES, EditScore, Need, needs, needs_of, summary_of
from moeworks.edit.scores.combine import Mix, layer_normalised, mixed
from moeworks.edit.scores.neurons import NEURON_SCORES, NeuronScore
from moeworks.edit.scores.search import SEARCHES, Kept, Search
from moeworks.edit.scores.super_experts import super_experts_of

__all__ = [
    "EDIT_SCORES",
    "NEURON_SCORES",
    "SEARCHES",
    "EditScore",
    "Kept",
    "Mix",
    "Need",
    "NeuronScore",
    "Search",
    "aimer",
    "combine",
    "counts",
    "layer_normalised",
    "mixed",
    "needs",
    "needs_of",
    "outputs",
    "reconstruction",
    "shape",
    "summary_of",
    "super_experts_of",
]
