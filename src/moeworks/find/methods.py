"""All ways to score a trace, by name: what each needs to be told, and one call for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Literal

from moeworks.errors import BadData, did_you_mean
from moeworks.find.artefact import Scores
from moeworks.find.by_label import find_by_label
from moeworks.find.contrast import find
from moeworks.find.markers import find_markers
from moeworks.find.numbers import find_correlated
from moeworks.find.scores import GROUP_SCORES, SCORES
from moeworks.find.scores.base import traits_of
from moeworks.find.stable import select_stable

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["NEEDED_OPTIONS", "Needs", "TraceMethod", "find_method", "trace_methods"]

Needs = Literal["sides", "side", "label", "number", "markers"]


@dataclass(frozen=True)
class TraceMethod:
    """A method by name, and the ways in which it can be asked; the first is the usual one."""

    name: str
    needs: tuple[Needs, ...]  # two sides, one side (the other optional), a label, a label of numbers, markers
    reads: Literal["runs", "weights", "probabilities"]  # probabilities need recorded logits


def trace_methods() -> dict[str, TraceMethod]:
    """Return every method that scores a trace, those of installed packages included, by name."""
    found: dict[str, TraceMethod] = {}
    for name in SCORES.names():
        traits = traits_of(SCORES.get(name))
        found[name] = TraceMethod(name, ("side",) if traits.one_sided else ("sides",), traits.reads)
    for name in GROUP_SCORES.names():
        before = found[name].needs if name in found else ()
        found[name] = TraceMethod(name, (*before, "label"), traits_of(GROUP_SCORES.get(name)).reads)
    found["npmi"] = TraceMethod("npmi", ("markers", "sides"), "runs")
    found["pearson"] = TraceMethod("pearson", ("number",), "weights")
    found["stability_selection"] = TraceMethod("stability_selection", ("sides",), "runs")
    return dict(sorted(found.items()))


def find_method(
    trace: Trace,
    *,
    method: str = "risk_difference",
    contrast: Any = None,
    against: Any = None,
    label: str | None = None,
    target: str | None = None,
    markers: Mapping[str, float] | None = None,
    **arguments: Any,
) -> Scores:
    """Score a trace by any method, from whichever of sides, label or markers it needs.

    Args:
        trace: the trace.
        method: a name of `trace_methods()`.
        contrast, against: the two sides; `against` may be left out for a method of one side.
        label, target: a label, and the value of it that is asked for.
        markers: clause → sign, for `npmi`.
        arguments: everything else of the method's own function; what is None is left to it.

    Raises:
        BadData: what the method needs was not given, or something that it does not take was.
    """
    known = trace_methods()
    if method not in known:
        raise BadData(f"no method for a trace is called '{method}'; {did_you_mean(method, known)}")
    given = {name for name, value in (("markers", markers), ("label", label), ("sides", contrast)) if value}
    ways = {{"side": "sides", "number": "label"}.get(way, way): way for way in known[method].needs}
    if given == {"label"} and "label" not in ways and contrast is None:
        raise BadData(f"the method '{method}' compares sides, no label; give contrast and against.")
    chosen = given & set(ways)
    if len(given) != 1 or not chosen:
        raise BadData(f"the method '{method}' needs {' or '.join(_WORDS[way] for way in known[method].needs)}.")
    if target is not None and "label" not in chosen:
        raise BadData("target is a value of a label; give a label with it.")
    arguments = {name: value for name, value in arguments.items() if value is not None}
    if markers:
        return find_markers(trace, markers=markers, **_fitting(find_markers, method, arguments))
    if label and method == "pearson":
        return find_correlated(trace, label=label, **_fitting(find_correlated, method, arguments))
    if label:
        return find_by_label(
            trace, label=label, target=target, method=method, **_fitting(find_by_label, method, arguments)
        )
    if method == "stability_selection":
        arguments = _fitting(select_stable, method, arguments)
        return select_stable(trace, contrast=contrast, against=_other(against), **arguments).scores
    against = against if ways["sides"] == "side" else _other(against)
    return find(trace, contrast=contrast, against=against, method=method, **arguments)


_WORDS: dict[Needs, str] = {
    "sides": "two sides (contrast and against)",
    "side": "a side (contrast, and against for a null)",
    "label": "a label",
    "number": "a label whose values are numbers",
    "markers": "markers",
}


NEEDED_OPTIONS: dict[Needs, str] = {
    "sides": "--contrast and --against",
    "side": "--contrast (and --against for a null)",
    "label": "--label (and --target)",
    "number": "--label with numbers",
    "markers": "--marker",
}


def _other(against: Any) -> Any:
    if against is None:
        raise BadData("say what to compare with (against).")
    return against


def _fitting(function: Any, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments, after refusing those that the function does not know."""
    parameters = signature(function).parameters.values()
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        named = {p.name for p in parameters} | set(GROUP_SCORES.options(method))
    else:
        named = {p.name for p in parameters}
    unknown = sorted(set(arguments) - named)
    if unknown:
        raise BadData(
            f"the method '{method}' does not take '{unknown[0]}'; {did_you_mean(unknown[0], named - {'trace'})}"
        )
    return arguments
