"""The table of diagnostics: the function of each, how to read it, and which of its columns people look at."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import pyarrow as pa

from moeworks.diagnostic_names import DiagnosticName
from moeworks.stats.anomalies import anomalies
from moeworks.stats.balance import balance
from moeworks.stats.capacity import capacity_drops
from moeworks.stats.chunks import chunk_sparsity
from moeworks.stats.coactivation import coactivation
from moeworks.stats.committee import standing_committee
from moeworks.stats.confidence import confidence
from moeworks.stats.divergence import divergence
from moeworks.stats.drift import drift
from moeworks.stats.paths import paths
from moeworks.stats.positions import position_specialisation
from moeworks.stats.repetition import repetition
from moeworks.stats.reuse import reuse_distance
from moeworks.stats.sanity import sanity
from moeworks.stats.saturation import saturation
from moeworks.stats.sch import sch_rolling, sch_static
from moeworks.stats.specialisation import specialisation
from moeworks.stats.srp import srp
from moeworks.stats.task_correlation import task_correlation
from moeworks.stats.token_dependence import token_dependence
from moeworks.stats.token_overlap import token_overlap
from moeworks.stats.transitions import transitions
from moeworks.stats.u_shape import u_shape
from moeworks.stats.vocabulary import vocabulary_specialisation

__all__ = ["DIAGNOSTICS", "Diagnostic", "DiagnosticName"]

_OWN = ("trace", "checkpoints", "final", "steps", "where", "label", "base", "seed", "budget_bytes")  # no free options


@dataclass(frozen=True)
class Diagnostic:
    """One diagnostic: its function, a sentence that says how to read it, and the columns of its printed table."""

    function: Callable[..., pa.Table]
    reading: str
    columns: tuple[str, ...]  # a name, or `name [low high]` for a number with its interval

    @property
    def options(self) -> dict[str, Any]:
        """Options of its own and their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {one.name: one.default for one in parameters if one.name not in _OWN}

    def takes(self, name: str) -> bool:
        """Whether its function has a parameter of this name."""
        return name in inspect.signature(self.function).parameters


