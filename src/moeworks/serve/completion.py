"""`/v1/completions`: transformers' handler, with plans, several prompts and choices, log-probabilities and routes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from openai.types import Completion
from transformers.cli.serving.completion import (
    UNUSED_LEGACY_COMPLETION_FIELDS,
    CompletionHandler,
    TransformersTextCompletionCreateParams,
)
from transformers.cli.serving.utils import GenerationState

from moeworks.errors import BadData
from moeworks.serve.base import EngineModels, Serving, error_event, event_stream, in_thread, run_to_end, usage_of
from moeworks.serve.errors import Refused
from moeworks.serve.fields import CompletionFields, read_fields
from moeworks.serve.listener import Delta, TokenLog
from moeworks.serve.plans import Chosen, needs_roles
from moeworks.serve.prompts import completion_prompts
from moeworks.serve.worker import Outcome, Work

__all__ = ["TextHandler"]


class _Fields:
    """What the base's check of names takes for its list of them."""

    __mutable_keys__ = TransformersTextCompletionCreateParams.__mutable_keys__ | {"moeworks"}


class TextHandler(CompletionHandler):  # type: ignore[misc]
    """Continues texts from an engine, under the plan that a request names."""

    _valid_params_class = _Fields
    _unused_fields = UNUSED_LEGACY_COMPLETION_FIELDS - {"echo", "logprobs", "n", "stream_options"}

    def __init__(self, serving: Serving, models: EngineModels) -> None:
        super().__init__(models, GenerationState())
        self.serving = serving

    async def handle_request(self, body: dict[str, Any], request_id: str) -> StreamingResponse | JSONResponse:
        """Answer one request, streamed or whole."""
        self._validate_request(body)
        fields, chosen, work = await in_thread(self._prepare, body)
        include_usage = fields.stream_options is not None and fields.stream_options.include_usage
        model = fields.model or chosen.name
        head = {"id": request_id, "object": "text_completion", "created": int(time.time()), "model": model}
        if fields.stream:
            events = await event_stream(self.serving, work)
            stream = self._stream(events, work, chosen, head, fields, include_usage)
            return StreamingResponse(stream, media_type="text/event-stream")
        outcomes = await run_to_end(self.serving, work)
        choices = [self._whole(outcome, fields) for outcome in outcomes]
        usage = usage_of(outcomes, work.choices).model_dump(exclude_none=True)
        answer = {**head, "choices": choices, "usage": usage}
        about = await in_thread(self.serving.about, chosen, work, outcomes)
        return JSONResponse(answer if about is None else answer | {"moeworks": about})

    def _prepare(self, body: dict[str, Any]) -> tuple[CompletionFields, Chosen, Work]:
        serving = self.serving
        fields = read_fields(CompletionFields, body)
        chosen = serving.plans.resolve(fields.model, fields.moeworks)
        if needs_roles(chosen.plan):
            raise BadData("the plan asks who said a token, and a completion has no roles; use /v1/chat/completions.")
        if fields.best_of is not None and fields.best_of != fields.choices:
            raise BadData("best_of: this server does not choose among continuations; ask for n.")
        if fields.max_tokens == 0 and not (fields.echo and fields.logprobs is not None):
            raise BadData("max_tokens: 0 gives nothing, except with echo and logprobs.")
        if fields.echo and fields.stream:
            raise BadData("echo: a streamed answer does not repeat its prompt; ask for it whole.")
        serving.check_choices(len(fields.prompts), fields.choices)
        prompts = completion_prompts(serving.engine, fields)
        options, usual, named = serving.options(fields, self._build_generation_config, body)
        asked = usual if named and fields.max_tokens is None else fields.max_tokens
        work = Work(
            prompts=prompts,
            choices=fields.choices,
            chosen=chosen,
            options=options,
            new_tokens=serving.lengths(prompts, asked, usual),
            seed=fields.seed,
            stops=fields.stops,
            top=fields.top,
            echo=bool(fields.echo),
            record=fields.moeworks.record,
            stream=bool(fields.stream),
        )
        serving.check_record(work)
        return fields, chosen, work

    def _whole(self, outcome: Outcome, fields: CompletionFields) -> dict[str, Any]:
        tokenizer = self.serving.engine.tokenizer
        prompt = outcome.prompt.tokens if fields.echo else ()
        text = f"{tokenizer.decode(list(prompt))}{outcome.text}{fields.suffix or ''}"
        logs: dict[str, Any] | None = None
        if fields.logprobs is not None:
            all_logs: list[TokenLog | None] = [*(outcome.prompt_logs if fields.echo else ()), *outcome.logs]
            logs = self._logs([*prompt, *outcome.tokens], all_logs, fields.logprobs)
        return {"index": outcome.choice, "text": text, "finish_reason": outcome.reason, "logprobs": logs}

    def _logs(self, tokens: Sequence[int], logs: Sequence[TokenLog | None], top: int, start: int = 0) -> dict[str, Any]:
        """Return log-probabilities in the form of the completions API; the first token of a text has none."""
        decode = self.serving.engine.tokenizer.decode
        texts = [decode([token]) for token in tokens]
        offsets, alternatives = [], list[dict[str, float] | None]()
        for text, log in zip(texts, logs, strict=True):
            offsets.append(start)
            start += len(text)
            if log is None:
                alternatives.append(None)
                continue
            named: dict[str, float] = {}
            for token, value in log.top:
                named.setdefault(decode([token]), max(value, -9999.0))  # two tokens may be the same text
            alternatives.append(named)
        return {
            "tokens": texts,
            "token_logprobs": [None if log is None else max(log.value, -9999.0) for log in logs],
            "top_logprobs": alternatives if top else None,
            "text_offset": offsets,
        }

    async def _stream(
        self, events: Any, work: Work, chosen: Chosen, head: dict[str, Any], fields: CompletionFields, usage: bool
    ) -> AsyncIterator[str]:
        outcomes = list[Outcome]()
        offsets: dict[int, int] = {}

        make: Any = Completion.model_construct

        def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
            return str(self.chunk_to_sse(make(**head, choices=choices, **more)))

        def choice(number: int, text: str, reason: str | None = None, logs: Any = None) -> dict[str, Any]:
            return {"index": number, "text": text, "finish_reason": reason, "logprobs": logs}

        async for event in events:
            if isinstance(event, Refused):
                yield error_event(event)
                return
            if isinstance(event, Delta):
                logs = None
                if event.logs:
                    start = offsets.get(event.choice, 0)
                    logs = self._logs([log.token for log in event.logs], event.logs, work.top or 0, start)
                    offsets[event.choice] = start + sum(map(len, logs["tokens"]))
                yield chunk([choice(event.choice, "".join(event.items), logs=logs)])
            if isinstance(event, Outcome):
                outcomes.append(event)
                yield chunk([choice(event.choice, fields.suffix or "", event.reason)])
        about = self.serving.about(chosen, work, outcomes)
        if about is not None:
            yield chunk([], moeworks=about)
        if usage:
            yield chunk([], usage=usage_of(outcomes, work.choices))
        yield "data: [DONE]\n\n"
