"""What a page shows: traces, scores, plans, studies and leagues by a short id, and the engine of a model, or none."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from moeworks.contract_words import describe
from moeworks.errors import BadData, MoeworksError, Unsupported, did_you_mean
from moeworks.plan.protected import known_super_experts
from moeworks.trace import Trace
from moeworks.view.decoding import Decoder, decoder_for, decoder_of_file
from moeworks.view.kept import KEPT, trace_hash
from moeworks.view.refusals import NotThere
from moeworks.where import PHASES

if TYPE_CHECKING:
    from moeworks.artefact import LayerShape, ModelIdentity
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.unembedding import Unembedding
    from moeworks.find import Scores
    from moeworks.plan import Plan

__all__ = ["Kind", "Sources"]

Kind = Literal["trace", "scores", "plan", "study", "league"]
T = TypeVar("T")
_VALUES = 500  # values of a label that are listed with their counts
_SCORES = (".arrow", ".scores")


class Sources:
    """Everything a page can show. Ids are unique over all kinds, stable, and safe in URLs.

    An id is the name of the folder or file without its ending; where that is taken, with -2 and so on at its end.
    """

    def __init__(
        self,
        paths: Iterable[str | Path] = (),
        *,
        engine: Engine | None = None,
        tokenizer: str | Path | None = None,
        probes: Iterable[str] | None = None,
    ) -> None:
        """Open everything that is named.

        Args:
            paths: traces' folders, scores files, plans, studies' folders, leagues, or folders that hold such.
            engine: of the model that the page may generate with, record and evaluate; None for files alone.
            tokenizer: folder or tokenizer.json of traces whose own is not found.
            probes: names of probes that evidence can be asked for; None for the built-in ones where there is an engine.

        Raises:
            MoeworksError: a path is nothing that a page can show, or is altered.
        """
        self.engine = engine
        self.unembedding = None if engine is None else _unembedding(engine)  # read before anything else runs
        self._tokenizer = tokenizer
        self._probes = None if probes is None else list(probes)
        self._lock = threading.RLock()
        self._traces: dict[str, Trace] = {}
        self._scores: dict[str, Scores] = {}
        self._plans: dict[str, Plan] = {}
        self._files: dict[Literal["study", "league"], dict[str, Path]] = {"study": {}, "league": {}}
        self._names: dict[str, str] = {}  # id → what a person sees
        self._paths: dict[str, Path] = {}  # id of scores → their file, if they have one
        for path in paths:
            self.add(path)

    def add(self, path: str | Path) -> list[str]:
        """Open a file or folder and return the ids of what was in it.

        Raises:
            BadData: it is nothing that a page can show.
        """
        source = Path(path)
        if not source.exists():
            raise BadData(f"there is no file or folder {source}.")
        kind = _kind_of(source)
        if kind is not None:
            return [self._open(kind, source)]
        inside = sorted(one for one in source.iterdir() if _kind_of(one) is not None) if source.is_dir() else []
        if not inside:
            raise BadData(
                f"{source} is nothing that a page shows: give a trace's folder, a scores file, a plan, a study's "
                "folder or a league.json."
            )
        return [self._open(_kind_of(one) or "trace", one) for one in inside]

    def add_trace(self, trace: Trace, *, name: str = "") -> str:
        """Add an open trace and return its id."""
        return self._put(self._traces, trace, name or trace.path.name)

    def add_scores(self, scores: Scores, *, name: str) -> str:
        """Add scores and return their id."""
        return self._put(self._scores, scores, name)

    def add_plan(self, plan: Plan, *, name: str) -> str:
        """Add a plan and return its id."""
        return self._put(self._plans, plan, name)

    def remove(self, id: str) -> None:
        """Take something off the page; its files stay."""
        with self._lock:
            for group in self._groups().values():
                if id in group:
                    del group[id]
                    del self._names[id]
                    self._paths.pop(id, None)
                    return
        raise NotThere(f"there is nothing called '{id}'; {did_you_mean(id, self._names)}")

    def trace(self, id: str) -> Trace:
        """Return a trace by its id; NotThere if there is none. So do `scores`, `plan`, `study` and `league`."""
        return self._get(self._traces, id, "trace")

    def scores(self, id: str) -> Scores:
        """Return scores by their id."""
        return self._get(self._scores, id, "scores file")

    def plan(self, id: str) -> Plan:
        """Return a plan by its id."""
        return self._get(self._plans, id, "plan")

    def study(self, id: str) -> Path:
        """Return the path of a study's `study.json`; its `report.html` stands beside it."""
        return self._get(self._files["study"], id, "study")

    def league(self, id: str) -> Path:
        """Return the path of a `league.json`."""
        return self._get(self._files["league"], id, "league")

    def ids(self, kind: Kind) -> list[str]:
        """Return the ids of one kind, in the order in which they were added."""
        with self._lock:
            return list(self._groups()[kind])

    def _groups(self) -> dict[Kind, dict[str, Any]]:
        return {
            "trace": self._traces,
            "scores": self._scores,
            "plan": self._plans,
            "study": self._files["study"],
            "league": self._files["league"],
        }

    def name(self, id: str) -> str:
        """Return what a person sees in place of an id."""
        return self._get(self._names, id, "source")

    def decoder(self, id: str) -> Decoder:
        """Return the decoder of a trace's tokens; one with a reason where there is no tokenizer."""
        model = self.trace(id).header.model
        if (
            self.engine is not None
            and model is not None
            and self.engine.identity.tokenizer_hash == model.tokenizer_hash
        ):
            tokenizer = getattr(self.engine, "tokenizer", None)
            return KEPT.get(("engine's decoder", model.tokenizer_hash), lambda: decoder_for(model, tokenizer=tokenizer))
        found = decoder_for(model)
        if found.reason and self._tokenizer is not None and model is not None:
            path, expected = str(self._tokenizer), model.tokenizer_hash
            return KEPT.get(("decoder", path, expected), lambda: decoder_of_file(path, tokenizer_hash=expected))
        return found

    def engine_of(self, id: str) -> Engine | None:
        """Return the engine if it runs the very model of a trace, else None."""
        model = self.trace(id).header.model
        if self.engine is None or model is None or self.engine.identity.weight_hash != model.weight_hash:
            return None
        return self.engine

    def as_json(self) -> dict[str, Any]:
        """Return everything that there is, as the page lists it."""
        from moeworks import __version__

        with self._lock:
            traces, scores, plans = dict(self._traces), dict(self._scores), dict(self._plans)
            files = {kind: list(group) for kind, group in self._files.items()}
        runs = self.engine is not None
        return {
            "version": __version__,
            "model": None if self.engine is None else _model(self.engine),
            "traces": [self._trace_json(id, trace) for id, trace in traces.items()],
            "scores": [self._scores_json(id, one, traces) for id, one in scores.items()],
            "plans": [self._plan_json(id, plan) for id, plan in plans.items()],
            "studies": [{"id": id, "name": self._names[id]} for id in files["study"]],
            "league": [{"id": id, "name": self._names[id]} for id in files["league"]],
            "probes": self._probe_names(),
            "can": {"generate": runs, "record": runs, "evaluate": runs},
        }

    def _probe_names(self) -> list[str]:
        if self._probes is not None:
            return self._probes
        if self.engine is None:
            return []
        from moeworks.probes import probe_names

        return probe_names()

    def _trace_json(self, id: str, trace: Trace) -> dict[str, Any]:
        facts = KEPT.get((trace_hash(trace), "facts"), lambda: _facts(trace))
        return {"id": id, "name": self._names[id], "path": str(trace.path), **facts}

    def _scores_json(self, id: str, scores: Scores, traces: dict[str, Trace]) -> dict[str, Any]:
        header = scores.header
        of = (one for one, trace in traces.items() if header.text_hash and trace.header.text_hash == header.text_hash)
        return {
            "id": id,
            "name": self._names[id],
            "path": str(self._paths[id]) if id in self._paths else None,
            "method": header.method,
            "contrast": header.contrast or (f"{header.label}={header.target}" if header.label else ""),
            "against": header.against,
            "unit": scores.unit,
            "test": header.null,
            "passing": int(scores.column("passes").sum()),
            "trace": next(of, None),
        }

    def _plan_json(self, id: str, plan: Plan) -> dict[str, Any]:
        from moeworks.plan import plan_hash

        verdict = plan.evidence.verdict if plan.evidence is not None else None
        return {"id": id, "name": self._names[id], "hash": plan_hash(plan), "verdict": verdict}

    def _open(self, kind: Kind, path: Path) -> str:
        name = path.name if path.is_dir() else path.stem
        if kind == "trace":
            return self.add_trace(Trace.open(path), name=name)
        if kind == "scores":
            from moeworks.find import Scores

            id = self.add_scores(Scores.load(path), name=name)
            self._paths[id] = path
            return id
        if kind == "plan":
            from moeworks.plan import load_plan

            return self.add_plan(load_plan(path), name=name)
        file = path / f"{kind}.json" if path.is_dir() else path
        return self._put(self._files[kind], file, file.parent.name if file.stem == kind else name)

    def _put(self, group: dict[str, T], value: T, name: str) -> str:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "source"
        with self._lock:
            id, number = stem, 2
            while id in self._names:
                id, number = f"{stem}-{number}", number + 1
            group[id], self._names[id] = value, name
            return id

    def _get(self, group: dict[str, T], id: str, what: str) -> T:
        with self._lock:
            if id not in group:
                raise NotThere(f"there is no {what} '{id}' here; {did_you_mean(id, group)}")
            return group[id]


