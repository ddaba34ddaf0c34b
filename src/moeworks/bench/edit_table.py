"""The editing league as tables of a Markdown page, and a plain reading of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moeworks.bench.schema import EditCell
from moeworks.bench.table import mean

__all__ = ["edit_tables", "read_editing"]

ALL = "all"
RANDOM = {"experts": "random", "neurons": "random_neurons"}
KINDS = {"score": "cut", "search": "cut", "grouping": "merge", "neurons": "neurons"}


def edit_tables(cells: Sequence[EditCell]) -> str:
    """Return the tables of one model's cells: one for each share, then perplexity by label, then what was refused."""
    parts = []
    for keep in sorted({cell.keep for cell in cells}, reverse=True):
        mine = [cell for cell in cells if cell.keep == keep and not cell.refused]
        if not mine:
            continue
        parts.append(f"#### {100 * (1 - keep):.3g} % less")
        parts.append(_overview(mine))
        parts.append("Perplexity by language and domain, times that of the whole model, calibrated on matching text:")
        parts.append(_labels([cell for cell in mine if cell.calibration == "matching"]))
    parts.append(
        "KL in nats a token; perplexity times that of the whole model, on held-out neutral texts; the worst label is"
        " the language or domain whose perplexity rises most. Probes: mean over probes of the share of held-out items"
        " that are right, less that of the whole model. Random: mean of its seeds, smallest and largest."
    )
    refused = _refused(cells)
    if refused:
        parts.append(refused)
    return "\n\n".join(parts)


def read_editing(cells: Sequence[EditCell], *, model: str) -> str:
    """Return sentences about one model's cells: what is better than random, and what the wrong calibration costs."""
    lines = []
    for keep in sorted({cell.keep for cell in cells}, reverse=True):
        cut = f"{100 * (1 - keep):.3g} % less"
        for calibration in dict.fromkeys(cell.calibration for cell in cells):
            mine = [c for c in cells if c.keep == keep and c.calibration == calibration and not c.refused]
            for what, control in RANDOM.items():
                lines += _beside(mine, what, control, f"{cut}, {calibration} text", model)
    return "\n".join(f"- {line}" for line in lines)


def _beside(cells: Sequence[EditCell], what: str, control: str, where: str, model: str) -> list[str]:
    """Return the sentence on methods that change experts, or neurons, beside random choices of the same."""
    mine = [cell for cell in cells if (cell.kind == "neurons") == (what == "neurons")]
    random = [cell.perplexity[ALL] for cell in mine if cell.method == control]
    others = sorted((cell for cell in mine if cell.method != control), key=lambda cell: cell.perplexity[ALL])
    if not others or not random:
        return []
    better = [cell for cell in others if cell.perplexity[ALL] < min(random)]
    best = others[0]
    return [
        f"{where}, {what}: {len(better)} of {len(others)} methods are better than all {len(random)} random choices; "
        f"the lowest perplexity on {model} is that of `{best.method}`, times {best.perplexity[ALL]:.3g} (random "
        f"{sum(random) / len(random):.3g})."
    ]


def _overview(cells: Sequence[EditCell]) -> str:
    calibrations = list(dict.fromkeys(cell.calibration for cell in cells))
    head = ["method", "does"]
    for name in calibrations:
        head += [f"KL, {name}", f"perplexity, {name}", f"worst label, {name}", f"probes, {name}"]
    rows = []
    for method in _ranked(cells, calibrations[0]):
        row = [f"`{method}`", KINDS.get(next(c.kind for c in cells if c.method == method), "")]
        for name in calibrations:
            found = [cell for cell in cells if cell.method == method and cell.calibration == name]
            row += [
                _span([cell.divergence.value for cell in found if cell.divergence is not None]),
                _span([cell.perplexity[ALL] for cell in found]),
                _worst(found),
                _span([_probes(cell) for cell in found]),
            ]
        rows.append(row)
    return _table(head, rows)


def _labels(cells: Sequence[EditCell]) -> str:
    labels = sorted({name for cell in cells for name in cell.perplexity if name != ALL})
    rows = []
    for method in _ranked(cells, "matching"):
        found = [cell for cell in cells if cell.method == method]
        values = [mean(cell.perplexity.get(label) for cell in found) for label in labels]
        rows.append([f"`{method}`", *("–" if value is None else f"{value:.3g}" for value in values)])
    return _table(["method", *(label.partition("=")[2] for label in labels)], rows)


def _ranked(cells: Sequence[EditCell], calibration: str) -> list[str]:
    """Return the methods, the lowest perplexity on this calibration first."""

    def perplexity(method: str) -> tuple[bool, float]:
        found = [c.perplexity[ALL] for c in cells if c.method == method and c.calibration == calibration]
        return not found, sum(found) / len(found) if found else 0.0

    return sorted(dict.fromkeys(cell.method for cell in cells), key=perplexity)


def _probes(cell: EditCell) -> float:
    return sum(after - before for before, after in cell.probes.values()) / max(len(cell.probes), 1)


def _worst(cells: Sequence[EditCell]) -> str:
    """Return the label whose perplexity rises most, on average over seeds."""
    labels = {name for cell in cells for name in cell.perplexity if name != ALL}
    values = {name: mean(cell.perplexity.get(name) for cell in cells) or 0.0 for name in labels}
    if not values:
        return "–"
    worst = max(sorted(values), key=values.__getitem__)
    return f"{worst.partition('=')[2]} {values[worst]:.3g}"


def _span(values: Sequence[float]) -> str:
    if not values:
        return "–"
    told = f"{sum(values) / len(values):.3g}"
    return told if len(values) == 1 else f"{told} ({min(values):.3g} to {max(values):.3g})"


def _refused(cells: Sequence[EditCell]) -> str:
    reasons: dict[str, str] = {}
    for cell in cells:
        if cell.refused:
            reasons.setdefault(cell.method, cell.refused)
    if not reasons:
        return ""
    return "Not run: " + " ".join(
        f"`{method}`: {' '.join(reason.split())}" for method, reason in sorted(reasons.items())
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [tuple(head), ("---",) * len(head), *map(tuple, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)
