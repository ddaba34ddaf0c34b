"""Runs examples through a model and writes a trace: windows of texts, sorted by length, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import moeworks
from moeworks.artefact import ModelIdentity, hash_texts
from moeworks.engines.gating import widen
from moeworks.engines.progress import Progress
from moeworks.engines.transformers.assemble import rows_of_generation, rows_of_text
from moeworks.engines.transformers.gating import Passes, sessions
from moeworks.engines.transformers.layout import Batch
from moeworks.engines.transformers.lean import lean
from moeworks.engines.transformers.text import check_options, run_generation
from moeworks.engines.transformers.tokens import Long, Prepared
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.plan.compiled import compile_plan, widened
from moeworks.plan.files import plan_hash
from moeworks.plan.guards import check
from moeworks.trace import RecordedRows, RequestInfo, RouterValues, Trace, TraceHeader, TraceWriter
from moeworks.where import Rows

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.engines.transformers.tap import Tap
    from moeworks.families.router import Router
    from moeworks.plan import Plan

__all__ = ["record"]

WINDOW = 32  # batches that are sorted by length together: little padding, and texts still come out nearly in order


def record(
    engine: TransformersEngine,
    examples: Iterator[Example],
    path: Path,
    *,
    plan: Plan | None,
    logits: bool,
    generate: int,
    batch_size: int,
    long: Long,
    sample: float | None,
    seed: int,
    resume: bool,
    overwrite: bool,
    keep_text: bool,
    progress: bool,
    total: int | None,
    command: str,
    generation: dict[str, Any],
) -> Trace:
    """See `TransformersEngine.record`."""
    if generation and not generate:
        raise BadData(f"{', '.join(generation)}: options for generating, but nothing is to be generated; set generate.")
    check_options(generation)
    plan = plan or engine.plan
    if plan is not None:
        check(plan, engine.identity)  # all problems at once, before anything is compiled or written
    requests = engine.reader.read(examples, long=long, room=generate, keep_end=bool(generate))
    settings: dict[str, Any] = {"batch_size": batch_size, "long": long, "generate": generate, **generation}
    if plan is not None and plan.operations:
        settings["plan"] = plan_hash(plan)
    header = TraceHeader(
        moeworks=moeworks.__version__,
        model=engine.identity if plan is None else widened(engine.identity, compile_plan(plan, engine.identity)),
        engine=engine.engine,
        command=command,
        seed=seed,
        settings=settings,
        values=tuple(values for router in engine.routers if (values := _values(router)) is not None),
    )
    half = all(parameter.dtype == torch.float16 for parameter in engine.model.parameters())
    with (
        TraceWriter(
            path,
            header,
            logits=logits,
            weights_dtype="float16" if half else "float32",
            sample=sample,
            resume=resume,
            overwrite=overwrite,
        ) as writer,
        ExitStack() as stack,
        Progress("recording", "texts", total=total, rated="tokens", show=progress) as bar,
    ):
        gated = plan is not None and plan.gate is not None
        one = None if gated else stack.enter_context(engine.session(plan, record=True, logits=logits))
        while window := list(islice(requests, WINDOW * batch_size)):
            todo = [request for request in window if not writer.skip(request.number, _hash(request))]
            bar.advance(len(window) - len(todo), rated=0)
            todo.sort(key=lambda request: len(request.tokens))
            for start in range(0, len(todo), batch_size):
                batch = todo[start : start + batch_size]
                rows: list[RecordedRows] = []
                with _passes(engine, plan, batch, one, logits) as passes:
                    for tap, places in passes(range(len(batch))):
                        found = (
                            _generate(engine, tap, batch, generate, seed, generation)
                            if generate
                            else _read(engine, tap, batch)
                        )
                        rows += _of_requests(found, {batch[place].number for place in places}, header.model)
                bar.advance(len(batch), rated=_write(writer, batch, rows, keep_text))
    return Trace.open(path)


def _values(router: Router) -> RouterValues | None:
    """Return what a router holds beside its contract, None where that is nothing."""
    held = (router.arrays.bias, router.arrays.expert_scale)
    return RouterValues.of(router.layer, *(None if t is None else t.detach().double().cpu().numpy() for t in held))


@contextmanager
def _passes(
    engine: TransformersEngine, plan: Plan | None, batch: Sequence[Prepared], tap: Tap | None, logits: bool
) -> Iterator[Passes]:
    """Yield the runs of a batch: one under the tap that holds for all batches, or what the plan's gate says."""
    if tap is not None:
        yield lambda places: iter([(tap, list(places))])
        return
    with sessions(engine, plan, batch, record=True, logits=logits) as passes:
        yield passes


