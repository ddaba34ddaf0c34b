"""Runs the work of requests on the one inference thread, one choice at a time, each under its own plan.

One at a time is what makes the promise hold to the bit: sums depend on the shape of a batch, so that requests that ran
together would no longer give what `generate` gives for each of them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cli.serving.utils import InferenceThread

from moeworks.engines.transformers import gating
from moeworks.engines.transformers.assemble import rows_of_generation, rows_of_text
from moeworks.engines.transformers.layout import Batch, GenerationBatch
from moeworks.engines.transformers.tap import Tap
from moeworks.engines.transformers.text import run_generation
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import MoeworksError
from moeworks.serve.door import Ticket
from moeworks.serve.errors import Refused, refusal
from moeworks.serve.fields import Record
from moeworks.serve.listener import Delta, Ended, Listener, Stopped, TokenLog, last_logits, log_of
from moeworks.serve.meter import ServerMeter
from moeworks.serve.plans import Chosen
from moeworks.trace import RecordedRows

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.plan import Plan
    from moeworks.serve.kept import KeptTraces

__all__ = ["Outcome", "Started", "Work", "Worker"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one request asks of the model."""

    prompts: tuple[Prepared, ...]
    choices: int  # of each prompt
    chosen: Chosen
    options: Mapping[str, Any]  # of transformers' generate
    new_tokens: tuple[int, ...]  # of each prompt
    seed: int | None = None  # of the first choice of each prompt; the next has the next
    stops: tuple[str, ...] = ()
    top: int | None = None  # alternatives beside log-probabilities
    echo: bool = False  # log-probabilities of the prompt too
    record: Record | None = None
    parser: Callable[[Prepared], Any] | None = None
    stream: bool = False


class Started:
    """The first event: the plan is applied and the model runs."""


@dataclass(frozen=True)
class Outcome:
    """One finished choice."""

    choice: int
    prompt: Prepared
    tokens: tuple[int, ...]
    text: str
    items: tuple[Any, ...]  # text, reasoning and tool calls, where there is a parser
    reason: str  # stop or length
    logs: tuple[TokenLog, ...]
    prompt_logs: tuple[TokenLog | None, ...]  # the first token has none
    rows: RecordedRows | None
    applied: bool  # whether the plan's gate, if it has one, let the plan through


Event = Started | Delta | Outcome | Refused | None


