"""The plans that a server knows by name, and its limits: one book for each engine of a process."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from moeworks.artefact import ModelIdentity
from moeworks.engines.vllm.identity import engine_identity
from moeworks.engines.vllm.refusals import check_plan, refusals
from moeworks.errors import MoeworksError
from moeworks.plan.files import load_plan
from moeworks.plan.schema import Plan
from moeworks.serve.limits import Limits
from moeworks.serve.plans import PlanBook, served_problems

__all__ = ["FILES", "LIMITS", "LOCAL", "VllmBook", "book_of", "limits_as_text", "problems_of_plan"]

FILES = "MOEWORKS_VLLM_PLANS"  # environment variable: JSON object, name → file of a plan
LOCAL = "MOEWORKS_VLLM_LOCAL"  # environment variable: set where the server listens on loopback alone
LIMITS = "MOEWORKS_VLLM_LIMITS"  # environment variable: JSON object, fields of `moeworks.serve.Limits`


class VllmBook(PlanBook):
    """A book that takes no plan which vLLM cannot run."""

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
