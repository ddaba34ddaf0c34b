"""How many experts each layer keeps; a registry, and the rules that all counts fulfil."""

from moeworks.edit.budgets import by_layer, by_score, even
from moeworks.edit.budgets.base import BUDGETS, Budget, dropped, hamilton, proportional, target
from moeworks.edit.budgets.constraints import Constraints, expert_groups

__all__ = [
    "BUDGETS",
    "Budget",
    "Constraints",
    "by_layer",
    "by_score",
    "dropped",
    "even",
    "expert_groups",
    "hamilton",
    "proportional",
    "target",
]
