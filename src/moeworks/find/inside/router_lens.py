"""RouterLens as a score: which experts run for a probe's contrast side once the routers were tuned on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeworks.find.inside.base import MODEL_SCORES

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.find.artefact import Scores
    from moeworks.probes.probe import Probe, Split

__all__ = ["router_lens"]


@MODEL_SCORES.register("router_lens")
def router_lens(
    engine: Engine,
    probe: Probe,
    *,
    split: Split = "find",
    seed: int = 0,
    command: str = "",
    epochs: float = 3.0,
    rank: int = 8,
    alpha: float = 32.0,
    learning_rate: float = 5e-4,
    batch_size: int = 8,
    samples: int = 2000,
    max_tokens: int = 300,
    per_layer: int = 8,
    progress: bool = False,
) -> Scores:
    """Score experts by how often they run on the texts of the contrast side after the routers were tuned on these.

    See `moeworks.train.router_lens` for the method, its source (arXiv 2508.19594) and the options. The task is every
    text of which a token is on the probe's contrast side; the other side is not used, so an expert that runs for
    everything scores high. Ranks without a test: p and q are NaN and nothing passes.

    Raises:
        BadData: no text of the split is on the contrast side.
        Unsupported: the engine is not transformers, or a router cannot be tuned.
    """
    from moeworks.train.lens import router_lens as tune_and_count
    from moeworks.train.texts import side_texts

    return tune_and_count(
        engine,
        side_texts(engine, probe, split),
        epochs=epochs,
        rank=rank,
        alpha=alpha,
        learning_rate=learning_rate,
        batch_size=batch_size,
        samples=samples,
        max_tokens=max_tokens,
        per_layer=per_layer,
        contrast=probe.header.contrast,
        seed=seed,
        progress=progress,
        command=command,
    )
