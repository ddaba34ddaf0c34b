"""What travels with one request from the front end to the workers: checked operations and what to record, as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moeworks.plan.clauses import narrowed, token_part
from moeworks.plan.schema import Operation, Plan
from moeworks.where import PHASES, Requests, Rows, Where

__all__ = ["FIELD", "MAX_VARIANTS", "Recording", "Spec", "clauses_of", "make_spec", "variants"]

FIELD = "moeworks"  # the key in `vllm_xargs` and `SamplingParams.extra_args`
MAX_VARIANTS = 4  # sets of clauses of one plan that may hold for a token; each needs a place in the bank


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Recording(_Frozen):
    """What the workers keep of a request's decisions."""

    key: str = Field(description="under which they are fetched")
    layers: tuple[int, ...] | None = None
    start: int = Field(0, ge=0, description="first position that is kept")
    weights: bool = True
    logits: bool = False


class Spec(_Frozen):
    """A checked request; `operations` carry their whole clause."""

    operations: tuple[Operation, ...] = ()
    prompt_tokens: int | None = Field(None, description="tokens of phase prompt, where other given ones are forced")
    record: Recording | None = None

    @property
    def digest(self) -> str:
        """Hash of what is done to the request: the salt of its prefix cache. Empty where nothing is done."""
        if not self.operations:
            return ""
        document = self.model_dump(mode="json", include={"operations", "prompt_tokens"})
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def dumps(self) -> str:
        """Return the text that travels."""
        return self.model_dump_json(exclude_none=True)

    @classmethod
    def loads(cls, text: str) -> Spec:
        """Read what `dumps` wrote."""
        return cls.model_validate_json(text)


def make_spec(plan: Plan | None, record: Recording | None = None, prompt_tokens: int | None = None) -> Spec:
    """Return the spec of a checked plan: its operations with the plan's clause pushed down into theirs."""
    return Spec(operations=() if plan is None else tuple(narrowed(plan)), record=record, prompt_tokens=prompt_tokens)


def clauses_of(operations: Sequence[Operation]) -> list[tuple[Where, list[Operation]]]:
    """Return the token clauses of some operations, each with its operations, in order of appearance."""
    found: dict[str, tuple[Where, list[Operation]]] = {}
    for operation in operations:
        tokens = token_part(operation.where)
        found.setdefault(tokens.model_dump_json(), (tokens, []))[1].append(operation)
    return list(found.values())


def variants(
    clauses: Sequence[Where], *, prompt: int, given: int, length: int
) -> tuple[list[tuple[int, ...]], NDArray[np.uint8]]:
    """Return the sets of clauses that hold for some token of a request, and which one holds at each position.

    Args:
        clauses: of phases and positions alone.
        prompt: tokens of phase prompt.
        given: tokens that were given; those between `prompt` and `given` are forced, later ones generated.
        length: positions that there may be.

    Returns:
        sets of clause numbers, the empty one first, and (length,) indices into them.
    """
    if not clauses:
        return [()], np.zeros(length, np.uint8)
    if all(where.everything for where in clauses):  # the usual plan: all of it holds for every token
        return [(), tuple(range(len(clauses)))], np.ones(length, np.uint8)
    position = np.arange(length)
    phases = [PHASES.index(name) for name in ("prompt", "forced", "generated")]
    phase = np.array(phases)[(position >= prompt).astype(int) + (position >= given)]
    rows = Rows(np.zeros(length, np.int64), position, np.zeros(length, np.int64), phase)
    requests = Requests(prompt_tokens=np.array([prompt]))
    active = np.array([where.mask(rows, requests) for where in clauses], bool).reshape(len(clauses), length).T
    sets: dict[tuple[int, ...], int] = {(): 0}
    patterns, inverse = np.unique(active, axis=0, return_inverse=True)
    places = [sets.setdefault(tuple(np.flatnonzero(row).tolist()), len(sets)) for row in patterns]
    return list(sets), np.array(places, np.uint8)[inverse.reshape(-1)]
