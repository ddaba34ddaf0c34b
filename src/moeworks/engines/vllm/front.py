"""Before vLLM's own OpenAI server: plan names become models, the `moeworks` field travels in, routes travel out."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moeworks.engines.transformers.tokens import Prepared
from moeworks.engines.vllm.admission import read_field
from moeworks.engines.vllm.books import VllmBook
from moeworks.engines.vllm.recording import joined, recorded_rows
from moeworks.engines.vllm.spec import FIELD
from moeworks.errors import BadData, MoeworksError, RunFailed
from moeworks.serve.door import TICKET
from moeworks.serve.errors import error_body, error_response, refusal
from moeworks.serve.fields import MoeworksField, Record
from moeworks.serve.kept import KeptTraces
from moeworks.serve.plans import BASE, Chosen
from moeworks.serve.routes import encode_routes
from moeworks.trace import RecordedRows
from moeworks.where import Rows

__all__ = ["Front"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
PATHS = ("/v1/chat/completions", "/v1/completions")


@dataclass
class Asked:
    """What one request wants of us."""

    chosen: Chosen
    record: Record | None
    model: str  # as the client named it
    key: str
    wants_ids: bool  # whether the client asked for token ids itself
    keep: bool = False  # whether all routes are kept for those who download the last traces
    hides_usage: bool = False  # whether the counts at the end of a stream are for us alone
    content: str = ""  # what was asked, for hashing
    usage: tuple[int, int] | None = None  # tokens of prompt and answer
    prompt: list[int] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)

    @property
    def recorded(self) -> bool:
        """Whether workers keep its rows."""
        return self.keep or self.record is not None


class Front:
    """ASGI middleware for the two endpoints that generate; everything else passes through.

    Attributes:
        book: the plans; None until the engine is there.
        client: vLLM's engine client.
        served: the model's name in vLLM.
        prefix: text that every prompt starts with, where the model was trained so.
        traces: the last requests' routes, where they are kept.
        ran: is told the tokens of prompt and answer, and whether there was a plan.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.book: VllmBook | None = None
        self.client: Any = None
        self.served = ""
        self.prefix = ""
        self.traces: KeptTraces | None = None
        self.ran: Callable[[int, int, bool], None] = lambda prompt, generated, steered: None
        self.why_not = "the engine is not there yet."

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PATHS:
            await self.app(scope, receive, send)
            return
        message = await receive()
        try:
            asked, body = self._read(json.loads(message.get("body") or b"{}"))
        except MoeworksError as error:
            refused = refusal(error)
            await error_response(refused.status, refused.message)(scope, receive, send)
            return
        answer = Answer(self, asked, send)
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        try:
            await self._in_time(self.app(scope, replay, answer.send), answer, scope, receive, send)
        finally:
            if asked.usage is not None:
                self.ran(*asked.usage, asked.chosen.plan is not None)
            if asked.recorded and not answer.taken:
                await asyncio.shield(self._take(asked.key))

    async def _in_time(self, running: Any, answer: Answer, scope: Any, receive: Receive, send: Send) -> None:
        """Let vLLM answer; where the request's time runs out, it is cancelled and said so."""
        ticket, task = TICKET.get(), asyncio.ensure_future(running)
        ticket.tell(lambda: task.cancel() if ticket.status == 504 else None)
        try:
            await task
        except asyncio.CancelledError:
            if ticket.status != 504:
                task.cancel()
                raise
            if not answer.started:
                await error_response(504, f"{ticket.reason}.")(scope, receive, send)

    def _read(self, document: dict[str, Any]) -> tuple[Asked, bytes]:
        """Return what is asked of us, and the body for vLLM.

        Raises:
            MoeworksError: what is wrong with it.
        """
        if self.book is None:
            raise BadData(self.why_not)
        arguments = document.get("vllm_xargs")
        arguments = dict(arguments) if isinstance(arguments, dict) else {}
        own, native = document.pop(FIELD, None), arguments.pop(FIELD, None)
        if own is not None and native is not None:
            raise BadData(f"{FIELD} comes twice, on its own and in vllm_xargs; send it once.")
        given = own if own is not None else native
        wanted, _, _ = read_field({} if given is None else given)
        model = document.get("model")
        if model is not None and not isinstance(model, str):
            raise BadData("model: this is no text.")
        chosen = self.book.resolve(model, wanted)
        asked = Asked(chosen, wanted.record, model or BASE, uuid.uuid4().hex, bool(document.get("return_token_ids")))
        if asked.record is not None and _several(document):
            raise BadData("routes are recorded for one choice a request; send one prompt and n=1.")
        if self.traces is not None and not _several(document):
            asked.keep, asked.content = True, json.dumps(document.get("messages", document.get("prompt")))
        if asked.recorded:
            document["return_token_ids"] = True
        if chosen.plan is not None or asked.recorded:
            arguments[FIELD] = json.dumps(_travelling(chosen, wanted, asked))
        asked.hides_usage = _with_usage(document)
        if arguments:
            document["vllm_xargs"] = arguments
        document["model"] = self.served
        if self.prefix and "prompt" in document:
            document["prompt"] = _prefixed(document["prompt"], self.prefix)
        return asked, json.dumps(document).encode()

    async def about(self, asked: Asked) -> dict[str, Any] | None:
        """Return the answer's `moeworks`: the plan that ran, and the routes; None where there is neither.

        Raises:
            RunFailed: the routes that were asked for are not whole.
        """
        rows = None
        if asked.recorded:
            assert self.book is not None
            kept = await self._take(asked.key)
            try:
                rows = _rows(kept, asked, self.book)
            except RunFailed:
                if asked.record is not None:
                    raise
            if rows is not None and asked.keep and self.traces is not None:
                self.traces.keep(_prepared(asked), rows, asked.chosen)
        if asked.chosen.plan is None and asked.record is None:
            return None
        found: dict[str, Any] = {"plan": asked.chosen.hash or None, "name": asked.chosen.name or None}
        if asked.record is not None and rows is not None:
            assert self.book is not None
            found["routes"] = encode_routes([rows], asked.record, self.book.identity)
        return found

    async def _take(self, key: str) -> dict[str, Any]:
        ranks = await self.client.collective_rpc("moeworks_take", args=([key],))
        return joined([rank[0] for rank in ranks])


