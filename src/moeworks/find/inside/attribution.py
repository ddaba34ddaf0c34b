"""Direct logit attribution as a score: how much an expert's outputs speak for the tokens that come next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean
from moeworks.find.inside.base import MODEL_SCORES
from moeworks.find.inside.observe import attribute
from moeworks.find.inside.tested import Aggregate, tested
from moeworks.find.inside.texts import expert_columns, texts_of
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.find.artefact import Scores
    from moeworks.probes.probe import Probe, Split
    from moeworks.where import Requests, Rows

__all__ = ["attribution"]

Array = NDArray[Any]


@MODEL_SCORES.register("attribution")
def attribution(
    engine: Engine,
    probe: Probe,
    *,
    split: Split = "find",
    seed: int = 0,
    command: str = "",
    where: str = "",
    norm: Literal["layer", "final"] = "layer",
    centred: bool = True,
    aggregate: Aggregate = "micro",
    permutations: int = 1000,
    bootstrap: int = 200,
    alpha: float = 0.05,
    batch_size: int = 8,
) -> Scores:
    """Score experts by the difference of what they add to the logit of the next token on the two sides of a probe.

    Source: "The Expert Strikes Back" (arXiv 2604.02178) and its code: DLA = W_U(u_e·gain·rsqrt(mean(h²) + eps)) on a
    target token, u_e = w_e·y_e, h the residual at that layer; an expert that is not chosen has 0. The paper ranks the k
    chosen experts on a target of its own choice; here the target of every token is the one that follows, a token counts
    on the side on which its target is, and the two sides are compared and tested against permuted documents.

    What an expert does through later layers is not in it: direct attribution is not the effect of removing the expert.

    Args:
        engine, probe, split, seed, command: as in `find_in_model`.
        where: tokens that count, as targets, and layers, in place of the probe's own clause.
        norm: `layer`: h is the residual after the expert's own layer, as in the paper's code; `final`: the one that the
            final norm reads, so that contributions of different layers are in one unit.
        centred: take off what is added to all tokens alike, which moves no probability; the paper does not.
        aggregate: micro takes the mean over all targets of a side, macro the mean over documents of theirs.
        permutations, bootstrap, alpha: as in `moeworks.find`.
        batch_size: texts a forward pass.
    """
    if norm not in ("layer", "final"):
        raise BadData(f"there is no norm '{norm}'; {did_you_mean(norm, ('layer', 'final'))}")
    texts = texts_of(probe, split, where=where, predicted=True)
    columns = expert_columns(engine.identity, texts.where)
    sums = np.zeros((2 * texts.documents, sum(experts for _, experts in columns.values())))

    def add(layer: int, expert: int, place: Array, value: Array, rows: Rows, requests: Requests) -> None:
        entry = texts.entries_of(rows, requests)[place + 1]  # that of the target
        kept = entry >= 0
        sums[:, columns[layer][0] + expert] += np.bincount(entry[kept], weights=value[kept], minlength=len(sums))

    attribute(
        engine,
        texts.examples,
        add,
        where=Where(layer=tuple(columns)),
        norm=norm,
        centred=centred,
        batch_size=batch_size,
    )
    return tested(
        engine,
        texts,
        sums,
        columns,
        method="attribution",
        quantity="logits added to the next token",
        aggregate=aggregate,
        options={"norm": norm, "centred": centred},
        permutations=permutations,
        bootstrap=bootstrap,
        alpha=alpha,
        seed=seed,
        command=command,
    )