def _kind_of(path: Path) -> Kind | None:
    """Return what a file or folder is, by its names and its first field; None if a page cannot show it."""
    if path.is_dir():
        files: tuple[tuple[str, Kind], ...] = (
            ("trace.json", "trace"), ("progress.json", "trace"), ("study.json", "study"), ("league.json", "league"),
        )  # fmt: skip
        return next((kind for file, kind in files if (path / file).is_file()), None)
    if path.suffix in _SCORES:
        return "scores"
    if path.suffix != ".json":
        return None
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict):
        return None
    header = document.get("header")
    name = document.get("format") or (header.get("format") if isinstance(header, dict) else None)
    kinds: dict[Any, Kind] = {"moeworks.plan": "plan", "moeworks.study": "study", "moeworks.league": "league"}
    # A league is written without what is as usual, its format for one.
    return kinds.get(name) or ("league" if path.name == "league.json" and name is None else None)


def _unembedding(engine: Engine) -> Unembedding | MoeworksError:
    """Return how the model reads its last residual, or why it is not to be read."""
    from moeworks.find.inside.observe import reading

    try:
        return reading(engine)
    except MoeworksError as error:
        return error
    except AttributeError:  # an engine that has no weights to read
        return Unsupported("this engine shows no weights")


def _model(engine: Engine) -> dict[str, Any]:
    model = engine.identity
    return {
        "name": model.name,
        "family": model.family,
        "dtype": engine.engine.dtype,
        "layers": [
            {**_layer(shape), "contract": describe(shape.contract) if shape.contract else shape.opaque}
            for shape in model.layers
        ],
        "protected": _protected(model),
        "hash": model.weight_hash,
    }


