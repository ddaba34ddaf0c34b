"""One cell of the detection table: a method's scores of a case, held against the truth where it is known."""

from __future__ import annotations

import time

import numpy as np

from moeworks.address import Address, NeuronAddress
from moeworks.bench.cases import Case, Sizes
from moeworks.bench.methods import Detector, experts_in, score
from moeworks.bench.schema import DetectCell
from moeworks.engines.base import Engine
from moeworks.errors import MoeworksError
from moeworks.find import Scores
from moeworks.trace import Trace

__all__ = ["cell_of", "judged", "scored"]


def cell_of(detector: Detector, case: Case, found: Scores | None, why: str, seconds: float) -> DetectCell:
    """Return the cell of what `scored` gave; a method that could not serve the case gives one with the reason."""
    blank = DetectCell(
        method=detector.name,
        model=case.model,
        probe=case.name,
        kind=case.kind,
        seed=case.seed,
        reads=detector.reads,
        budget=case.budget,
        refused=why,
        seconds=seconds,
    )
    return blank if found is None else judged(blank, found, case)


def scored(
    detector: Detector, case: Case, engine: Engine, trace: Trace | None, sizes: Sizes
) -> tuple[Scores | None, str, float]:
    """Return the scores, or why there are none, and the seconds that this took."""
    if detector.refused:
        return None, detector.refused, 0.0
    start = time.perf_counter()
    try:
        found = score(detector, case, engine, trace, sizes)
    except MoeworksError as error:
        return None, str(error), round(time.perf_counter() - start, 3)
    return found, "", round(time.perf_counter() - start, 3)


def judged(blank: DetectCell, scores: Scores, case: Case) -> DetectCell:
    """Return the cell with what the scores claim and what is true.

    A claim is an expert that passes the method's own test with a score above 0: one of the contrast side. Experts that
    are pushed out by those fall, and are no claim about the behaviour; they are counted apart. An expert with a neuron
    that passes is claimed too.
    """
    passing = scores.column("passes") & (scores.column("score") > 0)
    other = scores.column("passes") & (scores.column("score") < 0)
    places = np.stack([scores.column("layer"), scores.column("expert")], axis=1)
    claimed = sorted({Address(int(a), int(b)) for a, b in places[passing]})
    top = experts_in(scores, case.budget)
    truth = case.truth
    sought = truth.acting if truth else ()
    neurons: set[NeuronAddress] = set()
    if scores.unit == "neuron":
        numbers = scores.column("neuron")[passing]
        neurons = {NeuronAddress(int(a), int(b), int(n)) for (a, b), n in zip(places[passing], numbers, strict=True)}
    return blank.model_copy(
        update={
            "unit": scores.unit,
            "null": scores.header.null,
            "top": tuple(map(str, top)),
            "claims": tuple(map(str, claimed)),
            "other_claims": len({Address(int(a), int(b)) for a, b in places[other]}),
            "sought": tuple(map(str, sought)),
            "confounded": tuple(map(str, truth.confounded)) if truth else (),
            "neuron_claims": len(neurons),
            "neuron_hits": len(neurons & set(truth.neurons)) if truth else 0,
            "stability": _stability(scores, sought or tuple(top)),
        }
    )


def _stability(scores: Scores, experts: tuple[Address, ...]) -> float | None:
    """Return the mean stability over some experts; None where the method has none, or of neurons."""
    if scores.unit == "neuron" or not experts:
        return None
    grid = scores.matrix("stability")
    layers = scores.layers
    values = [grid[layers.index(address.layer), address.expert] for address in experts if address.layer in layers]
    found = float(np.mean(values)) if values else float("nan")
    return None if np.isnan(found) else found
