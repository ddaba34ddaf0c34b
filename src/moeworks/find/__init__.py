"""Which experts carry a contrast: scores per expert with a document-permutation null, intervals and stability."""

from moeworks.find.artefact import Scores, ScoresHeader
from moeworks.find.by_label import find_by_label
from moeworks.find.contrast import find, find_by_phase
from moeworks.find.in_model import MODEL_SCORES, find_in_model
from moeworks.find.key_space import Box, routing_frequencies
from moeworks.find.languages import find_languages
from moeworks.find.markers import find_markers
from moeworks.find.methods import find_method, trace_methods
from moeworks.find.numbers import find_correlated
from moeworks.find.scores import GROUP_SCORES, SCORES, Side, reads
from moeworks.find.stable import select_stable
from moeworks.find.super_experts import SuperExperts, sink_diagnostics, super_experts

__all__ = [
    "GROUP_SCORES",
    "MODEL_SCORES",
    "SCORES",
    "Box",
    "Scores",
    "ScoresHeader",
    "Side",
    "SuperExperts",
    "find",
    "find_by_label",
    "find_by_phase",
    "find_correlated",
    "find_in_model",
    "find_languages",
    "find_markers",
    "find_method",
    "reads",
    "routing_frequencies",
    "select_stable",
    "sink_diagnostics",
    "super_experts",
    "trace_methods",
]
