"""What a score is: a function of how often each expert ran on the two sides of a contrast, and what it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from moeworks.registry import Registry
from moeworks.where import Phase

if TYPE_CHECKING:
    from moeworks.find.artefact import Scores

__all__ = [
    "GROUP_SCORES",
    "SCORES",
    "Aggregate",
    "Groups",
    "Reads",
    "Report",
    "Score",
    "Side",
    "Tail",
    "Traits",
    "reads",
    "traits_of",
]

Array = NDArray[Any]
Reads = Literal["runs", "weights", "probabilities"]
Aggregate = Literal["micro", "macro"]
Tail = Literal["both", "upper"]
F = TypeVar("F", bound=Callable[..., Any])


class Side(NamedTuple):
    """One side of a contrast; the leading axis holds permutations or bootstrap samples.

    With aggregate `micro`, runs and tokens are sums over all tokens. With `macro`, each document counts once:
    runs are sums over documents of the mean over its tokens, tokens is the number of documents.
    """

    runs: Array  # (b, experts) float64: choices, or the sum of whatever else the score reads
    tokens: Array  # (b, 1) float64, never 0

    @property
    def rates(self) -> Array:
        """How often each expert ran, as a share (or the mean of what the score reads), (b, experts)."""
        return self.runs / self.tokens


class Groups(NamedTuple):
    """The values of a label, as `Side` has two sides; g groups."""

    runs: Array  # (b, g, experts) float64
    tokens: Array  # (b, g, 1) float64, never 0
    names: tuple[str, ...]  # (g,) values of the label
    target: int | None  # the group that is asked for

    @property
    def rates(self) -> Array:
        """How often each expert ran in each group, (b, g, experts)."""
        return np.asarray(self.runs / self.tokens)


class Score(Protocol):
    """A registered score; its keyword-only parameters are its options."""

    def __call__(self, contrast: Side, against: Side, **options: Any) -> Array:
        """Return one number per expert, (b, experts): positive where the expert belongs to `contrast`."""
        ...


class Report(NamedTuple):
    """What a method has to say beside its scores: numbers for programs, sentences for people."""

    facts: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What `find` must know of a score; the defaults are those of a score that says nothing.

    Attributes:
        reads: what is summed per document: 1 per choice (`runs`), the combine weight (`weights`), or the probability
            of every expert under the router's own score function (`probabilities`, which needs recorded logits).
        aggregate: the only aggregate that the method is defined for; None if both will do.
        one_sided: whether only the contrast side is scored; the other one serves the null and may be left out.
        tail: whether an absolute score is tested or a large one.
        phase: tokens that the method is defined on, unless a clause says otherwise.
        undivided: name of the option that, when False, sums a document's tokens in place of taking their mean.
        admits: from scores, (E,), and the options to which experts the method's own rule takes; no other passes.
        report: from scores, the rates of each side or group and their names, and the options, to a `Report`.
    """

    reads: Reads = "runs"
    aggregate: Aggregate | None = None
    one_sided: bool = False
    tail: Tail = "both"
    phase: tuple[Phase, ...] | None = None
    undivided: str = ""
    admits: Callable[..., Array] | None = None
    report: Callable[[Scores, Array, tuple[str, ...], dict[str, Any]], Report] | None = None


def reads(what: Reads, **traits: Any) -> Callable[[F], F]:
    """Return the decorator that says what a score reads, and any other of its `Traits`; it goes below `register`."""

    def mark(function: F) -> F:
        vars(function)["traits"] = Traits(reads=what, **traits)
        return function

    return mark


def traits_of(function: Callable[..., Any]) -> Traits:
    """Return the traits that a score was marked with."""
    traits = getattr(function, "traits", Traits())
    assert isinstance(traits, Traits)
    return traits


SCORES: Registry[Any] = Registry("score", "moeworks.scores")
GROUP_SCORES: Registry[Any] = Registry("score of a label's values", "moeworks.group_scores")