def _layer(shape: LayerShape) -> dict[str, int]:
    return {"layer": shape.layer, "experts": shape.experts, "top_k": shape.top_k}


def _protected(model: ModelIdentity) -> list[str]:
    record = known_super_experts(model.weight_hash)
    return [] if record is None else list(record.experts)


def _facts(trace: Trace) -> dict[str, Any]:
    """Return what the page tells of a trace, from one look at its rows and requests."""
    header, requests = trace.header, trace.request_table()
    labels, values = {}, {}
    for name in requests.labels:
        if name != "document":
            counts = Counter(one for one in requests.labels[name].tolist() if one)
            labels[name], values[name] = dict(counts.most_common(_VALUES)), len(counts)
    phases = sum(np.bincount(part.rows().phase, minlength=len(PHASES)) for part in trace.parts)
    model = header.model
    return {
        "rows": header.rows,
        "requests": len(requests),
        "layers": [_layer(header.shape_of(layer)) for layer in trace.layers],
        "labels": labels,
        "label_values": values,
        "spans": sorted(set(requests.span_name.tolist())),
        "weights": "weights" not in header.lacks,
        "logits": header.logits,
        "phases": {name: int(count) for name, count in zip(PHASES, np.atleast_1d(phases), strict=False) if count},
        "model": None if model is None else model.name,
        "weight_hash": None if model is None else model.weight_hash,
        "protected": [] if model is None else _protected(model),
        "hash": trace_hash(trace),
    }
