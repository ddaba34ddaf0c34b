"""The journal of an unfinished trace: which parts are whole, so that a killed recording goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from moeworks.artefact import problems_of, replace_file
from moeworks.errors import BadTrace
from moeworks.trace.format import FORMAT, HEADER, PROGRESS, REQUESTS, VERSION, FileRecord, TraceHeader, read_document

__all__ = [
    "Chunk",
    "Progress",
    "clean",
    "differences",
    "is_temporary",
    "read_progress",
    "resume_problems",
    "save_progress",
]


class Chunk(BaseModel):
    """One finished part with the requests whose rows it holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: FileRecord
    requests: FileRecord
    tokens: int
    truncated_tokens: int
    left_out: int = 0  # of the tokens, those before the first row of their request


class Progress(BaseModel):
    """The whole journal; it is replaced as one file after each part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["moeworks.trace"] = FORMAT
    version: int = VERSION
    moeworks: str
    header: TraceHeader
    chunks: tuple[Chunk, ...] = ()


def save_progress(folder: Path, progress: Progress) -> None:
    """Replace the journal."""
    with replace_file(folder / PROGRESS) as temporary:
        temporary.write_text(progress.model_dump_json(indent=1) + "\n", encoding="utf-8")


def resume_problems(before: TraceHeader, now: TraceHeader) -> list[str]:
    """Return in words what keeps a recording with header `now` from going on with that of `before`."""
    return differences(
        before, now, ("settings", "layers", "weights", "logits", "sample", "seed", "text_hash", "engine")
    )


def read_progress(folder: Path) -> Progress:
    """Return the journal, up to the first part that is not on disk as it was written.

    Raises:
        BadTrace: the journal is altered or of another version.
    """
    path = folder / PROGRESS
    try:
        progress = Progress.model_validate(read_document(path))
    except ValidationError as error:
        raise BadTrace(f"{path} is altered: {problems_of(error)}; delete the folder and record again.") from None
    whole = 0
    for chunk in progress.chunks:
        files = ((folder / record.name, record.bytes) for record in (chunk.part, chunk.requests))
        if not all(file.is_file() and file.stat().st_size == size for file, size in files):
            break
        whole += 1
    return progress.model_copy(update={"chunks": progress.chunks[:whole]})


def differences(before: TraceHeader, now: TraceHeader, names: Sequence[str]) -> list[str]:
    """Return in words how two headers differ in the named fields and in the model, its name apart."""
    found: list[str] = []
    for name in names:
        _compare(name, getattr(before, name), getattr(now, name), found)
    if before.model is not None and now.model is not None:
        for name in ("family", "weight_hash", "tokenizer_hash", "layers"):
            what = "model shape or contract" if name == "layers" else f"model {name}"
            _compare(what, getattr(before.model, name), getattr(now.model, name), found)
    return found


def _compare(name: str, before: Any, now: Any, found: list[str]) -> None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            _compare(f"{name}.{key}", before.get(key), now.get(key), found)
    elif before != now:
        found.append(f"{name} is {_short(before)} there and {_short(now)} here")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def is_temporary(path: Path) -> bool:
    """Whether this is a file that was never finished, left by a process that was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def clean(folder: Path, *, everything: bool = False, keep: frozenset[str] = frozenset()) -> None:
    """Remove what an unfinished trace leaves behind except `keep`; with `everything`, the whole trace first."""
    patterns = ["part-*.arrow", "requests-*.arrow", ".*.tmp"]
    if everything:
        (folder / HEADER).unlink(missing_ok=True)  # first, so that what is left is not taken for a whole trace
        patterns += [REQUESTS, PROGRESS]
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.name not in keep:
                path.unlink()
