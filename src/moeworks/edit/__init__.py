"""Score → plan → apply: makes a smaller, merged or recombined checkpoint from a reviewable plan, and verifies it.

What needs torch is loaded when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from moeworks.edit.plan import EditPlan, LayerCut

if TYPE_CHECKING:
    from moeworks.edit.budgets import BUDGETS, Constraints
    from moeworks.edit.card import model_card
    from moeworks.edit.compare import compare, compare_several
    from moeworks.edit.compress import compress, load_compressed, ranks
    from moeworks.edit.dense import upcycle
    from moeworks.edit.dose import dose
    from moeworks.edit.exports import export_edit_plan
    from moeworks.edit.files import edit_plan_hash, load_edit_plan, save_edit_plan
    from moeworks.edit.library import PlanLibrary
    from moeworks.edit.methods import list_methods, lost_mass
    from moeworks.edit.planning import plan_edit
    from moeworks.edit.preview import preview
    from moeworks.edit.repair import repair
    from moeworks.edit.replan import as_mask, random_plans, reapply, recut
    from moeworks.edit.scores import EDIT_SCORES, NEURON_SCORES, SEARCHES
    from moeworks.edit.sides import under
    from moeworks.edit.unlearn import unlearn
    from moeworks.edit.verify import verify

_HOMES = {
    "BUDGETS": "budgets",
    "Constraints": "budgets",
    "EDIT_SCORES": "scores",
    "NEURON_SCORES": "scores",
    "PlanLibrary": "library",
    "SEARCHES": "scores",
    "as_mask": "replan",
    "compare": "compare",
    "compare_several": "compare",
    "compress": "compress",
    "dose": "dose",
    "edit_plan_hash": "files",
    "export_edit_plan": "exports",
    "list_methods": "methods",
    "load_compressed": "compress",
    "load_edit_plan": "files",
    "lost_mass": "methods",
    "model_card": "card",
    "plan_edit": "planning",
    "preview": "preview",
    "random_plans": "replan",
    "ranks": "compress",
    "reapply": "replan",
    "recut": "replan",
    "repair": "repair",
    "save_edit_plan": "files",
    "under": "sides",
    "unlearn": "unlearn",
    "upcycle": "dense",
    "verify": "verify",
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
    "as_mask",
    "compare",
    "compare_several",
    "compress",
    "dose",
    "edit_plan_hash",
    "export_edit_plan",
    "list_methods",
    "load_compressed",
    "load_edit_plan",
    "lost_mass",
    "model_card",
    "plan_edit",
    "preview",
    "random_plans",
    "ranks",
    "reapply",
    "recut",
    "repair",
    "save_edit_plan",
    "under",
    "unlearn",
    "upcycle",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moeworks.edit' has no attribute '{name}'")
    return getattr(import_module(f"moeworks.edit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A verb may be a module and a function: `moeworks.edit.recut` stays the function once the module is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