def _read(engine: TransformersEngine, tap: Tap, prepared: Sequence[Prepared]) -> list[RecordedRows]:
    """Run one batch of whole texts and return what was decided."""
    batch = Batch(prepared)
    tap.start(batch)
    with torch.inference_mode():
        engine.model(**batch.tensors(engine.pad_token, engine.model.device), **lean(engine.model))
    return [rows_of_text(tap.steps[0])]


def _generate(
    engine: TransformersEngine,
    tap: Tap,
    prepared: Sequence[Prepared],
    new_tokens: int,
    seed: int,
    options: dict[str, Any],
) -> list[RecordedRows]:
    """Run one batch of prompts and what the model writes after them, and return what was decided, by prompt."""
    forced = next((request for request in prepared if request.prompt_tokens < len(request.tokens)), None)
    if forced is not None:
        raise BadData(
            f"request {forced.number} has an answer already; leave the answer out to generate one, or do not generate."
        )
    run = run_generation(engine, tap, prepared, new_tokens, seed + prepared[0].number, options)
    return rows_of_generation(tap.steps, run.batch, run.generated, run.beam_rows)


def _of_requests(found: list[RecordedRows], numbers: set[int], model: ModelIdentity | None) -> list[RecordedRows]:
    """Return the rows of some requests only, as wide as the trace: a run without the plan may have fewer slots."""
    assert model is not None
    result = []
    for recorded in found:
        keep = np.isin(recorded.rows.request, list(numbers))
        if not keep.any():
            continue
        rows = recorded.rows
        slots = {layer: model.layer(layer).top_k for layer in recorded.ids}
        if keep.all() and all(ids.shape[1] == slots[layer] for layer, ids in recorded.ids.items()):
            result.append(recorded)
            continue
        result.append(
            RecordedRows(
                rows=Rows(rows.request[keep], rows.position[keep], rows.token[keep], rows.phase[keep]),
                ids={n: widen(ids[keep], slots[n], fill=ids[keep]) for n, ids in recorded.ids.items()},
                weights={n: widen(weights[keep], slots[n]) for n, weights in recorded.weights.items()},
                logits=None if recorded.logits is None else {n: z[keep] for n, z in recorded.logits.items()},
            )
        )
    return result


def _write(writer: TraceWriter, prepared: Sequence[Prepared], recorded: Sequence[RecordedRows], keep_text: bool) -> int:
    """Write the rows of one batch; return how many tokens went through."""
    numbers = np.concatenate([part.rows.request for part in recorded])
    counts = dict(zip(*(values.tolist() for values in np.unique(numbers, return_counts=True)), strict=True))
    for request in prepared:
        writer.add_request(_info(request, counts[request.number], request.prompt_tokens, keep_text))
    for part in recorded:
        writer.write(part)
    return len(numbers)


def _hash(request: Prepared) -> str:
    return hash_texts([request.content])


def _info(request: Prepared, tokens: int, prompt_tokens: int, keep_text: bool) -> RequestInfo:
    return RequestInfo(
        request=request.number,
        tokens=tokens,
        prompt_tokens=prompt_tokens,
        document=request.document,
        labels=request.labels,
        spans=request.spans,
        text_hash=_hash(request),
        truncated_tokens=request.truncated,
        text=request.content if keep_text else None,
    )
