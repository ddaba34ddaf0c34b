"""SAME's expert drift: what a later model lost of an earlier task that no retraining of its routers brings back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData
from moeworks.stats.documents import FEWEST_DOCUMENTS, draw_documents, percentiles
from moeworks.train.batches import chosen, in_order, read_requests, split_documents, training_batch
from moeworks.train.engine import opened
from moeworks.train.loop import Optimisation, fit
from moeworks.train.losses import next_token_loss, token_log_probabilities
from moeworks.train.measure import language_logits, passes
from moeworks.train.memory import announce as on_standard_error
from moeworks.train.memory import estimate
from moeworks.train.slices import Trained, low_rank_parts
from moeworks.train.texts import Data, examples_of

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["ExpertDrift", "Gap", "expert_drift"]

Array = NDArray[Any]
READING = (
    "forgotten: loss of the later model above the earlier one's, nats a token; recovered: what retraining the routers "
    "alone takes back (wrong experts picked); unrecoverable: what stays above the earlier model retrained the same way "
    "(experts overwritten); p: the two models exchanged for each document"
)


@dataclass(frozen=True)
class Gap:
    """A difference of losses in nats a token, over held-out documents.

    Attributes:
        value, low, high: the number and its 95 % interval from resampled documents; NaN with fewer than 5.
        p: share of sign exchanges by document whose size is as large; the level by chance is 0.
    """

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class ExpertDrift:
    """Expert drift and router drift of one task between two snapshots.

    Attributes:
        losses: mean loss on held-out documents of `before`, `before_tuned`, `after`, `after_tuned`.
        forgotten: after less before.
        recovered: after less after with its routers tuned.
        unrecoverable: after with its routers tuned, less before with its routers tuned: SAME's expert drift.
        control: before less before with its routers tuned: what tuning gives a model that forgot nothing.
        overlap: layer → mean |S ∩ S'| / k of the two models' choices, untuned, on held-out tokens: router drift.
        overlap_chance: layer → k / E.
        documents, tokens: held out. `steps`: of the tuning.
    """

    losses: dict[str, float]
    forgotten: Gap
    recovered: Gap
    unrecoverable: Gap
    control: Gap
    overlap: dict[int, float]
    overlap_chance: dict[int, float]
    documents: int
    tokens: int
    steps: int

    def words(self) -> str:
        """Return the result in sentences."""
        parts = [
            f"{name}: {gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}], p {gap.p:.3f}"
            for name, gap in (
                ("forgotten", self.forgotten),
                ("recovered by routers", self.recovered),
                ("unrecoverable", self.unrecoverable),
                ("tuning the earlier model's routers gives", self.control),
            )
        ]
        layers = ", ".join(f"{n}: {v:.3f} ({self.overlap_chance[n]:.3f})" for n, v in self.overlap.items())
        return "\n".join([*parts, f"overlap of choices by layer (chance): {layers}", f"{READING}."])


class _Measured(NamedTuple):
    loss: Array  # (d,) summed over the document's tokens
    tokens: Array  # (d,)
    ids: dict[int, Array]  # layer → (n, k)


def expert_drift(
    before: str | Engine,
    after: str | Engine,
    texts: Data,
    *,
    epochs: float = 3.0,
    rank: int = 8,
    alpha: float = 32.0,
    learning_rate: float = 5e-4,
    batch_size: int = 8,
    samples: int = 2000,
    max_tokens: int = 300,
    held_out: float = 0.3,
    bootstrap: int = 200,
    exchanges: int = 999,
    seed: int = 0,
    progress: bool = False,
    announce: Callable[[str], None] = on_standard_error,
) -> ExpertDrift:
    """Return how much of a task a later snapshot lost, told apart: wrong experts picked, or experts overwritten.

    The experts of the later model are frozen and its routers alone retrained on the earlier task; what remains lost on
    held-out documents is drift of the experts. The earlier model's routers are retrained in the same way, with the same
    texts in the same order, so that what tuning gives by itself does not count as recovery. The router's drift stands
    beside it: overlap of choices (distributions: `moeworks.stats.drift` on traces). Both models are left as they were.

    Source: SAME (arXiv 2602.01990) [known from summaries]; low-rank updates, the control and the test are ours. A
    tuning that is too short leaves more unrecovered than there is: raise `epochs`, or `rank` up to the number of
    experts.

    Args:
        before, after: the two snapshots, `lab`, a folder, a Hub id, or engines; the same tokenizer and routers.
        texts: of the earlier task, or their source; of a probe, those of its contrast side.
        epochs, rank, alpha, learning_rate, batch_size: of the tuning, by AdamW, as of `router_lens`.
        samples, max_tokens: at most so many texts, cut to so many tokens.
        held_out: share of the documents that are measured and not trained on.
        bootstrap: resamplings of held-out documents.
        exchanges: random exchanges of the two models, by document.
        seed: of all that is drawn.
        progress: show a bar on standard error.
        announce: gets the sentence on memory.

    Raises:
        BadData: texts or options that cannot be used, or the models' tokens or routers differ.
        Unsupported: a router has no matrix that can be tuned.
    """
    if epochs <= 0 or rank < 1 or batch_size < 1 or samples < 1 or exchanges < 1:
        raise BadData("epochs, rank, batch size, samples and exchanges must be above 0.")
    engines = {"before": opened(before, "Expert drift"), "after": opened(after, "Expert drift")}
    requests = {
        name: chosen(
            read_requests(engine, examples_of(engine, texts, "contrast"), name="task", max_tokens=max_tokens),
            samples,
            seed=seed,
        )
        for name, engine in engines.items()
    }
    _check(engines, requests)
    found: dict[str, _Measured] = {}
    steps = 0
    for name, engine in engines.items():
        split = split_documents(requests[name], share=held_out, seed=seed, name="task")
        steps = max(1, math.ceil(len(split.training) * epochs / batch_size))
        found[name] = _measure(engine, split.held_out, batch_size)
        trained = _trained(engine, rank, alpha, seed)
        optimisation = Optimisation(steps=steps, learning_rate=learning_rate)
        width = max(len(request.tokens) for request in split.training)
        announce(
            estimate(
                engine, trained, tokens=batch_size * width, width=width, memories=optimisation.memories, from_layer=0
            ).words(f"Tuning the routers of the model {name}")
        )
        try:
            with engine.session(None, record=False, plain=True):
                fit(
                    trained,
                    _step(engine, trained, split.training, batch_size, seed),
                    optimisation,
                    what=f"tuning routers {name}",
                    progress=progress,
                )
            found[f"{name}_tuned"] = _measure(engine, split.held_out, batch_size)
        finally:
            trained.restore()
    tokens = found["before"].tokens

    def gap(first: str, second: str) -> Gap:
        return gap_of(found[first].loss - found[second].loss, tokens, bootstrap, exchanges, seed)

    routers = {router.layer: router for router in engines["before"].routers}
    return ExpertDrift(
        losses={name: float(one.loss.sum() / tokens.sum()) for name, one in found.items()},
        forgotten=gap("after", "before"),
        recovered=gap("after", "after_tuned"),
        unrecoverable=gap("after_tuned", "before_tuned"),
        control=gap("before", "before_tuned"),
        overlap={
            layer: float((ids[:, :, None] == found["after"].ids[layer][:, None, :]).any(-1).mean())
            for layer, ids in found["before"].ids.items()
        },
        overlap_chance={layer: router.top_k / router.experts for layer, router in routers.items()},
        documents=len(tokens),
        tokens=int(tokens.sum()),
        steps=steps,
    )


def gap_of(summed: Array, tokens: Array, bootstrap: int, exchanges: int, seed: int) -> Gap:
    """Return a gap from differences of summed losses and tokens of each document, (d,) each."""
    value = float(summed.sum() / tokens.sum())
    signs = np.random.default_rng([seed, 51]).choice([-1.0, 1.0], (exchanges, len(summed)))
    null = np.abs(signs @ summed) / tokens.sum()
    low = high = float("nan")
    if len(summed) >= FEWEST_DOCUMENTS:
        drawn = [
            (weights @ summed) / (weights @ tokens)
            for weights in draw_documents(len(summed), samples=bootstrap, seed=seed)
        ]
        low, high = (float(end) for end in percentiles(np.concatenate(drawn), len(summed)))
    return Gap(value, low, high, float((1 + (null >= abs(value) - 1e-12).sum()) / (1 + exchanges)))


def _trained(engine: TransformersEngine, rank: int, alpha: float, seed: int) -> Trained:
    generator = torch.Generator().manual_seed(seed)
    parts = [
        part
        for router in engine.routers
        for part in low_rank_parts(router, rank=rank, alpha=alpha, generator=generator)
    ]
    return Trained(engine.model, parts)


def _step(
    engine: TransformersEngine, trained: Trained, requests: Sequence[Prepared], batch_size: int, seed: int
) -> Callable[[int], dict[str, float]]:
    def step(number: int) -> dict[str, float]:
        batch = training_batch(engine, in_order(requests, number, batch_size, seed=seed))
        logits = language_logits(engine, batch)
        loss = next_token_loss(token_log_probabilities(logits, batch.inputs["input_ids"]), batch.counted)
        trained.accumulate(loss)
        return {"loss": float(loss.detach())}

    return step


def _measure(engine: TransformersEngine, requests: Sequence[Prepared], batch_size: int) -> _Measured:
    documents = {name: place for place, name in enumerate(dict.fromkeys(request.document for request in requests))}
    loss, tokens = np.zeros(len(documents)), np.zeros(len(documents))
    ids: dict[int, list[Array]] = {router.layer: [] for router in engine.routers}
    for prepared, batch, logits, layers in passes(engine, requests, batch_size, logits=False):
        log_probabilities = token_log_probabilities(logits, batch.inputs["input_ids"]).double()
        place = [documents[request.document] for request in prepared]
        np.add.at(loss, place, -(log_probabilities * batch.counted).sum(-1).cpu().numpy())
        np.add.at(tokens, place, batch.counted.sum(-1).cpu().numpy())
        for layer, captured in layers.items():
            ids[layer].append(captured.ids[batch.real].cpu().numpy())
    return _Measured(loss, tokens, {layer: np.concatenate(parts) for layer, parts in ids.items()})


def _check(engines: dict[str, TransformersEngine], requests: dict[str, list[Prepared]]) -> None:
    shapes = {
        name: [(router.layer, router.experts, router.top_k) for router in engine.routers]
        for name, engine in engines.items()
    }
    if shapes["before"] != shapes["after"]:
        raise BadData("the two models have other routers; expert drift compares snapshots of one model.")
    if [request.tokens for request in requests["before"]] != [request.tokens for request in requests["after"]]:
        raise BadData("the two models read the texts as other tokens; losses a token cannot be compared.")
