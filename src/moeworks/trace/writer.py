"""Writes a trace part by part with bounded memory, so that it can be killed at any moment and go on later."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import moeworks
from moeworks.errors import BadData, BadTrace, MoeworksError, RunFailed
from moeworks.trace.buffer import PartBuffer
from moeworks.trace.checks import Blocks, check_decisions, check_requests
from moeworks.trace.files import finish, map_table, part_name, write_arrow
from moeworks.trace.format import HEADER, PROGRESS, RecordedRows, TraceHeader
from moeworks.trace.progress import Chunk, Progress, clean, is_temporary, read_progress, resume_problems, save_progress
from moeworks.trace.requests import CHUNK_SCHEMA, RequestInfo, chunk_batch, sorted_batches

__all__ = ["TraceWriter"]

PART_BYTES = 64 * 2**20
Array = NDArray[Any]


class TraceWriter:
    """Writes the decisions of whole requests to the folder `path`.

    For each request ask `skip` when resuming, else call `add_request`, then `write` its rows (of several requests at
    once if you like). Leaving the `with` block closes the trace; leaving it by an exception keeps what is finished.

    Args:
        path: the folder; it is made.
        header: model, engine, command, seed, text hash and settings; the rest is filled in.
        logits: whether rows come with logits.
        weights_dtype: type of the weights columns; bfloat16 weights belong in float32, which holds them exactly.
        part_bytes: size of a part and of the buffer. A single request that is larger makes a larger part.
        sample: share of rows to keep, chosen by a hash of seed, request and position; the others are counted.
        resume: go on with an unfinished trace, if there is one.
        overwrite: replace a trace that is there, finished or not.

    Raises:
        BadTrace: the folder holds a trace already, or an unfinished one that was made in another way.
    """

    def __init__(
        self,
        path: str | Path,
        header: TraceHeader,
        *,
        logits: bool = False,
        weights_dtype: Literal["float32", "float16"] = "float32",
        part_bytes: int = PART_BYTES,
        sample: float | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        if header.model is None or not header.model.layers:
            raise BadTrace("a trace needs a model with routers in its header; a dense model has nothing to record.")
        if sample is not None and not 0 < sample <= 1:
            raise BadData(f"sample is a share of rows above 0 and up to 1, not {sample}.")
        self.path = Path(path)
        complete = header.model_copy(
            update={
                "moeworks": header.moeworks or moeworks.__version__,
                "layers": tuple(layer.layer for layer in header.model.layers),
                "weights": np.dtype(weights_dtype).name,
                "logits": logits,
                "sample": sample,
            }
        )
        self._header = TraceHeader.model_validate_json(complete.model_dump_json())  # as a resumed one reads it
        self._progress = Progress(moeworks=self._header.moeworks, header=self._header)
        self._buffer = PartBuffer(self._header, part_bytes)
        self._part_bytes = part_bytes
        self._due: dict[int, RequestInfo] = {}  # announced, rows not yet here
        self._held: list[tuple[RequestInfo, int]] = []  # in the buffer, with the number of rows kept
        self._held_bytes = 0
        self._finished = np.zeros(1024, bool)  # by request number: rows are here
        self._flushing = False
        self._closed = False
        with self._explained():
            self._start(resume, overwrite)

    # ------------------------------------------------------------------ opening and resuming

    def _start(self, resume: bool, overwrite: bool) -> None:
        whole, begun = (self.path / HEADER).is_file(), (self.path / PROGRESS).is_file()
        if overwrite and (whole or begun):
            clean(self.path, everything=True)
            whole = begun = False
        if whole:
            raise BadTrace(f"{self.path} already holds a whole trace; choose another folder or overwrite it.")
        if begun and not resume:
            raise BadTrace(f"{self.path} holds an unfinished trace; resume it (--resume) or overwrite it.")
        if begun:
            self._progress = read_progress(self.path)
            found = resume_problems(self._progress.header, self._header)
            if found:
                raise BadTrace(f"{self.path} cannot be resumed: {'; '.join(found)}.")
        elif self.path.exists() and not (self.path.is_dir() and all(map(is_temporary, self.path.iterdir()))):
            raise BadTrace(f"{self.path} is not empty and not a trace; choose another folder.")
        names = {record.name for chunk in self._progress.chunks for record in (chunk.part, chunk.requests)}
        clean(self.path, keep=frozenset(names))
        save_progress(self.path, self._progress)
        chunks = self._finished_requests()
        self._done = chunks["request"].to_numpy()
        self._done_hashes = chunks["text_hash"].to_numpy().astype("S")
        order = np.argsort(self._done, kind="stable")
        self._done, self._done_hashes = self._done[order], self._done_hashes[order]
        self._claimed = np.zeros(len(self._done), bool)
        self._mark(self._done)

    def _finished_requests(self) -> Any:
        tables = [map_table(self.path, chunk.requests) for chunk in self._progress.chunks]
        return pa.concat_tables([CHUNK_SCHEMA.empty_table(), *tables])

    @property
    def layers(self) -> tuple[int, ...]:
        """Global numbers of the layers that rows are due for."""
        return self._header.layers

    @property
    def done(self) -> Array:
        """Numbers of the requests that a resumed trace already holds, ascending."""
        return np.asarray(self._done)

    def skip(self, request: int, text_hash: str) -> bool:
        """Return whether a resumed trace already holds this request; ask for every request of the data.

        Raises:
            BadTrace: it does, but of another text.
        """
        place = int(np.searchsorted(self._done, request))
        if place == len(self._done) or self._done[place] != request:
            return False
        if self._done_hashes[place].decode() != text_hash:
            raise BadTrace(f"{self.path} cannot be resumed: request {request} was recorded from another text.")
        self._claimed[place] = True
        return True

    # ------------------------------------------------------------------ writing

    def add_request(self, info: RequestInfo) -> None:
        """Announce a request: `info.tokens` rows are due for it."""
        if info.request in self._due or (0 <= info.request < len(self._finished) and self._finished[info.request]):
            raise BadTrace(f"request {info.request} was announced before.")
        if not 0 <= info.request < 2**31:
            raise BadTrace(f"{info.request} is not a request number.")
        self._due[info.request] = info

    def write(self, recorded: RecordedRows) -> None:
        """Take the rows of one or more announced requests; each request whole, its positions ascending from its
        first.

        Arrays may be views and of wider integer types; they are copied. Full parts go to disk.

        Raises:
            BadTrace: naming what is wrong; nothing of these rows is kept.
            RunFailed: the disk is full; finished parts are kept.
        """
        if not len(recorded.rows):
            return
        blocks = check_requests(recorded.rows, self._due)
        check_decisions(recorded, self._header)
        kept, counts = self._sample(recorded, blocks)
        stops = np.cumsum(counts)  # (b,) ends of the requests among the kept rows
        infos = [self._due[number] for number in blocks.number.tolist()]
        sizes = np.cumsum(counts * self._buffer.row_bytes + [info.size for info in infos])  # (b,)
        self._mark(blocks.number)
        begin = 0
        while begin < len(infos):
            before = sizes[begin - 1] if begin else 0
            room = self._part_bytes - self._held_bytes
            end = int(np.searchsorted(sizes, before + room, side="right"))
            if end <= begin:
                if self._held:
                    self._flush()
                    continue
                end = begin + 1  # one request that is larger than a part
            here = slice(int(stops[begin - 1]) if begin else 0, int(stops[end - 1]))
            self._buffer.append(recorded, here if kept is None else kept[here])
            self._held += zip(infos[begin:end], counts[begin:end].tolist(), strict=True)
            self._held_bytes += int(sizes[end - 1] - before)
            begin = end
        for info in infos:
            del self._due[info.request]

    def _sample(self, recorded: RecordedRows, blocks: Blocks) -> tuple[Array | None, Array]:
        """Return the indices of the rows that are kept, None for all, and how many there are of each request."""
        if self._header.sample is None:
            return None, blocks.length
        keep = row_uniforms(recorded.rows.request, recorded.rows.position, self._header.seed or 0) < self._header.sample
        return np.flatnonzero(keep), np.add.reduceat(keep.astype(np.int64), blocks.start)

    def _mark(self, numbers: Array) -> None:
        largest = int(numbers.max(initial=-1))
        if largest >= len(self._finished):
            grown = np.zeros(max(largest + 1, 2 * len(self._finished)), bool)
            grown[: len(self._finished)] = self._finished
            self._finished = grown
        self._finished[numbers] = True

    def _flush(self) -> None:
        if not self._held:
            return
        self._flushing = True
        number = len(self._progress.chunks)
        infos, rows = [info for info, _ in self._held], [rows for _, rows in self._held]
        with self._explained():
            part = write_arrow(self.path / part_name(number), self._buffer.schema, [self._buffer.batch()])
            batch = chunk_batch(infos, rows)
            requests = write_arrow(self.path / f"requests-{number:05d}.arrow", CHUNK_SCHEMA, [batch])
            chunk = Chunk(
                part=part,
                requests=requests,
                tokens=sum(info.tokens for info in infos),
                truncated_tokens=sum(info.truncated_tokens for info in infos),
                left_out=sum(info.first_position for info in infos),
            )
            progress = self._progress.model_copy(update={"chunks": (*self._progress.chunks, chunk)})
            save_progress(self.path, progress)
        self._progress = progress
        self._held, self._held_bytes = [], 0
        self._buffer.clear()
        self._flushing = False

    # ------------------------------------------------------------------ closing

    def close(self) -> None:
        """Finish the trace: last part, `requests.arrow`, and `trace.json` last of all.

        Raises:
            BadTrace: rows are missing, or no text was recorded. The folder stays unfinished.
            RunFailed: the disk is full.
        """
        if self._closed:
            return
        if self._due:
            first = next(iter(self._due.values()))
            raise BadTrace(
                f"request {first.request} was announced with {first.tokens} tokens but its rows never came "
                f"({len(self._due)} such requests); the trace stays unfinished."
            )
        if not self._claimed.all():
            first_done = self._done[np.argmin(self._claimed)]
            raise BadTrace(
                f"{self.path} cannot be resumed: it holds request {first_done} already, which the data do not have."
            )
        self._flush()
        chunks = self._progress.chunks
        rows, tokens = sum(chunk.part.rows for chunk in chunks), sum(chunk.tokens for chunk in chunks)
        if not tokens:
            self._discard()
            raise BadTrace("no text was recorded: the data set is empty.")
        left_out = sum(chunk.left_out for chunk in chunks)
        due = tokens - left_out
        if rows != due and self._header.sample is None:
            raise BadTrace(f"{rows} rows were written but {due} tokens processed; the trace stays unfinished.")
        truncated = sum(chunk.truncated_tokens for chunk in chunks)
        dropped = {"sampled": due - rows} if self._header.sample is not None else {}
        dropped |= {"sliced": left_out} if left_out else {}
        dropped |= {"truncated_tokens": truncated} if truncated else {}
        update = {"parts": tuple(chunk.part for chunk in chunks), "rows": rows, "tokens": tokens, "dropped": dropped}
        with self._explained():
            schema, batches = sorted_batches(self._finished_requests())
            finish(self.path, self._header.model_copy(update=update), schema, batches)
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif not self._flushing:  # keep the requests that are whole; a flush that was cut off is not tried again
            self._buffer.rows = sum(rows for _, rows in self._held)
            self._flush()
        if not self._progress.chunks and not (self.path / part_name(0)).exists():
            self._discard()

    def _discard(self) -> None:
        """Leave nothing behind of a trace that holds nothing; there is nothing to resume."""
        clean(self.path, everything=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn a full disk into a sentence that says what is kept, and any other trouble with files into one."""
        try:
            yield
        except (OSError, MoeworksError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                if isinstance(error, OSError):
                    raise MoeworksError(f"cannot write {self.path}: {error.strerror}.") from error
                raise
            kept = sum(chunk.requests.rows for chunk in self._progress.chunks)
            raise RunFailed(
                f"no room left on the disk of {self.path} ({cause.strerror}); {kept} finished requests are kept: "
                f"make room and resume (--resume)."
            ) from cause


def row_uniforms(request: Array, position: Array, seed: int) -> Array:
    """Return a number in [0, 1) for each row, (n,), that depends on seed, request and position alone (splitmix64)."""
    state = np.asarray(request, np.uint64) << np.uint64(32) | np.asarray(position, np.uint64)
    for step in (np.uint64(seed % 2**64), np.uint64(0x9E3779B97F4A7C15)):
        state = state + step
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return np.asarray((state >> np.uint64(11)) * 2.0**-53)
