"""From scores to experts: which ones a plan turns up and down, by named policies that packages can add to.

A policy is a function `(scores, wanted, **options) -> Chosen`. Published ones also fix what is done to the experts
(`acts`), so that `steer(policy="rice")` is the paper's method and not only its choice of experts.
"""

from moeworks.plan.policies import mote, multilingual, rice
from moeworks.plan.policies.base import POLICIES, Chosen, Count, Manner, Op, Policy, Unit, Wanted, acts, manner_of
from moeworks.plan.policies.multilingual import middle_layers, multilingual_hard, multilingual_soft
from moeworks.plan.policies.risk_difference import STEERMOE_COUNTS, risk_difference

__all__ = [
    "POLICIES",
    "STEERMOE_COUNTS",
    "Chosen",
    "Count",
    "Manner",
    "Op",
    "Policy",
    "Unit",
    "Wanted",
    "acts",
    "manner_of",
    "middle_layers",
    "mote",
    "multilingual",
    "multilingual_hard",
    "multilingual_soft",
    "rice",
    "risk_difference",
]
