"""What each engine can do, and why not where it cannot: `doctor`, the docs page and errors are made from this table."""

from __future__ import annotations

from importlib.util import find_spec

from moeworks.errors import BadData, did_you_mean

__all__ = ["ABILITIES", "TABLE", "abilities", "as_markdown", "why_not"]

ABILITIES = (
    "record ids and weights",
    "record logits",
    "record generated tokens",
    "beam search",
    "promote",
    "demote",
    "add",
    "mask",
    "scale",
    "top_k lowered",
    "top_k raised",
    "replay",
    "neurons",
    "gates on routing",
    "gates on the residual",
    "clauses on roles, spans, labels and token ids",
    "score answers and texts",
    "patching",
    "chat templates",
    "many plans in one batch",
)

_NOT_INSIDE = "vLLM's kernels do not show what is inside experts"
_NO_PASS = "a gate decides on a plain pass over the prompt before the plan, which vLLM does not make"
_ONE_PLAN = "a plan applies to the whole batch; run one batch a plan"

TABLE: dict[str, dict[str, str]] = {
    "transformers": {"many plans in one batch": _ONE_PLAN},
    "fake": {
        "beam search": "its generation is greedy or sampled",
        "gates on the residual": "it shows no residual stream; its torch twin does",
        "patching": "it runs no module whose activations could be swapped; its torch twin does",
        "many plans in one batch": _ONE_PLAN,
    },
    "vllm": {
        "beam search": "it decodes greedily or samples",
        "top_k raised": "its kernels have the model's own number of slots for a token",
        "replay": "it has no way to hand in a decision for every token",
        "neurons": _NOT_INSIDE,
        "gates on routing": _NO_PASS,
        "gates on the residual": _NO_PASS,
        "clauses on roles, spans, labels and token ids": "a request brings no more than its tokens; phases and "
        "positions are possible",
        "patching": _NOT_INSIDE,
    },
}
TABLE["ray"] = dict.fromkeys(
    ("score answers and texts", "patching", "many plans in one batch"),
    "it records alone, with what the engine in its workers can do; load that engine for the rest",
)
_NEEDS = {"transformers": ("torch", "transformers"), "vllm": ("vllm",), "ray": ("ray", "pandas")}


def abilities(engine: str) -> dict[str, str]:
    """Return each ability with the reason why this engine lacks it here; an empty reason means that it has it."""
    if engine not in TABLE:
        raise BadData(f"no engine is called '{engine}'; {did_you_mean(engine, TABLE)}")
    absent = [package for package in _NEEDS.get(engine, ()) if not _is_installed(package)]
    if absent:
        reason = f"{' and '.join(absent)} not installed: pip install 'moeworks[{engine}]'"
        return dict.fromkeys(ABILITIES, reason)
    return {name: TABLE[engine].get(name, "") for name in ABILITIES}


def _is_installed(package: str) -> bool:
    """Whether a package is there; a mere folder of its name, which Python takes for a package too, is none."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def why_not(engine: str) -> str:
    """Return why an engine cannot do anything here, or an empty text."""
    reasons = set(abilities(engine).values()) if engine in TABLE else {""}
    return reasons.pop() if len(reasons) == 1 else ""


def as_markdown() -> str:
    """Return the table of the docs page: abilities down, engines across, reasons below."""
    lines = [f"| ability | {' | '.join(TABLE)} |", f"| --- |{' --- |' * len(TABLE)}"]
    for name in ABILITIES:
        marks = ("no" if TABLE[engine].get(name) else "yes" for engine in TABLE)
        lines.append(f"| {name} | {' | '.join(marks)} |")
    lines.append("")
    for engine, reasons in TABLE.items():
        for reason in dict.fromkeys(reasons.values()):
            names = [name for name in ABILITIES if reasons.get(name) == reason]
            what = "everything" if len(names) == len(ABILITIES) else ", ".join(names)
            lines.append(f"- **{engine}** cannot do {what}: {reason}.")
    return "\n".join(lines) + "\n"
