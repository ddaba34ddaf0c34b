"""Makes a trace of a per_token dump of SGLang's expert-distribution recorder, whose passes name no request."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks import __version__
from moeworks.artefact import EngineIdentity, ModelIdentity, hash_texts
from moeworks.errors import BadData
from moeworks.trace.files import new_folder
from moeworks.trace.format import RecordedRows, TraceHeader
from moeworks.trace.importers.dump import Dump, read_dump
from moeworks.trace.importers.layers import fit_layers
from moeworks.trace.importers.passes import Joined, join_passes
from moeworks.trace.reader import Trace
from moeworks.trace.requests import RequestInfo
from moeworks.trace.writer import TraceWriter
from moeworks.where import PHASES, Rows

__all__ = ["import_recorder", "logical_of"]

Array = NDArray[Any]
UNLINKED = "unlinked"


def import_recorder(
    source: str | Path, path: str | Path, *, model: ModelIdentity, version: str = "", dtype: str = ""
) -> Trace:
    """Write a trace of one rank's dump in mode `per_token`, and open it.

    A dump has the experts of every token, but forward passes in place of requests. Each sequence of a prefill pass
    becomes a text (a prompt in several chunks becomes several; one behind a cached prefix starts at its position). A
    decoded token goes on the text whose next position it has, where that is certain: as many open texts as tokens of
    this position, in the order of the batch, which the scheduler keeps; a text that a decode pass leaves out is over.
    Where it is not certain, the token becomes a text of one token; all such have the label `linked=no` and are one
    document, so that intervals do not take them for independent. Start the recorder before the first request.

    What such a source lacks, and the trace with it: combine weights (NaN), logits, labels and documents, rows of dense
    layers. Ids are those of logical experts by the map at the time of the dump: after a rebalancing, passes before it
    are mapped wrongly, which nothing in the file tells. The recorder keeps 8 slots a token and pads with -1.

    Not for servers with data-parallel attention (a rank's file then holds other ranks' experts in its first rows) or
    speculative decoding (drafts are refused). Shared experts fused into routed ones are taken off.

    Source: `eplb/expert_distribution.py` and `model_executor/forward_batch_info.py` of SGLang 0.5, read; no file of a
    running server was at hand.

    Raises:
        BadData: the dump is of another mode, holds passes of another kind, or its routes are not the model's.
    """
    dump = read_dump(source)
    if dump.mode != "per_token":
        raise BadData(
            f"{source} holds counts of {'passes' if dump.mode == 'per_pass' else 'all tokens together'} and no token: "
            "it makes a load profile, not a trace. Write one with `moeworks place profile FILE --like MODEL`, or "
            "record with --expert-distribution-recorder-mode per_token."
        )
    joined = join_passes(dump.records, str(source))
    routes = fit_layers(_routes(dump, model, str(source)), model)
    settings = {"imported": "sglang-recorder", "unlinked": joined.unlinked}
    engine = EngineIdentity(name="sglang", version=version, dtype=dtype)
    header = TraceHeader(moeworks=__version__, model=model, engine=engine, lacks=("weights",), settings=settings)
    texts = _Texts(*_sorted(joined))
    with new_folder(Path(path)) as folder, TraceWriter(folder, header) as writer:
        _write(writer, texts, routes)
    return Trace.open(path)


def logical_of(ids: Array, placed: Array | None) -> Array:
    """Return logical experts of physical slots: ids (n, layers, k), map (layers, slots); -1 and ids beyond stay."""
    if placed is None:
        return ids
    layers, slots = placed.shape
    if ids.shape[1] != layers:
        raise BadData(f"the map has {layers} layers, the routes have {ids.shape[1]}.")
    inside = (ids >= 0) & (ids < slots)
    found = placed[np.arange(layers)[None, :, None], np.where(inside, ids, 0)]
    return np.asarray(np.where(inside, found, ids))


def _routes(dump: Dump, model: ModelIdentity, source: str) -> Array:
    """Return (n, layers, slots) logical ids: zeros in dense layers, padding taken off."""
    stacked = [one["topk_ids_of_layer"].transpose(1, 0, 2) for one in dump.records]  # (T, L, 8)
    if len({one.shape[1:] for one in stacked}) != 1:
        raise BadData(f"{source}: the passes have different numbers of layers.")
    ids = np.concatenate(stacked)
    top_k = max(shape.top_k for shape in model.layers)
    if ids.shape[2] < top_k:
        raise BadData(
            f"{source} has {ids.shape[2]} slots a token, {model.name} takes {top_k}: the recorder cannot hold them."
        )
    used = max(top_k, int((ids >= 0).any((0, 1)).sum()))
    ids = logical_of(ids[..., :used], dump.map)
    dense = (ids < 0).all((0, 2))  # (L,)
    ids[:, dense] = 0
    beyond = max(shape.experts for shape in model.layers)
    ids[..., top_k:][ids[..., top_k:] < 0] = beyond  # a slot of no expert, as a fused shared expert's
    if (ids < 0).any():
        layer = int(np.flatnonzero((ids < 0).any((0, 2)))[0])
        raise BadData(
            f"{source}: layer {layer} has tokens with fewer than {top_k} experts (-1 in their slots); the model takes "
            f"{top_k}, or rows of padding were recorded."
        )
    return np.asarray(ids)


class _Texts(NamedTuple):
    order: Array  # (n,) rows of the dump, text by text, by position
    text: Array  # (n,) 0, 1, … in that order
    position: Array
    token: Array
    generated: Array
    linked: Array  # (texts,)


def _sorted(joined: Joined) -> tuple[Array, Array, Array, Array, Array, Array]:
    order = np.lexsort((joined.position, joined.text))
    text = joined.text[order]
    gap = (np.diff(text) == 0) & (np.diff(joined.position[order]) != 1)
    assert not gap.any(), "a text was joined from positions that do not follow one another"
    return order, text, joined.position[order], joined.token[order], joined.generated[order], joined.linked


def _write(writer: TraceWriter, texts: _Texts, routes: dict[int, Array]) -> None:
    starts = np.flatnonzero(np.r_[True, np.diff(texts.text) != 0])
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(texts.text)], strict=True)):
        here = slice(int(start), int(stop))
        position, token, generated = texts.position[here], texts.token[here], texts.generated[here]
        begin = int(position[0])
        linked = bool(texts.linked[number])
        writer.add_request(
            RequestInfo(
                request=number,
                tokens=begin + len(position),
                prompt_tokens=begin + int((~generated).sum()),
                first_position=begin,
                document="" if linked else UNLINKED,
                labels={"linked": "yes" if linked else "no"},
                text_hash=hash_texts([",".join(map(str, token.tolist()))]),
            )
        )
        phase = np.where(generated, PHASES.index("generated"), PHASES.index("prompt")).astype(np.uint8)
        rows = texts.order[here]
        ids = {layer: all_ids[rows] for layer, all_ids in routes.items()}
        writer.write(
            RecordedRows(
                rows=Rows(np.full(len(position), number), position, token, phase),
                ids=ids,
                weights={layer: np.full(chosen.shape, np.nan, np.float32) for layer, chosen in ids.items()},
            )
        )
