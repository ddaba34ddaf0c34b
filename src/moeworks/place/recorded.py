"""Makes a load profile of the counts that SGLang's expert-distribution recorder dumps: no tokens, so no trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks import __version__
from moeworks.artefact import EngineIdentity, ModelIdentity
from moeworks.errors import BadData
from moeworks.place.profile import LayerProfile, PhaseProfile, Profile
from moeworks.stats.balance import describe_balance
from moeworks.stats.documents import BLOCKS
from moeworks.trace.importers.dump import Dump, read_dump
from moeworks.where import Phase, Where

__all__ = ["LACKS", "profile_balance", "profile_recorded"]

Array = NDArray[Any]
LACKS = ("tokens", "phases", "order", "pairs", "documents", "weights")


def profile_recorded(
    sources: str | Path | Sequence[str | Path], *, model: ModelIdentity, version: str = "", command: str = ""
) -> Profile:
    """Return the profile of dumps of counts: how often each expert ran, in blocks of neighbouring forward passes.

    Modes stat, stat_approx and per_pass; of the last, the files of several ranks are added up (with expert parallelism
    each rank counts what it was sent; with tensor parallelism alone all ranks count the same tokens, so give one). The
    file of mode stat is the sum over ranks already, so that such runs are a multiple of the true ones: shares, and what
    is made of them, do not change. Buffers hold the last passes alone (`--expert-distribution-recorder-buffer-size`).

    What such a source lacks, and the profile with it: token ids and routes, prompt and generated apart (phase "any"),
    reuse, pairs, documents, weights. `tokens` is runs / k. Blocks of passes stand for documents in intervals: texts
    that ran through several blocks make them too narrow.

    Source: `python/sglang/srt/eplb/expert_distribution.py` of SGLang 0.5, read.

    Raises:
        BadData: a dump of tokens, files of different shapes, another model's, or nothing counted.
    """
    files = [sources] if isinstance(sources, str | Path) else list(sources)
    if not files:
        raise BadData("no dump is given.")
    counts = _logical(read_dump(files[0]), model, files[0])
    for file in files[1:]:
        other = _logical(read_dump(file), model, file)
        if other.shape != counts.shape:
            raise BadData(f"{file} has counts of shape {other.shape}, {files[0]} of {counts.shape}: not of one run.")
        counts = counts + other
    counts = counts[counts.any((1, 2))]  # a circular buffer has passes that never were
    if not len(counts):
        raise BadData(f"{files[0]} counts nothing: no request ran between start and dump.")
    block = np.arange(len(counts)) * min(BLOCKS, len(counts)) // len(counts)  # (passes,)
    starts = np.flatnonzero(np.r_[True, np.diff(block) != 0])
    layers = []
    for place, shape in _places(counts, model, files[0]).items():
        blocks = np.add.reduceat(counts[:, place, : shape.experts], starts, axis=0)  # (b, E)
        runs = blocks.sum(0)
        layers.append(
            LayerProfile(
                layer=shape.layer,
                experts=shape.experts,
                top_k=shape.top_k,
                phases=(
                    PhaseProfile(
                        phase="any",
                        tokens=round(float(runs.sum()) / shape.top_k),
                        runs=tuple(runs.tolist()),
                        reuse=(),
                        first=0,
                    ),
                ),
                together=(),
                blocks=tuple(tuple(row) for row in blocks.tolist()),
            )
        )
    return Profile(
        moeworks=__version__,
        model=model,
        engine=EngineIdentity(name="sglang", version=version, dtype=""),
        command=command,
        where=Where(),
        documents=0,
        lacks=LACKS,
        layers=tuple(layers),
    )


def profile_balance(profile: Profile, *, phase: Phase | None = None, seed: int = 0) -> pa.Table:
    """Return the balance of a profile's loads: the columns of `moeworks.stats.balance` that counts can give.

    Intervals are from resampled blocks of forward passes; NaN where the profile has none (one of a trace: look at the
    trace). `batch_…` and `aux_loss` are NaN: batches are not kept, and the loss needs logits.

    Raises:
        BadData: a layer counts no run, or the profile does not tell phases apart.
    """
    lines = []
    for layer in profile.layers:
        runs = np.array(layer.blocks if layer.blocks and phase is None else [layer.runs(phase)], np.float64)  # (b, E)
        tokens = sum(one.tokens for one in layer.phases if phase is None or one.phase == phase)
        line = describe_balance(runs, tokens=tokens, top_k=layer.top_k, seed=seed)
        missing = dict.fromkeys(("batch_max_violation", "batch_low", "batch_high", "batch_chance"), float("nan"))
        lines.append(
            {"layer": layer.layer, "phase": phase or "all", **line, **missing, "batches": 0, "aux_loss": float("nan")}
        )
    return pa.Table.from_pylist(lines)


def _logical(dump: Dump, model: ModelIdentity, file: str | Path) -> Array:
    """Return counts of logical experts, (passes, layers, E)."""
    if dump.mode == "per_token":
        raise BadData(f"{file} has the experts of every token: make a trace of it with `moeworks trace import`.")
    if dump.mode == "counts":
        return dump.counts
    experts = max(shape.experts for shape in model.layers)
    passes, layers, slots = dump.counts.shape
    if dump.map is None or dump.map.shape != (layers, slots):
        raise BadData(f"{file} has no map of its {layers} × {slots} slots to experts.")
    if dump.map.min() < 0 or dump.map.max() >= experts:
        raise BadData(f"{file}: the map names expert {dump.map.max()}, {model.name} has {experts}.")
    found = np.zeros((passes, layers, experts), np.int64)
    for layer in range(layers):
        for slot in range(slots):  # two slots may hold one expert
            found[:, layer, dump.map[layer, slot]] += dump.counts[:, layer, slot]
    return found


def _places(counts: Array, model: ModelIdentity, file: str | Path) -> dict[int, Any]:
    """Return row of the layer axis → router, and refuse what is another model's."""
    width, experts = counts.shape[1:]
    last = model.layers[-1].layer
    if width > last:
        places = {shape.layer: shape for shape in model.layers}
        filled = [place for place in range(width) if place not in places and counts[:, place].any()]
        if filled:
            raise BadData(
                f"{file}: layers {', '.join(map(str, filled))} count runs, but {model.name} has no router there."
            )
    elif width == len(model.layers):
        places = dict(enumerate(model.layers))
    else:
        raise BadData(
            f"{file} has {width} layers; {model.name} has {len(model.layers)} routers, the last in layer {last}."
        )
    for place, shape in places.items():
        if experts < shape.experts or counts[:, place, shape.experts :].any():
            raise BadData(f"{file} counts {experts} experts in layer {shape.layer}; {model.name} has {shape.experts}.")
        if not counts[:, place].any():
            raise BadData(f"{file} counts nothing in layer {shape.layer}: the recorder does not see this router.")
    return places