class Worker:
    """The inference thread of an engine, and what is counted and kept of its work."""

    def __init__(self, engine: TransformersEngine, meter: ServerMeter, kept: KeptTraces | None = None) -> None:
        self.engine, self.meter, self.kept = engine, meter, kept
        self._thread = InferenceThread()
        ends = engine.model.generation_config.eos_token_id
        self.ends = frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)

    def submit(self, work: Work, ticket: Ticket) -> asyncio.Queue[Event]:
        """Queue work; events come in the order `Started`, deltas and outcomes, None; or end with a `Refused`."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def emit(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        ticket.tell(lambda: events.put_nowait(Refused(ticket.status, f"{ticket.reason}.")))
        self._thread.submit(self._work, work, ticket, emit)
        return events

    def run(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Queue other work on the engine, such as measuring a plan; no request runs until it is done."""
        return asyncio.wrap_future(self._thread.submit(function, *arguments))

    def _work(self, work: Work, ticket: Ticket, emit: Callable[[Event], None]) -> None:
        try:
            for choice in range(len(work.prompts) * work.choices):
                if ticket.reason:
                    return
                emit(self._choice(work, choice, ticket, emit))
            emit(None)
        except Ended:
            pass  # the ticket told already
        except Exception as error:
            if not isinstance(error, (MoeworksError, Refused)):
                logger.exception("a request failed")
            emit(refusal(error))

    def _choice(self, work: Work, choice: int, ticket: Ticket, emit: Callable[[Event], None]) -> Outcome:
        prompt_number, again = divmod(choice, work.choices)
        prompt, new = work.prompts[prompt_number], work.new_tokens[prompt_number]
        plan, applied = self._gated(work.chosen.plan, prompt)
        listener = Listener(
            tokenizer=self.engine.tokenizer,
            ticket=ticket,
            ends=self._ends(work.options),
            stops=work.stops,
            parser=None if work.parser is None else work.parser(prompt),
            emit=emit if work.stream else None,
            choice=choice,
            top=work.top,
        )
        prompt_logs: tuple[TokenLog | None, ...] = ()
        rows, recorded = None, work.record is not None or self.kept is not None
        logits = work.record is not None and work.record.logits
        if choice == 0:
            emit(Started())
        if work.echo and work.top is not None:
            prompt_logs, rows = self._read(plan, prompt, work.top, recorded, logits)
        if new:
            seed = secrets.randbits(63) if work.seed is None else work.seed
            with self._session(plan, recorded, logits) as tap:
                self._generate(tap, prompt, new, (seed + again) % 2**63, work.options, listener)
                if recorded:
                    assert isinstance(tap.batch, GenerationBatch)
                    (rows,) = rows_of_generation(tap.steps, tap.batch, [listener.tokens], None)
        text = listener.finish()
        closed = listener.stopped or bool(listener.tokens and listener.tokens[-1] in listener.ends)
        self.meter.ran(len(prompt.tokens), len(listener.tokens), work.chosen.plan is not None)
        if self.kept is not None and rows is not None:
            self.kept.keep(prompt, rows, work.chosen)
        return Outcome(
            choice=choice,
            prompt=prompt,
            tokens=tuple(listener.tokens),
            text=text,
            items=tuple(listener.items),
            reason="stop" if closed else "length",
            logs=tuple(listener.logs),
            prompt_logs=prompt_logs,
            rows=rows if work.record is not None else None,
            applied=applied,
        )

    def _ends(self, options: Mapping[str, Any]) -> frozenset[int]:
        ends = options.get("eos_token_id")
        return self.ends if ends is None else frozenset([ends] if isinstance(ends, int) else ends)

    def _gated(self, plan: Plan | None, prompt: Prepared) -> tuple[Plan | None, bool]:
        """Return what is applied to this prompt, and whether the plan's gate lets it through."""
        if plan is None or plan.gate is None:
            return plan, plan is not None
        is_open = bool(gating.opened(self.engine, plan.gate, [prompt])[0])
        return (self.engine.without_gate(plan), True) if is_open else (None, False)

    @contextmanager
    def _session(self, plan: Plan | None, record: bool, logits: bool) -> Iterator[Tap]:
        with (
            self.engine.session(plan, record=record, logits=logits, plain=plan is None) as tap,
            self.meter.watching(),
        ):
            yield tap

    def _generate(
        self, tap: Tap, prompt: Prepared, new: int, seed: int, options: Mapping[str, Any], listener: Listener
    ) -> None:
        with ExitStack() as stack:
            if listener.top is not None:
                handle = self.engine.model.register_forward_hook(last_logits(listener))
                stack.callback(handle.remove)
            try:
                run_generation(self.engine, tap, [prompt], new, seed, {**options, "streamer": listener})
            except Stopped:
                pass
            except ValueError as error:  # how `generate` says that its options do not go together
                raise Refused(400, f"generate refuses these options: {str(error).splitlines()[0][:300]}") from error

    def _read(
        self, plan: Plan | None, prompt: Prepared, top: int, record: bool, logits: bool
    ) -> tuple[tuple[TokenLog | None, ...], RecordedRows | None]:
        """Return the log-probabilities of a prompt's own tokens, from one pass over it."""
        batch = Batch([prompt])
        with self._session(plan, record, logits) as tap, torch.inference_mode():
            tap.start(batch)
            tensors = batch.tensors(self.engine.pad_token, self.engine.model.device)
            scores = self.engine.model(**tensors, use_cache=False).logits[0]  # (tokens, V)
            rows = rows_of_text(tap.steps[0]) if record else None
            logs = [log_of(scores[place], token, top) for place, token in enumerate(prompt.tokens[1:])]
        return (None, *logs), rows
