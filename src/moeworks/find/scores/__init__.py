"""Published scores, one short file each; a score turns the two sides' sums into a number per expert."""

from moeworks.find.scores.affinity import affinity
from moeworks.find.scores.base import GROUP_SCORES, SCORES, Groups, Score, Side, reads
from moeworks.find.scores.dominance import dominance
from moeworks.find.scores.functional_map import functional_map, functional_map_of_classes
from moeworks.find.scores.gate_profile import gate_profile, profile_of
from moeworks.find.scores.multilingual import multilingual
from moeworks.find.scores.npmi import normalised_pmi, npmi
from moeworks.find.scores.risk_difference import risk_difference

__all__ = [
    "GROUP_SCORES",
    "SCORES",
    "Groups",
    "Score",
    "Side",
    "affinity",
    "dominance",
    "functional_map",
    "functional_map_of_classes",
    "gate_profile",
    "multilingual",
    "normalised_pmi",
    "npmi",
    "profile_of",
    "reads",
    "risk_difference",
]