class Answer:
    """What vLLM says on its way to the client: whole answers and events get our part."""

    def __init__(self, front: Front, asked: Asked, send: Send) -> None:
        self._front, self._asked, self._send = front, asked, send
        self._start: Message = {}
        self._parts: list[bytes] = []
        self._kind = "other"
        self._last: dict[str, Any] = {"choices": []}
        self.started = self.taken = False

    async def send(self, message: Message) -> None:
        """Take a message of vLLM's app."""
        if message["type"] == "http.response.start":
            kind = next((v for n, v in message["headers"] if n.lower() == b"content-type"), b"")
            if message["status"] == 200 and kind.startswith(b"application/json"):
                self._kind, self._start = "whole", message
                return
            self._kind = "stream" if kind.startswith(b"text/event-stream") else "other"
            self.started = True
            await self._send(message)
        elif message["type"] != "http.response.body" or self._kind == "other":
            await self._send(message)
        elif self._kind == "whole":
            await self._whole(message)
        else:
            await self._stream(message)

    async def _whole(self, message: Message) -> None:
        self._parts.append(message.get("body", b""))
        if message.get("more_body"):
            return
        document = json.loads(b"".join(self._parts))
        self._read(document)
        try:
            about = await self._front.about(self._asked)
        except MoeworksError as error:
            self.taken = self.started = True
            body = json.dumps(error_body(500, str(error))).encode()
            await self._reply({**self._start, "status": 500}, body)
            return
        self.taken = True
        if about is not None:
            document["moeworks"] = about
        self.started = True
        await self._reply(self._start, _compact(document).encode())

    async def _reply(self, start: Message, body: bytes) -> None:
        headers = [(n, v) for n, v in start["headers"] if n.lower() != b"content-length"]
        await self._send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})

    async def _stream(self, message: Message) -> None:
        """Pass events on as they come; ours goes before the last one."""
        text = b"".join([*self._parts, message.get("body", b"")])
        *events, rest = text.split(b"\n\n")
        self._parts = [rest]
        out = [await self._event(event) for event in events]
        more = message.get("more_body", False)
        if not more:
            out.append(rest)
        await self._send({"type": "http.response.body", "body": b"".join(out), "more_body": more})

    async def _event(self, event: bytes) -> bytes:
        data = event.removeprefix(b"data: ")
        if data == b"[DONE]":
            try:
                about = await self._front.about(self._asked)
            except MoeworksError as error:
                about = error_body(500, str(error))
            self.taken = True
            if about is None:
                return event + b"\n\n"
            return b"data: " + _compact(self._last | {"moeworks": about}).encode() + b"\n\n" + event + b"\n\n"
        if not event.startswith(b"data: {"):
            return event + b"\n\n"
        document = json.loads(data)
        self._read(document)
        if self._asked.hides_usage and "usage" in document:
            del document["usage"]
            if document.get("choices") == []:
                return b""
        self._last = {n: document[n] for n in ("id", "object", "created", "model") if n in document} | {"choices": []}
        return b"data: " + _compact(document).encode() + b"\n\n"

    def _read(self, document: dict[str, Any]) -> None:
        """Note the tokens of an answer or event, and give it the model's name that the client knows."""
        asked = self._asked
        if "model" in document:
            document["model"] = asked.model
        if usage := document.get("usage"):
            asked.usage = usage["prompt_tokens"], usage.get("completion_tokens") or 0
        if not asked.recorded:
            return
        for holder in (document, *document.get("choices", ())):
            if holder.get("prompt_token_ids"):
                asked.prompt = list(holder["prompt_token_ids"])
            if holder.get("token_ids"):
                asked.generated += holder["token_ids"]
            if not asked.wants_ids:
                holder.pop("prompt_token_ids", None)
                holder.pop("token_ids", None)


