"""`/v1/chat/completions`: transformers' handler, with plans, several choices, log-probabilities and routes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from openai.types.chat import ChatCompletion, ChatCompletionMessage, ChatCompletionMessageToolCall
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import ChatCompletionChunk
from transformers.cli.serving.chat_completion import (
    UNUSED_CHAT_COMPLETION_FIELDS,
    ChatCompletionHandler,
    TransformersCompletionCreateParamsStreaming,
)
from transformers.cli.serving.utils import (
    GenerationState,
    ReasoningText,
    ToolCall,
    build_response_parser,
    get_response_template,
)

from moeworks.engines.transformers.tokens import Prepared
from moeworks.serve.base import EngineModels, Serving, error_event, event_stream, in_thread, run_to_end, usage_of
from moeworks.serve.errors import Refused
from moeworks.serve.fields import ChatFields, read_fields
from moeworks.serve.listener import Delta, TokenLog
from moeworks.serve.plans import Chosen, needs_roles
from moeworks.serve.prompts import chat_prompt
from moeworks.serve.worker import Outcome, Work

__all__ = ["ChatHandler"]


class _Fields:
    """What the base's check of names takes for its list of them."""

    __mutable_keys__ = TransformersCompletionCreateParamsStreaming.__mutable_keys__ | {"moeworks"}


