"""The profile of a trace as one file: how hot experts are, what runs together, how soon one is used again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeworks import __version__
from moeworks.artefact import Header, problems_of, replace_file
from moeworks.errors import BadData
from moeworks.stats.counts import layers_of
from moeworks.stats.sets import check_ids
from moeworks.where import PHASES, Phase, Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["GAPS", "LayerProfile", "PhaseProfile", "Profile", "load_profile", "profile_trace", "save_profile"]

Array = NDArray[Any]
GAPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # upper ends of the bins of reuse distance, in tokens
_CELLS = 1 << 22  # of the (rows, E) arrays at a time


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PhaseProfile(_Frozen):
    """One layer in one phase."""

    phase: Phase | Literal["any"] = Field(description="any: the source did not tell phases apart")
    tokens: int = Field(ge=0, description="tokens counted")
    runs: tuple[int, ...] = Field(description="how often each expert ran, (E,)")
    reuse: tuple[int, ...] = Field(
        description="uses of an expert by the tokens since its last use in the same text: up to 1, 2, 4 … 1024 tokens, "
        "and later; empty where the source has no order"
    )
    first: int = Field(ge=0, description="uses of an expert that are its first in their text")


class LayerProfile(_Frozen):
    """One layer."""

    layer: int = Field(description="global layer number, dense layers counted")
    experts: int
    top_k: int
    phases: tuple[PhaseProfile, ...]
    together: tuple[tuple[int, ...], ...] = Field(
        description="tokens for which both experts ran, (E, E), over all phases; its diagonal is the runs; empty where "
        "the source has counts alone"
    )
    blocks: tuple[tuple[int, ...], ...] = Field(
        (),
        description="runs in groups of neighbouring forward passes, (blocks, E), where the source has passes in place "
        "of documents: the unit of uncertainty",
    )

    def runs(self, phase: Phase | None = None) -> Array:
        """Return how often each expert ran, (E,) int64, in one phase or in all.

        Raises:
            BadData: the source did not tell phases apart.
        """
        if phase is not None and any(one.phase == "any" for one in self.phases):
            raise BadData(f"this profile does not tell phases apart; leave out the phase '{phase}'.")
        counted = [np.array(one.runs) for one in self.phases if phase is None or one.phase == phase]
        return np.asarray(np.sum(counted, axis=0, dtype=np.int64)) if counted else np.zeros(self.experts, np.int64)


class Profile(Header):
    """What placement tools want to know of a model's traffic; see `moeworks.place.exports` for their formats."""

    format: Literal["moeworks.profile"] = "moeworks.profile"
    version: Literal[1] = 1
    where: Where = Field(Where(), description="tokens and layers that were counted")
    documents: int = Field(ge=0, description="documents with counted tokens; 0 where the source does not tell")
    lacks: tuple[str, ...] = Field((), description="what the source of the counts did not tell")
    layers: tuple[LayerProfile, ...]

    def counts(self, phase: Phase | None = None) -> dict[int, Array]:
        """Return how often each expert ran, layer → (E,) int64."""
        return {layer.layer: layer.runs(phase) for layer in self.layers}


