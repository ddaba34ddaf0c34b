"""Activation times gradient inside experts: how the values of neurons bear on the probability of a right answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.engines.transformers.inside import ExpertPass, PassRequests, observe_experts
from moeworks.engines.transformers.layout import Batch
from moeworks.errors import BadData, Unsupported
from moeworks.examples import Example
from moeworks.where import Rows, Where

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["Influence", "memory_of_gradients", "observe_influence"]

Array = NDArray[Any]


class Influence(NamedTuple):
    """What one expert's neurons and weight had to do with the answers of one batch; g samples in which it ran."""

    layer: int
    expert: int
    samples: Array  # (g,) place among all examples
    neurons: Array  # (g, I) max over the sample's tokens of activation · dP/d activation, times P
    weight: Array  # (g,) sum over its tokens of w · dP/dw, times P


def memory_of_gradients(engine: TransformersEngine, *, tokens: int, sums: int) -> dict[str, int]:
    """Return an estimate of the bytes that a forward and backward pass over some tokens takes, by what for.

    Args:
        engine: with the model, loaded.
        tokens: of one batch, padding counted.
        sums: bytes of what is summed over all samples.
    """
    config = engine.model.config.get_text_config()
    size = next(engine.model.parameters()).element_size()
    width, vocabulary = int(config.hidden_size), int(config.vocab_size)
    layers = int(config.num_hidden_layers)
    inside = 0
    for router in engine.routers:
        module = router.experts_module
        stored = sum(p.numel() for p in module.parameters()) if module is not None else 0
        inner = stored // max(1, 3 * width * router.experts)  # neurons of one expert, gated
        # A slot: input, gate, up, activation, key, output, its weighted copy in float32; gradients of gate and up.
        inside += router.top_k * (size * (2 * width + 4 * inner) + 4 * width + 2 * size * inner)
    outside = layers * size * 14 * width  # residual, two norms, attention's four projections and its output
    return {
        "model": engine.size().bytes,
        "graph": tokens * (inside + outside + 3 * 4 * vocabulary),
        "sums": sums,
    }


def observe_influence(
    engine: TransformersEngine,
    examples: Sequence[Example],
    observer: Callable[[Influence], None],
    *,
    site: str,
    layers: Sequence[int],
    batch_size: int = 8,
) -> None:
    """Run one forward and one backward pass over P(answer) and show what each expert's neurons had to do with it.

    The answer of an example is the first token of its `answer`, and the tokens before it are the prompt. An example
    without an answer is taken as a whole: P is then the mean probability of its tokens, each after those before it. The
    choice of experts is held fixed in the backward pass, since a top-k has no gradient; weights
    of the chosen have one, which is given apart.

    Args:
        engine: the engine.
        examples: the samples.
        observer: called for each expert that ran in a batch.
        site: gate, up or key.
        layers: that are looked into.
        batch_size: samples a pass; they do not influence one another.

    Raises:
        BadData: a sample has no token before its answer.
    """
    kept: list[ExpertPass] = []
    passes: list[tuple[Rows, PassRequests]] = []

    def collect(seen: ExpertPass, rows: Rows, requests: PassRequests) -> None:
        if getattr(seen, site) is None:
            raise Unsupported("the experts of this model have no gate; take site='up' or 'key'.")
        kept.append(seen)
        passes[:] = [(rows, requests)]

    def after(logits: Tensor, batch: Batch) -> None:
        spans = [_answer(request.tokens, request.prompt_tokens, request.number) for request in batch.prepared]
        chosen = torch.stack(
            [
                _probability(logits[place, start - 1 : stop - 1], request.tokens[start:stop])
                for place, (request, (start, stop)) in enumerate(zip(batch.prepared, spans, strict=True))
            ]
        )  # (batch,)
        wanted = [tensor for seen in kept for tensor in (getattr(seen, site), seen.weights)]
        found = torch.autograd.grad(chosen.sum(), wanted, allow_unused=True)
        sure = chosen.detach().double().cpu().numpy()
        rows, requests = passes[0]
        limit = np.array([stop - 1 for _, stop in spans])  # later tokens cannot matter, and would score 0
        for place, seen in enumerate(kept):
            _show(observer, seen, site, found[2 * place], found[2 * place + 1], rows, requests, limit, sure)
        kept.clear()

    observe_experts(
        engine,
        examples,
        collect,
        where=Where(layer=tuple(layers)),
        batch_size=batch_size,
        gradients=True,
        after=after,
        long="error",
    )


def _answer(tokens: Sequence[int], prompt_tokens: int, number: int) -> tuple[int, int]:
    """Return where the tokens stand whose probability counts, half-open."""
    start, stop = (prompt_tokens, prompt_tokens + 1) if prompt_tokens < len(tokens) else (1, len(tokens))
    if start < 1 or stop <= start:
        raise BadData(f"sample {number + 1} has no token before its answer; give it a prompt.")
    return start, stop


def _probability(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return the mean probability of some tokens, given the logits before each, (tokens, vocabulary)."""
    right = torch.tensor(tokens, device=logits.device)[:, None]
    return logits.float().softmax(-1).gather(-1, right).mean()


def _show(
    observer: Callable[[Influence], None],
    seen: ExpertPass,
    site: str,
    gradient: Tensor | None,
    by_weight: Tensor | None,
    rows: Rows,
    requests: PassRequests,
    limit: Array,
    sure: Array,
) -> None:
    place = seen.rows.cpu().numpy()  # (m,)
    request = rows.request[place]
    prompt = np.flatnonzero(rows.position[place] < limit[request])
    if not len(prompt):
        return
    values = getattr(seen, site).detach()
    product = torch.zeros_like(values) if gradient is None else values * gradient
    share = torch.zeros_like(seen.weights) if by_weight is None else seen.weights.detach() * by_weight
    samples, first = np.unique(request[prompt], return_index=True)  # rows ascend, so that requests do
    neurons = np.maximum.reduceat(product.double().cpu().numpy()[prompt], first, axis=0)  # (g, I)
    weight = np.add.reduceat(share.double().cpu().numpy()[prompt], first)  # (g,)
    observer(
        Influence(
            seen.layer,
            seen.expert,
            requests.numbers[samples],
            neurons * sure[samples, None],
            weight * sure[samples],
        )
    )
