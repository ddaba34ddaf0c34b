"""How likely given texts and answers are in vLLM, from the log-probabilities that it returns for prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.engines.base import Answer, ModelSize, TokenScores
from moeworks.errors import BadData
from moeworks.examples import Example

if TYPE_CHECKING:
    from moeworks.engines.transformers.tokens import Prepared
    from moeworks.engines.vllm.engine import VllmEngine
    from moeworks.plan import Plan

__all__ = ["answers", "size", "token_scores"]

Array = NDArray[Any]


def answers(engine: VllmEngine, pairs: Sequence[tuple[str, str]], plan: Plan | None) -> list[Answer]:
    """See `VllmEngine.answers`; what an exact answer is, is said in the transformers engine's `likelihood.answers`."""
    examples = [Example(text=prompt, answer=answer) for prompt, answer in pairs]
    requests = list(engine.reader.read(iter(examples), long="error"))
    starts = [_answer_start(engine, prompt, request) for (prompt, _), request in zip(pairs, requests, strict=True)]
    outputs = engine.run(
        [request.tokens for request in requests],
        plan,
        prompt_tokens=[request.prompt_tokens for request in requests],
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
        detokenize=False,
    )
    results = []
    for request, start, output in zip(requests, starts, outputs, strict=True):
        likely, greedy = 0.0, True
        for place in range(start, len(request.tokens)):
            found = output.prompt_logprobs[place][request.tokens[place]]
            likely += float(found.logprob)
            greedy &= found.rank == 1
        following = engine.tokenizer.decode([output.outputs[0].token_ids[0]], skip_special_tokens=True)
        exact = greedy and not following[:1].isalnum()
        results.append(Answer(likely, len(request.tokens) - start, exact))
    return results


def token_scores(
    engine: VllmEngine, texts: Sequence[str], plan: Plan | None, divergence: bool, batch_size: int
) -> Iterator[TokenScores]:
    """See `VllmEngine.token_scores`; results come in the order of the texts."""
    requests = list(engine.reader.read(Example(text=text) for text in texts))
    short = next((request for request in requests if len(request.tokens) < 2), None)
    if short is not None:
        raise BadData(f"text {short.number + 1} has a single token; a score needs at least one token before it.")
    return _scores(engine, requests, plan, divergence, batch_size)


def _scores(
    engine: VllmEngine, requests: Sequence[Prepared], plan: Plan | None, divergence: bool, batch_size: int
) -> Iterator[TokenScores]:
    for begin in range(0, len(requests), batch_size):
        batch = requests[begin : begin + batch_size]
        steered = _predictions(engine, batch, plan, every=divergence)
        plain = _predictions(engine, batch, None, every=True) if divergence and plan is not None else steered
        for request, after, before in zip(batch, steered, plain, strict=True):
            if not divergence:
                yield TokenScores(after)
                continue
            following = np.asarray(request.tokens[1:])
            kl = (np.exp(before) * (before - after)).sum(-1)  # (tokens - 1,)
            own = after[np.arange(len(following)), following]
            yield TokenScores(own, np.maximum(kl, 0))  # rounding may leave it a hair below 0


def _predictions(engine: VllmEngine, batch: Sequence[Prepared], plan: Plan | None, *, every: bool) -> list[Array]:
    """Return log-probabilities of each text's next tokens: (tokens - 1,) of its own, or (tokens - 1, V) of every."""
    outputs = engine.run(
        [request.tokens for request in batch],
        plan,
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=-1 if every else 0,
        flat_logprobs=True,
        detokenize=False,
    )
    results = []
    for request, output in zip(batch, outputs, strict=True):
        flat = output.prompt_logprobs
        if not every:
            # the first entry of a place is the text's own token
            results.append(np.array([flat.logprobs[flat.start_indices[i]] for i in range(1, len(request.tokens))]))
            continue
        values, ids = np.array(flat.logprobs), np.array(flat.token_ids)
        dense = np.full((len(request.tokens) - 1, int(ids.max()) + 1), -np.inf)
        for place in range(1, len(request.tokens)):
            part = slice(flat.start_indices[place], flat.end_indices[place])
            dense[place - 1, ids[part]] = values[part]
        results.append(dense)
    return results


def _answer_start(engine: VllmEngine, prompt: str, request: Prepared) -> int:
    alone, _, _ = engine.reader.encode(Example(text=prompt)) if prompt else ([], 0, [])
    start = 0
    while start < min(len(alone), len(request.tokens)) and alone[start] == request.tokens[start]:
        start += 1
    if start == 0:
        raise BadData("an answer needs something before it: a prompt, or a model that begins with a special token.")
    if start == len(request.tokens):
        raise BadData(f"request {request.number + 1}: the answer adds no token to its prompt; give a longer answer.")
    return start


def size(folder: str) -> ModelSize:
    """Return parameters and bytes of a checkpoint as transformers builds it, without loading its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = dict(model.named_parameters())
    experts = sum(p.numel() for name, p in parameters.items() if ".experts." in name)
    return ModelSize(sum(p.numel() for p in parameters.values()), experts, sum(p.nbytes for p in parameters.values()))
