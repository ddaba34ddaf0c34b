"""The report of an unlearning: what was trained, what was forgotten, what was kept, and how a random expert did."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moeworks.artefact import Header

__all__ = ["REPORT", "Figures", "Outcome", "TargetReport", "UnlearnReport"]

REPORT = "unlearn.json"  # beside the weights


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figures(_Frozen):
    """How well the counted tokens of some texts are predicted."""

    tokens: int
    loss: float = Field(description="mean negative log-probability a token, nats")
    perplexity: float
    accuracy: float = Field(description="share of tokens that are the most likely one")


class TargetReport(_Frozen):
    """The expert that was trained."""

    expert: str = Field(description="address, as in L3.E5")
    chosen: Literal["affinity", "given", "random"] = Field(description="how it was chosen")
    affinity: float | None = Field(None, description="mean router probability on the forget texts")
    runner_up: str | None = Field(None, description="the expert with the second largest affinity of all")
    gap: float | None = Field(None, description="affinity of the top expert minus that of the second")
    stability: float | None = Field(None, description="share of bootstrap samples in which it stays the top one")
    near_tie: bool | None = Field(None, description="whether the top expert is not clear: stability below 0.95")
    tokens: int | None = Field(None, description="forget tokens behind it; the paper takes at least 100,000")
    rank_before: int | None = Field(None, description="its place by affinity among all experts, 1 the top")
    rank_after: int | None = Field(None, description="the same after training")
    affinity_before: float | None = Field(None, description="its affinity on the forget texts that are measured")
    affinity_after: float | None = Field(None, description="the same after training")


class Outcome(_Frozen):
    """What one training did; `held_out` texts were never trained on."""

    target: TargetReport
    forget: tuple[Figures, Figures] = Field(description="texts that were trained on: before, after")
    forget_held_out: tuple[Figures, Figures]
    retain: tuple[Figures, Figures] = Field(description="texts that were trained on: before, after")
    retain_held_out: tuple[Figures, Figures]
    overlap_forget: dict[int, float] = Field(
        description="by layer: share of the selected experts of a forget token that are still selected"
    )
    overlap_retain: dict[int, float] = Field(description="the same on retain texts")
    history: list[dict[str, float]] = Field(description="losses of every step")


class UnlearnReport(Header):
    """Written beside the weights as `unlearn.json`."""

    format: Literal["moeworks.unlearning"] = "moeworks.unlearning"
    settings: dict[str, Any]
    trained: list[str] = Field(description="names of the tensors' rows that were trained")
    numbers: int = Field(description="how many numbers were trained")
    share: float = Field(description="their share of all parameters")
    memory: dict[str, int] = Field(description="bytes that one step was estimated to take")
    result: Outcome
    control: Outcome | None = Field(None, description="the same with a random other expert of the layer")
    weight_hash: str = Field("", description="of the model that was written")

    def words(self) -> str:
        """Return in a few lines what came out."""
        target, result = self.result.target, self.result
        lines = [
            f"Trained {target.expert} and the router of its layer: {self.numbers:,} numbers, {self.share:.3%} of all.",
        ]
        if target.chosen == "affinity":
            tie = "a near-tie: the target is not clear" if target.near_tie else "clear"
            lines.append(
                f"It has the largest affinity to the forget texts, {target.affinity:.3f}; next is {target.runner_up}, "
                f"{target.gap:.3g} less; top in {target.stability:.0%} of bootstrap samples ({tie})."
            )
        lines += [
            f"  {'':28}{'before':>10}{'after':>10}" + (f"{'random expert':>16}" if self.control else ""),
            *(
                _line(name, getattr(result, field), getattr(self.control, field, None))
                for name, field in (
                    ("forget perplexity", "forget"),
                    ("forget perplexity, held out", "forget_held_out"),
                    ("retain perplexity", "retain"),
                    ("retain perplexity, held out", "retain_held_out"),
                )
            ),
            f"Selections that stayed: {_mean(result.overlap_forget):.1%} on forget texts, "
            f"{_mean(result.overlap_retain):.1%} on retain texts (mean over layers). Target's affinity: "
            f"{target.affinity_before:.3f} before (rank {target.rank_before} of all experts), "
            f"{target.affinity_after:.3f} after (rank {target.rank_after}).",
        ]
        return "\n".join(lines)


def _line(name: str, pair: tuple[Figures, Figures], control: tuple[Figures, Figures] | None) -> str:
    numbers = [pair[0], pair[1]] + ([control[1]] if control else [])
    widths = (10, 10, 16)
    return f"  {name:28}" + "".join(
        f"{figures.perplexity:>{width}.4g}" for figures, width in zip(numbers, widths, strict=False)
    )


def _mean(values: dict[int, float]) -> float:
    return sum(values.values()) / len(values)
