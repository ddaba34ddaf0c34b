"""How likely given texts and answers are, and how far a plan moves the model's predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from moeworks.engines.base import Answer, TokenScores
from moeworks.engines.transformers.gating import opened as gate_opens
from moeworks.engines.transformers.gating import sessions
from moeworks.engines.transformers.layout import Batch
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.plan.guards import check

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.engines.transformers.tap import Tap
    from moeworks.plan import Plan

__all__ = ["REMEMBERED_BYTES", "Remembered", "answers", "token_scores"]

REMEMBERED_BYTES = 512 * 2**20


def answers(
    engine: TransformersEngine, pairs: Sequence[tuple[str, str]], plan: Plan | None, batch_size: int
) -> list[Answer]:
    """See `TransformersEngine.answers`.

    Prompt and answer are tokenised together, as in training; the answer begins at the first token that differs from
    the prompt's own. An answer is exact if greedy decoding gives its tokens and then ends it: what would come next
    does not go on with a letter or a digit (` 6` is not found in ` 65`).
    """
    examples = [Example(text=prompt, answer=answer) for prompt, answer in pairs]
    requests = list(engine.reader.read(iter(examples), long="error"))
    starts = [_answer_start(engine, prompt, request) for (prompt, _), request in zip(pairs, requests, strict=True)]
    order = sorted(range(len(requests)), key=lambda place: len(requests[place].tokens))
    results: dict[int, Answer] = {}
    with sessions(engine, plan, requests, record=False) as passes, torch.inference_mode():
        for begin in range(0, len(order), batch_size):
            places = order[begin : begin + batch_size]
            for tap, rows in passes(places):
                logits = _run(engine, tap, [requests[place] for place in places])  # (batch, width, vocabulary)
                for row in rows:
                    place = places[row]
                    results[place] = _answer(engine, requests[place], starts[place], logits[row])
    return [results[place] for place in range(len(requests))]


def _answer(engine: TransformersEngine, request: Prepared, start: int, logits: Tensor) -> Answer:
    tokens = torch.tensor(request.tokens, device=logits.device)
    stop = len(tokens)
    own = logits[start - 1 : stop - 1].float()  # (answer, vocabulary)
    chosen = own.log_softmax(-1).gather(-1, tokens[start:, None])
    greedy = bool((own.argmax(-1) == tokens[start:]).all())
    exact = greedy and _ends(engine, int(logits[stop - 1].argmax()))
    return Answer(float(chosen.sum()), stop - start, exact)


def token_scores(
    engine: TransformersEngine, texts: Sequence[str], plan: Plan | None, divergence: bool, batch_size: int
) -> Iterator[TokenScores]:
    """See `TransformersEngine.token_scores`; results come in the order of the texts."""
    requests = list(engine.reader.read(Example(text=text) for text in texts))
    plan = plan or engine.plan
    short = next((request for request in requests if len(request.tokens) < 2), None)
    if short is not None:
        raise BadData(f"text {short.number + 1} has a single token; a score needs at least one token before it.")
    order = sorted(range(len(requests)), key=lambda place: len(requests[place].tokens))
    results: dict[int, TokenScores] = {}
    opened = np.full(len(requests), plan is not None)  # the whole text is its prompt
    if plan is not None and plan.gate is not None:
        check(plan, engine.identity)
        opened, plan = gate_opens(engine, plan.gate, requests), engine.without_gate(plan)
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        batch = [requests[place] for place in places]
        with torch.inference_mode():
            plain = _plain(engine, batch) if divergence or not opened[places].all() else None
            steered = plain
            if opened[places].any():
                with engine.session(plan, record=False) as tap:
                    steered = _run(engine, tap, batch)
            for row, place in enumerate(places):
                logits = steered if opened[place] else plain
                assert logits is not None  # one of the two was run for this row
                before = plain[row] if divergence and plain is not None else None
                results[place] = _scores(requests[place], logits[row], before)
    return iter([results[place] for place in range(len(requests))])


class Remembered:
    """Predictions of the plain model by the tokens of a batch, in the model's own dtype: what comes back is exact."""

    def __init__(self) -> None:
        self._logits: dict[tuple[tuple[int, ...], ...], Tensor] = {}
        self._bytes = 0
        self.opened: dict[tuple[str, tuple[int, ...]], bool] = {}  # (gate, tokens of the prompt) → whether it opens

    def get(self, prepared: Sequence[Prepared]) -> Tensor | None:
        """Return what is kept for this batch, if anything."""
        return self._logits.get(tuple(request.tokens for request in prepared))

    def keep(self, prepared: Sequence[Prepared], logits: Tensor) -> None:
        """Keep a batch's logits while there is room."""
        if self._bytes + logits.nbytes <= REMEMBERED_BYTES:
            self._bytes += logits.nbytes
            self._logits[tuple(request.tokens for request in prepared)] = logits


def _plain(engine: TransformersEngine, prepared: Sequence[Prepared]) -> Tensor:
    logits = engine.plain.get(prepared) if engine.plain is not None else None
    if logits is None:
        with engine.session(None, record=False, plain=True) as tap:
            logits = _run(engine, tap, prepared)
        if engine.plain is not None:
            engine.plain.keep(prepared, logits)
    return logits


def _run(engine: TransformersEngine, tap: Tap, prepared: Sequence[Prepared]) -> Tensor:
    batch = Batch(prepared)
    tap.start(batch)
    logits = engine.model(**batch.tensors(engine.pad_token, engine.model.device), use_cache=False).logits
    assert isinstance(logits, Tensor)
    return logits


def _scores(request: Prepared, logits: Tensor, plain: Tensor | None) -> TokenScores:
    tokens = torch.tensor(request.tokens, device=logits.device)
    steered = logits[: len(tokens) - 1].float().log_softmax(-1)  # (tokens - 1, vocabulary)
    own = steered.gather(-1, tokens[1:, None])[:, 0].cpu().numpy()
    if plain is None:
        return TokenScores(own)
    before = plain[: len(tokens) - 1].float().log_softmax(-1)
    kl = torch.nn.functional.kl_div(steered, before, reduction="none", log_target=True).sum(-1)
    return TokenScores(own, kl.clamp(min=0).cpu().numpy())  # rounding may leave it a hair below 0


def _answer_start(engine: TransformersEngine, prompt: str, request: Prepared) -> int:
    alone, _, _ = engine.reader.encode(Example(text=prompt)) if prompt else ([], 0, [])
    start = 0
    while start < min(len(alone), len(request.tokens)) and alone[start] == request.tokens[start]:
        start += 1
    if start == 0:
        raise BadData("an answer needs something before it: a prompt, or a model that begins with a special token.")
    if start == len(request.tokens):
        raise BadData(f"request {request.number + 1}: the answer adds no token to its prompt; give a longer answer.")
    return start


def _ends(engine: TransformersEngine, token: int) -> bool:
    """Whether a token after an answer ends it."""
    text = engine.tokenizer.decode([token], skip_special_tokens=True)
    return not text[:1].isalnum()
