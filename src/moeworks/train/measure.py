"""What a model does on some texts, in one pass: loss, accuracy, the experts that were selected, and their affinity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.engines.transformers.layout import Batch
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import Unsupported
from moeworks.families import Router
from moeworks.families.expert_weights import expert_weights
from moeworks.train.affinity import Affinity, add_by_document, left_out, with_weights
from moeworks.train.batches import TrainingBatch, training_batch
from moeworks.train.losses import router_probabilities, token_log_probabilities

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.engines.transformers.tap import Captured

__all__ = ["Measured", "Quality", "anchorable", "count_selected", "language_logits", "measure", "passes"]

Array = NDArray[Any]


class Quality(NamedTuple):
    """How well the counted tokens are predicted."""

    tokens: int
    loss: float  # mean negative log-probability, nats
    perplexity: float
    accuracy: float  # share of tokens that are the most likely one


class Measured(NamedTuple):
    """One set of texts under one state of the model; the order of rows is the same at every call."""

    quality: Quality
    ids: dict[int, Array]  # layer → (tokens, k)
    affinity: Affinity


def anchorable(engine: TransformersEngine) -> dict[int, Router]:
    """Return the routers that can be anchored to one expert, by layer.

    Raises:
        Unsupported: there is none; the message gives the reason.
    """
    reasons = {router.layer: left_out(router.contract, router.opaque) for router in engine.routers}
    found = {router.layer: router for router in engine.routers if not reasons[router.layer]}
    if not found:
        layer = engine.routers[0].layer
        raise Unsupported(f"no expert of this model can be unlearned: layer {layer}: {reasons[layer]}.")
    return found


def language_logits(engine: TransformersEngine, batch: TrainingBatch) -> Tensor:
    """Run a batch and return its logits, (b, w, V)."""
    logits = getattr(engine.model(**batch.inputs, use_cache=False), "logits", None)
    if not isinstance(logits, Tensor):
        raise Unsupported(
            f"{type(engine.model).__name__} has no language-model head, so there is no loss to train on; load the "
            "model for causal language modelling."
        )
    return logits


def measure(engine: TransformersEngine, requests: Sequence[Prepared], *, batch_size: int) -> Measured:
    """Run texts without gradients and return all that unlearning reports of them."""
    routers = anchorable(engine)
    documents = {name: place for place, name in enumerate(dict.fromkeys(request.document for request in requests))}
    totals = {layer: np.zeros((len(documents), router.experts)) for layer, router in routers.items()}
    tokens = np.zeros(len(documents))
    ids: dict[int, list[Array]] = {router.layer: [] for router in engine.routers}
    loss = hits = counted = 0.0
    for prepared, batch, logits, layers in passes(engine, requests, batch_size, logits=True):
        chosen = logits[:, :-1].argmax(-1) == batch.inputs["input_ids"][:, 1:]  # (b, w - 1)
        log_probabilities = token_log_probabilities(logits, batch.inputs["input_ids"])
        loss -= float(log_probabilities[batch.counted].double().sum())
        hits += float(chosen[batch.counted].sum())
        counted += float(batch.counted.sum())
        lengths = [len(request.tokens) for request in prepared]
        document = np.repeat([documents[request.document] for request in prepared], lengths)
        tokens += np.bincount(document, minlength=len(documents))
        for layer, captured in layers.items():
            ids[layer].append(captured.ids[batch.real].cpu().numpy())
            if layer in totals:
                contract = routers[layer].contract
                assert contract is not None
                assert captured.logits is not None
                values = router_probabilities(captured.logits[batch.real], contract)
                add_by_document(totals[layer], document, values.double().cpu().numpy())
    mean = loss / counted
    with np.errstate(over="ignore"):
        quality = Quality(int(counted), mean, float(np.exp(mean)), hits / counted)
    grid = np.full((len(documents), len(totals), max(len(total[0]) for total in totals.values())), np.nan)
    for place, total in enumerate(totals.values()):
        grid[:, place, : total.shape[1]] = total / tokens[:, None]
    affinity = Affinity(tuple(totals), grid, int(tokens.sum()))
    with_weights(affinity, {layer: expert_weights(router).experts for layer, router in routers.items()})
    return Measured(quality, {layer: np.concatenate(parts) for layer, parts in ids.items()}, affinity)


def count_selected(
    engine: TransformersEngine, requests: Sequence[Prepared], *, batch_size: int
) -> tuple[dict[int, Array], int]:
    """Return by layer how many tokens each expert ran for, (E,) integers, and how many tokens there were.

    A weight of exactly 0 means that a slot did not run, as in a trace.
    """
    counts = {router.layer: np.zeros(router.experts, np.int64) for router in engine.routers}
    tokens = 0
    for _, batch, _, layers in passes(engine, requests, batch_size, logits=False):
        tokens += batch.tokens
        for layer, captured in layers.items():
            ran = (captured.weights != 0) & batch.real[:, None]
            found = torch.bincount(captured.ids[ran].long(), minlength=len(counts[layer])).cpu().numpy()
            counts[layer] += found[: len(counts[layer])]
    return counts, tokens


def passes(
    engine: TransformersEngine, requests: Sequence[Prepared], batch_size: int, *, logits: bool
) -> Iterator[tuple[list[Prepared], TrainingBatch, Tensor, dict[int, Captured]]]:
    """Yield each batch, short texts first, with what model and routers gave."""
    ordered = sorted(requests, key=lambda request: len(request.tokens))
    for start in range(0, len(ordered), batch_size):
        prepared = ordered[start : start + batch_size]
        batch = training_batch(engine, prepared)
        with engine.session(None, record=True, logits=logits, plain=True) as tap, torch.no_grad():
            tap.start(Batch(prepared))
            output = language_logits(engine, batch)
            layers = tap.steps[-1].layers
        yield prepared, batch, output, layers