class ChatHandler(ChatCompletionHandler):  # type: ignore[misc]
    """Serves chats from an engine, under the plan that a request names."""

    _valid_params_class = _Fields
    _unused_fields = UNUSED_CHAT_COMPLETION_FIELDS - {"n", "logprobs", "top_logprobs", "stream_options"}

    def __init__(self, serving: Serving, models: EngineModels) -> None:
        super().__init__(models, GenerationState())
        self.serving = serving

    async def handle_request(self, body: dict[str, Any], request_id: str) -> StreamingResponse | JSONResponse:
        """Answer one request, streamed or whole."""
        self._validate_request(body)
        fields, chosen, work = await in_thread(self._prepare, body)
        include_usage = fields.stream_options is not None and fields.stream_options.include_usage
        model = fields.model or chosen.name
        if fields.stream:
            events = await event_stream(self.serving, work)
            stream = self._stream(events, work, chosen, request_id, model, include_usage)
            return StreamingResponse(stream, media_type="text/event-stream")
        outcomes = await run_to_end(self.serving, work)
        answer = ChatCompletion(
            id=request_id,
            created=int(time.time()),
            object="chat.completion",
            model=model,
            choices=[self._whole(outcome, request_id) for outcome in outcomes],
            usage=usage_of(outcomes, work.choices),
        ).model_dump(exclude_none=True)
        about = await in_thread(self.serving.about, chosen, work, outcomes)
        return JSONResponse(answer if about is None else answer | {"moeworks": about})

    def _prepare(self, body: dict[str, Any]) -> tuple[ChatFields, Chosen, Work]:
        serving = self.serving
        fields = read_fields(ChatFields, body)
        chosen = serving.plans.resolve(fields.model, fields.moeworks)
        serving.check_choices(1, fields.choices)
        prompt = chat_prompt(serving.engine, fields, roles=needs_roles(chosen.plan))
        options, usual, named = serving.options(fields, self._build_generation_config, body)
        asked = fields.max_completion_tokens or fields.max_tokens or (usual if named else None)
        tools = list(fields.tools) if fields.tools else None
        work = Work(
            prompts=(prompt,),
            choices=fields.choices,
            chosen=chosen,
            options=options,
            new_tokens=serving.lengths([prompt], asked, usual),
            seed=fields.seed,
            stops=fields.stops,
            top=fields.top,
            record=fields.moeworks.record,
            parser=lambda one: self._parser(one, tools),
            stream=bool(fields.stream),
        )
        serving.check_record(work)
        return fields, chosen, work

    def _parser(self, prompt: Prepared, tools: list[dict[str, Any]] | None) -> Any:
        """Return transformers' parser of reasoning and tool calls, or None where this chat is not written for it.

        Its rules go by the model's family. Where the prompt does not hold the mark that they begin at, the parser
        would give the prompt back as if the model had said it.
        """
        engine = self.serving.engine
        template = get_response_template(engine.tokenizer, engine.model)
        if template is None:
            return None
        marks = template.get("start_anchor") or ()
        text = engine.tokenizer.decode(list(prompt.tokens))
        if marks and not any(mark in text for mark in ([marks] if isinstance(marks, str) else marks)):
            return None
        return build_response_parser(engine.tokenizer, engine.model, list(prompt.tokens), tools=tools)

    def _whole(self, outcome: Outcome, request_id: str) -> Choice:
        content, reasoning, calls = outcome.text, None, []
        if outcome.items:
            texts = [item for item in outcome.items if isinstance(item, str)]
            content = "".join(text for text in texts if not isinstance(text, ReasoningText))
            reasoning = "".join(text for text in texts if isinstance(text, ReasoningText)) or None
            calls = [item for item in outcome.items if isinstance(item, ToolCall)]
        tool_calls = [
            ChatCompletionMessageToolCall(
                id=f"{request_id}_tool_call_{number}",
                type="function",
                function={"name": call.name, "arguments": call.arguments},
            )
            for number, call in enumerate(calls)
        ]
        message = ChatCompletionMessage.model_validate(
            {
                "content": content,
                "role": "assistant",
                "tool_calls": tool_calls or None,
                "reasoning_content": reasoning,
            }
        )
        logs = None if not outcome.logs else {"content": [self._log(log) for log in outcome.logs], "refusal": None}
        reason = "tool_calls" if tool_calls else outcome.reason
        return Choice(index=outcome.choice, message=message, finish_reason=reason, logprobs=logs)

    def _log(self, log: TokenLog) -> dict[str, Any]:
        decode = self.serving.engine.tokenizer.decode

        def one(token: int, value: float) -> dict[str, Any]:
            text = decode([token])
            return {"token": text, "logprob": max(value, -9999.0), "bytes": list(text.encode())}

        return {**one(log.token, log.value), "top_logprobs": [one(token, value) for token, value in log.top]}

    async def _stream(
        self, events: Any, work: Work, chosen: Chosen, request_id: str, model: str, include_usage: bool
    ) -> AsyncIterator[str]:
        """Yield server-sent events: a role, deltas, the end of each choice, and what there is to say of all."""
        created, outcomes = int(time.time()), list[Outcome]()
        calls: dict[int, int] = {}

        make: Any = ChatCompletionChunk.model_construct
        head = {"id": request_id, "object": "chat.completion.chunk", "created": created, "model": model}

        def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
            return str(self.chunk_to_sse(make(**head, choices=choices, **more)))

        def choice(number: int, delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
            return {"index": number, "delta": delta, "finish_reason": reason, **more}

        for number in range(work.choices):
            yield chunk([choice(number, {"role": "assistant", "content": ""})])
        async for event in events:
            if isinstance(event, Refused):
                yield error_event(event)
                return
            if isinstance(event, Delta):
                logs: dict[str, Any] = {}
                if event.logs:
                    logs["logprobs"] = {"content": [self._log(log) for log in event.logs]}
                for item in event.items or ("",):
                    yield chunk([choice(event.choice, self._delta(item, event.choice, calls, request_id), **logs)])
                    logs = {}
            if isinstance(event, Outcome):
                outcomes.append(event)
                reason = "tool_calls" if event.choice in calls else event.reason
                yield chunk([choice(event.choice, {}, reason)])
        about = self.serving.about(chosen, work, outcomes)
        if about is not None:
            yield chunk([], moeworks=about)
        if include_usage:
            yield chunk([], usage=usage_of(outcomes, work.choices))
        yield "data: [DONE]\n\n"

    def _delta(self, item: Any, number: int, calls: dict[int, int], request_id: str) -> dict[str, Any]:
        if isinstance(item, ToolCall):
            place = calls[number] = calls.get(number, -1) + 1
            function = {"name": item.name, "arguments": item.arguments}
            call = {"index": place, "id": f"{request_id}_tool_call_{place}", "type": "function", "function": function}
            return {"tool_calls": [call]}
        return {"reasoning_content": item} if isinstance(item, ReasoningText) else {"content": item}
