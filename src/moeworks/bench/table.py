"""The league as tables of a Markdown page: numbers are means over seeds, and what could not be run says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TypeVar

from moeworks.bench.schema import DetectCell, SteerCell

__all__ = ["detection_tables", "mean", "methods_of", "of", "probes_of", "refusals", "share_claiming", "steering_tables"]

Cell = TypeVar("Cell", DetectCell, SteerCell)
NOTHING = "–"


def methods_of(cells: Sequence[Cell]) -> list[str]:
    """Return the methods in the order in which they were run."""
    return list(dict.fromkeys(cell.method for cell in cells))


def probes_of(cells: Sequence[Cell], *kinds: str) -> list[str]:
    """Return the probes of some kinds, all without, in the order in which they were run."""
    return list(dict.fromkeys(cell.probe for cell in cells if not kinds or cell.kind in kinds))


def of(cells: Iterable[Cell], *, method: str = "", probe: str = "", kinds: tuple[str, ...] = ()) -> list[Cell]:
    """Return the cells with a result, of a method, a probe and some kinds."""
    return [
        cell
        for cell in cells
        if not cell.refused
        and (not method or cell.method == method)
        and (not probe or cell.probe == probe)
        and (not kinds or cell.kind in kinds)
    ]


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of what is there; None of nothing."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def precision(cell: DetectCell) -> float | None:
    """Return which share of the claims carries the behaviour; None without claims."""
    return cell.hits / len(cell.claims) if cell.claims else None


def recall(cell: DetectCell) -> float | None:
    """Return which share of the sought is claimed."""
    return cell.hits / len(cell.sought) if cell.sought else None


def share_claiming(cells: Sequence[DetectCell]) -> str:
    """Return in how many cells anything passes, of either side."""
    tested = [cell for cell in cells if cell.null != "none"]
    if not tested:
        return "no null" if cells else NOTHING
    return f"{sum(bool(cell.claims) or cell.other_claims > 0 for cell in tested)} of {len(tested)}"


def detection_tables(cells: Sequence[DetectCell], *, planted: bool) -> str:
    """Return the tables of one model's detection cells."""
    if not planted:
        return _on_real(cells)
    carried, uncarried = probes_of(cells, "planted"), probes_of(cells, "uncarried")
    nulls = ("null",)
    found = [
        _table(
            ("method", "reads", *(f"`{probe}`" for probe in carried), "stability", "seconds"),
            (
                (
                    f"`{method}`",
                    _reads(cells, method),
                    *(_planted(of(cells, method=method, probe=probe)) for probe in carried),
                    _number(mean(cell.stability for cell in of(cells, method=method, kinds=("planted",)))),
                    _number(mean(cell.seconds for cell in of(cells, method=method))),
                )
                for method in methods_of(cells)
            ),
        ),
        "Precision / recall of the experts that pass, and after the dot the share of the sought within the budget,"
        " whether they pass or not. A dash: nothing passes, so that there is no precision.",
        _table(
            (
                "method",
                "null",
                "cells of nulls with a claim",
                "false among claims where some carry it",
                *(f"`{probe}`" for probe in uncarried),
            ),
            (
                (
                    f"`{method}`",
                    _null(cells, method),
                    share_claiming(of(cells, method=method, kinds=nulls)),
                    _false_share(of(cells, method=method, kinds=("planted",))),
                    *(_uncarried(of(cells, method=method, probe=probe)) for probe in uncarried),
                )
                for method in methods_of(cells)
            ),
        ),
        "Nulls: both sides plain, or a model in which nothing hears the behaviour; a method that controls false"
        " discoveries at 5 % may claim something in one of twenty. The last columns: mean number of experts that pass"
        " where no expert carries the behaviour, all of them false as causes, and in brackets how many of them are"
        " experts that were planted to follow topic, length or tokens.",
    ]
    neurons = [cell for cell in cells if cell.unit == "neuron" and not cell.refused and cell.kind == "planted"]
    if neurons:
        found.append(
            _table(
                ("method", *(f"`{probe}`" for probe in carried)),
                (
                    (
                        f"`{method}`",
                        *(_neurons(of(neurons, method=method, probe=probe)) for probe in carried),
                    )
                    for method in methods_of(neurons)
                ),
            )
        )
        found.append("Neurons that pass and write the behaviour, of those that pass, over all seeds.")
    return "\n\n".join([*found, refusals(cells)]).rstrip()


