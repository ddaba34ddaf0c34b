"""Sums over a text's tokens of what tells two models apart: KL, agreement, overlap, both log-probabilities.

Letters in shapes: n tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moeworks.edit.sides import Side, run_logits
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData

__all__ = ["CHUNK_BYTES", "WINDOW_BYTES", "TokenSums", "compare_logits", "compare_texts"]

CHUNK_BYTES = 64 * 2**20  # of float32 log-probabilities held at once
WINDOW_BYTES = 512 * 2**20  # of logits kept while the other side gets its turn


class TokenSums(NamedTuple):
    """Sums over the counted tokens of one text."""

    tokens: int
    divergence: float  # KL(before || after), nats
    agreement: float  # tokens for which both sides find the same token most likely
    overlap: float  # sum over the vocabulary of min(p, q)
    before: float  # -log p of the text's own tokens
    after: float


def compare_logits(before: Tensor, after: Tensor, own: Tensor) -> TokenSums:
    """Return the sums for logits (n, V) of both sides and the tokens (n,) that came; float32, a few rows at a time."""
    rows = max(1, CHUNK_BYTES // (4 * before.shape[1]))
    sums = torch.zeros(5, dtype=torch.float64)
    for start in range(0, len(own), rows):
        part = slice(start, start + rows)
        log_p = before[part].float().log_softmax(-1)  # (rows, V)
        log_q = after[part].float().log_softmax(-1).to(log_p.device)
        p, q, tokens = log_p.exp(), log_q.exp(), own[part, None]
        kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).clamp(min=0)  # rounding may leave it below 0
        sums += torch.stack(
            [
                kl.double().sum(),
                (log_p.argmax(-1) == log_q.argmax(-1)).double().sum(),
                torch.minimum(p, q).sum(-1).double().sum(),
                -log_p.gather(-1, tokens).double().sum(),
                -log_q.gather(-1, tokens).double().sum(),
            ]
        ).cpu()
    return TokenSums(len(own), *sums.tolist())


def compare_texts(
    before: Side, afters: Sequence[Side], requests: Sequence[Prepared], *, batch_size: int
) -> Iterator[tuple[int, int, TokenSums]]:
    """Yield which side came after, the place of a request, and its sums; short texts first.

    The sides take turns window by window: the logits of the first are kept, at most about `WINDOW_BYTES` of them, while
    each of the others has its turn, so that memory does not grow with the texts, the first runs once for all the
    others, and no side is entered for every batch.

    Raises:
        BadData: two vocabularies differ, a text has nothing to predict, or a side gives NaN.
    """
    order = sorted(range(len(requests)), key=lambda place: len(requests[place].tokens))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    while batches:
        with before.running():
            kept: list[tuple[int, Tensor]] = []
            while batches and sum(logits.nbytes for _, logits in kept) < WINDOW_BYTES:
                places = batches.pop(0)
                found = run_logits(before, [requests[place] for place in places])
                kept += [(place, _counted(rows, requests[place])) for place, rows in zip(places, found, strict=True)]
        for number, after in enumerate(afters):
            with after.running():
                for start in range(0, len(kept), batch_size):
                    window = kept[start : start + batch_size]
                    found = run_logits(after, [requests[place] for place, _ in window])
                    for (place, one), rows in zip(window, found, strict=True):
                        yield number, place, _sums(requests[place], one, _counted(rows, requests[place]))


def _first(request: Prepared) -> int:
    """Return the first token that is predicted: of the answer, or the second where the whole text is given."""
    return request.prompt_tokens if 0 < request.prompt_tokens < len(request.tokens) else 1


def _counted(logits: Tensor, request: Prepared) -> Tensor:
    """Return the logits from which the counted tokens are predicted, (n, V), apart from the batch's memory."""
    if len(request.tokens) < 2:
        raise BadData(f"text {request.number + 1} has a single token, so that there is nothing to predict.")
    return logits[_first(request) - 1 : -1].clone()


def _sums(request: Prepared, before: Tensor, after: Tensor) -> TokenSums:
    if before.shape != after.shape:
        raise BadData(
            f"the two models have vocabularies of {before.shape[1]} and {after.shape[1]} tokens; their predictions "
            "cannot be compared."
        )
    own = torch.tensor(request.tokens[_first(request) :], device=before.device)
    found = compare_logits(before, after, own)
    for name, value in (("first", found.before), ("second", found.after)):
        if math.isnan(value):
            raise BadData(f"the {name} model gives NaN on text {request.number + 1}; there is nothing to compare.")
    return found
