"""moeworks: record, find, prove and steer routing in mixture-of-experts language models.

Public names are loaded when they are first used, so that `import moeworks` is quick and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeworks.lazy import lazily

if TYPE_CHECKING:
    from moeworks.address import Address, parse_addresses
    from moeworks.compare import Comparison, compare, stability
    from moeworks.contract import Contract
    from moeworks.data import read_examples
    from moeworks.doctor import doctor
    from moeworks.engines import load
    from moeworks.errors import MoeworksError
    from moeworks.examples import Example, Message, Span
    from moeworks.find import (
        Scores,
        find,
        find_by_label,
        find_correlated,
        find_languages,
        find_markers,
        find_method,
        select_stable,
    )
    from moeworks.inspect import inspect
    from moeworks.plan import Plan, explain, load_plan, save_plan, steer
    from moeworks.plan.compose import compose, diff
    from moeworks.probes import Probe, load_probe, probe_names
    from moeworks.prove.evaluate import evaluate
    from moeworks.record import record
    from moeworks.study import study
    from moeworks.trace import Trace, concat
    from moeworks.trace.export import export
    from moeworks.where import Where

__version__ = "0.1.0"

_HOMES = {
    "Address": "address",
    "Comparison": "compare",
    "Contract": "contract",
    "Example": "examples",
    "Message": "examples",
    "MoeworksError": "errors",
    "Plan": "plan",
    "Probe": "probes",
    "Scores": "find",
    "Span": "examples",
    "Trace": "trace",
    "Where": "where",
    "compare": "compare",
    "compose": "plan.compose",
    "concat": "trace",
    "diff": "plan.compose",
    "doctor": "doctor",
    "evaluate": "prove.evaluate",
    "explain": "plan",
    "export": "trace.export",
    "find": "find",
    "find_by_label": "find",
    "find_correlated": "find",
    "find_languages": "find",
    "find_markers": "find",
    "find_method": "find",
    "inspect": "inspect",
    "load": "engines",
    "load_plan": "plan",
    "load_probe": "probes",
    "parse_addresses": "address",
    "probe_names": "probes",
    "read_examples": "data",
    "record": "record",
    "save_plan": "plan",
    "select_stable": "find",
    "stability": "compare",
    "steer": "plan",
    "study": "study",
}

_ROOMS = {"edit", "place", "train", "watch"}  # packages of several verbs: `moeworks.train.unlearn`

__all__ = [
    "Address",
    "Comparison",
    "Contract",
    "Example",
    "Message",
    "MoeworksError",
    "Plan",
    "Probe",
    "Scores",
    "Span",
    "Trace",
    "Where",
    "__version__",
    "compare",
    "compose",
    "concat",
    "diff",
    "doctor",
    "evaluate",
    "explain",
    "export",
    "find",
    "find_by_label",
    "find_correlated",
    "find_languages",
    "find_markers",
    "find_method",
    "inspect",
    "load",
    "load_plan",
    "load_probe",
    "parse_addresses",
    "probe_names",
    "read_examples",
    "record",
    "save_plan",
    "select_stable",
    "stability",
    "steer",
    "study",
]

__getattr__, __dir__ = lazily(__name__, _HOMES, rooms=_ROOMS)
