"""What verifying an edited checkpoint found, as data, and in words."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from moeworks.edit.comparison import Comparison

__all__ = ["Check", "State", "Verification"]

State = Literal["passed", "failed", "not checked"]
_MARKS: dict[State, str] = {"passed": "ok  ", "failed": "FAIL", "not checked": "–   "}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Check(_Frozen):
    """One thing that was looked at."""

    name: str
    state: State
    detail: str


class Verification(_Frozen):
    """Whether a checkpoint is what its plan says, and what it is worth."""

    edited: str
    against: str
    checks: tuple[Check, ...]
    difference: float | None = Field(
        None, description="largest difference of a logit between the plan on the original and the checkpoint"
    )
    comparison: Comparison | None = Field(None, description="with the original, if it loads")
    bytes_before: int | None = Field(None, description="of the original's weight files")
    bytes_after: int | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.state != "failed" for check in self.checks)

    def words(self) -> str:
        """Return it as lines for people."""
        width = max(len(check.name) for check in self.checks)
        lines = [f"{_MARKS[check.state]}  {check.name:<{width}}  {check.detail}" for check in self.checks]
        if self.comparison is not None:
            lines.append(self.comparison.words())
        if self.bytes_before and self.bytes_after:
            before, after = self.bytes_before / 1e6, self.bytes_after / 1e6
            lines.append(f"  weight files       {before:.1f} -> {after:.1f} MB, times {after / before:.3f}")
        failed = [check.name for check in self.checks if check.state == "failed"]
        lines.append(
            f"{self.edited} is NOT what the plan says: {', '.join(failed)}."
            if failed
            else f"{self.edited} is what the plan makes of {self.against}."
        )
        return "\n".join(lines)
