"""Plans: operations on experts as reviewable documents, with the numpy reference of what each does."""

from moeworks.plan.compiled import CompiledEdit, LayerEdit, compile_layer, compile_plan
from moeworks.plan.compose import Change, PlanDifference, compose, diff
from moeworks.plan.controls import bottom_of, matched_random
from moeworks.plan.dry_run import DryRun, LayerReport, dry_run
from moeworks.plan.files import empty_plan, load_plan, plan_hash, save_plan
from moeworks.plan.gate import Gate, KeySpaceGate, ResidualGate, RoutingGate
from moeworks.plan.guards import check, expected_touch
from moeworks.plan.neuron_steering import steer_neurons
from moeworks.plan.operations import Replayed, apply, apply_edits
from moeworks.plan.policies import POLICIES, Chosen, Wanted
from moeworks.plan.schema import (
    Add,
    Demote,
    ExpertAddress,
    Mask,
    NeuronId,
    Neurons,
    Operation,
    Plan,
    Promote,
    Provenance,
    Replay,
    Scale,
    TopK,
)
from moeworks.plan.steering import steer, with_amount
from moeworks.plan.strength import with_strength
from moeworks.plan.words import explain

__all__ = [
    "POLICIES",
    "Add",
    "Change",
    "Chosen",
    "CompiledEdit",
    "Demote",
    "DryRun",
    "ExpertAddress",
    "Gate",
    "KeySpaceGate",
    "LayerEdit",
    "LayerReport",
    "Mask",
    "NeuronId",
    "Neurons",
    "Operation",
    "Plan",
    "PlanDifference",
    "Promote",
    "Provenance",
    "Replay",
    "Replayed",
    "ResidualGate",
    "RoutingGate",
    "Scale",
    "TopK",
    "Wanted",
    "apply",
    "apply_edits",
    "bottom_of",
    "check",
    "compile_layer",
    "compile_plan",
    "compose",
    "diff",
    "dry_run",
    "empty_plan",
    "expected_touch",
    "explain",
    "load_plan",
    "matched_random",
    "plan_hash",
    "save_plan",
    "steer",
    "steer_neurons",
    "with_amount",
    "with_strength",
]
