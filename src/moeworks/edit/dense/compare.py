"""How far a model made of a dense one is from it: on random tokens always, on text where there is some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Difference", "compare_models", "random_tokens"]


@dataclass(frozen=True)
class Difference:
    """What two models say of the same tokens.

    Attributes:
        tokens: positions compared.
        largest: largest difference of two logits.
        divergence: mean KL(dense ‖ new) in nats.
        agreement: share of positions with the same most likely token.
        perplexity_before, perplexity_after: of the tokens themselves; of random tokens they say nothing.
    """

    tokens: int
    largest: float
    divergence: float
    agreement: float
    perplexity_before: float
    perplexity_after: float


def random_tokens(vocabulary: int, *, texts: int = 4, length: int = 32, seed: int = 0) -> list[tuple[int, ...]]:
    """Return texts of random token ids."""
    drawn = torch.randint(vocabulary, (texts, length), generator=torch.Generator().manual_seed(seed))
    return [tuple(row) for row in drawn.tolist()]


@torch.no_grad()
def compare_models(dense: PreTrainedModel, new: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Difference:
    """Run both models on texts of two tokens or more, one at a time."""
    count, largest, divergence, same = 0, 0.0, 0.0, 0
    losses = [0.0, 0.0]
    for text in texts:
        if len(text) < 2:
            continue
        tokens = torch.tensor([list(text)], device=dense.device)
        before, after = (_logits(model, tokens) for model in (dense, new))
        p, q = before[:-1].log_softmax(-1), after[:-1].log_softmax(-1)
        count += len(p)
        largest = max(largest, float((before - after).abs().max()))
        divergence += float((p.exp() * (p - q)).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        for place, found in enumerate((p, q)):
            losses[place] -= float(found.gather(1, tokens[0, 1:, None]).sum())
    size = max(count, 1)
    means = [float(torch.tensor(loss / size, dtype=torch.float64).exp()) for loss in losses]
    return Difference(count, largest, divergence / size, same / size, *means)


def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens, use_cache=False).logits[0]
    return logits.double()
