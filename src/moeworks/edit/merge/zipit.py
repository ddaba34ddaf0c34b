"""Merges neurons that are active together: into the centre's neurons (fix-dom), or all of a group's alike (ZipIt)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from moeworks.edit.algebra import (
    Expert,
    activation_of,
    agglomerate,
    expert_of,
    from_features,
    join,
    keys,
    neuron_features,
    unit_rows,
)
from moeworks.edit.layer import LayerWeights
from moeworks.edit.merge.merged import RouterRows, hidden_rows, merge_groups
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS, needs_statistics
from moeworks.errors import BadPlan, Unsupported

__all__ = ["Down", "fix_dom", "zipit"]

Down = Literal["mean", "sum"]
MOST_NEURONS = 30_000  # of a group; the table of their correlations is 3.6 GB then


@TRANSFORMS.register("fix_dom")
@needs_statistics
def fix_dom(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    down: Down = "mean",
    router: RouterRows = "centre",
) -> LayerWeights:
    """Average each member's neuron into the centre's neuron whose activation it is most correlated with.

    Correlations are over kept rows of text, all members on the same rows. A member's neuron without any variation there
    is left out. Inside one of the centre's neurons members weigh by their share.

    Args:
        weights, plan, statistics: the layer (with its activation rule), its groups, its statistics with rows.
        down: `mean` averages down columns as the source does; `sum` adds them with the shares of their experts, which
            keeps the function where the neurons that come together are equally active.
        router: as of `mean`.

    Source: HC-SMoE (arXiv 2410.08589), fix-dom merging, released code; `sum` is not in it.
    """
    _, hidden = hidden_rows(statistics, "fix_dom", weights)

    def merge(centre: int, members: Sequence[int], shares: Sequence[float]) -> Expert:
        experts, active = _run(weights, members, hidden)
        place = list(members).index(centre)
        neurons = weights.neurons
        labels = torch.full((len(members) * neurons,), -1)
        for number in range(len(members)):
            if number == place:
                own = torch.arange(neurons)
            else:
                varies = active[number].norm(dim=1) > 0
                own = torch.where(varies, (active[number] @ active[place].T).argmax(1), -1)
            labels[number * neurons : (number + 1) * neurons] = own.cpu()
        return _combine(experts, labels.to(hidden.device), shares, experts[place], down)

    return merge_groups(weights, plan, statistics, merge, router=router)


@TRANSFORMS.register("zipit")
@needs_statistics
def zipit(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    down: Down = "mean",
    router: RouterRows = "centre",
) -> LayerWeights:
    """Cluster the neurons of all members by the correlation of their activations and average each cluster.

    Args:
        weights, plan, statistics: the layer (with its activation rule), its groups, its statistics with rows.
        down: as of `fix_dom`.
        router: as of `mean`.

    Source: the ZipIt option of HC-SMoE (arXiv 2410.08589). How ZipIt goes on pairing what is already merged is
    [recalled]; here it is average linkage on one minus the correlation, cut to the neurons of one expert.

    Raises:
        Unsupported: a group has too many neurons for a table of their correlations.
    """
    _, hidden = hidden_rows(statistics, "zipit", weights)

    def merge(centre: int, members: Sequence[int], shares: Sequence[float]) -> Expert:
        total = len(members) * weights.neurons
        if total > MOST_NEURONS:
            raise Unsupported(
                f"layer {plan.layer}: the group of expert {centre} has {total} neurons, too many to correlate "
                f"({MOST_NEURONS} at most); take 'fix_dom', or smaller groups."
            )
        experts, active = _run(weights, members, hidden)
        flat = torch.cat(active)  # (members * I, n)
        distance = 1 - (flat @ flat.T).cpu().numpy()
        upper = distance[np.triu_indices(total, 1)].clip(min=0)
        labels = torch.from_numpy(agglomerate(upper, weights.neurons, distances=True)).to(hidden.device)
        return _combine(experts, labels, shares, experts[list(members).index(centre)], down)

    return merge_groups(weights, plan, statistics, merge, router=router)


def _run(weights: LayerWeights, members: Sequence[int], hidden: Tensor) -> tuple[list[Expert], list[Tensor]]:
    """Return the members and their neurons' activations as centred rows of length 1, (I, n) float64 each."""
    rule, experts, active = activation_of(weights), [expert_of(weights, member) for member in members], []
    for expert in experts:
        values = keys(expert, rule, hidden).double().T  # (I, n)
        constant = (values == values[:, :1]).all(1)
        active.append(unit_rows((values - values.mean(1, keepdim=True)).masked_fill(constant[:, None], 0)))
    return experts, active


def _combine(experts: Sequence[Expert], labels: Tensor, shares: Sequence[float], centre: Expert, down: Down) -> Expert:
    """Return the expert whose neuron c is the mean of the neurons labelled c, weighted by their experts' shares.

    Args:
        experts: the members.
        labels: (members * I,) from 0 to I - 1, or -1 for a neuron that is left out.
        shares: of the members.
        centre: whose bias of `down` counts where there is none to average.
        down: as of `fix_dom`.
    """
    if down not in ("mean", "sum"):
        raise BadPlan(f"down columns are combined by 'mean' or 'sum', not '{down}'.")
    features = neuron_features(join(experts))  # (members * I, F)
    neurons, wide = centre.neurons, centre.down.shape[0]
    share = torch.tensor(shares, dtype=features.dtype, device=features.device).repeat_interleave(neurons)
    share, features, labels = share[labels >= 0], features[labels >= 0], labels[labels >= 0]
    mass = torch.zeros(neurons, dtype=features.dtype, device=features.device).index_add_(0, labels, share)
    weight = torch.where(mass[labels] > 0, share, torch.ones_like(share))
    mass = torch.zeros_like(mass).index_add_(0, labels, weight)
    total = torch.zeros(neurons, features.shape[1], dtype=features.dtype, device=features.device)
    total.index_add_(0, labels, features * weight[:, None])
    averaged = total / mass[:, None].clamp(min=torch.finfo(mass.dtype).tiny)
    if down == "sum":
        averaged[:, -wide:] = torch.zeros_like(averaged[:, -wide:]).index_add_(
            0, labels, features[:, -wide:] * share[:, None] / sum(shares)
        )
    merged = from_features(averaged, centre)
    if centre.down_bias is None:
        return merged
    biases = torch.stack([expert.down_bias for expert in experts if expert.down_bias is not None])  # (members, H)
    part = torch.tensor(shares, dtype=biases.dtype, device=biases.device)
    return merged._replace(down_bias=(biases * part[:, None]).sum(0) / part.sum())
