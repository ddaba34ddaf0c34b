"""The layer view: what can be asked of a trace, the rows of a diagnostic, and the curve of a cache of experts."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moeworks.errors import BadData, RunFailed, did_you_mean
from moeworks.stats.diagnostics import DIAGNOSTICS, diagnose
from moeworks.stats.sanity import refusal, sanity
from moeworks.view.kept import KEPT, trace_hash
from moeworks.view.plain import plain

if TYPE_CHECKING:
    import pyarrow as pa

    from moeworks.trace import Trace

__all__ = ["cache_rows", "layer_rows", "possible_layers"]

_NEEDS_FAST = ("srp", "sch_rolling", "sch_static", "reuse_distance")
_VALUES = 500  # a label with more values tells texts apart


def layer_rows(
    trace: Trace, what: str, *, label: str | None = None, base: str | None = None, seed: int = 0, **options: Any
) -> dict[str, Any]:
    """Return a diagnostic of a trace as plain data: the rows of `moeworks inspect TRACE --what WHAT --json`.

    Keys: `what`; `columns`, the names of the columns people look at, first, then all others; `shown`, how many of them
    that is, and for each the names of its interval's ends, if any; `rows`; `reading`, how to read them; `command`.

    Args:
        trace: the trace.
        what: name of the diagnostic, see `possible_layers`.
        label, base: see `moeworks.stats.diagnostics.diagnose`; what is not given is as `possible_layers` says.
        seed: of everything drawn.
        options: of the diagnostic.

    Raises:
        BadData: the name, label, base or an option is unknown, or the trace lacks what it needs.
        RunFailed: the trace's sanity says that numbers would be wrong.
    """
    if what not in DIAGNOSTICS:
        raise BadData(f"no diagnostic is called '{what}'; {did_you_mean(what, DIAGNOSTICS)}")
    _check_sanity(trace, what, seed)
    usual = _usual(trace, what)
    label = label or usual["label"]
    if base is None and usual["values"]:
        base = _base(what, usual["values"].get(label, []))
    key = (trace_hash(trace), "layers", what, label, base, seed, repr(sorted(options.items())))
    table = KEPT.get(key, lambda: diagnose(trace, what, label=label, base=base, seed=seed, **options))
    return {
        "what": what,
        **_columns(what, table),
        "rows": plain(table.to_pylist()),
        "reading": DIAGNOSTICS[what].reading,
        "command": _command(trace, what, label=label, base=base, seed=seed, options=options),
    }


def possible_layers(trace: Trace) -> list[dict[str, Any]]:
    """Return every diagnostic by name: whether this trace can give it, why not, and which labels it takes.

    Keys of each: `what`, `reading`, `possible`, `why_not` (empty where it is), `labels` (those it can be asked for;
    empty where it takes none), `label` (the one taken unless another is named, None where it does without), `values`
    (of each label, where one of them is a base that the others are compared with; else empty) and `base` (the one
    taken unless another is named).
    """
    return [_usual(trace, what) for what in DIAGNOSTICS]


def cache_rows(trace: Trace, *, capacity: str = "2k", seed: int = 0) -> dict[str, Any]:
    """Return the curve of a cache of experts over its capacity as plain data, see `moeworks.place.cache_curve`.

    Raises:
        BadData: the trace has fewer than two documents, or the capacity cannot be read.
    """
    from moeworks.place import CacheRules, cache_curve

    def curve() -> dict[str, Any]:
        return dict(plain(cache_curve(trace, rules=CacheRules(capacity=capacity), seed=seed).as_json()))

    found = KEPT.get((trace_hash(trace), "cache", capacity, seed), curve)
    command = ["moeworks", "place", "cache", str(trace.path)]
    command += ["--capacity", capacity] if capacity != "2k" else []
    command += ["--seed", str(seed)] if seed else []
    return {"what": "cache", **found, "command": shlex.join([*command, "--json"])}


def _check_sanity(trace: Trace, what: str, seed: int) -> None:
    if what == "sanity":
        return
    checks = KEPT.get((trace_hash(trace), "sanity", seed), lambda: sanity(trace, seed=seed))
    if reason := refusal(checks):
        raise RunFailed(reason)


def _usual(trace: Trace, what: str) -> dict[str, Any]:
    one = DIAGNOSTICS[what]
    several = KEPT.get((trace_hash(trace), "several"), lambda: _several(trace))
    labels = sorted(several) if one.takes("label") else []
    default = _default(what, "label")
    label = None
    if labels and default is not None:
        label = default if default in several else labels[0]
    values = several if one.takes("base") else {}
    why = _why_not(trace, what, several)
    return {
        "what": what,
        "reading": one.reading,
        "possible": not why,
        "why_not": why,
        "labels": labels,
        "label": label,
        "values": values,
        "base": _base(what, values.get(label, [])) if label else None,
    }


def _several(trace: Trace) -> dict[str, list[str]]:
    """Return the labels of which texts have different values, and these."""
    columns = trace.request_table().labels
    found = {name: sorted(set(columns[name].tolist()) - {""}) for name in columns if name != "document"}
    return {name: values for name, values in found.items() if 2 <= len(values) <= _VALUES}


def _default(what: str, name: str) -> str | None:
    """Return the value of a parameter that is taken unless another is given: "" where one must be, None for none."""
    one = DIAGNOSTICS[what]
    if not one.takes(name):
        return None
    default = inspect.signature(one.function).parameters[name].default
    return "" if default is inspect.Parameter.empty else default


def _base(what: str, values: Sequence[str]) -> str | None:
    default = _default(what, "base")
    return default if default in values else (values[0] if values and default is not None else None)


def _why_not(trace: Trace, what: str, several: Mapping[str, list[str]]) -> str:
    """Return why a trace cannot give a diagnostic, as far as that is known without computing it."""
    one = DIAGNOSTICS[what]
    if one.takes("checkpoints"):
        return "it compares checkpoints; give the others on the command line: moeworks inspect --checkpoint"
    if what == "task_correlation":
        return "it needs task scores by language; give them on the command line: --option scores=FILE"
    if _default(what, "label") is not None and not several:
        return "no label has two values or more; record texts that are labelled, as with lang"
    if what in ("coactivation", "chunk_sparsity") and all(
        trace.header.shape_of(layer).top_k == 1 for layer in trace.layers
    ):
        return "every layer runs one expert a token"
    if what in ("paths", "transitions") and len(trace.layers) < 2:
        return "it follows tokens from layer to layer; the trace has one"
    if what == "u_shape" and len(trace.layers) < 3:
        return "a U has two ends and a middle; the trace has fewer than three layers"
    if what in _NEEDS_FAST:
        from importlib.util import find_spec

        if find_spec("numba") is None:
            return "it needs numba; install it with: pip install 'moeworks[fast]'"
    return ""


def _columns(what: str, table: pa.Table) -> dict[str, Any]:
    shown: dict[str, list[str]] = {}
    for column in DIAGNOSTICS[what].columns:
        name, _, ends = column.partition(" [")
        shown[name] = ends.rstrip("]").split()
    others = [name for name in table.column_names if name not in shown]
    return {"columns": [*shown, *others], "shown": [{"name": name, "ends": ends} for name, ends in shown.items()]}


def _command(
    trace: Trace, what: str, *, label: str | None, base: str | None, seed: int, options: Mapping[str, Any]
) -> str:
    words = ["moeworks", "inspect", str(trace.path), "--what", what]
    for name, value in (("label", label), ("base", base), ("seed", seed or None)):
        words += [f"--{name}", str(value)] if value is not None else []
    for name, value in options.items():
        words += ["--option", f"{name}={value}"]
    return shlex.join([*words, "--json"])
