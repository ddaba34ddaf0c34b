"""How each registered method is called on a probe, and why not where it cannot be: one table, read at run time."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from moeworks.address import Address
from moeworks.bench.cases import NUMBER, SIDE, Case, Sizes
from moeworks.engines.base import Engine
from moeworks.errors import BadPlan
from moeworks.find import Scores, find_method, trace_methods
from moeworks.find.in_model import find_in_model, options_of
from moeworks.find.inside import MODEL_SCORES
from moeworks.find.scores import GROUP_SCORES, SCORES
from moeworks.plan import POLICIES, Plan, steer, steer_neurons
from moeworks.plan.policies.base import manner_of
from moeworks.trace import Trace

__all__ = ["Detector", "Steerer", "code_of", "detectors", "make_plan", "score", "steerers"]

# What a method is told beside the probe; everything else is its own default.
OPTIONS: dict[str, dict[str, Any]] = {
    "multilingual": {"base": "against"},
    "router_lens": {"epochs": 1.0, "samples": 200},  # three passes over 2,000 texts in the paper
}
# The same method done differently: controls against what is confounded with the behaviour.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "risk_difference, macro": ("risk_difference", {"aggregate": "macro"}),
    "risk_difference, tokens matched": ("risk_difference", {"match": "token"}),
    "risk_difference, within topics": ("risk_difference", {"within": "topic"}),  # or what else says it, see TOPICS
    "risk_difference, committee lowered": ("risk_difference", {"downweight": "committee"}),
}
TOPICS = ("topic", "domain")  # labels that say what a text is about, the first that there is
# The scores that a policy was published with; another policy gets those of the risk difference.
SCORES_OF_POLICY: dict[str, str] = {
    "mote_off": "functional_map",
    "mote_on": "functional_map",
    "multilingual_soft": "risk_difference, macro",
    "multilingual_hard": "risk_difference, macro",
    "rice": "npmi",
}
# Methods that make a plan of their own from a probe: name → (score, module and function that makes the plan).
PLANS: dict[str, tuple[str, str]] = {
    "neuron_adjust, mirrored": ("neuron_adjust", "moeworks.find.inside.neuron_adjust:adjust_plan"),
}
NEURONS_EACH = 1  # neurons turned for each expert of the budget on planted models: what is planted there
SHARE_OF_NEURONS = 0.25  # of an expert's neurons, for each expert of the budget on a real model


@dataclass(frozen=True)
class Detector:
    """A way to score experts: a registered method with its options."""

    name: str  # in the table
    method: str
    home: Literal["trace", "model"]
    reads: str
    way: str = ""  # sides, label or number: what a method of a trace is asked by
    options: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""  # why it cannot be asked of any probe


@dataclass(frozen=True)
class Steerer:
    """A way to turn experts: a policy on the scores of a detector."""

    name: str
    detector: Detector
    policy: str
    turns: Literal["up", "down"]
    maker: str = ""  # module:function that makes the plan from the probe itself


def detectors() -> list[Detector]:
    """Return every registered method, in the order of the tables: from a trace, variants, from inside the model."""
    found: list[Detector] = []
    known = trace_methods()
    for name, method in known.items():
        asked = {"sides": "sides", "side": "sides", "label": "label", "number": "number"}
        ways = [asked[need] for need in method.needs if need in asked]
        way = "sides" if "sides" in ways else ways[0] if ways else ""
        why = "" if way else f"it needs {' or '.join(method.needs)}, which a probe of two sides does not have"
        found.append(Detector(name, name, "trace", method.reads, way, OPTIONS.get(name, {}), why))
    found += [
        Detector(name, method, "trace", known[method].reads, "sides", {**OPTIONS.get(method, {}), **options})
        for name, (method, options) in VARIANTS.items()
        if method in known
    ]
    for name in MODEL_SCORES.names():
        needed = [o for o, default in options_of(name).items() if default is inspect.Parameter.empty]
        why = f"it needs {', '.join(needed)}, and nothing says what these are for a probe" if needed else ""
        found.append(Detector(name, name, "model", "model", options=OPTIONS.get(name, {}), refused=why))
    return found


def steerers() -> list[Steerer]:
    """Return every policy with its scores, after every detector with plain demotion (neurons: set to 0)."""
    known = {detector.name: detector for detector in detectors()}
    found = [Steerer(name, detector, "", "down") for name, detector in known.items()]
    for policy in POLICIES.names():
        if policy == "risk_difference":
            continue  # what the rows above are turned by
        turns = manner_of(POLICIES.get(policy)).turns
        for direction in ("down", "up") if turns == "both" else (turns,):
            detector = known[SCORES_OF_POLICY.get(policy, "risk_difference")]
            name = f"{policy}, {direction}" if turns == "both" else policy
            found.append(Steerer(name, detector, policy, direction))
    found += [
        Steerer(name, known[method], "", "down", maker) for name, (method, maker) in PLANS.items() if method in known
    ]
    return found


def score(detector: Detector, case: Case, engine: Engine, trace: Trace | None, sizes: Sizes) -> Scores:
    """Return a detector's scores of a case; `trace` is that of the case's texts, its side as a label too.

    Raises:
        MoeworksError: the method cannot be asked this, or the engine cannot serve it.
    """
    header, options = case.probe.header, dict(detector.options)
    for name, number in (("permutations", sizes.permutations), ("bootstrap", sizes.bootstrap)):
        if name in _accepted(detector):
            options.setdefault(name, number)
    if "within" in options:
        names = {name for text in case.probe.texts("find") for name in text.labels}
        options["within"] = next((name for name in TOPICS if name in names), TOPICS[0])
    if detector.home == "model":
        return find_in_model(engine, case.probe, method=detector.method, seed=case.seed, **options)
    assert trace is not None
    sides = {"contrast": header.contrast, "against": header.against}
    asked: dict[str, Any] = {
        "sides": sides,
        "label": {"label": SIDE, "target": "contrast"},
        "number": {"label": NUMBER},
    }[detector.way]
    return find_method(trace, method=detector.method, where=header.where, seed=case.seed, **asked, **options)


def _accepted(detector: Detector) -> set[str]:
    if detector.home == "model":
        return set(options_of(detector.method))
    if detector.method == "stability_selection":
        return set()  # its resamplings are the method; its permutations are of families, and few do
    return {"permutations", "bootstrap"}


def make_plan(steerer: Steerer, scores: Scores, case: Case, engine: Engine, *, at_random: int | None = None) -> Plan:
    """Return the plan that turns as many experts as the case's budget, passing or not (or neurons, set to 0).

    `at_random` is the seed of a random plan in its place, of a method that makes its plans itself.

    Raises:
        BadPlan: the scores have no expert of the contrast side, or none fits.
    """
    safety = case.probe.header.safety and steerer.turns == "down"
    if steerer.maker:
        made_by = _imported(steerer.maker)
        share = min(1.0, _neurons(case, scores) / scores.table.num_rows)
        drawn = {"seed": case.seed} if at_random is None else {"seed": at_random, "at_random": True}
        plan: Plan = made_by(engine, case.probe, share=share, **drawn)
        return plan.model_copy(update={"weakens_safety": safety})
    if scores.unit == "neuron":
        if steerer.policy:
            raise BadPlan("the policy turns experts, and the scores are of neurons.")
        number = min(_neurons(case, scores), len(scores.top(scores.table.num_rows)))
        if not number:
            raise BadPlan("no neuron has a score above 0: there is nothing to turn.")
        return steer_neurons(scores, number, only_passing=False, weakens_safety=safety)
    count = min(case.budget, len(scores.top(case.budget)))
    if not count:
        raise BadPlan("no expert has a score above 0: there is nothing to turn.")
    down = steerer.turns == "down"
    for amount in range(count, 0, -1):  # a policy's own window or the layers may have room for fewer
        try:
            return steer(
                scores,
                policy=steerer.policy or "risk_difference",
                direction=steerer.turns,
                only_passing=False,
                weakens_safety=safety,
                demote=amount if down else 0,
                promote=0 if down else amount,
            )
        except BadPlan:
            if amount == 1:
                raise
    raise AssertionError("a budget is at least one expert")


def _imported(place: str) -> Any:
    module, _, function = place.partition(":")
    return getattr(import_module(module), function)


def _neurons(case: Case, scores: Scores) -> int:
    if case.truth is not None:
        return NEURONS_EACH * case.budget
    return max(1, round(SHARE_OF_NEURONS * case.budget * (int(scores.column("neuron").max()) + 1)))


def experts_in(scores: Scores, count: int) -> list[Address]:
    """Return the experts of the largest positive scores, strongest first; of neurons, those that they belong to."""
    rows = scores.top(scores.table.num_rows if scores.unit == "neuron" else count).to_pylist()
    return list(dict.fromkeys(Address(row["layer"], row["expert"]) for row in rows))[:count]


def code_of(detector: Detector, policy: str = "", maker: str = "") -> str:
    """Return the hash of the files that a method is written in: a cell of another version of it is made anew."""
    return _code("" if detector.refused else detector.method, detector.home, policy, maker)


@cache
def _code(method: str, home: str, policy: str, maker: str) -> str:
    functions = list(_functions(method, home)) if method else []
    if policy:
        functions.append(POLICIES.get(policy))
    if maker:
        functions.append(_imported(maker))
    digest = hashlib.blake2b(digest_size=8)
    for function in functions:
        path = inspect.getsourcefile(inspect.unwrap(function))
        digest.update(Path(path).read_bytes() if path else repr(function).encode())
    return digest.hexdigest()


def _functions(method: str, home: str) -> Iterator[Any]:
    if home == "model":
        yield MODEL_SCORES.get(method)
        return
    yield find_method
    for registry in (SCORES, GROUP_SCORES):
        if method in registry.names():
            yield registry.get(method)
    if method == "stability_selection":
        from moeworks.find.stable import select_stable

        yield select_stable
    if method == "pearson":
        from moeworks.find.numbers import find_correlated

        yield find_correlated