def _on_real(cells: Sequence[DetectCell]) -> str:
    probes = probes_of(cells, "probe")
    return "\n\n".join(
        [
            _table(
                (
                    "method",
                    "reads",
                    "null",
                    "probes with a claim",
                    "experts claimed",
                    "cells of nulls with a claim",
                    "stability",
                    "agreement of seeds",
                    "overlap with risk_difference",
                    "seconds",
                ),
                (
                    (
                        f"`{method}`",
                        _reads(cells, method),
                        _null(cells, method),
                        _claiming_probes(cells, method, probes),
                        _number(
                            mean(float(len(c.claims)) for c in _tested(of(cells, method=method, kinds=("probe",))))
                        ),
                        share_claiming(of(cells, method=method, kinds=("null",))),
                        _number(mean(cell.stability for cell in of(cells, method=method, kinds=("probe",)))),
                        _number(mean(_agreement(of(cells, method=method, probe=probe)) for probe in probes)),
                        _number(
                            mean(
                                _overlap(cell, other)
                                for cell in of(cells, method=method, kinds=("probe",))
                                for other in of(cells, method="risk_difference", probe=cell.probe)
                                if other.seed == cell.seed
                            )
                        ),
                        _number(mean(cell.seconds for cell in of(cells, method=method))),
                    )
                    for method in methods_of(cells)
                ),
            ),
            "Claims are experts of the contrast side that pass the method's own test. The truth is not known here:"
            " agreement is the mean overlap (Jaccard) of the experts within the budget between seeds, which draw other"
            " texts; the column after it is their overlap with those of the risk difference.",
            refusals(cells),
        ]
    ).rstrip()


def steering_tables(cells: Sequence[SteerCell]) -> str:
    """Return the tables of one model's steering cells."""
    probes = probes_of(cells)
    return "\n\n".join(
        [
            _table(
                ("method", *(f"`{probe}`" for probe in probes)),
                (
                    (f"`{method}`", *(_verdicts(of(cells, method=method, probe=probe)) for probe in probes))
                    for method in methods_of(cells)
                ),
            ),
            "Seeds in which the plan works, of those run; then the mean effect on held-out items in the direction that"
            " was expected, and after the dot that of matched random experts.",
            _table(
                ("method", "works", "times random", "KL, nats", "perplexity", "active experts a token", "seconds"),
                (
                    (
                        f"`{method}`",
                        _works(of(cells, method=method, kinds=("planted", "uncarried", "probe"))),
                        _ratio(of(cells, method=method, kinds=("planted", "probe"))),
                        _number(mean(cell.divergence for cell in of(cells, method=method))),
                        _number(mean(cell.perplexity for cell in of(cells, method=method))),
                        _active(of(cells, method=method)),
                        _number(mean(cell.seconds for cell in of(cells, method=method))),
                    )
                    for method in methods_of(cells)
                ),
            ),
            "Times random: the median over probes and seeds of the effect over the mean absolute effect of the matched"
            " random plans; below 1 the method loses to random. Perplexity: on neutral text, times what it was.",
            refusals(cells),
        ]
    ).rstrip()


