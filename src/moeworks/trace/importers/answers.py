"""Makes a trace of the answers of a vLLM or SGLang server that was asked to return routed experts."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks import __version__
from moeworks.artefact import EngineIdentity, ModelIdentity, hash_texts
from moeworks.errors import BadData
from moeworks.lines import Problems, json_rows, open_bytes
from moeworks.trace.files import new_folder
from moeworks.trace.format import RecordedRows, TraceHeader
from moeworks.trace.importers.layers import fit_layers
from moeworks.trace.reader import Trace
from moeworks.trace.requests import RequestInfo
from moeworks.trace.writer import TraceWriter
from moeworks.where import PHASES, Rows

__all__ = ["FORMATS", "import_answers"]

Array = NDArray[Any]
Format = Literal["vllm", "sglang"]
FORMATS: tuple[Format, ...] = ("vllm", "sglang")
PROMPT, GENERATED = PHASES.index("prompt"), PHASES.index("generated")


class _Answer(NamedTuple):
    """One answer: token ids, routes, and what else is known of it."""

    prompt: list[int]
    generated: list[int]
    routes: Array  # (n, layers, slots) or (n, layers * slots)
    start: int  # position of the first row
    document: str
    labels: dict[str, str]


def import_answers(
    source: str | Path,
    path: str | Path,
    *,
    model: ModelIdentity,
    format: Format,
    version: str = "",
    dtype: str = "",
) -> Trace:
    """Write a trace of a JSONL file of answers, one a line, and open it.

    `vllm`: completions or chat completions with `return_token_ids` and routed experts switched on (base64 of a .npy
    file in `choices[].routed_experts`; each choice becomes a request), or objects with `prompt_token_ids`, `token_ids`
    and `routed_experts`; `routed_experts_prompt_start` says how many tokens of the prompt have no row.
    `sglang`: objects with `input_ids`, `output_ids` and `meta_info.routed_experts` (base64 of raw int32), and
    `routed_experts_start_len`. In both the last token has no row, since nothing was computed after it. Every line may
    have `document` and `labels`.

    What such a source lacks, and the trace with it: combine weights (the columns hold NaN), logits, the rows of dense
    layers, and layers for multi-token prediction.

    Args:
        source: the file, plain or gzip.
        path: folder of the trace.
        model: whose answers they are, for instance `Trace.open(…).header.model` or `load("…").identity`.
        format: which engine wrote them.
        version, dtype: of that engine, for the header.

    Raises:
        BadData: with every line that is not such an answer, or whose routes are not the model's.
    """
    engine = EngineIdentity(name=format, version=version, dtype=dtype)
    header = TraceHeader(
        moeworks=__version__, model=model, engine=engine, lacks=("weights",), settings={"imported": format}
    )
    problems = Problems(str(source))
    for _ in _answers(source, model, format, problems):
        pass  # read once to find all problems before anything is written
    problems.raise_if_any()
    with new_folder(Path(path)) as folder, TraceWriter(folder, header) as writer:
        for number, (answer, routes) in enumerate(_answers(source, model, format, problems)):
            _write(writer, number, answer, routes)
    return Trace.open(path)


def _answers(
    source: str | Path, model: ModelIdentity, format: Format, problems: Problems
) -> Iterator[tuple[_Answer, dict[int, Array]]]:
    with open_bytes(source) as stream:
        for number, row in json_rows(stream, problems):
            for part in _choices(row):
                try:
                    answer = _answer(part, format)
                    yield answer, fit_layers(answer.routes, model)
                except BadData as error:
                    problems.add(f"line {number}", error)


def _choices(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield each choice of an answer with what is said of all of them; a field that is null in a choice is not said."""
    choices = row.get("choices")
    if not isinstance(choices, list):
        yield row
        return
    for choice in choices:
        said = choice if isinstance(choice, Mapping) else {}
        yield {**row, **{name: value for name, value in said.items() if value is not None}}


def _answer(row: Mapping[str, Any], format: Format) -> _Answer:
    if format == "vllm":
        prompt, generated = _tokens(row, "prompt_token_ids"), _tokens(row, "token_ids")
        start = row.get("routed_experts_prompt_start", 0)
        encoded = row.get("routed_experts")
    else:
        prompt, generated = _tokens(row, "input_ids"), _tokens(row, "output_ids")
        start = row.get("routed_experts_start_len", 0)
        encoded = _mapping(row, "meta_info").get("routed_experts")
    if not isinstance(encoded, str):
        raise BadData("no routed experts in the answer; switch them on in the server and in the request")
    if not isinstance(start, int) or start < 0:
        raise BadData(f"the first row is at position {start!r}; that has to be a number from 0 on")
    rows = len(prompt) + len(generated) - 1 - start
    if rows < 1:
        raise BadData(f"{len(prompt)} and {len(generated)} tokens from position {start} on leave no row")
    routes = _decode(encoded, format, rows)
    if len(routes) != rows:
        raise BadData(
            f"{len(routes)} rows of routes for {len(prompt)} prompt and {len(generated)} generated tokens from "
            f"position {start} on, which make {rows}: the last token has none"
        )
    labels = {str(name): str(value) for name, value in _mapping(row, "labels").items()}
    return _Answer(prompt, generated, routes, start, str(row.get("document") or ""), labels)


def _mapping(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = row.get(name) or {}
    if not isinstance(found, Mapping):
        raise BadData(f"'{name}' is {found!r}, not an object")
    return found


def _tokens(row: Mapping[str, Any], name: str) -> list[int]:
    found = row.get(name)
    if not isinstance(found, list) or not all(isinstance(token, int) and 0 <= token < 2**31 for token in found):
        raise BadData(f"no list of token ids in '{name}'; ask the server for token ids")
    return found


def _decode(encoded: str, format: Format, rows: int) -> Array:
    try:
        raw = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise BadData(f"routed experts are not base64: {error}") from None
    if format == "vllm":
        try:
            array = np.load(io.BytesIO(raw), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise BadData(f"routed experts are not a .npy file: {error}") from None
        if array.ndim != 3 or array.dtype.kind not in "iu":
            raise BadData(f"routed experts are {array.dtype} of shape {array.shape}, not ids (tokens, layers, slots)")
        return np.asarray(array)
    flat = np.frombuffer(raw, "<i4") if len(raw) % 4 == 0 else np.zeros(0, np.int32)
    if not len(flat) or len(flat) % rows:
        raise BadData(f"{len(raw)} bytes of routed experts are not int32 ids for {rows} rows")
    return flat.reshape(rows, -1)  # (n, layers * slots): the model tells them apart


def _write(writer: TraceWriter, number: int, answer: _Answer, routes: Mapping[int, Array]) -> None:
    tokens = [*answer.prompt, *answer.generated][:-1]
    position = np.arange(answer.start, len(tokens))  # (n,)
    prompt = min(len(answer.prompt), len(tokens))
    writer.add_request(
        RequestInfo(
            request=number,
            tokens=len(tokens),
            prompt_tokens=prompt,
            first_position=answer.start,
            document=answer.document,
            labels=answer.labels,
            text_hash=hash_texts([",".join(map(str, tokens))]),
        )
    )
    writer.write(
        RecordedRows(
            rows=Rows(
                np.full(len(position), number),
                position,
                np.array(tokens)[position],
                np.where(position < prompt, PROMPT, GENERATED).astype(np.uint8),
            ),
            ids=routes,
            weights={layer: np.full(ids.shape, np.nan, np.float32) for layer, ids in routes.items()},
        )
    )
