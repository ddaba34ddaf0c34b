"""Numbers from a trace: use of experts, confidence, specialisation, order of tokens, and comparison of snapshots."""

from moeworks.stats.anomalies import anomalies
from moeworks.stats.balance import Balance, balance, balance_of, load
from moeworks.stats.capacity import capacity_drops
from moeworks.stats.chunks import chunk_sparsity
from moeworks.stats.coactivation import coactivation, coactivation_lift
from moeworks.stats.committee import standing_committee
from moeworks.stats.confidence import confidence
from moeworks.stats.diagnostics import DIAGNOSTICS, diagnose
from moeworks.stats.distributions import entropy, jensen_shannon, normalised_divergence
from moeworks.stats.divergence import divergence
from moeworks.stats.drift import drift
from moeworks.stats.outputs import OutputAnomalies, measure_outputs, output_anomalies, with_blocks
from moeworks.stats.paths import paths
from moeworks.stats.positions import position_specialisation
from moeworks.stats.repetition import repetition
from moeworks.stats.reuse import reuse_distance
from moeworks.stats.sanity import sanity
from moeworks.stats.saturation import saturation
from moeworks.stats.sch import sch_rolling, sch_static
from moeworks.stats.specialisation import domain_rates, specialisation
from moeworks.stats.srp import srp
from moeworks.stats.task_correlation import task_correlation
from moeworks.stats.token_dependence import token_dependence
from moeworks.stats.token_overlap import token_overlap
from moeworks.stats.transitions import transitions
from moeworks.stats.u_shape import u_shape
from moeworks.stats.vocabulary import vocabulary_specialisation

__all__ = [
    "DIAGNOSTICS",
    "Balance",
    "OutputAnomalies",
    "anomalies",
    "balance",
    "balance_of",
    "capacity_drops",
    "chunk_sparsity",
    "coactivation",
    "coactivation_lift",
    "confidence",
    "diagnose",
    "divergence",
    "domain_rates",
    "drift",
    "entropy",
    "jensen_shannon",
    "load",
    "measure_outputs",
    "normalised_divergence",
    "output_anomalies",
    "paths",
    "position_specialisation",
    "repetition",
    "reuse_distance",
    "sanity",
    "saturation",
    "sch_rolling",
    "sch_static",
    "specialisation",
    "srp",
    "standing_committee",
    "task_correlation",
    "token_dependence",
    "token_overlap",
    "transitions",
    "u_shape",
    "vocabulary_specialisation",
    "with_blocks",
]
