"""Algebra on experts as bags of neurons, and on router rows; every merging method is made of these."""

from moeworks.edit.algebra.alignment import activation_cost, align, assign, neuron_cost, reduced_cost
from moeworks.edit.algebra.clustering import agglomerate, cosine_kmeans, nearest, repeats_last, spherical_kmeans
from moeworks.edit.algebra.decompose import JointBasis, LowRankSparse, joint_svd, low_rank_and_sparse, rank_of_share
from moeworks.edit.algebra.least_squares import solve_down
from moeworks.edit.algebra.neurons import (
    Expert,
    activation_of,
    balance,
    expert_of,
    from_features,
    is_linear_in_up,
    join,
    keys,
    mean,
    neuron_features,
    outputs,
    reorder,
    rescale,
    take_neurons,
    unit_rows,
    with_experts,
)
from moeworks.edit.algebra.router_rows import add_fractions, fitted_rows, group_logits
from moeworks.edit.algebra.similarity import cosines, cosines_of_gram, weight_cosines

__all__ = [
    "Expert",
    "JointBasis",
    "LowRankSparse",
    "activation_cost",
    "activation_of",
    "add_fractions",
    "agglomerate",
    "align",
    "assign",
    "balance",
    "cosine_kmeans",
    "cosines",
    "cosines_of_gram",
    "expert_of",
    "fitted_rows",
    "from_features",
    "group_logits",
    "is_linear_in_up",
    "join",
    "joint_svd",
    "keys",
    "low_rank_and_sparse",
    "mean",
    "nearest",
    "neuron_cost",
    "neuron_features",
    "outputs",
    "rank_of_share",
    "reduced_cost",
    "reorder",
    "repeats_last",
    "rescale",
    "solve_down",
    "spherical_kmeans",
    "take_neurons",
    "unit_rows",
    "weight_cosines",
    "with_experts",
]
