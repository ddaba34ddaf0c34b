"""Runs examples through vLLM and writes a trace: requests whose rows were kept by the workers, checked to be whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import moeworks
from moeworks.artefact import hash_texts
from moeworks.engines.progress import Progress
from moeworks.engines.transformers.tokens import Long, Prepared
from moeworks.engines.vllm.sampling import sampling_options
from moeworks.engines.vllm.spec import Recording
from moeworks.errors import BadData, RunFailed
from moeworks.plan.files import plan_hash
from moeworks.trace import RecordedRows, RequestInfo, Trace, TraceHeader, TraceWriter
from moeworks.where import PHASES, Rows

if TYPE_CHECKING:
    from moeworks.engines.vllm.engine import VllmEngine
    from moeworks.plan import Plan

__all__ = ["joined", "record", "recorded_rows"]

Array = NDArray[Any]


def record(
    engine: VllmEngine,
    examples: Iterator[Any],
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
    """See `VllmEngine.record`."""
    if generation and not generate:
        raise BadData(f"{', '.join(generation)}: options for generating, but nothing is to be generated; set generate.")
    options = sampling_options(generation, seed)
    settings: dict[str, Any] = {"batch_size": batch_size, "long": long, "generate": generate, **generation}
    if plan is not None and plan.operations:
        settings["plan"] = plan_hash(plan)
    header = TraceHeader(
        moeworks=moeworks.__version__,
        model=engine.identity,
        engine=engine.engine,
        command=command,
        seed=seed,
        settings=settings,
        values=engine.values,
    )
    requests = engine.reader.read(examples, long=long, room=generate, keep_end=bool(generate))
    with (
        TraceWriter(path, header, logits=logits, sample=sample, resume=resume, overwrite=overwrite) as writer,
        Progress("recording", "texts", total=total, rated="tokens", show=progress) as bar,
    ):
        while batch := list(islice(requests, batch_size)):
            todo = [request for request in batch if not writer.skip(request.number, hash_texts([request.content]))]
            bar.advance(len(batch) - len(todo), rated=0)
            if not todo:
                continue
            keys = [f"{path.name}-{request.number}" for request in todo]
            outputs = engine.run(
                [request.tokens for request in todo],
                plan,
                prompt_tokens=[None if generate else request.prompt_tokens for request in todo],
                recordings=[Recording(key=key, logits=logits) for key in keys],
                max_tokens=max(generate, 1),
                detokenize=False,
                **options,
            )
            tokens = 0
            for request, output, kept in zip(todo, outputs, engine.take(keys), strict=True):
                new = list(output.outputs[0].token_ids)[:-1] if generate else []
                rows = recorded_rows(
                    kept,
                    [*request.tokens, *new],
                    number=request.number,
                    prompt=len(request.tokens) if generate else request.prompt_tokens,
                    given=len(request.tokens),
                )
                writer.add_request(_info(request, len(rows.rows), keep_text))
                writer.write(rows)
                tokens += len(rows.rows)
            bar.advance(len(todo), rated=tokens)
    return Trace.open(path)


def joined(ranks: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Return what several workers kept of one request as one: each pipeline rank has its own layers."""
    found = [rank for rank in ranks if rank is not None]
    if not found:
        return {"first": 0, "missing": 0, "dropped": 0, "columns": {}}
    columns = {name: values for rank in found for name, values in rank["columns"].items()}
    worst = {name: max(rank[name] for rank in found) for name in ("first", "missing", "dropped")}
    return {**worst, "columns": columns}


def recorded_rows(
    kept: dict[str, Any], tokens: Sequence[int], *, number: int = 0, prompt: int, given: int
) -> RecordedRows:
    """Return a request's decisions as rows of a trace.

    Args:
        kept: from the workers, ranks joined.
        tokens: all tokens that went through the model.
        number: of the request.
        prompt: tokens of phase prompt.
        given: tokens that were given; later ones were generated.

    Raises:
        RunFailed: rows are missing, which must never be passed over in silence.
    """
    first, n = int(kept["first"]), len(tokens)
    if kept["dropped"]:
        raise RunFailed(
            f"request {number}: {kept['dropped']} rows found no room in the worker; record fewer texts at once, "
            "without logits, or give it more memory (MOEWORKS_VLLM_RECORD_BYTES)."
        )
    columns = {name: _array(values)[: n - first] for name, values in kept["columns"].items()}
    if kept["missing"] or not columns or any(len(values) != n - first for values in columns.values()):
        raise RunFailed(f"request {number}: not all of its {n} tokens were seen; this is a fault of moeworks.")
    position = np.arange(first, n)
    phases = np.array([PHASES.index(name) for name in ("prompt", "forced", "generated")], np.uint8)
    rows = Rows(
        request=np.full(n - first, number),
        position=position,
        token=np.asarray(tokens[first:], np.int64),
        phase=phases[(position >= prompt).astype(int) + (position >= given)],
    )

    def of(kind: str) -> dict[int, Array]:
        return {int(name[1:].split(".")[0]): values for name, values in columns.items() if name.endswith(kind)}

    ids, weights = of(".ids"), of(".weights")
    if all(not values.any() for values in ids.values()) and max(v.shape[1] for v in ids.values()) > 1:
        raise RunFailed(f"request {number}: every id that was recorded is 0; this is a fault of moeworks.")
    return RecordedRows(rows=rows, ids=ids, weights=weights, logits=of(".logits") or None)


def _array(packed: Any) -> Array:
    dtype, shape, data = packed
    return np.frombuffer(data, np.dtype(dtype)).reshape(shape)


def _info(request: Prepared, tokens: int, keep_text: bool) -> RequestInfo:
    return RequestInfo(
        request=request.number,
        tokens=tokens,
        prompt_tokens=request.prompt_tokens,
        document=request.document,
        labels=request.labels,
        spans=request.spans,
        text_hash=hash_texts([request.content]),
        truncated_tokens=request.truncated,
        text=request.content if keep_text else None,
    )
