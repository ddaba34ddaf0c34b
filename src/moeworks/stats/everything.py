"""Every diagnostic that a trace has data for, in reading order; of the others, the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
    say: Callable[[str], None] = lambda _: None,
) -> list[Told]:
    """Return every diagnostic of a trace in reading order.

    Args:
        trace: the trace.
        where: which tokens and layers count.
        label: label whose values are told apart; `choose_label` unless given.
        base: value that the others are compared with; en if there is such texts, else the most frequent, unless given.
        checkpoints: step → trace, of saturation and drift.
        options: of all diagnostics that take one of that name, such as `sample`.
        seed: of all that is drawn.
        names: only these.
        say: gets the name of each before it runs.

    Raises:
        RunFailed: the trace fails a check that makes numbers wrong. BadData: an unknown name or label.
    """
    for name in names or ():
        if name not in DIAGNOSTICS:
            raise BadData(f"no diagnostic is called '{name}'; {did_you_mean(name, DIAGNOSTICS)}")
    chosen = choose_label(trace, label)
    start = base if base is not None or not chosen else _base(trace, chosen)
    told: list[Told] = []
    checks = diagnose(trace, "sanity", where=where, seed=seed)
    if reason := refusal(checks):
        raise RunFailed(reason)
    for what in (name for group in READING_ORDER.values() for name in group if names is None or name in names):
        one, begin = DIAGNOSTICS[what], time.monotonic()
        say(what)
        given: dict[str, Any] = {name: value for name, value in (options or {}).items() if name in one.options}
        given |= {"label": chosen} if one.takes("label") and chosen else {}
        given |= {"base": start} if one.takes("base") and start else {}
        table, why = None, ""
        if what == "sanity":
            table = checks
        elif one.takes("checkpoints") and not checkpoints:
            why = "needs another trace of the same text"
        elif one.takes("label") and not chosen and what not in ("srp", "drops"):
            why = "needs texts with a label of two values or more"
        else:
            given |= {"checkpoints": checkpoints} if one.takes("checkpoints") else {}
            try:
                table = diagnose(trace, what, where=where, seed=seed, **given)
            except (BadData, MissingExtra, Unsupported) as error:
                why = str(error).rstrip(".")
        told.append(
            Told(
                what,
                table,
                why,
                given.get("label", "") if table is not None else "",
                given.get("base", "") if table is not None else "",
                time.monotonic() - begin,
            )
        )
    return told


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
