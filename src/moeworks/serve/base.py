"""What chat and completions share: transformers' handlers with an engine for a model, plans for names, and limits."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from openai.types.completion_usage import CompletionUsage
from transformers.cli.serving.model_manager import ModelManager

from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData, MoeworksError
from moeworks.serve.door import TICKET
from moeworks.serve.errors import Refused, error_body, refusal
from moeworks.serve.fields import ChatFields, CompletionFields, GenerationOptions
from moeworks.serve.limits import Limits
from moeworks.serve.listener import TokenLog
from moeworks.serve.plans import Chosen, PlanBook
from moeworks.serve.routes import encode_routes, estimate_bytes
from moeworks.serve.worker import Event, Outcome, Work, Worker

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["EngineModels", "Serving", "event_stream", "run_to_end", "usage_of"]


class EngineModels(ModelManager):  # type: ignore[misc]
    """transformers' model manager for one model that is loaded already and stays."""

    def __init__(self, engine: TransformersEngine, name: str) -> None:
        super().__init__(device="cpu", model_timeout=-1)
        self.engine, self.name = engine, name

    def load_model_and_processor(self, model_id_and_revision: str, **_: Any) -> tuple[Any, Any]:
        """Return the engine's model and tokenizer, whatever is asked for."""
        return self.engine.model, self.engine.tokenizer

    def shutdown(self) -> None:
        """Keep the model: it is its engine's."""


