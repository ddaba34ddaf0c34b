"""A plain reading of the league, made from its numbers: what finds and works, what does not, where nothing does."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moeworks.bench.schema import DetectCell, SteerCell
from moeworks.bench.table import methods_of, of, probes_of, times_random

__all__ = ["read_detection", "read_steering"]

NOMINAL = 0.05
COUNTED = ("runs",)  # what count-based scores read


def read_detection(cells: Sequence[DetectCell], *, model: str) -> str:
    """Return sentences about one model's detection cells."""
    known = any(cell.sought for cell in cells)
    lines = [*(_read_planted(cells) if known else _read_real(cells, model)), *_read_nulls(cells)]
    return "\n".join(f"- {line}" for line in lines)


def _read_planted(cells: Sequence[DetectCell]) -> list[str]:
    lines = []
    methods = [method for method in methods_of(cells) if of(cells, method=method, kinds=("planted",))]
    tested = [method for method in methods if any(c.null != "none" for c in of(cells, method=method))]
    counted = [m for m in tested if of(cells, method=m)[0].reads in COUNTED]
    for probe in probes_of(cells, "planted"):
        exact = [m for m in tested if all(_exact(c) for c in of(cells, method=m, probe=probe))]
        blind = [m for m in tested if not any(c.hits for c in of(cells, method=m, probe=probe))]
        rest = [m for m in tested if m not in exact and m not in blind]
        says = [
            _says(exact, counted, "claims", "claim", "all of the truth and nothing else in every seed"),
            _says(rest, counted, "finds", "find", "some of it, or more than that"),
            _says(blind, counted, "does", "do", "not claim it at all"),
        ]
        lines.append(f"`{probe}`: {'; '.join(filter(None, says))}.")
    untested = [method for method in methods if method not in tested]
    if untested:
        ranks = ("ranks without a test of its own", "rank without a test of their own")
        lines.append(f"{_names(untested)} {_verb(untested, *ranks)}, so that nothing is claimed.")
    single = [m for m in counted if all(_exact(c) for c in of(cells, method=m, probe="single"))]
    if counted and of(cells, probe="single"):
        lines.append(
            "Count-based scores with precision and recall 1 on the single expert, in every seed: "
            f"{len(single)} of {len(counted)}."
        )
    for probe in probes_of(cells, "uncarried"):
        claiming = [m for m in tested if any(c.claims for c in of(cells, method=m, probe=probe))]
        silent = [m for m in tested if m not in claiming and of(cells, method=m, probe=probe)]
        what = "no expert carries it" if probe == "residual" else f"no expert carries it and routing follows {probe}"
        if not claiming:
            lines.append(f"`{probe}`, where {what}: none of them claims an expert.")
        else:
            lines.append(
                f"`{probe}`, where {what}: {_says(claiming, counted, 'claims', 'claim', 'experts all the same')}"
                + (f"; {_says(silent, counted, 'does', 'do', 'not')}." if silent else ".")
            )
    return lines


def _says(names: Sequence[str], counted: Sequence[str], one: str, many: str, rest: str) -> str:
    """Return that these methods do something, or nothing where there is none."""
    return f"{_names(names, counted)} {_verb(names, one, many)} {rest}" if names else ""


def _exact(cell: DetectCell) -> bool:
    return bool(cell.sought) and set(cell.claims) == set(cell.sought)


def _read_real(cells: Sequence[DetectCell], model: str) -> list[str]:
    lines = []
    probes = probes_of(cells, "probe")
    tested = [m for m in methods_of(cells) if any(c.null != "none" for c in of(cells, method=m))]
    counts = {m: sum(any(c.claims for c in of(cells, method=m, probe=p)) for p in probes) for m in tested}
    everywhere = [m for m in tested if counts[m] == len(probes)]
    nowhere = [m for m in tested if not counts[m]]
    if everywhere:
        lines.append(f"On {model} {_names(everywhere)} {_verb(everywhere, 'claims', 'claim')} experts on every probe.")
    if nowhere:
        lines.append(f"On {model} {_names(nowhere)} {_verb(nowhere, 'claims', 'claim')} no expert on any probe.")
    silent = [p for p in probes if not any(c.claims for c in of(cells, probe=p))]
    if silent:
        lines.append(f"None of them claims any expert on {_names(silent)}.")
    return lines