DIAGNOSTICS: Mapping[str, Diagnostic] = {
    "anomalies": Diagnostic(
        anomalies,
        "degraded: common experts that became one value's own; mass: on experts of its own, low where a value leans on "
        "common ones; chance: the documents' values exchanged",
        (
            "layer", "value", "degraded", "degraded_chance", "largest_share", "largest_share_chance", "specific",
            "mass [low high]", "chance", "p",
        ),
    ),
    "balance": Diagnostic(
        balance,
        "max_violation: (largest load - mean) / mean, 0 is even (batch: mean over batches); entropy: 1 is even; "
        "chance: as many tokens routed evenly; dead: never ran; starved: below 1 % of even use, - means not enough "
        "tokens",
        (
            "layer", "phase", "max_violation [max_violation_low max_violation_high]", "max_violation_chance",
            "batch_max_violation", "batch_chance", "cv", "entropy", "effective_experts", "gini", "busiest", "top_10",
            "dead", "starved", "aux_loss",
        ),
    ),
    "chunk_sparsity": Diagnostic(
        chunk_sparsity,
        "share of the experts that one token (chunk 1) and several together leave alone; chance: independent tokens, "
        "even or at these loads",
        (
            "layer", "chunk", "sparsity [low high]", "chance", "load_chance", "experts_loaded",
        ),
    ),
    "coactivation": Diagnostic(
        coactivation,
        "lift: how much more often two experts run together than if they ignored each other; chance: random sets of "
        "distinct experts at these loads, below 1; the first of many pairs are large partly by luck",
        (
            "layer", "first", "second", "lift [low high]", "chance", "given_first", "given_second",
            "moved", "moved_chance",
        ),
    ),
    "committee": Diagnostic(
        standing_committee,
        "mass of each value's top experts, and how alike the tops are; chance: even use, random sets; permuted: the "
        "documents' labels exchanged",
        (
            "layer", "top_share [low high]", "chance", "jaccard [jaccard_low jaccard_high]", "jaccard_chance",
            "jaccard_permuted", "gini [gini_low gini_high]", "members", "member_share",
        ),
    ),
    "confidence": Diagnostic(
        confidence,
        "means over tokens; entropies are 1 where routers cannot tell experts apart; near_ties: tokens whose choice "
        "rounding may turn; chance: a router that knows nothing",
        (
            "layer", "top_weight", "weight_entropy", "top_probability", "top_probability_chance", "entropy",
            "top_k_mass [top_k_mass_low top_k_mass_high]", "top_k_mass_chance", "margin",
            "near_ties [near_ties_low near_ties_high]", "z_loss", "bias_spread",
        ),
    ),
    "divergence": Diagnostic(
        divergence,
        "divergence: Jensen-Shannon / ln 2, above 0 by noise alone; the test is of the pooled one against permuted "
        "documents (chance, p, q)",
        (
            "layer", "value", "divergence [low high]", "normalised [normalised_low normalised_high]", "entropy",
            "base_entropy", "pooled", "chance", "p", "q",
        ),
    ),
    "drift": Diagnostic(
        drift,
        "divergence: of the loads; overlap: of single choices; chance: the two traces exchanged for each document, and "
        "k / E",
        (
            "step", "layer", "divergence [low high]", "chance", "p",
            "overlap [overlap_low overlap_high]", "overlap_chance", "overlap_load_chance",
        ),
    ),
    "drops": Diagnostic(
        capacity_drops,
        "simulated: nothing was dropped when the trace was recorded; chance: even random routing, which drops late "
        "tokens too",
        (
            "layer", "factor", "value", "simulated_drop_rate [low high]", "chance", "slope [slope_low slope_high]",
            "slope_chance",
        ),
    ),
    "paths": Diagnostic(
        paths,
        "tokens on the most frequent paths of first choices; chance: layers that know nothing of each other",
        (
            "layers", "last_layer", "top_share [low high]", "chance", "entropy", "entropy_chance", "distinct",
            "distinct_chance", "commonest",
        ),
    ),
    "position_specialisation": Diagnostic(
        position_specialisation,
        "distance: share of the runs that go elsewhere than in general; chance: positions shuffled in each text",
        (
            "layer", "positions", "distance [low high]", "chance", "expert", "rate", "uniform",
            "log_ratio [log_ratio_low log_ratio_high]", "log_ratio_chance",
        ),
    ),
    "repetition": Diagnostic(
        repetition,
        "neighbouring tokens that repeat experts; chance: sets drawn at random",
        (
            "layer", "first_choice [first_choice_low first_choice_high]", "first_choice_chance",
            "first_choice_load_chance", "share_any [share_any_low share_any_high]", "share_any_chance",
            "overlap [overlap_low overlap_high]", "overlap_chance",
        ),
    ),
    "reuse_distance": Diagnostic(
        reuse_distance,
        "gap: tokens until an expert is used again, median; distance: the smallest memory of recently used experts "
        "that still holds it, mean; chance: the tokens of all texts in random order",
        (
            "layer", "gap [gap_low gap_high]", "gap_chance", "gap_quantiles",
            "distance [distance_low distance_high]", "distance_chance", "distance_quantiles", "first_uses",
        ),
    ),
    "sanity": Diagnostic(
        sanity,
        "every check says whether numbers of this trace can be trusted; what fails and invalidates makes all others "
        "refuse",
        (
            "layer", "check", "result", "checked", "failed", "invalidates", "meaning",
        ),
    ),
    "saturation": Diagnostic(
        saturation,
        "overlap of a token's experts with those of the final trace; saturation: above chance, k / E",
        ("step", "layer", "overlap", "chance", "load_chance", "saturation [low high]"),
    ),
    "sch_rolling": Diagnostic(
        sch_rolling,
        "hit rate of a cache of experts that sees the next tokens, `segment` of them; chance: tokens in random order; "
        "uniform_chance: a cache that knows nothing",
        (
            "layer", "segment", "capacity", "relative", "hit_rate [low high]", "chance", "uniform_chance",
        ),
    ),
    "sch_static": Diagnostic(
        sch_static,
        "hit rate of the best fixed set of experts for each segment of tokens; chance: tokens in random order; "
        "uniform_chance: any set",
        (
            "layer", "segment", "capacity", "relative", "hit_rate [low high]", "chance", "uniform_chance",
        ),
    ),
    "specialisation": Diagnostic(
        specialisation,
        "the expert that each value uses most beyond its general use: log_ratio 0 is general use; distance: share of "
        "the runs that go elsewhere; chance: the documents' values exchanged",
        (
            "layer", "value", "expert", "rate", "uniform", "log_ratio [low high]", "chance", "p",
            "distance [distance_low distance_high]", "distance_chance", "distance_p",
        ),
    ),
    "srp": Diagnostic(
        srp,
        "how well one choice of experts serves a segment of tokens, 1 is perfectly; size: what it runs / what ran; "
        "chance: independent tokens at these loads; layer -: all layers together",
        (
            "layer", "expert", "value", "segment", "srp [low high]", "chance", "threshold", "size",
        ),
    ),
    "task_correlation": Diagnostic(
        task_correlation,
        "correlation of divergence with task scores over values; p: scores exchanged; few values prove little",
        (
            "layer", "correlation [low high]", "chance", "p", "rank_correlation", "rank_p", "values",
        ),
    ),
    "token_dependence": Diagnostic(
        token_dependence,
        "how well the token id foretells the experts of held-out documents; chance: token ids shuffled within texts",
        (
            "layer", "dependence [low high]", "chance", "excess [excess_low excess_high]", "uniform_chance",
            "information [information_low information_high]", "information_chance", "coverage",
        ),
    ),
    "token_overlap": Diagnostic(
        token_overlap,
        "Jaccard index of two tokens' experts, the same token id and different ones; chance: random sets",
        (
            "layer", "same_token [same_token_low same_token_high]",
            "different_token [different_token_low different_token_high]", "excess [excess_low excess_high]", "chance",
        ),
    ),
    "transitions": Diagnostic(
        transitions,
        "what a layer's experts say of the next one's: information 0 is nothing; foretold: hits of the likeliest next "
        "experts; chance: choices exchanged between tokens, always the busiest",
        (
            "layer", "next_layer", "information [low high]", "chance", "foretold", "foretold_chance",
            "top", "top_lift", "top_lift_chance",
        ),
    ),
    "u_shape": Diagnostic(
        u_shape,
        "divergence at both ends less that in the middle; u_shape: both ends are above the middle for certain; p: "
        "layers in random order",
        (
            "value", "first", "middle", "last", "difference [low high]", "chance", "p",
            "first_rise [first_rise_low first_rise_high]", "last_rise [last_rise_low last_rise_high]", "u_shape",
        ),
    ),
    "vocabulary_specialisation": Diagnostic(
        vocabulary_specialisation,
        "share of a token id's occurrences that its most frequent expert runs for; chance: token ids shuffled in each "
        "text; own: token ids that no shuffling explains (0.01 by chance)",
        (
            "layer", "specialisation [low high]", "chance", "weighted", "weighted_chance", "uniform", "own",
            "top", "coverage",
        ),
    ),
}  # fmt: skip
assert set(DIAGNOSTICS) == set(get_args(DiagnosticName))