class Serving:
    """What both handlers need, made once a server."""

    def __init__(self, worker: Worker, plans: PlanBook, limits: Limits) -> None:
        self.worker, self.plans, self.limits = worker, plans, limits
        self.engine = worker.engine
        self.started = int(time.time())

    def lengths(self, prompts: Sequence[Prepared], asked: int | None, usual: int) -> tuple[int, ...]:
        """Return how many tokens each prompt may get.

        Args:
            prompts: the prompts.
            asked: what the request says, if anything.
            usual: what it gets without, if there is room.

        Raises:
            BadData: a prompt, or it and what is asked for, does not fit into the context.
        """
        context, most = self.engine.context, self.limits.new_tokens
        if asked is not None and most and asked > most:
            raise BadData(f"max_tokens: {asked} are asked for, this server generates at most {most}.")
        lengths = []
        for prompt in prompts:
            tokens = len(prompt.tokens)
            if tokens + (1 if asked is None else asked) > context:
                more = "" if asked is None else f" and max_tokens {asked}"
                raise BadData(f"the prompt has {tokens} tokens{more}; the context of this model is {context}.")
            lengths.append(min(usual, most or usual, context - tokens) if asked is None else asked)
        return tuple(lengths)

    def check_choices(self, prompts: int, choices: int) -> None:
        """Refuse more choices than this server gives in one answer."""
        if prompts * choices > self.limits.choices:
            raise BadData(f"n: {prompts * choices} choices are asked for, this server gives {self.limits.choices}.")

    def check_record(self, work: Work) -> None:
        """Refuse to record more than fits into an answer, before anything runs."""
        if work.record is None:
            return
        plan = work.chosen.plan
        wider = [operation.k for operation in plan.operations if operation.op == "top_k"] if plan else []
        half = self.engine.engine.dtype == "float16"
        expected = work.choices * sum(
            estimate_bytes(
                work.record,
                self.engine.identity,
                prompt=len(prompt.tokens),
                new=new,
                slots=max(wider, default=0),
                half=half,
            )
            for prompt, new in zip(work.prompts, work.new_tokens, strict=True)
        )
        if expected > self.limits.record_bytes:
            raise BadData(
                f"record: the routes may take {expected} bytes, this server gives {self.limits.record_bytes}; ask for "
                "fewer layers or tokens, or leave out logits and weights."
            )

    def options(
        self, fields: ChatFields | CompletionFields, build: Any, body: dict[str, Any]
    ) -> tuple[dict[str, Any], int, bool]:
        """Return options of `generate` for a request, the number of tokens it gets, and whether it named that itself.

        Args:
            fields: the request.
            build: `_build_generation_config` of the base handler.
            body: the request as it came.

        Raises:
            BadData: options that do not exist or do not go together.
        """
        # Seeds are set on the inference thread, stop texts are cut off by the listener, lengths depend on the prompt.
        ours = ("seed", "stop", "max_tokens", "max_completion_tokens")
        plain = {name: value for name, value in body.items() if name not in ours}
        given = GenerationOptions.read(fields.generation_config)
        defaults = self.engine.model.generation_config
        if fields.generation_config is not None:
            own = {name: getattr(defaults, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
            plain["generation_config"] = json.dumps({**own, "max_new_tokens": 1024, **given})
        vocabulary = self.engine.model.get_input_embeddings().num_embeddings
        ends = given.get("eos_token_id", ())
        named = [*map(int, fields.logit_bias or ()), *(ends if isinstance(ends, list) else [ends] if ends else ())]
        if wrong := [token for token in named if token >= vocabulary]:
            raise BadData(f"there is no token {wrong[0]}; the model knows {vocabulary} tokens.")
        try:
            config = build(plain, defaults)
            if fields.logit_bias:  # the base takes it for chats only, and whole numbers not at all
                config.sequence_bias = {(int(token),): float(value) for token, value in fields.logit_bias.items()}
            if "do_sample" not in given and (fields.temperature or (fields.top_p and fields.temperature is None)):
                config.do_sample = True
            sampling = bool(config.do_sample)
            if not sampling:
                config.temperature = config.top_p = config.top_k = None
            config.validate(strict=True)
        except (ValueError, TypeError) as error:
            raise BadData(f"these options of generate do not go together: {str(error).splitlines()[0][:300]}") from None
        changed = {
            name: value
            for name in config.to_dict()
            if name not in ("max_new_tokens", "pad_token_id", "transformers_version")
            and (value := getattr(config, name, None)) is not None
            and value != getattr(defaults, name, None)
        }
        return {**changed, "do_sample": sampling}, config.max_new_tokens, "max_new_tokens" in given

    def about(self, chosen: Chosen, work: Work, outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
        """Return the answer's `moeworks`: the plan that ran, and the routes; None where there is neither."""
        if chosen.plan is None and work.record is None:
            return None
        found: dict[str, Any] = {"plan": chosen.hash or None, "name": chosen.name or None}
        if chosen.plan is not None and chosen.plan.gate is not None:
            found["applied"] = [outcome.applied for outcome in outcomes]
        if work.record is not None:
            rows = [outcome.rows for outcome in outcomes if outcome.rows is not None]
            found["routes"] = encode_routes(rows, work.record, self.engine.identity)
        return found


async def run_to_end(serving: Serving, work: Work) -> list[Outcome]:
    """Return all choices of a request.

    Raises:
        Refused: it could not be served, or was ended.
    """
    events = serving.worker.submit(work, TICKET.get())
    outcomes = []
    while (event := await events.get()) is not None:
        if isinstance(event, Refused):
            raise event
        if isinstance(event, Outcome):
            outcomes.append(event)
    return outcomes


async def event_stream(serving: Serving, work: Work) -> AsyncIterator[Event]:
    """Return the events of a request that is streamed; what is wrong with it is raised before the first one.

    Raises:
        Refused: it could not be served; later refusals are events.
    """
    events = serving.worker.submit(work, TICKET.get())
    first = await events.get()
    if isinstance(first, Refused):
        raise first

    async def rest() -> AsyncIterator[Event]:
        while (event := await events.get()) is not None:
            yield event
            if isinstance(event, Refused):
                return

    return rest()


def usage_of(outcomes: Sequence[Outcome], choices: int) -> CompletionUsage:
    """Return token counts; a prompt counts once, whatever number of choices it gets."""
    prompt = sum(len(outcome.prompt.tokens) for outcome in outcomes if outcome.choice % choices == 0)
    new = sum(len(outcome.tokens) for outcome in outcomes)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)


def error_event(error: Refused) -> str:
    """Return the last event of a stream that failed."""
    return f"data: {json.dumps(error_body(error.status, error.message))}\n\n"


def shown(tokenizer: Any, log: TokenLog) -> list[tuple[str, float]]:
    """Return the alternatives of a token as texts."""
    return [(tokenizer.decode([token]), value) for token, value in log.top]


async def in_thread(function: Any, *arguments: Any, **options: Any) -> Any:
    """Run what takes longer than a moment beside the event loop; errors of the user become refusals."""
    try:
        return await asyncio.to_thread(function, *arguments, **options)
    except MoeworksError as error:
        raise refusal(error) from None