def profile_trace(trace: Trace, *, where: Where = Where(), command: str = "") -> Profile:
    """Count what the profile of a trace holds; a slot of weight exactly 0 did not run.

    Raises:
        BadData: no token is selected. BadTrace: an id is not below E.
    """
    requests = trace.request_table()
    kept = where.mask(trace.rows(), requests)
    if not kept.any():
        raise BadData(f"no token matches the clause '{where}'.")
    request = trace.rows().request
    layers = []
    for layer, experts in layers_of(trace, where).items():
        found = _Counts(experts)
        begin = 0
        for part in trace.parts:
            rows = part.rows()
            taken = np.flatnonzero(kept[begin : begin + len(part)])
            ids, weights = part.ids(layer), part.weights(layer)
            step = max(1, _CELLS // experts)
            for start in range(0, len(taken), step):
                some = taken[start : start + step]
                check_ids(ids[some], experts)
                found.add(rows.request[some], rows.phase[some], ids[some].astype(np.int64), weights[some] != 0)
            begin += len(part)
        layers.append(found.profile(layer, trace.header.shape_of(layer).top_k))
    head = trace.header
    return Profile(
        moeworks=__version__,
        model=head.model,
        engine=head.engine,
        command=command,
        text_hash=head.text_hash,
        where=where,
        documents=len(np.unique(trace.documents()[np.unique(request[kept])])),
        layers=tuple(layers),
    )


def save_profile(profile: Profile, path: str | Path) -> Path:
    """Write a profile as JSON, whole or not at all."""
    target = Path(path)
    with replace_file(target) as temporary:
        temporary.write_text(profile.model_dump_json() + "\n")
    return target


def load_profile(path: str | Path) -> Profile:
    """Read a profile.

    Raises:
        BadData: no such file, not a profile, of an unknown version, or altered.
    """
    try:
        document = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror}.") from error
    except ValueError:
        raise BadData(f"{path} is no profile: it is not JSON.") from None
    if not isinstance(document, dict) or document.get("format") != "moeworks.profile":
        raise BadData(f"{path} is no profile; make one with `moeworks place profile`.")
    if document.get("version") != 1:
        raise BadData(f"{path} has version {document.get('version')} of the profile format; version 1 is read here.")
    try:
        profile = Profile.model_validate(document)
    except ValidationError as error:
        raise BadData(f"{path} is altered: {problems_of(error)}.") from None
    for layer in profile.layers:
        rows = (*(one.runs for one in layer.phases), *layer.together, *layer.blocks)
        if any(len(row) != layer.experts for row in rows) or len(layer.together) not in (0, layer.experts):
            raise BadData(f"{path} is altered: layer {layer.layer} has other numbers of experts than it says.")
    return profile


class _Counts:
    """What is counted of one layer, a few rows at a time; rows of a text stand together, ascending."""

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.tokens = np.zeros(len(PHASES), np.int64)
        self.runs = np.zeros((len(PHASES), experts), np.int64)
        self.reuse = np.zeros((len(PHASES), len(GAPS) + 1), np.int64)
        self.first = np.zeros(len(PHASES), np.int64)
        self.together = np.zeros((experts, experts))
        self.seen = 0  # rows so far
        self.text, self.text_start = -1, 0  # the last row's text and its first row
        self.last = np.full(experts, -1, np.int64)  # row of each expert's last use

    def add(self, request: Array, phase: Array, ids: Array, ran: Array) -> None:
        """Count n rows: texts and phases (n,), experts and whether they ran (n, k)."""
        count = len(request)
        row = self.seen + np.arange(count)
        used = np.zeros((count, self.experts), np.float32)
        np.put_along_axis(used, ids, ran.astype(np.float32), axis=1)
        self.together += used.T @ used
        at, expert = np.nonzero(used)
        np.add.at(self.runs, (phase[at], expert), 1)
        self.tokens += np.bincount(phase, minlength=len(PHASES))
        marked = np.where(used > 0, row[:, None], -1)  # (n, E)
        latest = np.maximum.accumulate(np.concatenate([self.last[None], marked]), axis=0)
        before = latest[:-1][at, expert]  # row of the use before this one, (uses,)
        new = np.concatenate([[request[0] != self.text], request[1:] != request[:-1]])
        start = np.maximum.accumulate(np.where(new, row, -1))
        start = np.where(start < 0, self.text_start, start)[at]
        again = before >= start
        bins = np.searchsorted(GAPS, (row[at] - before)[again])
        np.add.at(self.reuse, (phase[at][again], bins), 1)
        self.first += np.bincount(phase[at][~again], minlength=len(PHASES))
        self.last, self.seen, self.text = latest[-1], self.seen + count, int(request[-1])
        self.text_start = int(np.where(new, row, -1).max()) if new.any() else self.text_start

    def profile(self, layer: int, top_k: int) -> LayerProfile:
        """Return the counts of the phases that there were."""
        return LayerProfile(
            layer=layer,
            experts=self.experts,
            top_k=top_k,
            phases=tuple(
                PhaseProfile(
                    phase=phase,
                    tokens=int(self.tokens[n]),
                    runs=tuple(self.runs[n].tolist()),
                    reuse=tuple(self.reuse[n].tolist()),
                    first=int(self.first[n]),
                )
                for n, phase in enumerate(PHASES)
                if self.tokens[n]
            ),
            together=tuple(tuple(row) for row in self.together.astype(np.int64).tolist()),
        )
