"""The plans that a server knows by name, and its limits: one book for each engine of a process."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from dataclasses import asdict
from functools import lru_cache
from typing import Any, NamedTuple

from moeworks.artefact import ModelIdentity
from moeworks.engines.vllm.identity import engine_identity
from moeworks.engines.vllm.refusals import check_plan, refusals
from moeworks.engines.vllm.spec import make_spec
from moeworks.errors import MoeworksError
from moeworks.plan.files import load_plan
from moeworks.plan.schema import Operation, Plan
from moeworks.serve.fields import MoeworksField
from moeworks.serve.limits import Limits
from moeworks.serve.plans import PlanBook, served_problems

__all__ = ["FILES", "LIMITS", "LOCAL", "TRACES", "Checked", "VllmBook", "book_of", "limits_as_text", "problems_of_plan"]

FILES = "MOEWORKS_VLLM_PLANS"  # environment variable: JSON object, name → file of a plan
LOCAL = "MOEWORKS_VLLM_LOCAL"  # environment variable: set where the server listens on loopback alone
REMEMBERED = 256  # plans whose check is remembered
TRACES = "MOEWORKS_VLLM_TRACES"  # environment variable: number of answers whose routes are kept
LIMITS = "MOEWORKS_VLLM_LIMITS"  # environment variable: JSON object, fields of `moeworks.serve.Limits`


class Checked(NamedTuple):
    """What a field's plan comes to, checked: no plan, or its operations with their whole clauses."""

    plan: Plan | None
    operations: tuple[Operation, ...] = ()
    digest: str = ""  # the salt of its prefix cache


class VllmBook(PlanBook):
    """A book that takes no plan which vLLM cannot run, and checks a plan once however often it is asked for."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._checked: OrderedDict[tuple[str, float], tuple[Plan | None, Checked]] = OrderedDict()

    def checked(self, field: MoeworksField) -> Checked:
        """Return what a field asks for.

        Raises:
            MoeworksError: the plan is unknown, does not fit the model, or vLLM cannot run it.
        """
        named = self.get(field.plan) if isinstance(field.plan, str) else None
        key = json.dumps(field.plan), field.strength
        kept = self._checked.get(key)
        if kept is not None and kept[0] is named:
            self._checked.move_to_end(key)
            return kept[1]
        plan = self.resolve(None, field).plan
        found = Checked(None)
        if plan is not None:
            check_plan(plan, self.identity)
            spec = make_spec(plan)
            found = Checked(plan, spec.operations, spec.digest)
        self._checked[key] = named, found
        if len(self._checked) > REMEMBERED:
            self._checked.popitem(last=False)
        return found

    def add(self, name: str, plan: Plan) -> str:
        """Take a plan under a name; see `PlanBook.add`."""
        check_plan(plan, self.identity)
        return super().add(name, plan)


def book_of(config: Any) -> VllmBook:
    """Return the book of an engine, with the plans that the start of the server named.

    Raises:
        MoeworksError: a plan cannot be served, or nothing can be steered in this engine.
    """
    names = config.model_config.served_model_name or config.model_config.model
    name = names if isinstance(names, str) else names[0]
    return _book(str(config.instance_id), name, _Key(engine_identity(config)))


class _Key:
    """An identity that a cache passes over: it follows from the engine."""

    def __init__(self, identity: ModelIdentity) -> None:
        self.identity = identity

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key)


@lru_cache(maxsize=8)
def _book(instance: str, name: str, key: _Key) -> VllmBook:
    book = VllmBook(key.identity, limits=Limits(**json.loads(os.environ.get(LIMITS, "{}"))), model_name=name)
    for plan_name, file in json.loads(os.environ.get(FILES, "{}")).items():
        try:
            book.add(plan_name, load_plan(file))
        except MoeworksError as error:
            raise type(error)(f"plan '{plan_name}': {error}") from None
    return book


def problems_of_plan(plan: Plan, identity: ModelIdentity) -> list[str]:
    """Return all that speaks against serving a plan on vLLM, one sentence each."""
    return [*served_problems(plan, identity), *(f"{reason}." for reason in dict.fromkeys(refusals(plan, identity)))]


def limits_as_text(limits: Limits) -> str:
    """Return limits as the environment variable carries them."""
    return json.dumps(asdict(limits))
