"""Score → plan → apply: makes a smaller, merged or recombined checkpoint from a reviewable plan, and verifies it.

What needs torch is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeworks.edit.plan import EditPlan, LayerCut
from moeworks.lazy import lazily

if TYPE_CHECKING:
    from moeworks.edit.apply import apply, check_apply, draft_plan
    from moeworks.edit.budgets import BUDGETS, Constraints
    from moeworks.edit.card import model_card
    from moeworks.edit.checkpoint import open_checkpoint
    from moeworks.edit.collect import collect
    from moeworks.edit.compare import compare, compare_several
    from moeworks.edit.compress import compress, load_compressed, ranks
    from moeworks.edit.dense import upcycle
    from moeworks.edit.dose import dose
    from moeworks.edit.exports import export_edit_plan
    from moeworks.edit.files import edit_plan_hash, load_edit_plan, save_edit_plan
    from moeworks.edit.in_memory import edited, read_layer, write_layer
    from moeworks.edit.library import PlanLibrary
    from moeworks.edit.methods import list_methods, lost_mass
    from moeworks.edit.planning import plan_edit
    from moeworks.edit.preview import preview
    from moeworks.edit.repair import repair
    from moeworks.edit.replan import as_mask, random_plans, reapply, recut
    from moeworks.edit.scores import EDIT_SCORES, NEURON_SCORES, SEARCHES
    from moeworks.edit.sides import under
    from moeworks.edit.statistics_file import Statistics
    from moeworks.edit.statistics_sum import merge_statistics
    from moeworks.edit.stream import stream
    from moeworks.edit.uneven import load_edited
    from moeworks.edit.unlearn import unlearn
    from moeworks.edit.verify import verify

_HOMES = {
    "BUDGETS": "budgets",
    "Constraints": "budgets",
    "EDIT_SCORES": "scores",
    "NEURON_SCORES": "scores",
    "PlanLibrary": "library",
    "SEARCHES": "scores",
    "Statistics": "statistics_file",
    "apply": "apply",
    "as_mask": "replan",
    "check_apply": "apply",
    "collect": "collect",
    "compare": "compare",
    "compare_several": "compare",
    "compress": "compress",
    "dose": "dose",
    "draft_plan": "apply",
    "edit_plan_hash": "files",
    "edited": "in_memory",
    "export_edit_plan": "exports",
    "list_methods": "methods",
    "load_compressed": "compress",
    "load_edit_plan": "files",
    "load_edited": "uneven",
    "lost_mass": "methods",
    "merge_statistics": "statistics_sum",
    "model_card": "card",
    "open_checkpoint": "checkpoint",
    "plan_edit": "planning",
    "preview": "preview",
    "random_plans": "replan",
    "ranks": "compress",
    "read_layer": "in_memory",
    "reapply": "replan",
    "recut": "replan",
    "repair": "repair",
    "save_edit_plan": "files",
    "stream": "stream",
    "under": "sides",
    "unlearn": "unlearn",
    "upcycle": "dense",
    "verify": "verify",
    "write_layer": "in_memory",
}

__all__ = [
    "BUDGETS",
    "EDIT_SCORES",
    "NEURON_SCORES",
    "SEARCHES",
    "Constraints",
    "EditPlan",
    "LayerCut",
    "PlanLibrary",
    "Statistics",
    "apply",
    "as_mask",
    "check_apply",
    "collect",
    "compare",
    "compare_several",
    "compress",
    "dose",
    "draft_plan",
    "edit_plan_hash",
    "edited",
    "export_edit_plan",
    "list_methods",
    "load_compressed",
    "load_edit_plan",
    "load_edited",
    "lost_mass",
    "merge_statistics",
    "model_card",
    "open_checkpoint",
    "plan_edit",
    "preview",
    "random_plans",
    "ranks",
    "read_layer",
    "reapply",
    "recut",
    "repair",
    "save_edit_plan",
    "stream",
    "under",
    "unlearn",
    "upcycle",
    "verify",
    "write_layer",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
