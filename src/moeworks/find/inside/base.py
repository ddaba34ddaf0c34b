"""What a score from inside a model is: a function of an engine and a probe that returns scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from moeworks.registry import Registry

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.find.artefact import Scores
    from moeworks.probes.probe import Probe, Split

__all__ = ["MODEL_SCORES", "ModelScore"]


class ModelScore(Protocol):
    """A registered score that runs a model; its keyword-only parameters, split and seed aside, are its options."""

    def __call__(
        self, engine: Engine, probe: Probe, *, split: Split = "find", seed: int = 0, command: str = "", **options: Any
    ) -> Scores:
        """Return scores of experts or neurons, positive where they belong to the probe's contrast side."""
        ...


MODEL_SCORES: Registry[Any] = Registry("score from inside a model", "moeworks.model_scores")
