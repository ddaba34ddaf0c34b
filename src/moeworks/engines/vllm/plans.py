"""The plans that a server knows by name, read once from the files that its start names."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field

from moeworks.errors import BadData, BadPlan, did_you_mean
from moeworks.plan.files import load_plan, plan_hash
from moeworks.plan.schema import Plan

__all__ = ["FILES", "PLANS", "Plans"]

FILES = "MOEWORKS_VLLM_PLANS"  # environment variable: JSON object, name → file
MAX_PLANS = 64


@dataclass
class Plans:
    """Named plans of this process."""

    _plans: dict[str, Plan] = field(default_factory=dict)
    _read: bool = False

    def all(self) -> dict[str, Plan]:
        """Return name → plan."""
        if not self._read:
            files = json.loads(os.environ.get(FILES, "{}"))
            self._plans = {name: load_plan(path) for name, path in files.items()} | self._plans
            self._read = True
        return self._plans

    def get(self, name: str) -> Plan:
        """Return a plan by its name or its hash.

        Raises:
            BadData: there is none.
        """
        plans = self.all()
        if name in plans:
            return plans[name]
        by_hash = next((plan for plan in plans.values() if plan_hash(plan) == name), None)
        if by_hash is None:
            raise BadData(f"no plan is called '{name[:100]}'; {did_you_mean(name, plans)}")
        return by_hash

    def add(self, name: str, plan: Plan) -> None:
        """Add or replace a plan.

        Raises:
            BadPlan: there are too many.
        """
        if name not in self.all() and len(self._plans) >= MAX_PLANS:
            raise BadPlan(f"this server holds {MAX_PLANS} plans at most; remove one first.")
        self._plans[name] = plan

    def remove(self, name: str) -> None:
        """Remove a plan; running requests keep it."""
        if name not in self.all():
            raise BadData(f"no plan is called '{name[:100]}'; {did_you_mean(name, self._plans)}")
        del self._plans[name]


PLANS = Plans()
