"""Scores that must run a model, since a trace does not hold what they read: outputs, neurons, gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moeworks.errors import BadData, did_you_mean
from moeworks.find.inside import MODEL_SCORES

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.find.artefact import Scores
    from moeworks.probes.probe import Probe, Split

__all__ = ["MODEL_SCORES", "find_in_model", "options_of"]

_OURS = ("split", "seed", "command")


def options_of(method: str) -> dict[str, Any]:
    """Return the options of a score from inside a model with their defaults."""
    return {name: default for name, default in MODEL_SCORES.options(method).items() if name not in _OURS}


def find_in_model(
    engine: Engine,
    probe: Probe,
    *,
    method: str = "activity",
    split: Split = "find",
    seed: int = 0,
    command: str = "",
    **options: Any,
) -> Scores:
    """Score experts, or neurons inside them, on a probe's contrast with a method that runs the model.

    Args:
        engine: an engine that shows what is inside experts; see `moeworks doctor`.
        probe: whose texts are run; its header says which tokens are contrasted.
        method: registered name of the score.
        split: part of the probe's texts. Keep `held_out` for the proof.
        seed: of everything drawn at random.
        command: how this was asked for, for the header.
        **options: of the method.

    Raises:
        MoeworksError: no score has this name.
        BadData: it has no such option, or the probe's texts do not fit it.
        Unsupported: the engine or the model's family does not show what the method reads.
    """
    function, known = MODEL_SCORES.get(method), options_of(method)
    for name in options:
        if name not in known:
            raise BadData(f"the score '{method}' has no option '{name}'; {did_you_mean(name, known)}")
    scores: Scores = function(engine, probe, split=split, seed=seed, command=command, **options)
    return scores
