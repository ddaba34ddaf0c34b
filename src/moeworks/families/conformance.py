"""What works for which family, tried on tiny random models: `python -m moeworks.families.conformance --write PAGE`."""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

from moeworks.artefact import replace_file
from moeworks.contract_words import describe
from moeworks.errors import MoeworksError
from moeworks.families.discover import survey
from moeworks.families.edit_checks import check_cut
from moeworks.families.engine_checks import engine_columns
from moeworks.families.expert_weights import expert_weights
from moeworks.families.tiny import families, tiny_model

__all__ = ["COLUMNS", "FamilyReport", "check_family", "families", "page", "tiny_model"]

COLUMNS = ("proven", "recorded", "steered", "replayed", "edited", "cut")


@dataclass(frozen=True)
class FamilyReport:
    """What works for one family; each of the six columns is `yes` or the reason why not."""

    family: str
    model: str = ""
    layers: tuple[int, ...] = ()
    contract: str = ""
    proven: str = ""
    recorded: str = ""
    steered: str = ""
    replayed: str = ""
    edited: str = ""
    cut: str = ""
    left_out: dict[str, str] = field(default_factory=dict)


def check_family(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> FamilyReport:
    """Build the tiny model of a family and try on it everything that moeworks does with a router."""
    try:
        model = tiny_model(family, seed=seed, dtype=dtype)
    except Exception as error:  # whatever a family's own code raises goes on the page
        reason = f"the tiny model does not build: {type(error).__name__}: {_line(error)}"
        return FamilyReport(family, "", (), "", reason, reason, reason, reason, reason, reason)
    found = survey(model)
    contracts = Counter(describe(r.contract) for r in found.routers if r.contract is not None)
    reasons = sorted({router.opaque for router in found.routers if router.opaque})
    recorded, steered, replayed = engine_columns(model, found.routers, _attempt)
    return FamilyReport(
        family=family,
        model=type(model).__name__,
        layers=tuple(router.layer for router in found.routers),
        contract="; or ".join(text for text, _ in contracts.most_common()),
        proven="; ".join(reasons) or ("yes" if found.routers else "no router is declared"),
        recorded=recorded,
        steered=steered,
        replayed=replayed,
        edited=_attempt(lambda: [expert_weights(router) for router in found.routers]),
        cut=_attempt(lambda: check_cut(family, seed=seed)),
        left_out=found.left_out,
    )


def _attempt(check: Callable[[], object]) -> str:
    """Return yes, or what the check refused with; an error that is none of ours is told by its name."""
    try:
        check()
    except MoeworksError as error:
        return _line(error)
    except Exception as error:  # the family's own code, on a tiny model
        return f"{type(error).__name__}: {_line(error)}"
    return "yes"


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].replace("|", "/")[:300]


def page(reports: Sequence[FamilyReport]) -> str:
    """Return the documentation page: totals, the table, and the reasons below it."""
    totals = ", ".join(f"{sum(getattr(r, name) == 'yes' for r in reports)} {name}" for name in COLUMNS)
    lines = [
        "# Families",
        "",
        "Every mixture-of-experts family of transformers whose model declares its routers, tried on a tiny model with",
        "random weights and selection biases. Made by:",
        "",
        "    python -m moeworks.families.conformance --write docs/families.md",
        "",
        f"transformers {transformers.__version__}: {len(reports)} families; {totals}.",
        "",
        "- **proven**: our decision equals the router's own on random hidden states, slot by slot, weights to the bit.",
        "- **recorded**: the trace holds what the experts were given, to the bit; padding adds no row.",
        "- **steered**: promoted experts are chosen for every token, masked ones for none, in all layers that choose",
        "  by logits; ids that come from a table of token ids cannot be changed by a plan.",
        "- **replayed**: a steered trace replayed on the plain model gives that trace again, ids and weights.",
        "- **edited**: the experts' weights are found, as views of one shape.",
        "- **cut**: half of the experts cut from a checkpoint: stock transformers finds every tensor and no other, and",
        "  the logits are those of the whole checkpoint with the dropped experts' router logits at minus infinity.",
        "",
        "| family | decision | " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for report in reports:
        marks = ["yes" if getattr(report, name) == "yes" else "no" for name in COLUMNS]
        lines.append(f"| `{report.family}` | {report.contract or 'opaque'} | " + " | ".join(marks) + " |")
    lines += ["", "## Why not", ""]
    for report in reports:
        whys: dict[str, list[str]] = {}
        for name in COLUMNS:
            if getattr(report, name) != "yes":
                whys.setdefault(getattr(report, name), []).append(name)
        lines += [f"- `{report.family}`, not {' or '.join(names)}: {why}" for why, names in whys.items()]
    lines += ["", "## Left out", "", "Routers that are declared and not taken:", ""]
    for report in reports:
        reasons = Counter(report.left_out.values())
        for reason, count in reasons.items():
            lines.append(f"- `{report.family}`: {count}, because {reason}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Check all families, or those that are named, and print or write the page."""
    parser = argparse.ArgumentParser(prog="python -m moeworks.families.conformance", description=main.__doc__)
    parser.add_argument("families", nargs="*", help="only these")
    parser.add_argument("--write", type=Path, help="the page's file")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)  # tiny matrices; threads would only wait for one another
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="transformers")
    text = page([check_family(family) for family in chosen.families or families()])
    if chosen.write is None:
        print(text)
        return
    with replace_file(chosen.write) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
