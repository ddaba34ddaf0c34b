"""Super experts as a score: every expert's largest output on a probe's texts, and which are protected from now on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.address import Address
from moeworks.find.artefact import COLUMNS
from moeworks.find.inside.base import MODEL_SCORES
from moeworks.find.inside.observe import as_numpy
from moeworks.find.inside.tested import finished
from moeworks.find.inside.texts import texts_of
from moeworks.find.sides import AGAINST, CONTRAST

if TYPE_CHECKING:
    from moeworks.artefact import LayerShape
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.inside import ExpertPass
    from moeworks.find.artefact import Scores
    from moeworks.find.super_experts import Layers
    from moeworks.probes.probe import Probe, Split
    from moeworks.where import Requests, Rows

__all__ = ["super_experts"]

Array = NDArray[Any]


@MODEL_SCORES.register("super_experts")
def super_experts(
    engine: Engine,
    probe: Probe,
    *,
    split: Split = "find",
    seed: int = 0,
    command: str = "",
    layers: Layers = "residual",
    first_share: float = 0.75,
    quantile: float = 99.5,
    times: float = 10.0,
    massive_size: float = 100.0,
    massive_ratio: float = 1000.0,
    batch_size: int = 8,
) -> Scores:
    """Score experts by their largest output, as `moeworks.find.super_experts` does, on all tokens of a probe's texts.

    The rule and its source are there. It is a rule and no test, so that no expert passes; the super experts stand in
    the header's facts and are kept, so that plans protect them. The score is over all tokens of the texts, the two
    rates are the same over the tokens of either side, NaN where the expert ran for none.

    Args:
        engine, probe, split, command: as in `find_in_model`; nothing is drawn, so that the seed changes nothing.
        layers, first_share, quantile, times, massive_size, massive_ratio, batch_size: as in `super_experts`.
    """
    from moeworks.find.super_experts import super_experts as measure

    texts = texts_of(probe, split)
    column = {
        Address(shape.layer, expert): expert + start
        for start, shape in zip(_starts(engine.identity.layers), engine.identity.layers, strict=True)
        for expert in range(shape.experts)
    }
    largest = np.full((2, len(column)), np.nan)

    def visit(seen: ExpertPass, rows: Rows, requests: Requests, sizes: Array) -> None:
        side, at = texts.sides(rows, requests)[as_numpy(seen.rows)], column[Address(seen.layer, seen.expert)]
        for which in (CONTRAST, AGAINST):
            if (side == which).any():
                largest[which, at] = np.fmax(largest[which, at], sizes[side == which].max())

    found = measure(
        engine,
        texts.examples,
        layers=layers,
        first_share=first_share,
        quantile=quantile,
        times=times,
        massive_size=massive_size,
        massive_ratio=massive_ratio,
        batch_size=batch_size,
        visit=visit,
    )
    unknown = np.full(len(found.peaks), np.nan)
    columns = {
        "layer": np.array([peak.address.layer for peak in found.peaks], np.int32),
        "expert": np.array([peak.address.expert for peak in found.peaks], np.int32),
        "score": np.array([peak.size for peak in found.peaks]),
        "contrast_rate": largest[CONTRAST],
        "against_rate": largest[AGAINST],
        "passes": np.zeros(len(found.peaks), bool),
    }
    table = pa.table([columns.get(name, unknown) for name in COLUMNS.names], schema=COLUMNS)
    names = [str(address) for address in found.protected]
    return finished(
        engine,
        texts,
        table,
        command=command,
        seed=seed,
        method="super_experts",
        options=found.settings,
        aggregate="micro",
        null="none",
        permutations=0,
        drawn=0,
        exhaustive=False,
        smallest_p=1.0,
        alpha=0.05,
        bootstrap=0,
        top=10,
        quantity="largest output",
        facts={"protected": names, "forming_layers": list(found.forming), "largest_residual": max(found.largest)},
        notes=(f"Super experts, protected in plans from now on: {', '.join(names) or 'none'}.",),
    )


def _starts(layers: Sequence[LayerShape]) -> list[int]:
    """Return the column of each layer's first expert, layers side by side."""
    return [sum(shape.experts for shape in layers[:place]) for place in range(len(layers))]
