"""Expert activity: how strongly an expert writes, weight times length of its output, contrasted over two sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean
from moeworks.find.inside.base import MODEL_SCORES
from moeworks.find.inside.observe import as_numpy, observe
from moeworks.find.inside.tested import Aggregate, tested
from moeworks.find.inside.texts import expert_columns, texts_of

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.inside import ExpertPass
    from moeworks.find.artefact import Scores
    from moeworks.probes.probe import Probe, Split
    from moeworks.where import Requests, Rows

__all__ = ["activity"]

Array = NDArray[Any]


@MODEL_SCORES.register("activity")
def activity(
    engine: Engine,
    probe: Probe,
    *,
    split: Split = "find",
    seed: int = 0,
    command: str = "",
    where: str = "",
    aggregate: Aggregate = "micro",
    unit: Literal["layer", "length"] = "layer",
    permutations: int = 1000,
    bootstrap: int = 200,
    alpha: float = 0.05,
    batch_size: int = 8,
) -> Scores:
    """Score experts by the difference of their mean activity w_e·‖y_e‖₂ on the two sides of a probe.

    Source: the activity score of "The Expert Strikes Back" (arXiv 2604.02178), there the length of what the expert adds
    to the residual and not its gate alone; an expert that is not chosen has activity 0. The paper ranks texts by it
    within one expert (see `contexts`); the contrast of two sides and its test against permuted documents are ours.

    Args:
        engine, probe, split, seed, command: as in `find_in_model`.
        where: tokens and layers that count, in place of the probe's own clause.
        aggregate: micro takes the mean over all tokens of a side, macro the mean over documents of theirs.
        unit: `layer` divides by what all experts of the layer write together on an average token, since lengths grow
            with depth; `length` leaves the activity as it is.
        permutations, bootstrap, alpha: as in `moeworks.find`.
        batch_size: texts a forward pass.
    """
    if unit not in ("layer", "length"):
        raise BadData(f"there is no unit '{unit}'; {did_you_mean(unit, ('layer', 'length'))}")
    texts = texts_of(probe, split, where=where)
    columns = expert_columns(engine.identity, texts.where)
    sums = np.zeros((2 * texts.documents, sum(experts for _, experts in columns.values())))

    def add(seen: ExpertPass, rows: Rows, requests: Requests) -> None:
        value = as_numpy(seen.weights.double().abs() * seen.outputs.double().norm(dim=-1))  # (m,)
        entry = texts.entries_of(rows, requests)[as_numpy(seen.rows)]  # (m,)
        kept = entry >= 0
        found = np.bincount(entry[kept], weights=value[kept], minlength=len(sums))
        sums[:, columns[seen.layer][0] + seen.expert] += found

    observe(engine, texts.examples, add, where=texts.where, batch_size=batch_size)
    if unit == "layer":
        tokens = texts.tokens.sum()
        for start, experts in columns.values():
            whole = sums[:, start : start + experts].sum() / tokens
            sums[:, start : start + experts] /= whole or 1.0
    return tested(
        engine,
        texts,
        sums,
        columns,
        method="activity",
        quantity="activity" if unit == "length" else "share of the layer's activity",
        aggregate=aggregate,
        options={"unit": unit},
        permutations=permutations,
        bootstrap=bootstrap,
        alpha=alpha,
        seed=seed,
        command=command,
    )
