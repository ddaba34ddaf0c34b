"""The diagnostics of routing by name: which function of a trace gives each, and which of its columns people look at."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa

from moeworks.errors import BadData, did_you_mean
from moeworks.stats.balance import balance
from moeworks.stats.capacity import capacity_drops
from moeworks.stats.committee import standing_committee
from moeworks.stats.confidence import confidence
from moeworks.stats.divergence import divergence
from moeworks.stats.repetition import repetition
from moeworks.stats.saturation import saturation
from moeworks.stats.token_dependence import token_dependence
from moeworks.stats.token_overlap import token_overlap
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["DIAGNOSTICS", "Diagnostic", "DiagnosticName", "diagnose", "shown"]

DiagnosticName = Literal[
    "balance",
    "committee",
    "confidence",
    "divergence",
    "drops",
    "repetition",
    "saturation",
    "token_dependence",
    "token_overlap",
]
_OWN = ("trace", "checkpoints", "final", "steps", "where", "label", "base", "seed", "budget_bytes")  # no free options


@dataclass(frozen=True)
class Diagnostic:
    """One diagnostic: its function, a sentence that says how to read it, and the columns of its printed table."""

    function: Callable[..., pa.Table]
    reading: str
    columns: tuple[str, ...]  # a name, or `name [low high]` for a number with its interval

    @property
    def options(self) -> dict[str, Any]:
        """Options of its own and their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {one.name: one.default for one in parameters if one.name not in _OWN}

    def takes(self, name: str) -> bool:
        """Whether its function has a parameter of this name."""
        return name in inspect.signature(self.function).parameters


DIAGNOSTICS: Mapping[str, Diagnostic] = {
    "balance": Diagnostic(
        balance,
        "max_violation: (largest load - mean) / mean, 0 is even; entropy: 1 is even; dead: experts that never ran",
        ("layer", "max_violation", "entropy", "effective_experts", "busiest", "dead"),
    ),
    "committee": Diagnostic(
        standing_committee,
        "mass of each value's top experts, and how alike the tops are; chance: even use, random sets; permuted: the "
        "documents' labels exchanged",
        (
            "layer", "top_share [low high]", "chance", "jaccard [jaccard_low jaccard_high]", "jaccard_chance",
            "jaccard_permuted", "gini [gini_low gini_high]", "members", "member_share",
        ),
    ),
    "confidence": Diagnostic(
        confidence,
        "means over tokens; entropies are 1 where routers cannot tell experts apart",
        ("layer", "top_weight", "weight_entropy", "top_probability", "entropy", "margin"),
    ),
    "divergence": Diagnostic(
        divergence,
        "divergence: Jensen-Shannon / ln 2, above 0 by noise alone; the test is of the pooled one against permuted "
        "documents (chance, p, q)",
        (
            "layer", "value", "divergence [low high]", "normalised [normalised_low normalised_high]", "entropy",
            "base_entropy", "pooled", "chance", "p", "q",
        ),
    ),
    "drops": Diagnostic(
        capacity_drops,
        "simulated: nothing was dropped when the trace was recorded; chance: even random routing, which drops late "
        "tokens too",
        (
            "layer", "factor", "value", "simulated_drop_rate [low high]", "chance", "slope [slope_low slope_high]",
            "slope_chance",
        ),
    ),
    "repetition": Diagnostic(
        repetition,
        "neighbouring tokens that repeat experts; chance: sets drawn at random",
        (
            "layer", "first_choice [first_choice_low first_choice_high]", "first_choice_chance",
            "first_choice_load_chance", "share_any [share_any_low share_any_high]", "share_any_chance",
            "overlap [overlap_low overlap_high]", "overlap_chance",
        ),
    ),
    "saturation": Diagnostic(
        saturation,
        "overlap of a token's experts with those of the final trace; saturation: above chance, k / E",
        ("step", "layer", "overlap", "chance", "load_chance", "saturation [low high]"),
    ),
    "token_dependence": Diagnostic(
        token_dependence,
        "how well the token id foretells the experts of held-out documents; chance: token ids shuffled within texts",
        (
            "layer", "dependence [low high]", "chance", "excess [excess_low excess_high]", "uniform_chance",
            "information [information_low information_high]", "information_chance", "coverage",
        ),
    ),
    "token_overlap": Diagnostic(
        token_overlap,
        "Jaccard index of two tokens' experts, the same token id and different ones; chance: random sets",
        (
            "layer", "same_token [same_token_low same_token_high]",
            "different_token [different_token_low different_token_high]", "excess [excess_low excess_high]", "chance",
        ),
    ),
}  # fmt: skip
assert set(DIAGNOSTICS) == set(get_args(DiagnosticName))