def _compact(document: dict[str, Any]) -> str:
    """Return JSON as vLLM itself writes it, without spaces."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _several(document: dict[str, Any]) -> bool:
    """Whether a request wants more than one choice."""
    prompt = document.get("prompt")
    several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    return several or document.get("n") not in (None, 1) or document.get("best_of") not in (None, 1)


def _with_usage(document: dict[str, Any]) -> bool:
    """Ask for the counts at the end of a stream; return whether the client did not want them."""
    options = document.get("stream_options")
    if document.get("stream") is not True or (options is not None and not isinstance(options, dict)):
        return False
    if (options or {}).get("include_usage"):
        return False
    document["stream_options"] = {**(options or {}), "include_usage": True}
    return True


def _prepared(asked: Asked) -> Prepared:
    """Return the request as a trace describes it; roles and spans are not known here."""
    tokens = tuple(asked.prompt)
    return Prepared(0, tokens, len(tokens), (), {}, "", asked.content, 0)


def _travelling(chosen: Chosen, wanted: MoeworksField, asked: Asked) -> dict[str, Any]:
    """Return the field as it goes to the engine's own door."""
    sent: dict[str, Any] = {"key": asked.key, **({"keep": True} if asked.keep else {})}
    if chosen.plan is not None:
        sent["plan"] = chosen.name if chosen.name else wanted.plan
        sent["strength"] = wanted.strength
    if wanted.record is not None:
        sent["record"] = wanted.record.model_dump(mode="json", by_alias=True, exclude_none=True)
    return sent


def _prefixed(prompt: Any, prefix: str) -> Any:
    """Return a prompt, or several, that start as the model expects; token ids are left as they are."""
    if isinstance(prompt, str):
        return prompt if prompt.startswith(prefix) else prefix + prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        return [_prefixed(one, prefix) for one in prompt]
    return prompt


def _rows(kept: dict[str, Any], asked: Asked, book: VllmBook) -> RecordedRows:
    tokens = [*asked.prompt, *asked.generated[:-1]]
    wanted = 0 if asked.keep or asked.record is None else asked.record.start
    start = {"prompt": 0, "generated": len(asked.prompt)}.get(str(wanted), wanted)
    if int(start) < len(tokens):
        return recorded_rows(kept, tokens, prompt=len(asked.prompt), given=len(asked.prompt))
    none = np.zeros(0, np.int64)
    shapes = book.identity.layers
    empty = {shape.layer: np.zeros((0, shape.top_k), np.float32) for shape in shapes}
    logits = {shape.layer: np.zeros((0, shape.experts), np.float32) for shape in shapes}
    return RecordedRows(rows=Rows(none, none, none, none), ids=empty, weights=empty, logits=logits)