def refusals(cells: Sequence[DetectCell] | Sequence[SteerCell]) -> str:
    """Return the list of what could not be run, one line a reason."""
    told: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.refused:
            told.setdefault((cell.method, cell.refused), []).append(f"`{cell.probe}`")
    everywhere = len({(cell.probe, cell.seed) for cell in cells})
    lines = []
    for method, group in groupby(sorted(told), key=lambda key: key[0]):
        reasons = []
        for key in group:
            places = "all probes" if len(told[key]) == everywhere else ", ".join(dict.fromkeys(told[key]))
            reasons.append(f"{places}: {key[1]}")
        lines += [f"- `{method}`, {reason}" for reason in reasons]
    return "Not run, and why:\n\n" + "\n".join(lines) if lines else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [tuple(head), ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _reads(cells: Sequence[DetectCell], method: str) -> str:
    return next(cell.reads for cell in cells if cell.method == method)


def _null(cells: Sequence[DetectCell], method: str) -> str:
    found = sorted({cell.null for cell in of(cells, method=method)})
    return ", ".join("none of its own" if name == "none" else name for name in found) or NOTHING


def _tested(cells: Sequence[DetectCell]) -> list[DetectCell]:
    return [cell for cell in cells if cell.null != "none"]


def _planted(cells: Sequence[DetectCell]) -> str:
    if not cells:
        return "not run"
    within = _number(mean(cell.hits_in_top / len(cell.sought) for cell in cells if cell.sought))
    if not _tested(cells):
        return f"no null · {within}"
    return f"{_number(mean(map(precision, cells)))} / {_number(mean(map(recall, cells)))} · {within}"


def _false_share(cells: Sequence[DetectCell]) -> str:
    claims, hits = sum(len(cell.claims) for cell in cells), sum(cell.hits for cell in cells)
    return f"{(claims - hits) / claims:.0%} of {claims}" if claims else NOTHING


def _uncarried(cells: Sequence[DetectCell]) -> str:
    tested = _tested(cells)
    if not tested:
        return "no null" if cells else "not run"
    confounded = mean(float(len(set(cell.claims) & set(cell.confounded))) for cell in tested) or 0.0
    count = mean(float(len(cell.claims)) for cell in tested) or 0.0
    return f"{count:.1f} ({confounded:.1f})" if any(cell.confounded for cell in tested) else f"{count:.1f}"


def _neurons(cells: Sequence[DetectCell]) -> str:
    return f"{sum(cell.neuron_hits for cell in cells)} of {sum(cell.neuron_claims for cell in cells)}"


def _claiming_probes(cells: Sequence[DetectCell], method: str, probes: Sequence[str]) -> str:
    run = [found for probe in probes if (found := _tested(of(cells, method=method, probe=probe)))]
    if not run:
        return "no null" if of(cells, method=method) else NOTHING
    return f"{sum(any(cell.claims for cell in found) for found in run)} of {len(run)}"


def _overlap(one: DetectCell, other: DetectCell) -> float | None:
    either = set(one.top) | set(other.top)
    return len(set(one.top) & set(other.top)) / len(either) if either else None


def _agreement(cells: Sequence[DetectCell]) -> float | None:
    return mean(_overlap(one, other) for place, one in enumerate(cells) for other in cells[:place])


def toward(cell: SteerCell) -> float | None:
    """Return the effect, positive in the direction that was expected."""
    return None if cell.effect is None else cell.effect.value * (1 if cell.expected == "up" else -1)


def times_random(cell: SteerCell) -> float | None:
    """Return the effect over the mean absolute effect of random plans; None where both are 0 or there are none."""
    moved, random = toward(cell), mean(abs(value) for value in cell.random)
    if moved is None or random is None:
        return None
    if random < 1e-9:
        return None if abs(moved) < 1e-9 else float("inf") if moved > 0 else float("-inf")
    return moved / random


def _verdicts(cells: Sequence[SteerCell]) -> str:
    if not cells:
        return "not run"
    works = sum(cell.verdict == "works" for cell in cells)
    sign = [1 if cell.expected == "up" else -1 for cell in cells]
    random = mean(mean(cell.random) * s for cell, s in zip(cells, sign, strict=True) if cell.random)  # type: ignore[operator]
    return f"{works}/{len(cells)}, {_signed(mean(map(toward, cells)))} · {_signed(random)}"


def _signed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.2g}"


def _works(cells: Sequence[SteerCell]) -> str:
    return f"{sum(cell.verdict == 'works' for cell in cells)} of {len(cells)}" if cells else NOTHING


def _ratio(cells: Sequence[SteerCell]) -> str:
    found = sorted(value for cell in cells if (value := times_random(cell)) is not None)
    if not found:
        return NOTHING
    middle = found[len(found) // 2]
    return "over 1000" if middle > 1000 else f"{middle:.3g}"


def _active(cells: Sequence[SteerCell]) -> str:
    after, before = mean(cell.active for cell in cells), mean(cell.active_before for cell in cells)
    return NOTHING if after is None or before is None else f"{after:.2f} (of {before:.2f})"


def ranked(names: Sequence[str], value: Callable[[str], float]) -> list[str]:
    """Return names by a value, largest first, ties in their order."""
    return sorted(names, key=lambda name: -value(name))
