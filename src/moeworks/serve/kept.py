"""Routes of the last requests, kept in memory if a server is told to, and given out as a trace in a tar file."""

from __future__ import annotations

import io
import tarfile
import tempfile
import threading
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import moeworks
from moeworks.artefact import EngineIdentity, LayerShape, ModelIdentity, hash_texts
from moeworks.engines.gating import widen
from moeworks.errors import BadData
from moeworks.trace import RecordedRows, RequestInfo, TraceHeader, TraceWriter
from moeworks.where import Rows

if TYPE_CHECKING:
    from moeworks.engines.transformers.tokens import Prepared
    from moeworks.serve.plans import Chosen

__all__ = ["KeptTraces"]


class Served(Protocol):
    """What a trace says of the model and what ran it."""

    identity: ModelIdentity
    engine: EngineIdentity


@dataclass(frozen=True)
class _Kept:
    prompt: Prepared
    rows: RecordedRows
    chosen: Chosen
    size: int


class KeptTraces:
    """The routes of the last choices, within a number and within bytes; older ones are dropped."""

    def __init__(self, engine: Served, count: int, most_bytes: int) -> None:
        self.engine, self.count, self.most_bytes = engine, count, most_bytes
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, prompt: Prepared, rows: RecordedRows, chosen: Chosen) -> None:
        """Keep the routes of one choice."""
        arrays = [*rows.ids.values(), *rows.weights.values()]
        size = sum(array.nbytes for array in arrays) + 32 * len(rows.rows)
        with self._lock:
            self._kept.append(_Kept(prompt, replace(rows, logits=None), chosen, size))
            self._bytes += size
            while self._kept and (len(self._kept) > self.count or self._bytes > self.most_bytes):
                self._bytes -= self._kept.popleft().size

    def tar(self) -> bytes:
        """Return a tar file with one trace folder, `moeworks-trace`; the name of the plan is the label `plan`.

        Raises:
            BadData: nothing is kept yet.
        """
        with self._lock:
            kept = list(self._kept)
        if not kept:
            raise BadData("no request has been served since the server was started, so that there is no trace yet.")
        slots = {layer: max(one.rows.ids[layer].shape[1] for one in kept) for layer in kept[0].rows.ids}
        identity = self.engine.identity
        header = TraceHeader(
            moeworks=moeworks.__version__,
            model=identity.model_copy(update={"layers": tuple(_wider(s, slots) for s in identity.layers)}),
            engine=self.engine.engine,
            command="moeworks serve",
        )
        half = self.engine.engine.dtype == "float16"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "moeworks-trace"
            with TraceWriter(path, header, weights_dtype="float16" if half else "float32") as writer:
                for number, one in enumerate(kept):
                    writer.add_request(_info(number, one))
                    writer.write(_numbered(number, one.rows, slots))
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w") as archive:
                archive.add(path, arcname="moeworks-trace")
            return stream.getvalue()


def _wider(shape: LayerShape, slots: dict[int, int]) -> LayerShape:
    return shape.model_copy(update={"top_k": max(shape.top_k, slots.get(shape.layer, 0))})


def _info(number: int, one: _Kept) -> RequestInfo:
    return RequestInfo(
        request=number,
        tokens=len(one.rows.rows),
        prompt_tokens=len(one.prompt.tokens),
        document=str(number),
        labels={"plan": one.chosen.name or one.chosen.hash},
        spans=one.prompt.spans,
        text_hash=hash_texts([one.prompt.content]),
        truncated_tokens=0,
        text=None,
    )


def _numbered(number: int, recorded: RecordedRows, slots: dict[int, int]) -> RecordedRows:
    rows = recorded.rows
    return RecordedRows(
        rows=Rows(rows.request * 0 + number, rows.position, rows.token, rows.phase),
        ids={layer: widen(ids, slots[layer], fill=ids) for layer, ids in recorded.ids.items()},
        weights={layer: widen(weights, slots[layer]) for layer, weights in recorded.weights.items()},
    )
