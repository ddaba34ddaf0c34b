"""What a policy is asked, what it answers, and what a published one fixes about the operation on the experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from moeworks.address import Address
from moeworks.registry import Registry

__all__ = ["POLICIES", "Chosen", "Count", "Manner", "Op", "Policy", "Unit", "Wanted", "acts", "manner_of"]

Count = int | Literal["all"]
Op = Literal["demote", "mask", "add", "scale"]
Unit = Literal["logit", "std", "spread"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Manner:
    """What is done to the chosen experts; None leaves it to the caller, or to `steer`'s own default."""

    op: Op | None = None
    strength: float | None = None  # a default: the caller may ask for another
    unit: Unit | None = None
    margin: float | None = None  # of promote and demote, in logits
    refill: bool | None = None
    renormalise: bool | None = None
    turns: Literal["both", "up", "down"] = "both"
    source: str = ""  # for messages


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a policy is asked for."""

    promote: Count  # experts to turn up; "all": every eligible one
    demote: Count  # experts to turn down
    sign: Literal[1, -1]  # sign of the scores that are turned up; the other sign is turned down
    protected: frozenset[Address]  # never turned down
    fits: Callable[[Sequence[Address], Sequence[Address]], bool]  # whether a layer can turn these up and those down
    strength: float | None = None  # of the operation, where it has one
    layers: tuple[int, ...] = ()  # the model's layers with experts, in order


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a policy answers: experts in rank order, and how many it passed over for what reason."""

    promoted: tuple[Address, ...] = ()
    demoted: tuple[Address, ...] = ()
    passed_over: dict[str, int] = field(default_factory=dict)


Policy = Callable[..., Chosen]  # (scores, wanted, *, options) -> Chosen
POLICIES: Registry[Policy] = Registry("policy", "moeworks.policies")


def acts(manner: Manner) -> Callable[[F], F]:
    """Return the decorator that fixes what `steer` does to the experts of a policy."""

    def enter(function: F) -> F:
        function.manner = manner  # type: ignore[attr-defined]
        return function

    return enter


def manner_of(policy: Policy) -> Manner:
    """Return what a policy fixes; one that says nothing fixes nothing."""
    manner = getattr(policy, "manner", Manner())
    assert isinstance(manner, Manner)
    return manner
