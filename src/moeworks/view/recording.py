"""Records a text that was typed on the page into a trace of its own, which is gone when the server is."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator

from moeworks.errors import BadData
from moeworks.examples import Example, Message
from moeworks.serve.fields import MoeworksField
from moeworks.view.working import run_work

if TYPE_CHECKING:
    from moeworks.serve.base import Serving
    from moeworks.trace import Trace
    from moeworks.view.sources import Sources

__all__ = ["LiveTraces", "add_recording"]

MOST_TRACES = 16
NAMED = 40  # characters of a text that its trace is called by


class RecordBody(BaseModel):
    """What is sent to `api/record`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    text: str = ""
    messages: Annotated[tuple[Message, ...], Field(max_length=1000)] = ()
    max_tokens: int = Field(0, ge=0, description="tokens to generate after it, greedily")
    plan: Annotated[str, Field(max_length=200)] | dict[str, Any] | None = Field(None, description="a plan, or its name")
    strength: float = Field(1.0, ge=0, le=2, description="of the plan's `add` and `scale` operations")

    @model_validator(mode="after")
    def _one_kind(self) -> RecordBody:
        if bool(self.text) == bool(self.messages):
            raise ValueError("give either text or messages, and not an empty one")
        return self


class LiveTraces:
    """Traces that were recorded from the page: in one temporary folder, the oldest removed when there are too many."""

    def __init__(self, sources: Sources, *, most: int = MOST_TRACES) -> None:
        self.sources, self.most = sources, most
        self._folder = tempfile.TemporaryDirectory(prefix="moeworks-page-")  # removed at exit at the latest
        self._kept: deque[tuple[str, Path]] = deque()
        self._made = 0
        self._lock = threading.Lock()

    def path(self) -> Path:
        """Return the folder of the next trace, which is not there yet."""
        with self._lock:
            self._made += 1
            return Path(self._folder.name) / f"text-{self._made}"

    def add(self, trace: Trace, name: str) -> str:
        """Show a trace, and take the oldest off the page where there are too many; return its id."""
        with self._lock:
            id = self.sources.add_trace(trace, name=name)
            self._kept.append((id, trace.path))
            while len(self._kept) > self.most:
                old, path = self._kept.popleft()
                self.sources.remove(old)
                shutil.rmtree(path, ignore_errors=True)
            return id

    def close(self) -> None:
        """Remove them all."""
        self._folder.cleanup()


def add_recording(app: FastAPI, sources: Sources, serving: Serving) -> LiveTraces:
    """Add `api/record`."""
    live = LiveTraces(sources)

    @app.post("/view/api/record")
    async def record(body: RecordBody) -> dict[str, Any]:
        """Record a text, and what the model writes after it, with logits; returns the id of the trace."""
        engine, limits = serving.engine, serving.limits
        chosen = serving.plans.resolve(None, MoeworksField(plan=body.plan, strength=body.strength))
        example = Example(text=body.text, messages=body.messages)
        prompt = len(engine.reader.encode(example)[0])
        if limits.new_tokens and body.max_tokens > limits.new_tokens:
            raise BadData(f"max_tokens: {body.max_tokens} are asked for, this server generates {limits.new_tokens}.")
        rows = prompt + body.max_tokens
        if rows > engine.context:
            raise BadData(
                f"the text has {prompt} tokens, max_tokens {body.max_tokens}; the context is {engine.context}."
            )
        size = rows * sum(4 * shape.experts + 6 * shape.top_k for shape in engine.identity.layers)
        if size > limits.trace_bytes:
            raise BadData(
                f"the trace may take {size} bytes, this server keeps {limits.trace_bytes}; record a shorter text."
            )
        path, command = live.path(), _command(serving, body)

        def work() -> str:
            try:
                trace = engine.record(
                    [example],
                    path,
                    plan=chosen.plan,
                    logits=True,
                    generate=body.max_tokens,
                    long="error",
                    command=command,
                )
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
            return live.add(trace, _name(body, path.name))

        return {"trace": await run_work(serving, work), "command": command}

    return live


def _name(body: RecordBody, name: str) -> str:
    words = " ".join((body.text or body.messages[-1].content).split())
    steered = ", steered" if body.plan is not None else ""
    return f"{name}{steered}: {words[:NAMED]}{'…' if len(words) > NAMED else ''}"


def _command(serving: Serving, body: RecordBody) -> str:
    """Return the line that records the same; `text.jsonl` is a file with the text, or the chat, as one row."""
    plan = " --plan plan.json" if body.plan is not None else ""
    generate = f" --generate {body.max_tokens}" if body.max_tokens else ""
    return f"moeworks record {serving.engine.identity.name} text.jsonl -o trace --logits --long error{generate}{plan}"