def diagnose(
    trace: Trace,
    what: str,
    *,
    where: Where = Where(),
    label: str | None = None,
    base: str | None = None,
    checkpoints: Mapping[int, Trace] | None = None,
    seed: int = 0,
    **options: Any,
) -> pa.Table:
    """Return the table of a diagnostic; see the function of that name for its columns.

    Args:
        trace: the trace; of a saturation, the final one.
        what: name of the diagnostic.
        where: which tokens and layers count.
        label: label whose values are told apart, where the diagnostic does so.
        base: the value that others are compared with, of a divergence.
        checkpoints: step → trace of an earlier checkpoint, of a saturation.
        seed: of everything drawn.
        options: of the diagnostic, by their own names.

    Raises:
        BadData: the name, an option or a label is unknown, or missing where it is needed.
    """
    if what not in DIAGNOSTICS:
        raise BadData(f"no diagnostic is called '{what}'; {did_you_mean(what, DIAGNOSTICS)}")
    one = DIAGNOSTICS[what]
    _check_options(what, options)
    for name, value in (("label", label), ("base", base), ("checkpoints", checkpoints)):
        if value and not one.takes(name):
            raise BadData(f"the diagnostic '{what}' takes no {name}.")
    given: dict[str, Any] = {name: value for name, value in (("label", label), ("base", base)) if value}
    if what == "committee" and not label:
        known = ", ".join(sorted(set(trace.request_table().labels) - {"document"})) or "none"
        raise BadData(f"a standing committee is one over the values of a label: name it; labels here: {known}.")
    if one.takes("seed"):
        given["seed"] = seed
    if what != "saturation":
        return one.function(trace, where=where, **given, **options)
    if not checkpoints:
        raise BadData("saturation compares earlier checkpoints with this trace: give at least one, as step=TRACE.")
    steps = sorted(checkpoints)
    return one.function([checkpoints[step] for step in steps], trace, steps=steps, where=where, **given, **options)


def shown(what: str, table: pa.Table) -> tuple[list[str], list[list[str]]]:
    """Return the headings and cells of the printed table: three digits, intervals in brackets."""
    columns = [_parse(column) for column in DIAGNOSTICS[what].columns]

    def cell(row: Mapping[str, Any], name: str, ends: list[str]) -> str:
        interval = f" [{', '.join(_cell(row[end]) for end in ends)}]" if ends else ""
        return _cell(row[name]) + interval

    lines = [[cell(row, *column) for column in columns] for row in table.to_pylist()]
    return [name for name, _ in columns], lines


def _parse(column: str) -> tuple[str, list[str]]:
    name, _, ends = column.partition(" [")
    return name, ends.rstrip("]").split()


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"
    return str(value)


def _check_options(what: str, options: Mapping[str, Any]) -> None:
    """Raise where an option is unknown or of another kind than its default."""
    known = DIAGNOSTICS[what].options
    for name, value in options.items():
        if name not in known:
            raise BadData(f"the diagnostic '{what}' has no option '{name}'; {did_you_mean(name, known)}")
        kinds: tuple[type, ...] = {int: (int,), float: (int, float), tuple: (list, tuple)}.get(
            type(known[name]), (str,)
        )
        numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        right = isinstance(value, kinds) and (kinds == (str,) or all(type(one) in (int, float) for one in numbers))
        if not right:
            raise BadData(f"option {name}={value} of '{what}' is not of the kind of its default, {known[name]}.")
