"""Neuron Adjust: neurons that are higher on texts of a skill than elsewhere, and a plan that mirrors their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.address import NeuronAddress
from moeworks.errors import BadData
from moeworks.find.artefact import NEURON_COLUMNS
from moeworks.find.inside.base import MODEL_SCORES
from moeworks.find.inside.moments import Moments, Site, moments
from moeworks.find.inside.tested import finished
from moeworks.find.inside.texts import Texts, texts_of
from moeworks.find.sides import AGAINST, CONTRAST

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.find.artefact import Scores
    from moeworks.plan import Plan
    from moeworks.probes.probe import Probe, Split

__all__ = ["adjust_plan", "neuron_adjust"]

Array = NDArray[Any]


@MODEL_SCORES.register("neuron_adjust")
def neuron_adjust(
    engine: Engine,
    probe: Probe,
    *,
    split: Split = "find",
    seed: int = 0,
    command: str = "",
    where: str = "",
    site: Site = "gate",
    least: int = 20,
    batch_size: int = 8,
) -> Scores:
    """Score neurons by mu_F - mu_R: mean value on the contrast side (forget) less that on the other (retain).

    Source: Neuron Adjust of Effective Skill Unlearning (arXiv 2503.21730): the p % largest differences of the whole
    model, one threshold, one side only; p is 0.5 for languages, 3 for mathematics against code, 200 texts. Values are
    those of tokens for which the neuron's expert ran. `adjust_plan` makes the paper's intervention from it.

    It ranks without a test: p and q are NaN and nothing passes.

    Args:
        engine, probe, split, seed, command: as in `find_in_model`; nothing is drawn at random.
        where: tokens and layers that count, in place of the probe's own clause.
        site: gate (pre-activations, as in the paper), up or key.
        least: tokens of either side for which an expert must have run; others have no rows.
        batch_size: texts a forward pass.
    """
    texts = texts_of(probe, split, where=where)
    return _scores(engine, texts, moments(engine, texts, site=site, batch_size=batch_size), site, least, seed, command)


def adjust_plan(
    engine: Engine,
    probe: Probe,
    *,
    share: float = 0.005,
    split: Split = "find",
    where: str = "",
    site: Site = "gate",
    least: int = 20,
    at_random: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    command: str = "",
) -> Plan:
    """Return the plan of Neuron Adjust: values that look like the skill are mirrored into how the neuron is elsewhere.

    Each listed neuron is taken as normal on either side, N(mu_F, sd_F) and N(mu_R, sd_R) with densities d_F and d_R. A
    value v with d_R <= d_F is changed with probability d_F / (d_R + d_F): z = (v - mu_F) / sd_F, v <- mu_R - z·sd_R
    (mapped to where the neuron is elsewhere, and mirrored about that mean). See the action `adjust` of the operation
    `neurons` for how chance is drawn.

    The released code has three bugs, which are not reproduced: its running "std" is a variance (no square root); the
    hook puts the forget mean where the forget deviation belongs; one random draw is shared by the whole sequence. Here
    deviations are deviations, each its own, and every token and neuron has a draw of its own.

    Args:
        engine, probe, split, where, site, least, batch_size, command: as in `neuron_adjust`.
        share: of all neurons that were compared, by mu_F - mu_R; only positive differences are taken.
        at_random: as many neurons drawn at random from those compared, with their own statistics: the control.
        seed: of that draw.

    Raises:
        BadData: no neuron is left.
    """
    from moeworks.plan.files import plan_header
    from moeworks.plan.guards import check
    from moeworks.plan.schema import Neurons, Plan, Provenance

    if not 0 < share <= 1:
        raise BadData(f"a share of {share} is not above 0 and at most 1; 0.005 are half a percent of the neurons.")
    texts = texts_of(probe, split, where=where)
    found = moments(engine, texts, site=site, batch_size=batch_size)
    scores = _scores(engine, texts, found, site, least, seed, command)
    count = int(np.ceil(share * scores.table.num_rows - 1e-9))
    if at_random:
        chosen = np.random.default_rng([seed, 3]).permutation(scores.table.num_rows)[:count]
        rows = scores.table.take(np.sort(chosen))
    else:
        rows = scores.top(count)
    layer, expert, neuron = (np.asarray(rows[name].to_numpy()) for name in ("layer", "expert", "neuron"))
    std = {number: found.std(number) for number in found.mean}
    take = [
        np.array([table[int(a)][side, b, c] for a, b, c in zip(layer, expert, neuron, strict=True)])
        for side in (CONTRAST, AGAINST)
        for table in (found.mean, std)
    ]
    spread = (take[1] > 0) & (take[3] > 0)  # a neuron without spread has no density
    if not spread.any():
        raise BadData(
            "no neuron has a higher mean on the contrast side and a spread on both; there is nothing to adjust."
        )
    mean, deviation, other_mean, other_std = (tuple(values[spread].tolist()) for values in take)
    places = zip(layer[spread], expert[spread], neuron[spread], strict=True)
    operation = Neurons(
        neurons=tuple(NeuronAddress(*map(int, place)) for place in places),
        action="adjust",
        site=site,
        mean=mean,
        std=deviation,
        other_mean=other_mean,
        other_std=other_std,
    )
    how = "neurons at random" if at_random else "the neurons that are highest there"
    plan = Plan(
        header=plan_header(engine.identity, command=command, text_hash=scores.header.text_hash),
        description=(
            f"Turn down what sets '{texts.contrast}' apart from '{texts.against}': {len(operation.neurons)} neurons, "
            f"{how}, mirrored into their values on the other side."
        ),
        operations=(operation,),
        provenance=Provenance(
            method="neuron_adjust",
            options={"share": share, "site": site, "least": least, "at_random": at_random, "seed": seed},
            contrast=str(texts.contrast),
            against=str(texts.against),
            scores_hash=scores.header.hash,
            text_hash=scores.header.text_hash,
        ),
    )
    check(plan, engine.identity)
    return plan


def _scores(engine: Engine, texts: Texts, found: Moments, site: Site, least: int, seed: int, command: str) -> Scores:
    places = {layer: found.known(layer, least=max(least, 1)) for layer in sorted(found.mean)}
    if not any(len(experts) for experts in places.values()):
        raise BadData(f"no expert ran for {least} tokens of both sides; give more texts, or ask for fewer (least).")
    neurons = {layer: found.mean[layer].shape[2] for layer in places}
    first, second = (
        np.concatenate([found.mean[layer][side, experts].reshape(-1) for layer, experts in places.items()])
        for side in (CONTRAST, AGAINST)
    )
    nan = np.full(len(first), np.nan)
    table = pa.table(
        [
            np.concatenate([np.full(len(e) * neurons[layer], layer) for layer, e in places.items()]).astype(np.int32),
            np.concatenate([np.repeat(e, neurons[layer]) for layer, e in places.items()]).astype(np.int32),
            np.concatenate([np.tile(np.arange(neurons[layer]), len(e)) for layer, e in places.items()]).astype(
                np.int32
            ),
            first - second,
            first,
            second,
            *[nan] * 5,
            np.zeros(len(first), bool),
        ],
        schema=NEURON_COLUMNS,
    )
    return finished(
        engine, texts, table, command=command, seed=seed, method="neuron_adjust",
        options={"site": site, "least": least}, aggregate="micro", null="none", permutations=0, drawn=0,
        exhaustive=False, smallest_p=1.0, alpha=0.05, bootstrap=0, top=10, quantity=f"mean {site}",
    )  # fmt: skip
