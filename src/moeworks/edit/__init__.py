"""Score → plan → apply: makes a smaller, merged or recombined checkpoint from a reviewable plan, and verifies it."""

from moeworks.edit.plan import EditPlan, LayerCut

__all__ = ["EditPlan", "LayerCut"]
