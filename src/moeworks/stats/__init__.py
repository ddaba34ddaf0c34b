"""Numbers from a trace: use of experts, confidence, divergence between labels, dependence on tokens, drops."""

from moeworks.stats.balance import Balance, balance, balance_of, load
from moeworks.stats.capacity import capacity_drops
from moeworks.stats.committee import standing_committee
from moeworks.stats.confidence import confidence
from moeworks.stats.diagnostics import DIAGNOSTICS, diagnose
from moeworks.stats.distributions import entropy, jensen_shannon, normalised_divergence
from moeworks.stats.divergence import divergence
from moeworks.stats.repetition import repetition
from moeworks.stats.saturation import saturation
from moeworks.stats.token_dependence import token_dependence
from moeworks.stats.token_overlap import token_overlap

__all__ = [
    "DIAGNOSTICS",
    "Balance",
    "balance",
    "balance_of",
    "capacity_drops",
    "confidence",
    "diagnose",
    "divergence",
    "entropy",
    "jensen_shannon",
    "load",
    "normalised_divergence",
    "repetition",
    "saturation",
    "standing_committee",
    "token_dependence",
    "token_overlap",
]
