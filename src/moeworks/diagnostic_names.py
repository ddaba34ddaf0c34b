"""The names of all diagnostics of a trace; no more than that, so that the command line is quick to start."""

from typing import Literal

__all__ = ["DiagnosticName"]

DiagnosticName = Literal[
    "anomalies",
    "balance",
    "chunk_sparsity",
    "coactivation",
    "committee",
    "confidence",
    "divergence",
    "drift",
    "drops",
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
    "task_correlation",
    "token_dependence",
    "token_overlap",
    "transitions",
    "u_shape",
    "vocabulary_specialisation",
]
