"""Texts for training: which tokens count, which documents are held out, and the order that seed and step give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moeworks.engines.transformers.layout import Batch
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData
from moeworks.examples import Example

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["Texts", "TrainingBatch", "chosen", "in_order", "read_requests", "split_documents", "training_batch"]


class TrainingBatch(NamedTuple):
    """One padded batch."""

    inputs: dict[str, Tensor]  # input_ids, attention_mask, each (b, w)
    counted: Tensor  # (b, w - 1) booleans: which next tokens enter a loss
    real: Tensor  # (b * w,) booleans: rows that are no padding

    @property
    def tokens(self) -> int:
        """How many rows are real."""
        return int(self.real.sum())


class Texts(NamedTuple):
    """A set of texts, some of whose documents are kept out of training."""

    training: list[Prepared]
    held_out: list[Prepared]


def read_requests(
    engine: TransformersEngine, examples: Iterable[Example], *, name: str, max_tokens: int | None = None
) -> list[Prepared]:
    """Tokenise texts and cut them to `max_tokens`; a text without a token to predict is an error.

    Raises:
        BadData: there is no text, or one is too short.
    """
    if max_tokens is not None and max_tokens < 2:
        raise BadData(f"texts of {max_tokens} token leave nothing to predict; allow at least 2 (--max-tokens).")
    given = list(examples)
    requests = list(engine.reader.read(iter(given)))
    if not requests:
        raise BadData(f"the {name} texts are empty; give at least two documents.")
    kept = []
    for example, request in zip(given, requests, strict=True):
        limit = len(request.tokens) if max_tokens is None else min(max_tokens, len(request.tokens))
        answered = bool(example.answer) or bool(example.messages and example.messages[-1].role == "assistant")
        if limit < 2 or (answered and request.prompt_tokens >= limit):
            raise BadData(
                f"{name} text {request.number + 1} has no token to learn from: a text needs two tokens, and an answer "
                "must not be cut off; leave it out or allow more tokens."
            )
        prompt = min(request.prompt_tokens, limit)
        kept.append(replace(request, tokens=request.tokens[:limit], prompt_tokens=prompt))
    return kept


def split_documents(requests: Sequence[Prepared], *, share: float, seed: int, name: str) -> Texts:
    """Keep a share of the documents out of training, at least one and never all; drawn by the seed.

    Raises:
        BadData: there is a single document, or the share is not within 0..1.
    """
    if not 0 < share < 1:
        raise BadData(f"a share of {share} held-out documents leaves nothing on one side; give 0.2, say.")
    documents = list(dict.fromkeys(request.document for request in requests))
    if len(documents) < 2:
        raise BadData(f"the {name} texts are one document; at least two are needed, one of them to measure on.")
    count = min(max(1, round(share * len(documents))), len(documents) - 1)
    drawn = np.random.default_rng([seed, 1]).permutation(len(documents))[:count]
    apart = {documents[place] for place in drawn}
    return Texts([r for r in requests if r.document not in apart], [r for r in requests if r.document in apart])


def chosen(requests: Sequence[Prepared], at_most: int, *, seed: int) -> list[Prepared]:
    """Return at most so many texts, drawn by the seed, in their order."""
    if len(requests) <= at_most:
        return list(requests)
    places = np.sort(np.random.default_rng([seed, 2]).permutation(len(requests))[:at_most])
    return [requests[place] for place in places]


def in_order(requests: Sequence[Prepared], step: int, size: int, *, seed: int) -> list[Prepared]:
    """Return the batch of a step: epochs in a new order each, known from seed and step alone, so that runs resume."""
    count = len(requests)
    picked = range(step * size, (step + 1) * size)
    return [requests[_permutation(count, seed, place // count)[place % count]] for place in picked]


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = np.random.default_rng([seed, 3, epoch]).permutation(count).tolist()
    return order


def _counted(request: Prepared) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which tokens from the second on count: those of the answer, or all where there is no answer."""
    length = len(request.tokens)
    first = request.prompt_tokens if request.prompt_tokens < length else 0
    return np.arange(1, length) >= first


def training_batch(engine: TransformersEngine, requests: Sequence[Prepared]) -> TrainingBatch:
    """Return the tensors of a batch on the model's device."""
    device = engine.model.device
    inputs = Batch(requests).tensors(engine.pad_token, device)
    counted = np.zeros((len(requests), inputs["input_ids"].shape[1] - 1), bool)
    for row, request in enumerate(requests):
        counted[row, : len(request.tokens) - 1] = _counted(request)
    return TrainingBatch(inputs, torch.from_numpy(counted).to(device), inputs["attention_mask"].flatten().bool())
