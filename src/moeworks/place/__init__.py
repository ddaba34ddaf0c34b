"""Where experts should lie: caches, prefetching, replicas and batches simulated on a trace, and profiles."""

from moeworks.place.cache import CacheCounts, Calibration, calibrate, simulate
from moeworks.place.curve import CacheCurve, cache_curve
from moeworks.place.pinning import Pinning
from moeworks.place.rules import CAUSAL, POLICIES, CacheRules, Capacity, Policy

__all__ = [
    "CAUSAL",
    "POLICIES",
    "CacheCounts",
    "CacheCurve",
    "CacheRules",
    "Calibration",
    "Capacity",
    "Pinning",
    "Policy",
    "cache_curve",
    "calibrate",
    "simulate",
]
