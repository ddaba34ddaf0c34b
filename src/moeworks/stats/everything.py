"""Every diagnostic that a trace has data for, in reading order; of the others, the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from moeworks.errors import BadData, MissingExtra, RunFailed, Unsupported, did_you_mean
from moeworks.stats.diagnostics import DIAGNOSTICS, diagnose
from moeworks.stats.sanity import refusal
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["READING_ORDER", "Told", "choose_label", "diagnose_all"]

READING_ORDER: Mapping[str, tuple[str, ...]] = {
    "Can the numbers be trusted?": ("sanity",),
    "How evenly are experts used?": ("balance", "drops"),
    "How sure are the routers?": ("confidence",),
    "What do experts specialise in?": (
        "specialisation", "vocabulary_specialisation", "token_dependence", "token_overlap", "position_specialisation",
        "committee", "anomalies",
    ),
    "Which experts run together?": ("coactivation",),
    "Are groups of texts routed differently?": ("divergence", "u_shape", "task_correlation"),
    "What can a cache of experts live on?": (
        "repetition", "chunk_sparsity", "reuse_distance", "srp", "sch_rolling", "sch_static", "transitions", "paths",
    ),
    "Has routing moved?": ("saturation", "drift"),
}  # fmt: skip
PREFERRED = ("lang", "domain", "side")
MOST_VALUES = 40
_LONG = (
    "token_dependence",
    "sch_rolling",
    "drift",
    "srp",
    "transitions",
    "vocabulary_specialisation",
    "reuse_distance",
)


class Told(NamedTuple):
    """One diagnostic: its table, or why there is none."""

    what: str
    table: pa.Table | None
    reason: str
    label: str  # whose values it tells apart, "" where none
    base: str
    seconds: float


def diagnose_all(
    trace: Trace,
    *,
    where: Where = Where(),
    label: str | None = None,
    base: str | None = None,
    checkpoints: Mapping[int, Trace] | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    workers: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> list[Told]:
    """Return every diagnostic of a trace in reading order.

    Args:
        trace: the trace.
        where: which tokens and layers count.
        label: label whose values are told apart; `choose_label` unless given.
        base: value that the others are compared with; en if there are such texts, else the most frequent, unless given.
        checkpoints: step → trace, of saturation and drift.
        options: of all diagnostics that take one of that name, such as `sample`.
        seed: of all that is drawn.
        names: only these.
        workers: processes that share the diagnostics; the numbers do not depend on it.
        say: gets the name of each before it runs.

    Raises:
        RunFailed: the trace fails a check that makes numbers wrong. BadData: an unknown name or label.
    """
    for name in names or ():
        if name not in DIAGNOSTICS:
            raise BadData(f"no diagnostic is called '{name}'; {did_you_mean(name, DIAGNOSTICS)}")
    chosen = choose_label(trace, label)
    start = base if base is not None or not chosen else _base(trace, chosen)
    asked = [
        _Asked(what, where, chosen, start or "", dict(options or {}), seed)
        for group in READING_ORDER.values()
        for what in group
        if what != "sanity" and (names is None or what in names)
    ]
    with ExitStack() as stack:
        running: dict[str, Future[Told]] = {}
        if workers > 1:  # begun before the checks are done, and thrown away if one fails
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            stack.callback(pool.shutdown, cancel_futures=True)
            paths = {step: str(other.path) for step, other in (checkpoints or {}).items()}
            for one in _longest_first(asked):
                running[one.what] = pool.submit(_tell_elsewhere, str(trace.path), paths, one)
        begin = time.monotonic()
        say("sanity")
        checks = diagnose(trace, "sanity", where=where, seed=seed)
        if reason := refusal(checks):
            raise RunFailed(reason)
        took = time.monotonic() - begin
        told = [Told("sanity", checks, "", "", "", took)] if names is None or "sanity" in names else []
        for one in asked:
            say(one.what)
            told.append(running[one.what].result() if running else _tell(trace, checkpoints, one))
    return told


class _Asked(NamedTuple):
    what: str
    where: Where
    label: str
    base: str
    options: dict[str, Any]
    seed: int


def _longest_first(asked: Sequence[_Asked]) -> list[_Asked]:
    """Return what takes longest first, so that no worker is left alone with it at the end."""
    return sorted(asked, key=lambda one: _LONG.index(one.what) if one.what in _LONG else len(_LONG))


def _tell_elsewhere(path: str, checkpoints: Mapping[int, str], one: _Asked) -> Told:
    """Do one diagnostic in a process of its own, which maps the trace anew."""
    from moeworks.trace import Trace

    return _tell(Trace.open(path), {step: Trace.open(other) for step, other in checkpoints.items()}, one)


def _tell(trace: Trace, checkpoints: Mapping[int, Trace] | None, asked: _Asked) -> Told:
    one, begin = DIAGNOSTICS[asked.what], time.monotonic()
    given: dict[str, Any] = {name: value for name, value in asked.options.items() if name in one.options}
    given |= {"label": asked.label} if one.takes("label") and asked.label else {}
    given |= {"base": asked.base} if one.takes("base") and asked.base else {}
    table, why = None, ""
    if one.takes("checkpoints") and not checkpoints:
        why = "needs another trace of the same text"
    elif one.takes("label") and not asked.label and asked.what not in ("srp", "drops"):
        why = "needs texts with a label of two values or more"
    else:
        given |= {"checkpoints": checkpoints} if one.takes("checkpoints") else {}
        try:
            table = diagnose(trace, asked.what, where=asked.where, seed=asked.seed, **given)
        except (BadData, MissingExtra, Unsupported) as error:
            why = str(error).rstrip(".")
    label, base = (given.get(name, "") if table is not None else "" for name in ("label", "base"))
    return Told(asked.what, table, why, label, base, time.monotonic() - begin)


def choose_label(trace: Trace, label: str | None = None) -> str:
    """Return the label whose values are told apart: the one given, else lang, domain, side or the first of few values.

    Raises:
        BadData: no text has the label given.
    """
    labels = {name: values for name, values in trace.request_table().labels.items() if name != "document"}
    if label is not None:
        if label not in labels:
            raise BadData(f"no request has a label '{label}'; {did_you_mean(label, labels)}")
        return label
    fit = [name for name, values in labels.items() if 2 <= len(set(values.tolist()) - {""}) <= MOST_VALUES]
    return next((name for name in (*PREFERRED, *fit) if name in fit), "")


def _base(trace: Trace, label: str) -> str:
    values = [value for value in trace.request_table().labels[label].tolist() if value]
    return "en" if "en" in values else max(sorted(set(values)), key=values.count, default="")