def _read_nulls(cells: Sequence[DetectCell]) -> list[str]:
    """Say which methods claim more often on nulls than their nominal rate allows, chance of the count included."""
    above: list[str] = []
    told: list[tuple[int, int]] = []
    drawn: set[tuple[str, int]] = set()
    claimed: set[tuple[str, int]] = set()
    for method in methods_of(cells):
        tested = [cell for cell in of(cells, method=method, kinds=("null",)) if cell.null != "none"]
        if not tested:
            continue
        false = sum(bool(cell.claims) or cell.other_claims > 0 for cell in tested)
        drawn |= {(cell.probe, cell.seed) for cell in tested}
        claimed |= {(cell.probe, cell.seed) for cell in tested if cell.claims or cell.other_claims}
        above += [method] * _more_than_nominal(false, len(tested))
        told.append((false, len(tested)))
    if not told:
        return []
    false, count = sum(a for a, _ in told), sum(b for _, b in told)
    lines = [
        f"On nulls something is claimed in {false} of {count} cells of all methods ({false / count:.1%}; nominal "
        f"{NOMINAL:.0%}), in {len(claimed)} of the {len(drawn)} nulls that were drawn; methods share their texts."
    ]
    if above:
        lines.append(f"More than the nominal rate, beyond chance: {_names(above)}.")
    return lines


def _more_than_nominal(false: int, count: int) -> bool:
    """Whether so many false claims or more have a probability below 5 % at the nominal rate."""
    at_least = sum(math.comb(count, k) * NOMINAL**k * (1 - NOMINAL) ** (count - k) for k in range(false, count + 1))
    return at_least < 0.05


def read_steering(cells: Sequence[SteerCell], *, model: str) -> str:
    """Return sentences about one model's steering cells."""
    lines = []
    probes = probes_of(cells, "planted", "probe")
    methods = [m for m in methods_of(cells) if of(cells, method=m)]
    places = {m: [p for p in probes if _works(of(cells, method=m, probe=p))] for m in methods}
    for where in dict.fromkeys(tuple(places[method]) for method in methods if places[method]):
        same = [method for method in methods if tuple(places[method]) == where]
        lines.append(f"{_names(same)} {_verb(same, 'works', 'work')} on {_names(where)}.")
    never = [m for m in methods if not places[m]]
    if never:
        lines.append(f"{_names(never)} {_verb(never, 'works', 'work')} on none of the probes in most seeds.")
    nowhere = [p for p in probes if not any(p in found for found in places.values())]
    if nowhere:
        lines.append(f"On {model} none of the methods works on {_names(nowhere)}.")
    losing = [
        m for m in methods if (r := _median(of(cells, method=m, kinds=("planted", "probe")))) is not None and r < 1
    ]
    if losing:
        lines.append(f"Lose to random experts, or do no more than they do, in the median: {_names(losing)}.")
    false = [c for c in of(cells, kinds=("null", "uncarried")) if c.verdict == "works"]
    tried = of(cells, kinds=("null", "uncarried"))
    if tried:
        plans = max((len(cell.random) for cell in tried), default=0) + 1
        chance = f" (to be the best of {plans} plans by chance alone is one in {plans})" if plans > 1 else ""
        small, large = _size(false), _size([c for c in of(cells, kinds=("planted",)) if c.verdict == "works"])
        if small is not None and large is not None:
            chance += f"; such effects are {small:.0%} of the metric in the median, those of the carriers {large:.0%}"
        lines.append(
            f"Where no expert carries the behaviour a plan was said to work in {len(false)} of {len(tried)} cells"
            f"{chance}."
        )
    broken = [
        m
        for m in methods
        if 2 * sum(c.verdict == "breaks the model" for c in of(cells, method=m)) > len(of(cells, method=m))
    ]
    if broken:
        lines.append(f"Break the model in most cells: {_names(broken)}.")
    return "\n".join(f"- {line}" for line in lines)


def _works(cells: Sequence[SteerCell]) -> bool:
    return 2 * sum(cell.verdict == "works" for cell in cells) > len(cells)


def _size(cells: Sequence[SteerCell]) -> float | None:
    """Return the median effect as a share of what the metric was before, whatever its sign."""
    found = sorted(abs(cell.effect.value / cell.before) for cell in cells if cell.effect is not None and cell.before)
    return found[len(found) // 2] if found else None


def _median(cells: Sequence[SteerCell]) -> float | None:
    found = sorted(value for cell in cells if (value := times_random(cell)) is not None)
    return found[len(found) // 2] if found else None


def _names(names: Sequence[str], counted: Sequence[str] = ()) -> str:
    """Return names in a sentence; where all count-based scores are among them, they are called so."""
    group = len(counted) > 2 and set(counted) <= set(names)
    marked = [f"all {len(counted)} count-based scores"] if group else []
    marked += [f"`{name}`" for name in names if not (group and name in counted)]
    return " and ".join([", ".join(marked[:-1]), marked[-1]]) if len(marked) > 1 else "".join(marked)


def _verb(names: Sequence[str], one: str, many: str) -> str:
    return one if len(names) == 1 else many
