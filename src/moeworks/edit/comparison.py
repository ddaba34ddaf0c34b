"""What a comparison of two models found, as data, and in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moeworks.plan.evidence import Interval

__all__ = ["ALL", "Comparison", "Loops", "Perplexity", "Size", "Speed", "share"]

ALL = "all"


class _Frozen(BaseModel):
    # An infinite perplexity is possible; as a string it survives JSON, which has no number for it.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Perplexity(_Frozen):
    """Perplexity a token over some texts, before and after."""

    texts: int
    documents: int
    tokens: int
    before: float
    after: float
    ratio: Interval = Field(description="after / before, interval over documents")


class Loops(_Frozen):
    """How many generations end in a loop."""

    texts: int
    before: Interval = Field(description="share, with the Wilson interval")
    after: Interval
    begun: int = Field(description="texts that loop after and did not before")
    tokens: int = Field(description="tokens generated at most for each text")
    temperature: float = Field(description="0: greedy")


class Size(_Frozen):
    """How large the two are in memory, as loaded."""

    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int

    @property
    def ratio(self) -> float:
        """Bytes after / bytes before."""
        return self.bytes_after / self.bytes_before


class Speed(_Frozen):
    """Tokens a second of forward passes over the same batches, taking turns in one run."""

    before: float = Field(description="median of the rounds")
    after: float
    ratio: float = Field(description="median over rounds of after / before")
    lowest: float = Field(description="smallest ratio of a round")
    highest: float
    rounds: int


class Comparison(_Frozen):
    """Two models, or one without and with a change, on the same texts."""

    before: str
    after: str
    texts: int
    documents: int
    tokens: int = Field(description="that are predicted")
    text_hash: str
    divergence: Interval = Field(description="mean KL(before || after), nats a token")
    agreement: Interval = Field(description="share of tokens for which both find the same token most likely")
    perplexity: dict[str, Perplexity] = Field(description="of all texts, and of each value of each label: lang=fr")
    overlap: Interval | None = Field(
        None, description="ESAP: mean sum of min(p, q) on answers that the model before wrote itself"
    )
    loops: Loops | None = None
    size: Size | None = None
    speed: Speed | None = None

    def words(self) -> str:
        """Return it as lines for people."""
        total = self.perplexity[ALL]
        lines = [
            f"{self.after} against {self.before}, {self.texts} texts, {self.tokens} tokens, {self.documents} documents",
            f"  KL                 {_number(self.divergence)} nats a token",
            f"  same top token     {_number(self.agreement)}",
            f"  perplexity         {total.before:.4g} -> {total.after:.4g}, times {_number(total.ratio)}",
        ]
        if self.overlap is not None:
            lines.append(f"  overlap (ESAP)     {_number(self.overlap)}")
        if self.loops is not None:
            lines.append(
                f"  loops              {_number(self.loops.before)} -> {_number(self.loops.after)} of "
                f"{self.loops.texts} texts, {self.loops.begun} of them new"
            )
        if self.size is not None and self.size.ratio != 1:  # a mask saves nothing
            lines.append(
                f"  size               {self.size.bytes_before / 1e6:.1f} -> {self.size.bytes_after / 1e6:.1f} MB, "
                f"times {self.size.ratio:.3f}"
            )
        if self.speed is not None:
            lines.append(
                f"  speed              times {self.speed.ratio:.2f} ({self.speed.lowest:.2f} to "
                f"{self.speed.highest:.2f} in {self.speed.rounds} rounds; forward passes)"
            )
        labelled = [(name, found) for name, found in self.perplexity.items() if name != ALL]
        if labelled:
            lines.append("  perplexity by label:")
            width = max(len(name) for name, _ in labelled)
            lines += [
                f"    {name:<{width}}  {found.before:8.4g} -> {found.after:8.4g}, times {_number(found.ratio)}"
                for name, found in labelled
            ]
        return "\n".join(lines)


def share(hits: NDArray[np.bool_] | Sequence[bool]) -> Interval:
    """Return the share of hits with its 95 % Wilson interval: the bootstrap of 0 of 20 would be sure of 0."""
    from scipy.stats import binomtest

    count = int(np.count_nonzero(hits))
    low, high = binomtest(count, len(hits)).proportion_ci(0.95, method="wilson")
    return Interval(value=count / len(hits), low=float(low), high=float(high))


def _number(interval: Interval) -> str:
    if not (np.isfinite(interval.low) and np.isfinite(interval.high)):
        return f"{interval.value:.4g} [too few documents for an interval]"
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"
